"""Ratings of players from the games between them, and what of a pay-off matrix no rating explains.

The model is that of Bradley and Terry (1952) with a term for the seat (Davidson and Beaver, 1977) and one for draws
(Davidson, 1970). Where `i` has the first seat and `j` the second, and `d = r_i - r_j + s`,

    P(i wins)  = exp(d / 2)  / (exp(d / 2) + exp(-d / 2) + v)
    P(j wins)  = exp(-d / 2) / (exp(d / 2) + exp(-d / 2) + v)
    P(a draw)  = v           / (exp(d / 2) + exp(-d / 2) + v)

so that without draws (`v = 0`) the odds of the first seat are `exp(d)`. Ratings `r` and the seat's advantage `s` are
shown on the Elo scale: times 400 / ln 10, so that 400 points are odds of 10 to 1.

Axes: `N` games, `P` players, `C` distinct ordered pairings of players, `R` resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np

from .stats import Interval


# Elo points of one unit of log-odds
ELO = 400 / log(10)

_MAX_ITERATIONS = 200
# Resamples are drawn in parts of at most so many weights, so that many games need little memory
_PART = 2**22


@dataclass(frozen=True)
class Ratings:
    """Ratings on the Elo scale, with intervals.

    Args:
        rating (`np.ndarray`): `[P]` ratings; that of `anchor` is exactly 0.
        low, high (`np.ndarray`): `[P]` ends of the interval of each rating; 0 for the anchor.
        separated (`np.ndarray`): `[P]` whether the games alone put no finite bound on the rating's difference from the
            anchor: it rests on the prior.
        seat ([`~spiral_trl.stats.Interval`]): Advantage of the first seat in Elo points.
        draw (`float`): Davidson's `v`; 0 where no game was drawn. Between equals a draw has probability v / (v + 2).
        log_likelihood (`float`): Of the games, at the estimate, in nats.
        games (`int`): Games rated.
        anchor (`int`): The player at 0.
    """

    rating: np.ndarray
    low: np.ndarray
    high: np.ndarray
    separated: np.ndarray
    seat: Interval
    draw: float
    log_likelihood: float
    games: int
    anchor: int

    def outcome_probabilities(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """`[n, 3]` probabilities that the first seat wins, draws and loses, for `[n]` players in either seat."""
        d = (self.rating[first] - self.rating[second] + self.seat.estimate) / ELO
        eta = log(self.draw) if self.draw > 0 else -np.inf
        return np.exp(_log_probabilities(d, np.full_like(d, eta)))

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """As JSON values, one row for each of the `P` names, best first."""
        order = np.argsort(-self.rating, kind="stable")
        return {
            "players": [
                {
                    "player": names[i],
                    "rating": float(self.rating[i]),
                    "low": float(self.low[i]),
                    "high": float(self.high[i]),
                    "separated": bool(self.separated[i]),
                }
                for i in order
            ],
            "anchor": names[self.anchor],
            "seat": self.seat.to_dict(),
            "draw": self.draw,
            "log_likelihood": self.log_likelihood,
            "games": self.games,
        }


@dataclass(frozen=True)
class _Design:
    """What a fit needs besides counts. `x` (C, P + 1): d = x @ [ratings, seat]. `prior` is the prior's precision."""

    x: np.ndarray
    draws: bool
    prior: float


