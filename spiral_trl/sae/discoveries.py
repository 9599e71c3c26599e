"""Which features differ between two samples of games beyond what games differ among themselves.

Tokens of one game depend on each other, so the game is the unit. Features are rare and their rates heavy-tailed: of many
games few hold a feature, and a few of those hold most of its firings. Intervals that rest on the normal distribution are
then wrong far out in the tail, which is where hundreds of thousands of tests are decided. The tests here make no
assumption on the distribution:

1. Games are paired: with themselves where two models read the same texts, else at random (with as many games of the
   larger sample as the smaller one has). Were there no difference, each pair could be swapped by the toss of a coin.
2. A statistic is the sum over pairs of a difference d, divided by the root of the sum of d^2. Over the tosses it is a
   sum of signs with weights, whose tail is at most 3.18 times that of the normal distribution, whatever the weights and
   however few (Bentkus and Dzindzalieta, A tight Gaussian bound for weighted sums of Rademacher random variables,
   Bernoulli 21, 2015).
3. Where that bound does not settle a feature, its probability is computed over the tosses themselves, by importance
   sampling: signs are tossed so that the sum is as large as the one seen in the mean, and weighted back. This gives
   probabilities of 1e-8 from a thousand tosses.
4. Benjamini-Hochberg over all features and layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from .game_sums import GameSums


if TYPE_CHECKING:
    from scipy.sparse import csc_array, csr_array


# What is tested of a feature, each over games:
# density               active tokens for each token, of all games together
# log_density           log of the density in a game (on top of the density in all), so that no single game decides
# density_where_active  log of the density in a game, of those where the feature is active
# activation            log of the mean activation where active
STATISTICS: tuple[str, ...] = ("density", "log_density", "density_where_active", "activation")
# Longer games have a feature more often, and thinner: these two then differ by length alone
OF_LENGTH: tuple[str, ...] = ("log_density", "density_where_active")
# Differences of logarithms below this are rounding
_ROUNDING = 1e-7
# Bootstraps at once
_BOOTSTRAPS = 100
# Statistics below the first are no discovery; bounds below the second are one whatever their exact value is
_SAMPLED_FROM, _SETTLED = 2.0, 1e-9
# A probability above the first is known well enough from this many draws
_DECISIVE, _FEW = 5e-3, 250


@dataclass(frozen=True)
class Differences:
    """Differences of each feature between two samples of games. F features; NaN where a feature was not tested.

    Args:
        games (`np.ndarray`): `(2, F)` games in which the feature is active, before and after.
        density (`np.ndarray`): `(2, F)` active tokens for each token.
        activation (`np.ndarray`): `(2, F)` mean activation where active; NaN where never.
        tested (`np.ndarray`): `(F,)` whether it is active in enough of the games that were paired.
        z, p (`dict[str, np.ndarray]`): `(F,)` for each of [`STATISTICS`]: the statistic, above 0 where it rose, and the
            two-sided probability of one as far from 0.
        combined (`np.ndarray`): `(F,)` the smallest of the counted probabilities times the number of statistics.
        halves (`np.ndarray`): `(2, F)` `log_density`'s statistic in either half of the pairs.
        length (`np.ndarray`): `(2,)` mean tokens of a game.
        counted (`tuple[str, ...]`): The statistics that decide.
        pairs (`int`): How many pairs of games.
    """

    games: np.ndarray
    density: np.ndarray
    activation: np.ndarray
    tested: np.ndarray
    z: dict[str, np.ndarray]
    p: dict[str, np.ndarray]
    combined: np.ndarray
    halves: np.ndarray
    length: np.ndarray
    counted: tuple[str, ...]
    pairs: int

    @property
    def rose(self) -> np.ndarray:
        """`(F,)`: sign of the counted statistic with the smallest probability, 0 where not tested."""
        p = np.stack([self.p[name] for name in self.counted])
        z = np.stack([self.z[name] for name in self.counted])
        best = np.nan_to_num(p, nan=2.0).argmin(0)
        return np.where(self.tested, np.sign(z[best, np.arange(z.shape[1])]), 0).astype(int)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjusted probabilities (Benjamini and Hochberg, 1995): those at most q are discoveries at rate q of false ones.

    Args:
        p (`np.ndarray`): Of any shape, NaN where nothing was tested; that stays, and does not count.
    """
    from scipy.stats import false_discovery_control

    adjusted = np.full(p.shape, np.nan)
    tested = ~np.isnan(p)
    if tested.any():
        adjusted[tested] = false_discovery_control(p[tested])
    return adjusted


