"""From played games to what TRL's loss takes.

Axes: `N` training rows (one per turn of the learner, then padding), `P` prompt tokens (left-padded), `C` completion
tokens (right-padded), `S` distinct (turn, reply) pairs, `T` turns, `G` games.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import gather_object
from trl.trainer.utils import pad

from ..records import EpisodeBatch, Outcomes, Reply


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
    """The turns of the learner's seats that were answered by a model. Opponents may be models too: it is the seat that
    says whose turn it was."""
    replies = [step.reply for step in batch.samples]
    tokens = np.array([reply.completion_ids is not None for reply in replies], dtype=bool)
    keep = tokens[batch.turn_sample] & batch.outcomes.learner[batch.turn_episode, batch.turn_player]
    return LearnerTurns(
        sample=batch.turn_sample[keep],
        episode=batch.turn_episode[keep],
        player=batch.turn_player[keep],
        length=np.array([len(reply.completion_ids or ()) for reply in replies]),
        truncated=np.array([reply.finish_reason == "length" for reply in replies], dtype=bool),
        illegal=np.array([reply.action is None for reply in replies], dtype=bool),
        surprisal=np.array([_surprisal(reply.logprobs) for reply in replies]),
    )


def _surprisal(logprobs: Sequence[float | None] | None) -> float:
    """Sum of -log p; NaN without log-probabilities, which an engine may lack for single tokens too."""
    if logprobs is None:
        return float("nan")
    return -sum(float("nan") if value is None else value for value in logprobs)


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
    """One row per turn, then rows with nothing to train on, up to `num_rows`: copies of the first.

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
    if not replies:  # against opponents a process may have games in which the learner was never asked
        replies = [Reply("", prompt_ids=(pad_token_id,), completion_ids=(pad_token_id,), logprobs=(0.0,))]
    multiple = pad_to_multiple_of

    def padded(values: list, side: str, fill: int) -> torch.Tensor:
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
        columns["sampling_per_token_logps"] = padded(logprobs, "right", 0)
    if mask_truncated:
        kept = torch.tensor([reply.finish_reason != "length" for reply in replies])
        columns["completion_mask"] = columns["completion_mask"] * kept[:, None]

    index = torch.from_numpy(np.concatenate([row, np.zeros(num_rows - len(row), dtype=row.dtype)]))
    rows = {name: column[index] for name, column in columns.items()}
    rows["completion_mask"][len(row) :] = 0
    weights = np.zeros(num_rows)
    weights[: len(row)] = advantages
    rows["advantages"] = torch.from_numpy(weights).float()
    return {name: column.to(device) for name, column in rows.items()}


def gather_outcomes(outcomes: Outcomes, order: np.ndarray, games: Sequence[str]) -> tuple[Outcomes, np.ndarray]:
    """All processes' outcomes in game order, the same on every process.

    Args:
        outcomes ([`~spiral_trl.records.Outcomes`]): Those of this process.
        order (`np.ndarray`): `[G]` index of each of its games among all processes' games.
        games (`Sequence[str]`): Names of all games of the run, in the order that the result lists them in.

    Returns:
        `tuple[Outcomes, np.ndarray]`: The outcomes, and `[G]` where this process's games stand in them.
    """
    parts = gather_object([(order, outcomes)])
    names = {name: roles for _, part in parts for name, roles in zip(part.games, part.roles, strict=True)}
    index = {name: i for i, name in enumerate(sorted(names, key=list(games).index))}
    width = max(part.returns.shape[1] for _, part in parts)
    all_order = np.concatenate([part_order for part_order, _ in parts])
    sort = np.argsort(all_order)

    def padded(values: np.ndarray, fill: float | bool) -> np.ndarray:
        return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill)

    game = [np.array([index[name] for name in part.games], dtype=np.int64)[part.game] for _, part in parts]
    gathered = Outcomes(
        games=tuple(index),
        roles=tuple(names[name] for name in index),
        game=np.concatenate(game)[sort],
        returns=np.concatenate([padded(part.returns, np.nan) for _, part in parts])[sort],
        endings=np.concatenate([part.endings for _, part in parts])[sort],
        learner=np.concatenate([padded(part.learner, False) for _, part in parts])[sort],
    )
    return gathered, np.searchsorted(all_order[sort], order)
