"""Guards against collapse: figures of training that should stay within bounds, and what is done where one does not."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..players.registry import canonical_player_name
from ..records import Outcomes
from .checkpoint import last_good_checkpoint
from .config import SelfPlayConfig


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bound:
    """A bound on the mean of a figure over the window.

    Args:
        threshold (`float`): The bound itself.
        above (`bool`): Whether the alarm is raised above it, rather than below.
        relative (`bool`): Whether it is a share of the mean of the first window.
        words (`str`): What the figure is called in the warning.
    """

    threshold: float
    above: bool
    relative: bool
    words: str


class GuardCallback(TrainerCallback):
    """Watches figures of every generation, and warns, stops or rolls back where training collapses.

    The trainer calls [`observe`] once for each generation; evaluations come as events. An alarm is raised when the mean
    of a figure over the last `guard_window` generations leaves its bound, and is over when it is back. All processes
    see the same figures and come to the same conclusions.

    What `guard_action` does when an alarm is raised:

    - `warn`: a warning in the log.
    - `stop`: training ends after the step, with the path of the last checkpoint that was saved while there was no
      alarm.
    - `rollback`: as `stop`, and the model is put back to that checkpoint, as `load_best_model_at_end` does. Training
      does not go on from there by itself: games, replies and updates derive from the seed and the generation, so that
      it would collapse again in the same way. Resume from the checkpoint with other settings.

    Args:
        args ([`SelfPlayConfig`]): Bounds, window and action.
        games (`Sequence[str]`): Games of the run.
    """

    def __init__(self, args: SelfPlayConfig, games: Sequence[str]):
        self.args = args
        self._games = list(games)
        self._anchor = None if args.guard_anchor is None else canonical_player_name(args.guard_anchor)
        self.bounds = _bounds(args)
        self.reset()

    def reset(self) -> None:
        """Forgets what was seen, for a run that begins."""
        self.alarms: list[str] = []
        self.roll_back_to: Path | None = None
        self._windows: dict[str, list[float]] = {name: [] for name in self.bounds}
        self._first: dict[str, float] = {}
        self._raised: list[str] = []

    def observe(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Takes the figures of a generation, and answers `self_play/guard/NAME` of every bound: 1 while there is an
        alarm, else 0. Figures that are missing or not finite are passed over."""
        for name, value in figures.items():
            if name in self.bounds and np.isfinite(value):
                self._watch(name, value, self.args.guard_window)
        return {f"self_play/guard/{name}": float(name in self.alarms) for name in self.bounds}

    def _watch(self, name: str, value: float, length: int) -> None:
        bound, window = self.bounds[name], self._windows[name]
        window.append(value)
        del window[:-length]
        if len(window) < length:
            return
        mean = float(np.mean(window))
        first = self._first.setdefault(name, mean)
        limit = bound.threshold * first if bound.relative else bound.threshold
        alarmed = mean > limit if bound.above else mean < limit
        if alarmed and name not in self.alarms:
            self.alarms.append(name)
            side = "above" if bound.above else "below"
            of = f"{bound.threshold:g} of the first window's {first:.4g}" if bound.relative else f"{limit:.4g}"
            self._raised.append(f"{bound.words} is {mean:.4g}, {side} {of} (guard_{name})")
        elif not alarmed and name in self.alarms:
            self.alarms.remove(name)
            logger.warning("The alarm of guard_%s is over: %s is %.4g.", name, bound.words, mean)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> TrainerControl:
        names = [f"eval_{game}/{self._anchor}/win_rate" for game in self._games]
        rates = [metrics[name] for name in names if name in metrics] if metrics else []
        if rates and "anchor_win_rate" in self.bounds:
            # One evaluation is many games already
            self._watch("anchor_win_rate", float(np.mean(rates)), 1)
        return self._act(state, control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        return self._act(state, control)

    def _act(self, state: TrainerState, control: TrainerControl) -> TrainerControl:
        """What is done about alarms raised since the last call."""
        raised, self._raised = self._raised, []
        if not raised:
            return control
        message = f"Training may be collapsing at step {state.global_step}: {'; '.join(raised)}."
        if self.args.guard_action == "warn":
            if state.is_world_process_zero:
                logger.warning("%s", message)
            return control
        control.should_training_stop = True
        good = last_good_checkpoint(self.args.output_dir)
        if good is None:
            message += " Training stops. There is no checkpoint from before the alarm."
        else:
            message += (
                f" Training stops. The last checkpoint from before the alarm is {good}: go on from there with "
                f"resume_from_checkpoint={good} and other settings, such as a lower learning_rate."
            )
            if self.args.guard_action == "rollback":
                self.roll_back_to = good
                message += " The model is put back to it."
        if state.is_world_process_zero:
            logger.warning("%s", message)
        return control

    def state_dict(self) -> dict[str, Any]:
        """Windows and alarms, as JSON values."""
        return {"windows": self._windows, "first": self._first, "alarms": self.alarms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what [`state_dict`] answered; bounds that the run did not have then start anew."""
        for name in self.bounds:
            self._windows[name] = list(state["windows"].get(name, []))
        self._first = {name: value for name, value in state["first"].items() if name in self.bounds}
        self.alarms = [name for name in state["alarms"] if name in self.bounds]


def _bounds(args: SelfPlayConfig) -> dict[str, Bound]:
    known = {
        "reply_length": Bound(args.guard_reply_length or 0.0, False, True, "the mean reply length in tokens"),
        "entropy": Bound(args.guard_entropy or 0.0, False, False, "the entropy per token in nats"),
        "seat_gap": Bound(args.guard_seat_gap or 0.0, True, False, "the difference of the roles' mean returns"),
        "illegal_rate": Bound(args.guard_illegal_rate or 0.0, True, False, "the share of illegal replies"),
        "anchor_win_rate": Bound(
            args.guard_anchor_win_rate or 0.0, False, False, f"the win rate against {args.guard_anchor}"
        ),
    }
    return {name: bound for name, bound in known.items() if getattr(args, f"guard_{name}") is not None}


def guard_figures(outcomes: Outcomes, sums: Mapping[str, float]) -> dict[str, float]:
    """The figures of a generation that guards watch, NaN where there is none.

    Args:
        outcomes ([`~spiral_trl.records.Outcomes`]): Of all processes.
        sums (`Mapping[str, float]`): What [`~spiral_trl.training.metrics.turn_sums`] answers.

    Returns:
        `dict[str, float]`: `reply_length` and `entropy` (per token) and `illegal_rate` over all turns of the policy;
        `seat_gap`, the largest difference of its mean returns in two roles of one game.
    """

    def total(quantity: str) -> float:
        return sum(value for key, value in sums.items() if key.endswith(f"|{quantity}"))

    turns, tokens = total("turns") or np.nan, total("tokens") or np.nan
    gaps = [np.nan]
    for g in range(len(outcomes.games)):
        here = outcomes.game == g
        means = [
            outcomes.returns[here & learner, p].mean()
            for p, learner in enumerate(outcomes.learner.T)
            if (here & learner).any()
        ]
        gaps += [float(max(means) - min(means))] if len(means) > 1 else []
    return {
        "reply_length": total("tokens") / turns,
        "entropy": total("surprisal") / tokens,
        "seat_gap": float(np.nanmax(gaps)) if len(gaps) > 1 else np.nan,
        "illegal_rate": total("illegal") / turns,
    }
