"""How noisy the policy gradient is under different advantages, measured on the same games."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..advantages import AdvantageEstimator
from .batch import gather_outcomes, learner_turns, training_rows
from .trainer import SelfPlayTrainer


# Generations of these games: apart from those of training, which count from 0
_FIRST_GENERATION = 2**32


def gradient_variance(
    trainer: SelfPlayTrainer, estimators: Mapping[str, AdvantageEstimator], batches: int, warm_up: int
) -> dict[str, float]:
    """Total variance of the policy gradient over batches of games: the trace of its covariance.

    Every estimator sees the same games of the trainer's current policy, which is not changed. Only the term of the
    returns is measured, without the magnet. One process.

    Args:
        trainer ([`~spiral_trl.SelfPlayTrainer`]): Holds the policy, and the games per batch.
        estimators (`Mapping[str, AdvantageEstimator]`): By name. Their baselines are warmed up and left so.
        batches (`int`): Batches whose gradients are compared; at least 2.
        warm_up (`int`): Batches before them that only feed the baselines.

    Returns:
        `dict[str, float]`: For each estimator the sum over parameters of the variance (n - 1) of the gradient of one
        batch, in units of the loss.
    """
    if trainer.accelerator.num_processes > 1:
        raise ValueError("gradient_variance runs in one process.")
    if batches < 2:
        raise ValueError(f"A variance needs at least 2 batches, not {batches}.")
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    mean = {name: np.zeros(sum(p.numel() for p in parameters)) for name in estimators}
    squares = dict.fromkeys(estimators, 0.0)
    metrics, beta = trainer._metrics["train"], trainer.beta
    kept = {name: list(values) for name, values in metrics.items()}
    trainer.beta = 0.0
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation
    was_training = trainer.model.training
    trainer.model.train()
    try:
        for k in range(warm_up + batches):
            batch, order = trainer.play_generation(_FIRST_GENERATION + k)
            outcomes, position = gather_outcomes(batch.outcomes, order, trainer.games)
            turns = learner_turns(batch)
            for name, estimator in estimators.items():
                advantages = estimator(outcomes)[position][turns.episode, turns.player]
                if k < warm_up:
                    continue
                rows = training_rows(
                    batch,
                    turns,
                    advantages,
                    len(turns),
                    pad_token_id=trainer.player.pad_token_id,
                    pad_to_multiple_of=None,
                    mask_truncated=trainer.mask_truncated_completions,
                    device=trainer.accelerator.device,
                )
                rows.pop("sampling_per_token_logps", None)
                rows["num_items_in_batch"] = torch.tensor(float(len(turns) * trainer.max_completion_length))
                loss = trainer.compute_loss(trainer.model, rows)
                gradients = torch.autograd.grad(loss, parameters)
                flat = torch.cat([gradient.flatten() for gradient in gradients]).double().cpu().numpy()
                # Welford: the gradients of all batches are never held at once
                difference = flat - mean[name]
                mean[name] += difference / (k - warm_up + 1)
                squares[name] += float(difference @ (flat - mean[name]))
    finally:
        trainer.beta = beta
        trainer.model.train(was_training)
        metrics.clear()
        metrics.update(kept)
    return {name: total / (batches - 1) for name, total in squares.items()}
