"""What a game that follows OpenSpiel's rules attaches to its turns, for solvers and search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyspiel


@dataclass(frozen=True, eq=False)
class SolverState:
    """The OpenSpiel state behind a turn, and what our words for its actions are.

    A game attaches it as `Turn.state` only where OpenSpiel's rules and payoffs are those played, so that a solution of
    `state.get_game()` is a solution of the game.

    Args:
        state (`pyspiel.State`): Where the game stands. Shared between games: clone it before applying an action.
        actions (`Mapping[str, int]`): OpenSpiel's action id for each of the turn's legal actions.
        part (`str`, *optional*): What part of the game `state` stands for, such as `hand`, where it is not the whole.
    """

    state: pyspiel.State
    actions: Mapping[str, int]
    part: str | None = None
