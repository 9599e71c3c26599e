"""What the loss needs beside the rows: log-probabilities of earlier policies, and shaping rewards of single turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate.utils import gather_object
from trl.models.utils import disable_gradient_checkpointing

from ..records import EpisodeBatch
from .batch import LearnerTurns
from .importance import importance_sampling_ratio
from .metrics import COMPLETION_ROWS


if TYPE_CHECKING:
    from .trainer import SelfPlayTrainer


def score_rows(trainer: SelfPlayTrainer, rows: dict[str, torch.Tensor]) -> None:
    """Adds what the loss needs of earlier policies: `old_per_token_logps`, `ref_per_token_logps` (N, C), and vLLM's
    `importance_sampling_ratio`."""
    args = trainer.args
    correct = trainer.use_vllm and trainer.vllm_importance_sampling_correction
    sampling = rows.pop("sampling_per_token_logps", None)
    if correct and sampling is None:
        raise ValueError("vLLM answered no log-probabilities; set vllm_importance_sampling_correction=False.")
    ids = torch.cat([rows["prompt_ids"], rows["completion_ids"]], dim=1)
    mask = torch.cat([rows["prompt_mask"], rows["completion_mask"]], dim=1)
    length = rows["completion_ids"].size(1)

    def logps(model: torch.nn.Module) -> torch.Tensor:
        return trainer._get_per_token_logps_and_entropies(
            model, ids, mask, length, batch_size=args.per_device_train_batch_size
        )[0]

    with torch.no_grad(), disable_gradient_checkpointing(trainer.model, args.gradient_checkpointing_kwargs):
        # Where a generation is spent within one optimizer step, the old policy is the current one
        if args.gradient_accumulation_steps % (args.steps_per_generation * trainer.num_iterations) or correct:
            rows["old_per_token_logps"] = logps(trainer.model)
        if trainer.beta != 0.0:
            if trainer.ref_model is not None:
                rows["ref_per_token_logps"] = logps(trainer.ref_model)
            else:
                from trl.trainer.utils import use_adapter

                peft_model = trainer.accelerator.unwrap_model(trainer.model)
                with use_adapter(peft_model, adapter_name="ref" if "ref" in peft_model.peft_config else None):
                    rows["ref_per_token_logps"] = logps(trainer.model)
    if trainer.use_vllm and sampling is not None:
        rows["sampling_per_token_logps"] = sampling
    if correct and sampling is not None:
        rows["importance_sampling_ratio"] = importance_sampling_ratio(
            rows["old_per_token_logps"],
            sampling,
            rows["completion_mask"],
            mode=trainer.vllm_importance_sampling_mode,
            low=trainer.vllm_importance_sampling_clip_min,
            high=trainer.vllm_importance_sampling_clip_max,
        )


def shaping_rewards(trainer: SelfPlayTrainer, batch: EpisodeBatch, turns: LearnerTurns, num_rows: int) -> np.ndarray:
    """`[T]` weighted sum of the reward functions, for the learner's turns. Logged by function."""
    steps = [batch.samples[sample] for sample in turns.sample]
    played = len(steps)
    index = list(range(played)) + [0] * (num_rows - played)  # TRL gathers equal counts
    inputs = []
    for i in index:
        # A process without a turn of the learner shows any other one, and drops what is said of it
        step = steps[i] if steps else batch.samples[0]
        inputs.append(
            {
                "prompt": list(step.turn.messages),
                "game": step.turn.game,
                "role": step.turn.role,
                "action": step.reply.action,
                "error": step.reply.error,
                "seat_return": float(batch.outcomes.returns[turns.episode[i], turns.player[i]]) if steps else 0.0,
            }
        )
    replies = [(steps[i] if steps else batch.samples[0]).reply for i in index]
    completions = [[{"role": "assistant", "content": reply.text}] for reply in replies]
    ids = [list(reply.completion_ids or ()) for reply in replies]
    gathered = trainer._calculate_rewards(inputs, [row["prompt"] for row in inputs], completions, ids)
    own = gathered[trainer.accelerator.process_index * num_rows :][:played]
    real = torch.cat([torch.arange(num_rows) < count for count in gather_object([played])]).to(gathered.device)
    metrics = trainer._metrics["train"]
    for i, name in enumerate(trainer.reward_func_names):
        metrics[f"rewards/{name}/mean"].append(torch.nanmean(gathered[real, i]).item())
    # What the functions gave to TRL's `log_metric` and `log_extra`
    for name in sorted(set(gather_object(list(trainer._pending_metrics)))):
        metrics[name].append(float(np.mean(gather_object(trainer._pending_metrics.get(name, [])))))
    for column in sorted(set(gather_object(list(trainer._pending_extra_logs)))):
        values = trainer._pending_extra_logs.get(column, [None] * played)
        trainer._logs["extra"][column].extend(gather_object(values[: min(played, COMPLETION_ROWS)]))
    trainer._pending_metrics.clear()
    trainer._pending_extra_logs.clear()
    weighted = (own * trainer.reward_weights.to(own.device)).nansum(dim=1)
    return weighted.double().cpu().numpy()
