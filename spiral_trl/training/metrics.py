"""Metrics of a generation by game and role, over all processes, and the rows of the completions table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.utils import gather_object

from ..records import ENDINGS, EpisodeBatch, Outcomes
from .batch import LearnerTurns
from .guards import guard_figures


if TYPE_CHECKING:
    from .trainer import SelfPlayTrainer


# Most turns of one process in the completions table
COMPLETION_ROWS = 128


def turn_sums(batch: EpisodeBatch, turns: LearnerTurns, advantages: np.ndarray) -> dict[str, float]:
    """Sums over all processes' turns by game and role, and the extremes of reply lengths.

    Keys are `game|role|quantity`, and `|min_length`, `|max_length`; see [`turn_metrics`] for what becomes of them.
    """
    game = batch.outcomes.game[turns.episode]
    length = turns.length[turns.sample].astype(float)
    quantities = {
        "turns": np.ones(len(turns)),
        "illegal": turns.illegal[turns.sample].astype(float),
        "tokens": length,
        "truncated": turns.truncated[turns.sample].astype(float),
        "surprisal": turns.surprisal[turns.sample],
        "advantage": advantages,
        "advantage_squared": advantages**2,
    }
    sums = {}
    for g, (name, roles) in enumerate(zip(batch.outcomes.games, batch.outcomes.roles, strict=True)):
        for p, role in enumerate(roles):
            here = (game == g) & (turns.player == p)
            for quantity, values in quantities.items():
                sums[f"{name}|{role}|{quantity}"] = float(values[here].sum())
    parts = gather_object([(sums, float(length.min(initial=np.inf)), float(length.max(initial=0.0)))])
    total: dict[str, float] = {}
    for part, _, _ in parts:
        for key, value in part.items():
            total[key] = total.get(key, 0.0) + value
    return total | {"|min_length": min(part[1] for part in parts), "|max_length": max(part[2] for part in parts)}


def turn_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Metrics by game and role of [`turn_sums`], and over all of them under TRL's names."""
    groups: dict[tuple[str, str], dict[str, float]] = {}
    for key, value in sums.items():
        if not key.startswith("|"):
            game, role, quantity = key.split("|")
            groups.setdefault((game, role), {})[quantity] = value

    def over_all(quantity: str) -> float:
        return sum(total[quantity] for total in groups.values())

    turns = max(1.0, over_all("turns"))
    metrics = {
        "self_play/illegal_rate": over_all("illegal") / turns,
        "completions/mean_length": over_all("tokens") / turns,
        "completions/min_length": sums["|min_length"] if np.isfinite(sums["|min_length"]) else 0.0,
        "completions/max_length": sums["|max_length"],
        "completions/clipped_ratio": over_all("truncated") / turns,
    }
    for (game, role), total in groups.items():
        prefix, turns = f"self_play/{game}/{role}", total["turns"]
        if not turns:
            continue
        mean = total["advantage"] / turns
        metrics[f"{prefix}/illegal_rate"] = total["illegal"] / turns
        metrics[f"{prefix}/reply_length"] = total["tokens"] / turns
        metrics[f"{prefix}/advantage_std"] = max(0.0, total["advantage_squared"] / turns - mean**2) ** 0.5
        if np.isfinite(total["surprisal"]):
            # The sampled estimate of the entropy per token, in nats
            metrics[f"{prefix}/entropy"] = total["surprisal"] / max(1.0, total["tokens"])
    return metrics


def outcome_metrics(outcomes: Outcomes, baselines: dict[tuple[str, str], float]) -> dict[str, float]:
    """Returns of the learner by game and role, how games ended, and the baselines; `outcomes` are those of all
    processes."""
    metrics = {}
    for g, (name, roles) in enumerate(zip(outcomes.games, outcomes.roles, strict=True)):
        here = outcomes.game == g
        if not here.any():
            continue
        for p, role in enumerate(roles):
            seated = here & outcomes.learner[:, p]
            if seated.any():
                metrics[f"self_play/{name}/{role}/return"] = float(outcomes.returns[seated, p].mean())
        for code, ending in enumerate(ENDINGS):
            metrics[f"self_play/{name}/ending/{ending.value}"] = float((outcomes.endings[here] == code).mean())
    for (name, role), baseline in baselines.items():
        metrics[f"self_play/{name}/{role}/baseline"] = baseline
    return metrics


def completion_rows(batch: EpisodeBatch, turns: LearnerTurns, advantages: np.ndarray) -> dict[str, list[Any]]:
    """Columns of TRL's completions table for the first turns of this process."""
    shown = range(min(len(turns), COMPLETION_ROWS))
    steps = [batch.samples[turns.sample[i]] for i in shown]
    return {
        "prompt": [list(step.turn.messages) for step in steps],
        "completion": [[{"role": "assistant", "content": step.reply.text}] for step in steps],
        "advantages": [float(advantages[i]) for i in shown],
        "game": [step.turn.game for step in steps],
        "role": [step.turn.role for step in steps],
        "action": [step.reply.action for step in steps],
        "error": [step.reply.error for step in steps],
        "return": [float(batch.outcomes.returns[turns.episode[i], turns.player[i]]) for i in shown],
    }


def record_generation(
    trainer: SelfPlayTrainer,
    batch: EpisodeBatch,
    turns: LearnerTurns,
    outcomes: Outcomes,
    advantages: np.ndarray,
    num_turns: int,
    num_tokens: int,
    seconds: float,
    against: dict[str, float],
) -> None:
    """Metrics of a generation, over all processes, and the rows of the completions table."""
    trainer.played["games"] += len(outcomes)
    trainer.played["turns"] += num_turns
    trainer.played["tokens"] += num_tokens
    trainer.state.num_input_tokens_seen = trainer.played["tokens"]
    metrics = trainer._metrics["train"]
    sums = turn_sums(batch, turns, advantages)
    for name, value in {
        **outcome_metrics(outcomes, trainer.advantage.baselines),
        **turn_metrics(sums),
        **against,
        **trainer.guards.observe(guard_figures(outcomes, sums)),
        "reward": float(outcomes.returns[outcomes.learner].mean()),
        "reward_std": float(outcomes.returns[outcomes.learner].std()),
        "self_play/tokens_per_second": num_tokens / seconds,
    }.items():
        metrics[name].append(value)
    for name, count in trainer.played.items():
        metrics[f"self_play/{name}"] = [count]
    metrics["num_tokens"] = [trainer.state.num_input_tokens_seen]
    if trainer.log_completions:
        for name, values in completion_rows(batch, turns, advantages).items():
            log = trainer._logs["extra"][name] if name not in trainer._logs else trainer._logs[name]
            log.extend(gather_object(values))
