"""Tic-tac-toe in words: OpenSpiel's `tic_tac_toe`, and its `mnk` for larger boards.

Cells are numbered row by row from 0, as in SPIRAL (arXiv 2506.24119). On 3x3 three in a row win; larger boards need
four by default, since with a whole row of five on 5x5, which no player has to allow, nearly every game is a draw. The
paper does not say which rule its 5x5 variant has; `tic_tac_toe(size=5,line=5)` is the other one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pyspiel

from ..names import Parameter
from .board import OBSERVATIONS, Board, BoardGame
from .registry import format_name, parse_name, register
from .sequential import ROLES


class TicTacToe(BoardGame):
    """Tic-tac-toe; see [`~spiral_trl.games.board.BoardGame`].

    Args:
        size (`int`, *optional*, defaults to `3`): Rows and columns, 3 to 10.
        line (`int`, *optional*): Marks in a row that win, 3 to `size`. Defaults to 3 on 3x3 and to 4 on larger boards.
        observation (`str`, *optional*, defaults to `"words"`): See [`~spiral_trl.games.board`].
    """

    def __init__(self, size: int = 3, line: int | None = None, observation: str = "words"):
        super().__init__(_board(size, line, observation))


@lru_cache(maxsize=64)
def _board(size: int, line: int | None, observation: str) -> Board:
    name = format_name("tic_tac_toe", {"size": size, "line": line, "observation": observation})
    values = parse_name(name)[1]
    line = values["line"]
    engine = pyspiel.load_game("tic_tac_toe" if size == 3 else f"mnk(m={size},n={size},k={line})")
    rules = (
        f"Rules: The board has {size} rows and {size} columns. Its cells are numbered row by row, from 0 at the top "
        f"left to {size * size - 1} at the bottom right. Player 0 plays X and moves first, player 1 plays O. In turn, "
        f"each puts its mark on one empty cell. Whoever first has {line} of its marks next to each other in a line, "
        "across, down or diagonally, wins. If the board is full and nobody has, the game is a draw.\n"
        "Your payoff is +1 if you win, -1 if you lose, 0 for a draw.\n"
    )
    introductions = tuple(
        f"You are {role} in a game of tic-tac-toe, a zero-sum game of two players.\n" for role in ROLES
    )
    return Board(
        name, engine, values["observation"], (introductions[0] + rules, introductions[1] + rules), "took", _draw
    )


def _draw(board: str) -> str:
    """Marks, and the numbers of empty cells, between lines."""
    size = board.index("\n")
    width = len(str(size * size - 1))
    cells = [f"{i if mark == '.' else mark:>{width}}" for i, mark in enumerate(board.replace("\n", ""))]
    between = "\n" + "+".join(["-" * (width + 2)] * size) + "\n"
    return between.join(f" {' | '.join(cells[at : at + size])}" for at in range(0, size * size, size)) + "\n"


def _check(values: Mapping[str, Any]) -> None:
    if values["line"] > values["size"]:
        raise ValueError(f"tic_tac_toe: line={values['line']} does not fit on a board of size={values['size']}")


register(
    "tic_tac_toe",
    TicTacToe,
    {
        "size": Parameter(3, int, low=3, high=10),
        "line": Parameter(lambda values: min(values["size"], 4), int, low=3, high=10),
        "observation": Parameter("words", choices=OBSERVATIONS),
    },
    _check,
)