def bradley_terry(
    first: Sequence[int] | np.ndarray,
    second: Sequence[int] | np.ndarray,
    score: Sequence[float] | np.ndarray,
    num_players: int,
    *,
    pair: Sequence[int] | np.ndarray | None = None,
    anchor: int = 0,
    prior_sd: float = 1000.0,
    replicates: int = 0,
    seed: int = 0,
    confidence: float = 0.95,
    intervals: bool = True,
) -> Ratings:
    """Ratings of players, the advantage of the first seat, and how often equals draw, from single games.

    The estimate is the mode of the posterior under independent normal priors around 0 on every rating, on the seat's
    advantage (both with standard deviation `prior_sd` Elo points) and on log v (`prior_sd` * ln 10 / 400). Ratings are
    then shifted until the anchor's is 0; differences do not depend on who that is. The prior is weak, and keeps the
    rating of a player who won every game finite. Where no game is drawn, v is 0 and not estimated.

    Intervals are percentiles over resamples of whole pairs (the bootstrap), since games on one deal are not
    independent. Resampling cannot tell how large a difference is that the games put no bound on, such as that of a
    player who won every game; those, found as Albert and Anderson (1984) define separation, take the posterior's
    normal approximation at its mode instead.

    Args:
        first, second (`Sequence[int]`): `[N]` index of the player in the first and second seat of each game.
        score (`Sequence[float]`): `[N]` 1, 0.5 or 0 for the player in the first seat.
        num_players (`int`): `P`, at least 2.
        pair (`Sequence[int]`, *optional*): `[N]` key of what each game was dealt: games with equal keys are resampled
            together. By default every game is a unit of its own.
        anchor (`int`, *optional*, defaults to `0`): The player whose rating is 0.
        prior_sd (`float`, *optional*, defaults to `1000.0`): Standard deviation of the prior in Elo points.
        replicates (`int`, *optional*, defaults to `0`): Resamples. With 0, or a single pair, all intervals are the
            posterior's normal approximation, which takes games as independent.
        seed (`int`, *optional*, defaults to `0`): Seed of the resampling.
        confidence (`float`, *optional*, defaults to `0.95`): Coverage of the intervals.
        intervals (`bool`, *optional*, defaults to `True`): Whether to compute intervals, and what is separated, which
            takes most of the time. Without them ends are NaN and `separated` is all `False`.

    Raises:
        `ValueError`: If there is no game, or an argument is out of its range.
    """
    from scipy.special import ndtri

    one, two, outcome = _check_games(first, second, score, num_players)
    if not 0 <= anchor < num_players:
        raise ValueError(f"`anchor` has to be a player from 0 to {num_players - 1}, not {anchor!r}.")
    if not prior_sd > 0:
        raise ValueError(f"`prior_sd` has to be positive, not {prior_sd!r}.")
    if replicates < 0:
        raise ValueError(f"`replicates` has to be at least 0, not {replicates!r}.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` has to lie between 0 and 1, not {confidence!r}.")
    unit = np.arange(len(one)) if pair is None else np.unique(np.asarray(pair), return_inverse=True)[1]
    if len(unit) != len(one):
        raise ValueError(f"`pair` has {len(unit)} entries for {len(one)} games.")

    cells, cell = np.unique(one * num_players + two, return_inverse=True)
    x = np.zeros((len(cells), num_players + 1))
    x[np.arange(len(cells)), cells // num_players] += 1
    x[np.arange(len(cells)), cells % num_players] -= 1
    x[:, -1] = 1
    design = _Design(x, draws=bool((outcome == 1).any()), prior=(ELO / prior_sd) ** 2)
    counts = np.bincount(cell * 3 + outcome, minlength=3 * len(cells)).reshape(1, -1, 3).astype(float)

    start = np.zeros((1, num_players + 1 + design.draws))
    estimate = _fit(design, counts, start)
    # (P + 1, K): differences from the anchor, and the seat
    contrasts = np.eye(num_players + 1, start.shape[1])
    contrasts[:-1, anchor] -= 1
    shown = contrasts @ estimate[0]
    low = high = np.full(len(shown), np.nan)
    free = np.zeros(len(shown), dtype=bool)
    if intervals:
        covariance = np.linalg.inv(_derivatives(design, counts, estimate)[2][0])
        half = float(ndtri(0.5 + confidence / 2)) * np.sqrt(np.einsum("ck,kl,cl->c", contrasts, covariance, contrasts))
        low, high = shown - half, shown + half
        free = _separated(design, counts[0], contrasts)
    units = int(unit.max()) + 1
    if intervals and replicates > 0 and units > 1:
        drawn = _resample(design, unit, cell * 3 + outcome, units, estimate, replicates, seed) @ contrasts.T
        tail = (1 - confidence) / 2
        ends = np.quantile(drawn, [tail, 1 - tail], axis=0)
        low, high = np.where(free, low, ends[0]), np.where(free, high, ends[1])
    return Ratings(
        rating=shown[:-1] * ELO,
        low=low[:-1] * ELO,
        high=high[:-1] * ELO,
        separated=free[:-1],
        seat=Interval(float(shown[-1]) * ELO, float(low[-1]) * ELO, float(high[-1]) * ELO),
        draw=float(np.exp(estimate[0, -1])) if design.draws else 0.0,
        log_likelihood=float(_log_likelihood(design, counts, estimate)[0]),
        games=len(one),
        anchor=anchor,
    )


def _check_games(
    first: Sequence[int] | np.ndarray, second: Sequence[int] | np.ndarray, score: Sequence[float] | np.ndarray, P: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Players as integers, and outcomes: 0 the first seat won, 1 a draw, 2 it lost."""
    one, two, points = np.asarray(first), np.asarray(second), np.asarray(score, dtype=float)
    if P < 2:
        raise ValueError(f"Ratings need at least 2 players, not {P!r}.")
    if one.ndim != 1 or not one.size or one.shape != two.shape or one.shape != points.shape:
        raise ValueError(
            f"`first`, `second` and `score` need one entry for each of at least one game, not the shapes {one.shape}, "
            f"{two.shape} and {points.shape}."
        )
    for name, players in (("first", one), ("second", two)):
        if not np.issubdtype(players.dtype, np.integer) or players.min() < 0 or players.max() >= P:
            raise ValueError(f"`{name}` has to hold players from 0 to {P - 1}.")
    if not np.isin(points, (0, 0.5, 1)).all():
        odd = points[~np.isin(points, (0, 0.5, 1))][0]
        raise ValueError(f"`score` has to be 1, 0.5 or 0 for the first seat, not {odd:g}.")
    return one.astype(np.int64), two.astype(np.int64), np.round(2 - 2 * points).astype(np.int64)


def _log_probabilities(d: np.ndarray, eta: np.ndarray) -> np.ndarray:
    """`[..., 3]` log-probabilities of a win, a draw and a loss of the first seat; `eta` is log v."""
    logits = np.stack([d / 2, eta, -d / 2], axis=-1)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def _cell_log_probabilities(design: _Design, theta: np.ndarray) -> np.ndarray:
    """`[R, C, 3]`, for parameters `theta` `[R, K]`: ratings, seat and, with draws, log v."""
    d = theta[:, : design.x.shape[1]] @ design.x.T
    eta = theta[:, -1:] if design.draws else np.full((1, 1), -np.inf)
    return _log_probabilities(d, np.broadcast_to(eta, d.shape))


def _log_likelihood(design: _Design, counts: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """`[R]` log-likelihood of `counts` `[R, C, 3]`."""
    log_p = _cell_log_probabilities(design, theta)
    return np.where(counts > 0, counts * np.where(counts > 0, log_p, 0.0), 0.0).sum((1, 2))


def _log_posterior(design: _Design, counts: np.ndarray, theta: np.ndarray) -> np.ndarray:
    return _log_likelihood(design, counts, theta) - 0.5 * design.prior * (theta**2).sum(1)


def _derivatives(design: _Design, counts: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`[R]` log-posterior, its gradient `[R, K]`, and the negative of its Hessian `[R, K, K]`."""
    p = np.exp(_cell_log_probabilities(design, theta))  # (R, C, 3)
    n = counts.sum(2)  # (R, C)
    lead = (p[..., 0] - p[..., 2]) / 2
    slope = (counts[..., 0] - counts[..., 2]) / 2 - n * lead
    curve = n * ((p[..., 0] + p[..., 2]) / 4 - lead**2)
    gradient = slope @ design.x
    information = np.einsum("rc,ck,cl->rkl", curve, design.x, design.x, optimize=True)
    if design.draws:
        gradient = np.concatenate([gradient, (counts[..., 1] - n * p[..., 1]).sum(1, keepdims=True)], axis=1)
        cross = -(n * lead * p[..., 1]) @ design.x  # (R, P + 1)
        corner = (n * p[..., 1] * (1 - p[..., 1])).sum(1)  # (R,)
        information = np.concatenate(
            [
                np.concatenate([information, cross[:, :, None]], axis=2),
                np.concatenate([cross, corner[:, None]], axis=1)[:, None, :],
            ],
            axis=1,
        )
    gradient = gradient - design.prior * theta
    information = information + design.prior * np.eye(theta.shape[1])
    return _log_posterior(design, counts, theta), gradient, information


def _fit(design: _Design, counts: np.ndarray, start: np.ndarray) -> np.ndarray:
    """`[R, K]` modes of the posterior, by Newton's method with step halving. It is strictly concave: a softmax of linear
    functions, and a normal prior."""
    theta = np.repeat(start, len(counts), axis=0)
    active = np.arange(len(counts))
    for _ in range(_MAX_ITERATIONS):
        value, gradient, information = _derivatives(design, counts[active], theta[active])
        step = np.linalg.solve(information, gradient[..., None])[..., 0]
        # Half of the Newton decrement's square: about how far the mode is above, in nats
        gain = 0.5 * (gradient * step).sum(1)
        scale = np.ones(len(active))
        # Where that is within rounding of the log-posterior, the whole step is taken unseen, and is the last
        going = gain > 1e-8
        for _ in range(60):
            reached = _log_posterior(design, counts[active], theta[active] + scale[:, None] * step)
            short = going & (reached < value + 0.1 * scale * gain)
            if not short.any():
                break
            scale[short] /= 2
        theta[active] += scale[:, None] * step
        active = active[going]
        if not len(active):
            break
    return theta


def _resample(
    design: _Design,
    unit: np.ndarray,
    entry: np.ndarray,
    units: int,
    estimate: np.ndarray,
    replicates: int,
    seed: int,
) -> np.ndarray:
    """`[R, K]` estimates of resamples of whole units. `unit` and `entry` `[N]`: each game's unit and its place among the
    `[C, 3]` counts."""
    from scipy.sparse import coo_array

    shape = (units, 3 * len(design.x))
    games = coo_array((np.ones(len(unit)), (unit, entry)), shape=shape).tocsr()
    rng = np.random.default_rng(seed)
    part = max(1, _PART // max(shape))
    drawn = []
    for at in range(0, replicates, part):
        weights = rng.multinomial(units, np.full(units, 1 / units), size=min(part, replicates - at))
        counts = (games.T @ weights.T.astype(float)).T.reshape(len(weights), -1, 3)
        drawn.append(_fit(design, counts, estimate))
    return np.concatenate(drawn)


def _separated(design: _Design, counts: np.ndarray, contrasts: np.ndarray) -> np.ndarray:
    """Which of `contrasts` `[M, K]` the games put no finite bound on: those that differ along some direction in which
    no game's probability falls (Albert and Anderson, 1984), found by linear programs."""
    from scipy.optimize import linprog

    x = np.pad(design.x, ((0, 0), (0, int(design.draws))))  # (C, K)
    eta = np.zeros_like(x)
    if design.draws:
        eta[:, -1] = 1
    win, draw, loss = counts.T > 0  # (C,) each
    # Rows whose product with a direction must not be negative: what was seen against what was not
    rows = [x[win], -x[loss]]
    if design.draws:
        rows += [
            x[win] / 2 - eta[win],
            -x[loss] / 2 - eta[loss],
            eta[draw] - x[draw] / 2,
            eta[draw] + x[draw] / 2,
        ]
    bounds = -np.concatenate(rows)
    free = np.zeros(len(contrasts), dtype=bool)
    for m, contrast in enumerate(contrasts):
        for sign in (-1.0, 1.0):
            if contrast.any() and not free[m]:
                found = linprog(sign * contrast, A_ub=bounds, b_ub=np.zeros(len(bounds)), bounds=(-1, 1))
                free[m] = found.status == 0 and -found.fun > 1e-7
    return free


@dataclass(frozen=True)
class PayoffParts:
    """An antisymmetric pay-off matrix as the sum of what ratings explain and what they do not.

    Args:
        rating (`np.ndarray`): `[P]` ratings in the matrix's unit, with mean 0.
        transitive (`np.ndarray`): `[P, P]` differences of the ratings.
        cyclic (`np.ndarray`): `[P, P]` the rest; NaN where the matrix is.
        share (`float`): The cyclic part's share of the matrix's squared norm, from 0 to 1; 0 for a matrix of zeros.
    """

    rating: np.ndarray
    transitive: np.ndarray
    cyclic: np.ndarray
    share: float


def unexplained(matrix: Sequence[Sequence[float]] | np.ndarray) -> PayoffParts:
    """What of an antisymmetric pay-off matrix no rating explains: its cyclic part.

    The combinatorial Hodge decomposition A = grad(f) + rot(A), where grad(f)_ij = f_i - f_j (Jiang et al., 2011;
    Balduzzi et al., "Re-evaluating evaluation", 2018, and "Open-ended learning in symmetric zero-sum games", 2019).
    The ratings f are the least-squares ones, the row means of a complete matrix, so that the squared norms of the two
    parts add up to that of A. Rock, paper, scissors is all cyclic; differences of ratings not at all. Two players are
    always explained.

    Args:
        matrix (`Sequence[Sequence[float]]`): `[P, P]` what the row wins of the column: a mean score less 1/2, a log-odds,
            or a mean return in a zero-sum game. NaN where a pair has not played.

    Raises:
        `ValueError`: If the matrix is not square and antisymmetric.
    """
    a = np.asarray(matrix, dtype=float)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or not a.size:
        raise ValueError(f"A pay-off matrix has to be square, not of shape {a.shape}.")
    known = ~np.isnan(a)
    filled = np.where(known, a, 0.0)
    scale = max(1.0, float(np.abs(filled).max()))
    if not (known == known.T).all() or not np.isfinite(filled).all() or np.abs(filled + filled.T).max() > 1e-6 * scale:
        raise ValueError("A pay-off matrix has to be finite and antisymmetric: what i wins of j, j loses to i.")
    # Normal equations of the least squares over the pairs that played
    edges = known & ~np.eye(len(a), dtype=bool)
    laplacian = np.diag(edges.sum(1).astype(float)) - edges
    rating = np.linalg.pinv(laplacian, hermitian=True) @ filled.sum(1)
    transitive = rating[:, None] - rating[None, :]
    cyclic = np.where(known, filled - transitive, np.nan)
    norm = float((filled**2).sum())
    share = float(np.nansum(cyclic**2)) / norm if norm > 0 else 0.0
    return PayoffParts(rating, transitive, cyclic, min(1.0, share))
