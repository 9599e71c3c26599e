"""What features did at each step of a game: sparse codes, summarised over tokens of the step.

- `decision`: the activation at the last token of the prompt, from where the reply begins: what the step has come to
  when the player starts to answer. Nothing that the player is shown stands there as a token of its own.
- `prompt`: the largest activation over the tokens that the seat was newly shown.
- `reply`: the largest activation over the tokens that the player wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from .store import Store, shard_bounds


if TYPE_CHECKING:
    from scipy.sparse import csr_array


DECISION, PROMPT, REPLY = POSITIONS = ("decision", "prompt", "reply")


@dataclass(frozen=True, eq=False)
class StepCodes:
    """The steps that a store of codes holds.

    Args:
        store ([`~spiral_trl.sae.store.Store`]): Codes of games.
        group, turn, player (`np.ndarray`): `(steps,)` of each step, sorted.
    """

    store: Store
    group: np.ndarray
    turn: np.ndarray
    player: np.ndarray
    _step: np.ndarray  # (tokens,) step of each token, -1 outside games

    @classmethod
    def of(cls, store: Store) -> StepCodes:
        """The steps of a store.

        Raises:
            [`~spiral_trl.errors.UsageError`]: If it holds no games.
        """
        tokens = store.tokens
        inside = np.flatnonzero(tokens["player"] >= 0)
        if not len(inside):
            raise UsageError(f"{store.folder} holds codes of texts, not of games")
        keys = np.stack([tokens[name][inside].astype(np.int64) for name in ("group", "turn", "player")])
        steps, of = np.unique(keys, axis=1, return_inverse=True)
        step = np.full(len(tokens), -1, dtype=np.int64)
        step[inside] = of.reshape(-1)
        group, turn, player = steps
        return cls(store, group, turn, player, step)

    def __len__(self) -> int:
        return len(self.group)

    def find(self, group: np.ndarray, turn: np.ndarray, player: int) -> np.ndarray:
        """`(n,)` the step of each group and turn of a seat, -1 where the store has none."""
        known = {key: number for number, key in enumerate(zip(*self._keys, strict=True))}
        wanted = zip(group.tolist(), turn.tolist(), [player] * len(group), strict=True)
        return np.array([known.get(key, -1) for key in wanted], dtype=np.int64)

    @cached_property
    def _keys(self) -> tuple[Sequence[int], ...]:
        return self.group.tolist(), self.turn.tolist(), self.player.tolist()

    @cached_property
    def _chosen(self) -> dict[str, np.ndarray]:
        """`(tokens,)` for each position, which tokens it is made of."""
        tokens, inside = self.store.tokens, self._step >= 0
        shown = inside & ~tokens["reply"]
        last = np.full(len(self), -1, dtype=np.int64)
        np.maximum.at(last, self._step[shown], tokens["position"][shown].astype(np.int64))
        decision = shown & (tokens["position"] == last[self._step])
        return {DECISION: decision, PROMPT: shown, REPLY: inside & tokens["reply"]}

    def codes(self, layer: int, position: str) -> csr_array:
        """`(steps, features)` largest activation of each feature over the tokens of `position`; read shard by shard."""
        from scipy.sparse import csr_array

        features = self.store.num_features(layer)
        chosen = self._chosen[position]
        keys, values = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        bounds = shard_bounds(self.store.shards)
        for shard, start, end in zip(self.store.shards, bounds[:-1], bounds[1:], strict=True):
            if not chosen[start:end].any():
                continue
            rows = shard.rows(layer)
            wanted = np.repeat(chosen[start:end], np.diff(rows.indptr))
            step = np.repeat(self._step[start:end], np.diff(rows.indptr))[wanted]
            key = step * features + rows.feature[wanted].astype(np.int64)
            # A step may go on in the next shard
            keys, values = _largest(np.concatenate([keys, key]), np.concatenate([values, rows.value[wanted]]))
        return csr_array((values.astype(np.float64), (keys // features, keys % features)), shape=(len(self), features))


def _largest(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct keys, ascending, with the largest value of each."""
    if not len(keys):
        return keys, values
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], np.maximum.reduceat(values, starts).astype(np.float32)
