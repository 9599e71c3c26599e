"""The protocol of a player: who answers a turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..records import Reply, Turn


class Player(Protocol):
    """Answers batches of turns.

    Attributes:
        name (`str`): How the player is called in records and tables, such as `random` or `model`.
        speculative (`bool`): Whether replies that may never be used cost little, so that a rollout may ask for every
            turn a game can reach at once. `False` for players that are paid or waited for.
    """

    name: str
    speculative: bool

    def reply(self, turns: Sequence[Turn]) -> list[Reply]:
        """One reply for each turn. `Reply.action` may stay `None`: the game parses the text."""
        ...

    def sample(
        self, turns: Sequence[Turn], which: np.ndarray, seeds: np.ndarray, index: np.ndarray
    ) -> tuple[list[Reply], np.ndarray]:
        """Replies for many games that stand at few distinct turns.

        Args:
            turns (`Sequence[Turn]`): `U` distinct turns; their own episode, seed and index are ignored.
            which (`np.ndarray`): `[B]` the turn that each of `B` games stands at, as an index into `turns`.
            seeds (`np.ndarray`): `[B]` seed of each game.
            index (`np.ndarray`): `[B]` how many turns of that game came before.

        Returns:
            `tuple[list[Reply], np.ndarray]`: `R` replies, each given to one of `turns` only, and `[B]` the index of
            the reply each game got. The same replies as `reply` gives to the same turns one by one.
        """
        ...
