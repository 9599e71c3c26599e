"""Callbacks of the self-play trainer."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class LogWhereSavedCallback(TrainerCallback):
    """Logs at every saved step: averages over logged intervals are not in a checkpoint, so an interval ends there."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if control.should_save:
            control.should_log = True
        return control
