r"""How strongly activations depend on a variable, when only games are independent of each other.

With `a_s` the activation of a feature at step `s`, less its mean, and `x_s` the variable there, less its mean: the number
itself, or the indicator of one level:

- **effect**: the share of the variance of `a` that the variable explains, from 0 to 1: the correlation ratio
  `\eta^2 = \sum_k n_k \bar a_k^2 / \sum_s a_s^2` over the levels `k` of a categorical variable, the square of Pearson's
  correlation for a number;
- **p**: of the score `S = \sum_g U_g`, `U_g = \sum_{s \in g} x_s a_s` over games `g`, against 0: `S^2 / V ~ \chi^2_1`. `V` is
  the larger of two variances. `\sum_g U_g^2` is what was seen (Liang and Zeger, 1986); where a feature fires in few
  games it may be small by chance. `\sigma^2 \sum_g ((1 - \rho) \sum_{s \in g} a_s^2 + \rho (\sum_{s \in g} a_s)^2)` is what
  there would be if `x`, of variance `\sigma^2` and correlation `\rho` between steps of a game, knew nothing of `a`; where a
  level is rare it may be too small. Of the tests of all levels the smallest p counts, times their number (Bonferroni);
  two levels are one test.

Axes: `n` steps, sorted by game, `F` features, `G` games, `K` columns of the variable, `B` replicates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .game_variables import Variable


if TYPE_CHECKING:
    from scipy.sparse import csc_array


# Most numbers that a part of the work holds at once
_CHUNK = 2**22


@dataclass(frozen=True, eq=False)
class Design:
    """A variable over the steps where it is defined.

    Args:
        rows (`np.ndarray`): `(n,)` those steps, among the role's.
        game (`np.ndarray`): `(n,)` the game of each, from 0 without gaps, ascending.
        columns (`np.ndarray`): `(n, K)` an indicator of each level, or the number.
        levels (`np.ndarray`): `(K,)` which of the variable's levels the columns are; none for a number.
    """

    rows: np.ndarray
    game: np.ndarray
    columns: np.ndarray
    levels: np.ndarray

    @classmethod
    def of(cls, variable: Variable, group: np.ndarray, values: np.ndarray | None = None) -> Design:
        """The design of a variable, or of it with other `values` in place of its own."""
        values = variable.values if values is None else values
        rows = np.flatnonzero(~np.isnan(values))
        _, game = np.unique(group[rows], return_inverse=True)
        values = values[rows]
        if not variable.categorical:
            return cls(rows, game, values[:, None], np.zeros(0, dtype=np.int16))
        present, level = np.unique(values, return_inverse=True)
        columns = np.zeros((len(rows), len(present)))
        columns[np.arange(len(rows)), level] = 1
        return cls(rows, game, columns, present.astype(np.int16))

    @property
    def categorical(self) -> bool:
        return len(self.levels) > 0

    @property
    def num_games(self) -> int:
        return int(self.game[-1]) + 1 if len(self.game) else 0

    @property
    def varies(self) -> bool:
        """Whether it takes more than one value."""
        return len(self.rows) > 1 and bool((np.ptp(self.columns, axis=0) > 0).any())


def effects(design: Design, codes: csc_array) -> np.ndarray:
    """`(F,)` share of the variance of each feature that the variable explains; 0 where a feature is constant.

    Args:
        design ([`Design`]): The variable.
        codes (`csc_array`): `(n, F)` activations at the design's steps.
    """
    count = len(design.rows)
    total = np.asarray(codes.sum(0)).reshape(-1)
    squares = np.asarray(codes.multiply(codes).sum(0)).reshape(-1)
    sums = (codes.T @ design.columns).T  # (K, F)
    return _explained(design, count, design.columns.sum(0), (design.columns**2).sum(0), total, squares, sums)


def _explained(
    design: Design,
    count: np.ndarray | float,
    of_columns: np.ndarray,
    of_their_squares: np.ndarray,
    total: np.ndarray,
    squares: np.ndarray,
    sums: np.ndarray,
) -> np.ndarray:
    """The effect from sums over steps; the last axis of `sums` and all of `total` are features, the axis before `K`."""
    variance = squares - total**2 / count
    with np.errstate(divide="ignore", invalid="ignore"):
        if design.categorical:
            means = np.where(of_columns[..., None] > 0, sums**2 / of_columns[..., None], 0.0)
            explained = means.sum(-2) - total**2 / count
        else:
            column = of_columns[..., 0, None]
            spread = of_their_squares[..., 0, None] - column**2 / count
            explained = (sums[..., 0, :] - column * total / count) ** 2 / spread
        share = explained / variance
    floor = 1e-9 * np.maximum(squares, np.finfo(float).tiny)
    return np.clip(np.where((variance > floor) & np.isfinite(share), share, 0.0), 0.0, 1.0)


def direction(design: Design, codes: csc_array) -> np.ndarray:
    """`(F,)` sign of the correlation with a number; 0 for categorical variables."""
    if design.categorical:
        return np.zeros(codes.shape[1])
    centred = design.columns[:, 0] - design.columns[:, 0].mean()
    return np.sign(codes.T @ centred)


def score_test(design: Design, codes: csc_array) -> np.ndarray:
    """`(F,)` p of the score test; see the module. 1 where a feature is constant.

    Args:
        design ([`Design`]): The variable.
        codes (`csc_array`): `(n, F)` activations at the design's steps.
    """
    from scipy.special import chdtrc

    # Two levels mirror each other
    columns = design.columns[:, 1:] if len(design.levels) == 2 else design.columns
    columns = columns - columns.mean(0)
    starts = np.flatnonzero(np.diff(design.game, prepend=-1))
    sizes = np.diff(starts, append=len(columns))
    spread = (columns**2).mean(0)
    pairs = max(1, int((sizes * (sizes - 1)).sum()))
    together = np.add.reduceat(columns, starts, axis=0)
    # (K,) correlation between two steps of a game
    alike = ((together**2).sum(0) - (columns**2).sum(0)) / pairs / np.maximum(spread, np.finfo(float).tiny)
    p = np.ones(codes.shape[1])
    part = max(1, _CHUNK // columns.size)
    for start in range(0, codes.shape[1], part):
        dense = codes[:, start : start + part].toarray()  # (n, f)
        squares = (dense**2).sum(0)
        dense -= dense.mean(0)
        score = np.add.reduceat(columns[:, :, None] * dense[:, None, :], starts, axis=0)  # (G, K, f)
        within, of_games = (dense**2).sum(0), (np.add.reduceat(dense, starts, axis=0) ** 2).sum(0)
        expected = spread[:, None] * ((1 - alike)[:, None] * within + alike[:, None] * of_games)  # (K, f)
        variance = np.maximum((score**2).sum(0), expected)
        there = within > 1e-9 * squares
        statistic = score.sum(0)[:, there] ** 2 / np.maximum(variance[:, there], np.finfo(float).tiny)
        p[start : start + part][there] = np.minimum(1.0, columns.shape[1] * chdtrc(1, statistic).min(0))
    return p


def purity(design: Design, codes: csc_array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How exactly firing tells a level: of each feature the level with the largest F1.

    Returns:
        `tuple[np.ndarray, np.ndarray, np.ndarray]`: `(F,)` the column of the design, `P(level | fires)`
        and `P(fires | level)`.
    """
    firing = codes.copy()
    firing.data = (firing.data > 0).astype(np.float64)
    both = (firing.T @ design.columns).T  # (K, F)
    fires = np.asarray(firing.sum(0)).reshape(-1)
    of_level = design.columns.sum(0)
    level = (2 * both / np.maximum(fires + of_level[:, None], 1)).argmax(0)
    hits = both[level, np.arange(len(fires))]
    return level, hits / np.maximum(fires, 1), hits / np.maximum(of_level[level], 1)


