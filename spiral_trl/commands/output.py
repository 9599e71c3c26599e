"""What commands print: tables, figures with their intervals, and progress."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import isfinite

from ..evaluation.arena import LeftOut
from ..players.human import printable
from ..stats import Interval


def one_line(text: str) -> str:
    """Text on one line of a terminal, without what a terminal acts on: a model may have written it."""
    return " ".join(printable(text).split())


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: drawn on a terminal, plain aligned columns elsewhere. The first column holds words, the others figures."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
        for index, column in enumerate(columns):
            table.add_column(Text(column), justify="right" if index else "left")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    print(title)
    for row in [list(columns), *cells]:
        first, *others = row
        figures = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *figures]).rstrip())


def percent(share: float) -> str:
    """`12.3` for 0.123."""
    return f"{100 * share:.1f}"


def with_interval(interval: Interval | None, scale: float = 1.0, digits: int = 2, sign: bool = False) -> str:
    """`0.12 [0.03, 0.21]`; `-` for none."""
    if interval is None:
        return "-"
    plus = "+" if sign else ""

    def shown(value: float) -> str:
        return f"{scale * value:{plus}.{digits}f}" if isfinite(value) else "?"

    return f"{shown(interval.estimate)} [{shown(interval.low)}, {shown(interval.high)}]"


def end_with_notes(left_out: Sequence[LeftOut], notes: Sequence[str]) -> None:
    """Says who was left out, and what failed; ends the program with 1 where something did.

    Raises:
        `SystemExit`: With 1, where there are notes.
    """
    for entry in left_out:
        print(f"{one_line(entry.player)} is left out of {entry.game}: {one_line(entry.reason)}")
    for note in notes:
        print(f"failed: {one_line(note)}", file=sys.stderr)
    if notes:
        sys.exit(1)


class Progress:
    """One line on stderr that says what is being done, where a person watches.

    Args:
        quiet (`bool`): Whether to say nothing.
    """

    def __init__(self, quiet: bool):
        self.shown = not quiet and sys.stderr.isatty()

    def __call__(self, done: int, total: int, what: str) -> None:
        """Replaces the line."""
        if self.shown:
            print(f"\r\033[K[{done + 1}/{total}] {one_line(what)}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Removes the line."""
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