def clustered_difference(
    before: GameSums,
    after: GameSums,
    *,
    paired: bool,
    min_games: int = 20,
    draws: int = 1000,
    longer: float = 0.1,
    seed: int = 42,
) -> Differences:
    """Tests each feature for a difference between two samples of games.

    Args:
        before, after ([`~spiral_trl.sae.game_sums.GameSums`]): Codes of the same dictionary.
        paired (`bool`): Whether both are of the same texts; else they are of independent games.
        min_games (`int`, *optional*, defaults to `20`): Features active in fewer games, both samples together, are not
            tested: with k games no probability is below 2^(1-k), and what cannot be found costs what can be. The count
            does not tell the samples apart, so that it favours no outcome.
        draws (`int`, *optional*, defaults to `1000`): Tosses of all coins, for importance sampling: 1000 give a
            probability to about 8 per cent.
        longer (`float`, *optional*, defaults to `0.1`): Where games are longer in one sample by more than this share,
            only what does not follow from length is counted: `density` and `activation`.
        seed (`int`, *optional*, defaults to `42`): Seed of pairs and tosses.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If dictionaries differ in size, there are fewer than two pairs, or paired
            samples are not of the same games.
    """
    if before.num_features != after.num_features:
        raise UsageError(f"dictionaries of {before.num_features} and {after.num_features} features cannot be compared")
    if paired and not (np.array_equal(before.games, after.games) and np.array_equal(before.tokens, after.tokens)):
        raise UsageError("the two samples were to be of the same texts, and are not")
    pairs = min(len(before.games), len(after.games))
    if pairs < 2:
        raise UsageError(f"a comparison needs at least 2 games on either side, not {pairs}")
    both = (before, after)
    games = np.stack([_active_games(sums.counts) for sums in both])
    counts, totals = (
        np.stack([_per_feature(part) for part in parts])
        for parts in ((before.counts, after.counts), (before.totals, after.totals))
    )
    tokens = np.array([sums.tokens.sum() for sums in both])
    length = tokens / [len(sums.games) for sums in both]
    with np.errstate(invalid="ignore", divide="ignore"):
        activation = np.where(counts > 0, totals / counts, np.nan)

    rng = np.random.default_rng(seed)
    order = rng.permutation(len(before.games))
    before = before.take(order[:pairs])
    after = after.take(order if paired else rng.permutation(len(after.games))[:pairs])
    pooled = before.counts + after.counts
    # Neither number tells which sample a game is of
    reached = _active_games(pooled) if paired else _active_games(before.counts) + _active_games(after.counts)
    tested = reached >= min_games
    rate = _per_feature(pooled) / (before.tokens.sum() + after.tokens.sum())
    differences = _differences(before, after, rate, paired)
    # Residuals of the ratio, active tokens for each token, so that longer games do not make a difference
    shift = after.tokens - before.tokens

    z, p = {}, {}
    tosses = np.random.default_rng(seed).random((draws, pairs), dtype=np.float32)
    for name, matrix in differences.items():
        z[name], p[name] = _sign_flips(matrix, tested, tosses, *((shift, rate) if name == "density" else (None, None)))
    counted = STATISTICS
    if abs(np.log(length[1] / length[0])) > np.log1p(longer):
        counted = tuple(name for name in STATISTICS if name not in OF_LENGTH)
    # The number of statistics stays, whichever are counted: that choice has seen the samples
    smallest = np.min([p[name] for name in counted], axis=0)
    logs = differences["log_density"].tocsr()
    return Differences(
        games=games,
        density=counts / tokens[:, None],
        activation=activation,
        tested=tested,
        z={name: np.where(tested, values, np.nan) for name, values in z.items()},
        p=p,
        combined=np.minimum(smallest * len(STATISTICS), 1.0),
        halves=np.stack([_statistic(half)[0] for half in (logs[: pairs // 2], logs[pairs // 2 :])]),
        length=length,
        counted=counted,
        pairs=pairs,
    )


def _per_feature(matrix: csc_array | csr_array) -> np.ndarray:
    return np.asarray(matrix.sum(axis=0)).ravel()


def _active_games(counts: csr_array) -> np.ndarray:
    return np.bincount(counts.indices, minlength=counts.shape[1])


def _differences(before: GameSums, after: GameSums, rate: np.ndarray, paired: bool) -> dict[str, csc_array]:
    """`(pairs, F)` for each statistic: after minus before."""
    logs, densities, activations = [], [], []
    for sums in (before, after):
        counts, totals = sums.counts.tocsc(), sums.totals.tocsc()
        density = counts.data / sums.tokens[counts.indices]
        rates = np.repeat(rate, np.diff(counts.indptr))
        logs.append(_like(counts, np.log1p(density / rates)))
        densities.append(_like(counts, np.log(density)))
        activations.append(_like(counts, np.log(totals.data / counts.data)))
    match = _where_both if paired else _one_after_the_other
    return {
        "density": (after.counts - before.counts).tocsc(),
        "log_density": _rounded((logs[1] - logs[0]).tocsc()),
        "density_where_active": _rounded(match(*densities)),
        "activation": _rounded(match(*activations)),
    }


def _like(matrix: csc_array, data: np.ndarray) -> csc_array:
    from scipy.sparse import csc_array

    return csc_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def _rounded(matrix: csc_array) -> csc_array:
    matrix.data[np.abs(matrix.data) < _ROUNDING] = 0
    matrix.eliminate_zeros()
    return matrix


def _where_both(before: csc_array, after: csc_array) -> csc_array:
    """Differences in the games in which both have an entry."""
    from scipy.sparse import csc_array

    keys_before, keys_after = (
        np.repeat(np.arange(m.shape[1], dtype=np.int64), np.diff(m.indptr)) * m.shape[0] + m.indices
        for m in (before, after)
    )
    common, one, other = np.intersect1d(keys_before, keys_after, assume_unique=True, return_indices=True)
    column, row = np.divmod(common, before.shape[0])
    return csc_array((after.data[other] - before.data[one], (row, column)), shape=before.shape)


def _one_after_the_other(before: csc_array, after: csc_array) -> csc_array:
    """Differences of the first entries of a feature, of the second ones, and so on while both have one.

    Games are in random order, so this pairs the games in which a feature is active at random.
    """
    from scipy.sparse import csc_array

    sizes = [np.diff(m.indptr) for m in (before, after)]
    both = np.minimum(*sizes)
    indptr = np.concatenate([[0], np.cumsum(both)])
    place = np.arange(indptr[-1]) - np.repeat(indptr[:-1], both)
    values = [m.data[np.repeat(m.indptr[:-1], both) + place] for m in (before, after)]
    return csc_array((values[1] - values[0], place, indptr), shape=before.shape)


def _statistic(
    matrix: csc_array, shift: np.ndarray | None = None, rate: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`(F,)` each: sum of d over the root of the sum of d^2, and the sum. `d` is the entry less `rate * shift`."""
    total, squares = _per_feature(matrix), _per_feature(matrix.multiply(matrix))
    if shift is not None and rate is not None:
        scale = squares + rate**2 * (shift**2).sum()
        total = total - rate * shift.sum()
        squares = squares - 2 * rate * (matrix.T @ shift) + rate**2 * (shift**2).sum()
        squares = np.where(squares > 1e-12 * scale, squares, 0.0)
    positive = squares > 0
    return np.where(positive, total / np.sqrt(np.where(positive, squares, 1.0)), 0.0), total


def _sign_flips(
    matrix: csc_array,
    tested: np.ndarray,
    tosses: np.ndarray,
    shift: np.ndarray | None,
    rate: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """`(F,)` each: the statistic, and its probability over all signs of the pairs, two-sided; NaN if not tested."""
    z, _ = _statistic(matrix, shift, rate)
    p = tail_bound(z)
    for feature in np.flatnonzero(tested & (np.abs(z) >= _SAMPLED_FROM) & (p > _SETTLED)):
        entries = slice(matrix.indptr[feature], matrix.indptr[feature + 1])
        if shift is None or rate is None:
            d = matrix.data[entries]
        else:
            d = -rate[feature] * shift
            d[matrix.indices[entries]] += matrix.data[entries]
        sampled = sampled_tail(d, tosses[:_FEW])
        if sampled < _DECISIVE:
            sampled = sampled_tail(d, tosses)
        p[feature] = min(p[feature], sampled)
    return z, np.where(tested, p, np.nan)


def tail_bound(z: np.ndarray) -> np.ndarray:
    """The most that the two-sided probability of a weighted sum of signs, divided by its deviation, can be."""
    from scipy.special import ndtr

    # Above 0, where the normal tail is below what a float holds
    return np.clip(2 * ndtr(-np.abs(z)) / (4 * ndtr(-np.sqrt(2))), np.finfo(float).tiny, 1.0)


def sampled_tail(d: np.ndarray, tosses: np.ndarray) -> float:
    """Probability, over random signs of `d`, of a sum at least as far from 0 as that of `d`.

    Signs are tossed with `P(+) = 1 / (1 + exp(-2 tilt d))`, where the tilt makes the mean of the sum the one seen, and
    each toss counts with the ratio of its probabilities under fair coins and under these: `exp(K - tilt * sum)`, with
    `K` the sum of `log cosh(tilt d)`. Any tilt gives the right mean; this one gives a small spread (Siegmund, 1976).

    Args:
        d (`np.ndarray`): `(pairs,)` differences.
        tosses (`np.ndarray`): `(draws, at least pairs)` uniform numbers.
    """
    d = d[d != 0]
    if d.sum() < 0:
        d = -d
    seen, most = d.sum(), np.abs(d).sum()
    fewest = 2.0 ** (1 - len(d))
    if seen >= most * (1 - 1e-9):
        return min(fewest, 1.0)
    unit = np.sqrt((d**2).sum())
    low, high = 0.0, 1.0
    while np.sum(d * np.tanh(high / unit * d)) < seen and high < 1e6:
        low, high = high, 2 * high
    # Precision is of no matter here
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if np.sum(d * np.tanh(middle / unit * d)) < seen else (low, middle)
    tilt = high / unit
    plus = 1 / (1 + np.exp(-2 * tilt * d))
    sums = 2 * ((tosses[:, : len(d)] < plus.astype(np.float32)) @ d) - d.sum()
    logs = np.logaddexp(tilt * d, -tilt * d).sum() - len(d) * np.log(2) - tilt * sums
    reached = sums >= seen - 1e-9 * most
    return float(np.clip(2 * np.exp(logs[reached]).sum() / len(tosses), fewest, 1.0))


def ratio_interval_by_game(
    before: GameSums,
    after: GameSums,
    features: np.ndarray,
    *,
    paired: bool,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 42,
) -> np.ndarray:
    """`(2, len(features))`: bootstrap interval of the density after over the density before, games drawn anew.

    NaN where a bootstrap's ratio is not defined at that end: a feature that was active in few games, or never, before.

    Args:
        before, after ([`~spiral_trl.sae.game_sums.GameSums`]): The games.
        features (`np.ndarray`): Which features.
        paired (`bool`): Whether both are of the same texts: games are then drawn for both together.
        replicates (`int`, *optional*, defaults to `1000`): How many bootstraps.
        confidence (`float`, *optional*, defaults to `0.95`): Coverage of the interval.
        seed (`int`, *optional*, defaults to `42`): Seed of the bootstraps.
    """
    rng = np.random.default_rng(seed)
    counts = [sums.counts[:, features].toarray() for sums in (before, after)]
    ratios = []
    for at in range(0, replicates, _BOOTSTRAPS):
        size = min(_BOOTSTRAPS, replicates - at)
        densities = []
        drawn = None
        for sums, active in zip((before, after), counts, strict=True):
            n = len(sums.games)
            if drawn is None or not paired:
                drawn = rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)
            densities.append((drawn @ active) / (drawn @ sums.tokens)[:, None])
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios.append(densities[1] / densities[0])
    every = np.sort(np.concatenate(ratios), axis=0)
    tail = (1 - confidence) / 2
    ends = np.quantile(every, [tail, 1 - tail], axis=0, method="nearest")
    return np.where(np.isfinite(ends), ends, np.nan)
