"""Connect Four in words: OpenSpiel's `connect_four`. Columns are numbered from 0 at the left."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pyspiel

from ..names import Parameter
from .board import OBSERVATIONS, Board, BoardGame
from .registry import format_name, parse_name, register
from .sequential import ROLES


class ConnectFour(BoardGame):
    """Connect Four; see [`~spiral_trl.games.board.BoardGame`].

    Args:
        rows (`int`, *optional*, defaults to `6`): Height of the board, 3 to 10.
        columns (`int`, *optional*, defaults to `7`): Width of the board, 3 to 10.
        line (`int`, *optional*, defaults to `4`): Discs in a line that win (OpenSpiel's `x_in_row`), 3 to the longer
            side.
        observation (`str`, *optional*, defaults to `"words"`): See [`~spiral_trl.games.board`].
    """

    def __init__(self, rows: int = 6, columns: int = 7, line: int = 4, observation: str = "words"):
        super().__init__(_board(rows, columns, line, observation))


@lru_cache(maxsize=64)
def _board(rows: int, columns: int, line: int, observation: str) -> Board:
    name = format_name("connect_four", {"rows": rows, "columns": columns, "line": line, "observation": observation})
    values = parse_name(name)[1]
    engine = pyspiel.load_game(f"connect_four(rows={rows},columns={columns},x_in_row={line})")
    rules = (
        f"Rules: The board has {rows} rows and {columns} columns. The columns are numbered 0 to {columns - 1} from left "
        "to right. Player 0 plays X and moves first, player 1 plays O. In turn, each drops one of its discs into a "
        "column that is not full, where it falls to the lowest empty cell. Whoever first has "
        f"{line} of its discs next to each other in a line, across, down or diagonally, wins. If the board is full and "
        "nobody has, the game is a draw.\nYour payoff is +1 if you win, -1 if you lose, 0 for a draw.\n"
    )
    title = "Connect Four" if line == 4 else f"Connect Four with lines of {line}"
    introductions = tuple(f"You are {role} in a game of {title}, a zero-sum game of two players.\n" for role in ROLES)
    return Board(
        name,
        engine,
        values["observation"],
        (introductions[0] + rules, introductions[1] + rules),
        "played column",
        _draw,
    )


def _draw(board: str) -> str:
    """The board under its column numbers."""
    numbers = "".join(map(str, range(board.index("\n"))))
    return " ".join(f"{numbers}\n{board}\n").replace(" \n ", "\n").replace(" \n", "\n")


def _check(values: Mapping[str, Any]) -> None:
    longer = max(values["rows"], values["columns"])
    if values["line"] > longer:
        raise ValueError(
            f"connect_four: line={values['line']} does not fit on a board of {values['rows']} rows and "
            f"{values['columns']} columns"
        )


register(
    "connect_four",
    ConnectFour,
    {
        "rows": Parameter(6, int, low=3, high=10),
        "columns": Parameter(7, int, low=3, high=10),
        "line": Parameter(4, int, low=3, high=10),
        "observation": Parameter("words", choices=OBSERVATIONS),
    },
    _check,
)
