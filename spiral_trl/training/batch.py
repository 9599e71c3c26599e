"""From played games to what TRL's loss takes, and to metrics.

Axes: `N` training rows (one per turn of the learner, then padding), `P` prompt tokens (left-padded), `C` completion
tokens (right-padded), `S` distinct (turn, reply) pairs, `T` turns, `G` games.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from trl.trainer.utils import pad

from ..records import ENDINGS, EpisodeBatch, Outcomes


@dataclass(frozen=True)
class LearnerTurns:
    """The turns that the learner answered, in columns.

    Args:
        sample (`np.ndarray`): `[T]` index into the batch's distinct samples.
        episode (`np.ndarray`): `[T]` game.
        player (`np.ndarray`): `[T]` seat.
        length (`np.ndarray`): `[S]` completion tokens of each sample.
        truncated (`np.ndarray`): `[S]` whether the reply was cut at the longest length.
        illegal (`np.ndarray`): `[S]` whether no action could be parsed.
        surprisal (`np.ndarray`): `[S]` sum over tokens of -log p in nats, NaN where the sampler has no log-probabilities.
    """

    sample: np.ndarray
    episode: np.ndarray
    player: np.ndarray
    length: np.ndarray
    truncated: np.ndarray
    illegal: np.ndarray
    surprisal: np.ndarray

    def __len__(self) -> int:
        return len(self.sample)


def learner_turns(batch: EpisodeBatch) -> LearnerTurns:
    """The turns whose replies carry token ids: those of the model in training."""
    replies = [step.reply for step in batch.samples]
    mine = np.array([reply.completion_ids is not None for reply in replies], dtype=bool)
    keep = mine[batch.turn_sample] if len(replies) else np.zeros(0, dtype=bool)
    return LearnerTurns(
        sample=batch.turn_sample[keep],
        episode=batch.turn_episode[keep],
        player=batch.turn_player[keep],
        length=np.array([len(reply.completion_ids or ()) for reply in replies]),
        truncated=np.array([reply.finish_reason == "length" for reply in replies], dtype=bool),
        illegal=np.array([reply.action is None for reply in replies], dtype=bool),
        surprisal=np.array([np.nan if reply.logprobs is None else -sum(reply.logprobs) for reply in replies]),
    )


def training_rows(
    batch: EpisodeBatch,
    turns: LearnerTurns,
    advantages: np.ndarray,
    num_rows: int,
    *,
    pad_token_id: int,
    pad_to_multiple_of: int | None,
    mask_truncated: bool,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """One row per turn, then copies of the first row with nothing to train on, up to `num_rows`.

    Args:
        batch ([`~spiral_trl.records.EpisodeBatch`]): The games.
        turns ([`LearnerTurns`]): The learner's turns in them.
        advantages (`np.ndarray`): `[T]` advantage of each turn.
        num_rows (`int`): `N`; at least `T` and at least 1.
        pad_token_id (`int`): Token of padding.
        pad_to_multiple_of (`int`, *optional*): Pads `P` and `C` to a multiple.
        mask_truncated (`bool`): Whether replies cut at the longest length are left out of the loss.
        device (`torch.device`): Where the tensors go.

    Returns:
        `dict[str, torch.Tensor]`: `prompt_ids`, `prompt_mask` (N, P), `completion_ids`, `completion_mask` (N, C),
        `advantages` (N,), and `sampling_per_token_logps` (N, C) where the sampler has log-probabilities.
    """
    used, row = np.unique(turns.sample, return_inverse=True)
    replies = [batch.samples[sample].reply for sample in used]
    multiple = pad_to_multiple_of

    def padded(values: list, side: str, fill: float) -> torch.Tensor:
        return pad(values, padding_value=fill, padding_side=side, pad_to_multiple_of=multiple)

    prompts = [torch.tensor(reply.prompt_ids) for reply in replies]
    completions = [torch.tensor(reply.completion_ids) for reply in replies]
    columns = {
        "prompt_ids": padded(prompts, "left", pad_token_id),
        "prompt_mask": padded([torch.ones_like(ids) for ids in prompts], "left", 0),
        "completion_ids": padded(completions, "right", pad_token_id),
        "completion_mask": padded([torch.ones_like(ids) for ids in completions], "right", 0),
    }
    if all(reply.logprobs is not None for reply in replies):
        logprobs = [torch.tensor([np.nan if lp is None else lp for lp in reply.logprobs]) for reply in replies]
        columns["sampling_per_token_logps"] = padded(logprobs, "right", 0.0)
    if mask_truncated:
        kept = torch.from_numpy(~turns.truncated[used])
        columns["completion_mask"] = columns["completion_mask"] * kept[:, None]

    index = torch.from_numpy(np.concatenate([row, np.zeros(num_rows - len(row), dtype=row.dtype)]))
    rows = {name: column[index] for name, column in columns.items()}
    rows["completion_mask"][len(row) :] = 0
    weights = np.zeros(num_rows)
    weights[: len(row)] = advantages
    rows["advantages"] = torch.from_numpy(weights).float()
    return {name: column.to(device) for name, column in rows.items()}


def turn_sums(batch: EpisodeBatch, turns: LearnerTurns, advantages: np.ndarray) -> dict[str, float]:
    """Sums over this process's turns, by game and role, that add up over processes.

    Keys are `game|role|quantity`, the same on every process; see [`turn_metrics`] for what becomes of them.
    """
    game = batch.outcomes.game[turns.episode]
    quantities = {
        "turns": np.ones(len(turns)),
        "illegal": turns.illegal[turns.sample].astype(float),
        "tokens": turns.length[turns.sample].astype(float),
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
    return sums


def turn_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Metrics of [`turn_sums`], added up over processes."""
    metrics = {}
    groups: dict[tuple[str, str], dict[str, float]] = {}
    for key, value in sums.items():
        game, role, quantity = key.split("|")
        groups.setdefault((game, role), {})[quantity] = value
    for (game, role), total in groups.items():
        prefix = f"self_play/{game}/{role}"
        turns, tokens = total["turns"], total["tokens"]
        if turns:
            mean = total["advantage"] / turns
            metrics[f"{prefix}/illegal_rate"] = total["illegal"] / turns
            metrics[f"{prefix}/reply_length"] = tokens / turns
            metrics[f"{prefix}/advantage_std"] = max(0.0, total["advantage_squared"] / turns - mean**2) ** 0.5
            if np.isfinite(total["surprisal"]):
                metrics[f"{prefix}/entropy"] = total["surprisal"] / max(1.0, tokens)
    turns = sum(total["turns"] for total in groups.values())
    metrics["self_play/illegal_rate"] = sum(total["illegal"] for total in groups.values()) / max(1.0, turns)
    return metrics


def outcome_metrics(outcomes: Outcomes, baselines: dict[tuple[str, str], float]) -> dict[str, float]:
    """Returns by game and role, how games ended, and the baselines; `outcomes` are those of all processes."""
    metrics = {}
    for g, (name, roles) in enumerate(zip(outcomes.games, outcomes.roles, strict=True)):
        here = outcomes.game == g
        if not here.any():
            continue
        for p, role in enumerate(roles):
            metrics[f"self_play/{name}/{role}/return"] = float(outcomes.returns[here, p].mean())
        for code, ending in enumerate(ENDINGS):
            metrics[f"self_play/{name}/ending/{ending.value}"] = float((outcomes.endings[here] == code).mean())
    for (name, role), baseline in baselines.items():
        metrics[f"self_play/{name}/{role}/baseline"] = baseline
    return metrics
