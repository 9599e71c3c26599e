"""The picture of a round robin: pay-offs as a heat map with figures, and ratings with their intervals."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..evaluation.arena import ArenaResult
from ..evaluation.standings import Table
from .figures import COLORS, Picture, short


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Orange to blue over white: safe for the colour-blind, of even lightness on both sides, and dark letters stand out on it
_SCALE = ("#e8914f", "#f7f7f7", "#5aa9d6")
_CELL = 0.78  # inches
_LABELS = 2.5
_RATINGS = 3.8


def arena_picture(result: ArenaResult) -> Picture:
    """One row for each table of `result`: scores of the row against the column, and ratings.

    Raises:
        `ValueError`: If no two players met.
    """
    if not result.tables:
        raise ValueError("There is nothing to draw: no two players met.")
    said = []
    for table in result.tables:
        if table.ratings is not None:
            order = np.argsort(-table.ratings.rating, kind="stable")
            rated = ", ".join(f"{table.players[i]} {table.ratings.rating[i]:+.0f}" for i in order)
            said.append(f"{_title(table, result)}: {rated}")
    alt = f"Scores of every two players, and Elo ratings. {'; '.join(said)}."
    return Picture("arena", "Arena", alt, partial(_draw, result))


def _title(table: Table, result: ArenaResult) -> str:
    return table.game or f"{len(result.games)} games together"


def _draw(result: ArenaResult) -> Figure:
    from matplotlib.figure import Figure

    heights = [_CELL * len(table.players) + 1.3 for table in result.tables]
    # Long names of games stand above narrow tables
    widths = [max(2.0, _CELL * max(len(table.players) for table in result.tables)), _RATINGS]
    figure = Figure(figsize=(_LABELS + sum(widths), sum(heights)), layout="constrained")
    # What says why there are several rows stands above each of them
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    for part, table in zip(parts[:, 0], result.tables, strict=True):
        part.suptitle(_title(table, result), x=0.01, ha="left", fontsize=12, color=COLORS["ink"])
        scores, ratings = part.subplots(1, 2, width_ratios=widths)
        order = _order(table)
        _scores(scores, table, order)
        _ratings(ratings, table, order)
    return figure


def _order(table: Table) -> list[int]:
    """Best first, as rated."""
    if table.ratings is None:
        return list(range(len(table.players)))
    return np.argsort(-table.ratings.rating, kind="stable").tolist()


def _scores(axes: Axes, table: Table, order: list[int]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    scale = LinearSegmentedColormap.from_list("score", _SCALE)
    values = np.full((len(order), len(order)), np.nan)
    for row, i in enumerate(order):
        for column, j in enumerate(order):
            cell = table.score[i][j]
            if cell is None:
                continue
            values[row, column] = cell.estimate
            returns = None if table.mean_return is None else table.mean_return[i][j]
            up = 0.12 if returns is not None else 0.0
            axes.text(column, row - up, f"{100 * cell.estimate:.0f}", ha="center", va="center", color=COLORS["ink"])
            if returns is not None:
                label = f"{returns.estimate:+.2f}"
                axes.text(column, row + 0.24, label, ha="center", va="center", color=COLORS["ink"], fontsize=8.5)
    axes.imshow(values, cmap=scale, vmin=0, vmax=1, aspect="auto")
    axes.grid(visible=False)
    axes.tick_params(length=0, pad=5, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_xticks(range(len(order)), [str(place) for place in range(1, len(order) + 1)])
    names = [f"{short(table.players[i])}  {place}" for place, i in enumerate(order, start=1)]
    axes.set_yticks(range(len(order)), names, color=COLORS["ink"])
    axes.spines[:].set_visible(False)
    below = "" if table.mean_return is None else ",\nbelow it the mean return"
    axes.set_xlabel(f"score of the row against the column in %{below}", fontsize=9.5)


def _ratings(axes: Axes, table: Table, order: list[int]) -> None:
    """On the rows of the scores beside them."""
    rows = np.arange(len(order))
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_yticks(rows, [str(place) for place in range(1, len(order) + 1)])
    axes.tick_params(length=0, pad=5)
    axes.grid(axis="y", visible=False)
    ratings = table.ratings
    if ratings is None:
        axes.set_xticks([])
        axes.set_xlabel("no rating: every game was truncated", fontsize=9.5)
        return
    value, low, high = ratings.rating[order], ratings.low[order], ratings.high[order]
    axes.axvline(0, color=COLORS["muted"], linewidth=0.8, zorder=0)
    axes.hlines(rows, low, high, color=COLORS["blue"], linewidth=2.2)
    free = ratings.separated[order]
    for chosen, face in ((~free, COLORS["blue"]), (free, COLORS["surface"])):
        axes.plot(value[chosen], rows[chosen], "o", ms=7, mfc=face, mec=COLORS["blue"], mew=1.6)
    axes.locator_params(axis="x", nbins=5)
    open_circle = ",\nopen: rests on the prior" if free.any() else ""
    axes.set_xlabel(f"Elo with 95% intervals, row {order.index(ratings.anchor) + 1} is 0{open_circle}", fontsize=9.5)