def shuffled(values: np.ndarray, group: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """`(n,)` the values of a role's steps, dealt anew between games: the control.

    Each game takes the values of another in their order, from a random one on, so that what hangs together within a
    game stays together while what the game was is lost.
    """
    _, starts, counts = np.unique(group, return_index=True, return_counts=True)
    donors = generator.permutation(len(starts))
    offsets = (generator.random(len(starts)) * counts[donors]).astype(np.int64)
    place = np.arange(len(group)) - np.repeat(starts, counts)
    donor = np.repeat(donors, counts)
    return values[starts[donor] + (place + np.repeat(offsets, counts)) % counts[donor]]


def resampled_effects(design: Design, dense: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`(B, f)` effects with games weighted, as the bootstrap draws them.

    Args:
        design ([`Design`]): The variable.
        dense (`np.ndarray`): `(n, f)` activations at its steps.
        weights (`np.ndarray`): `(B, G)` how often each game was drawn.
    """
    starts = np.flatnonzero(np.diff(design.game, prepend=-1))

    def over_games(values: np.ndarray) -> np.ndarray:
        sums = np.add.reduceat(values, starts, axis=0)
        return (weights @ sums.reshape(len(sums), -1)).reshape(len(weights), *sums.shape[1:])

    columns = design.columns
    count = weights @ np.diff(starts, append=len(columns))
    return _explained(
        design,
        count[:, None],
        over_games(columns),
        over_games(columns**2),
        over_games(dense),
        over_games(dense**2),
        over_games(columns[:, :, None] * dense[:, None, :]),
    )
