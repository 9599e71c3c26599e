"""What each feature did in each game: the sparse table from which comparisons by game are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from .store import Rows, Store, check_same_tokens, shard_bounds


if TYPE_CHECKING:
    from scipy.sparse import csr_array


@dataclass(frozen=True)
class GameSums:
    """Sums over the tokens of each game, of one layer. G games, F features.

    Args:
        games (`np.ndarray`): `(G,)` group of each game, as the store has it.
        tokens (`np.ndarray`): `(G,)` tokens of each game.
        counts (`csr_array`): `(G, F)` tokens of the game on which the feature is active.
        totals (`csr_array`): `(G, F)` sum of its activations; with the same entries as `counts`.
    """

    games: np.ndarray
    tokens: np.ndarray
    counts: csr_array
    totals: csr_array

    @property
    def num_features(self) -> int:
        return self.counts.shape[1]

    def take(self, rows: np.ndarray) -> GameSums:
        """The games in these rows, in this order."""
        return GameSums(self.games[rows], self.tokens[rows], self.counts[rows], self.totals[rows])


def game_sums(store: Store, layer: int, replies_only: bool = False) -> GameSums:
    """Sums over the tokens of each game, read shard by shard.

    Args:
        store ([`~spiral_trl.sae.store.Store`]): The codes.
        layer (`int`): The layer.
        replies_only (`bool`, *optional*, defaults to `False`): Whether to leave out what the players were shown. Games
            without a reply are then left out.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If no token is left, or the store does not have the layer.
    """
    from scipy.sparse import csr_array

    num_features = store.num_features(layer)
    kept = store.tokens["reply"] if replies_only else np.ones(store.num_tokens, bool)
    if not kept.any():
        raise UsageError(f"{store.folder} holds no token{' of a reply' if replies_only else ''}")
    games, number = np.unique(store.tokens["group"][kept], return_inverse=True)
    row = np.full(store.num_tokens, -1)
    row[kept] = number
    shape = (len(games), num_features)
    # Both sums in one product: counts are its real part, activations its imaginary part
    both = csr_array(shape, dtype=np.complex128)
    bounds = shard_bounds(store.shards)
    for shard, start, stop in zip(store.shards, bounds[:-1], bounds[1:], strict=True):
        at = np.flatnonzero(row[start:stop] >= 0)
        members = csr_array((np.ones(len(at)), (row[start:stop][at], at)), shape=(len(games), stop - start))
        codes = _matrix(shard.rows(layer), num_features)
        codes = csr_array((1 + 1j * codes.data, codes.indices, codes.indptr), shape=codes.shape)
        both = both + members @ codes
    both.sort_indices()
    counts, totals = (
        csr_array((data.copy(), both.indices.copy(), both.indptr.copy()), shape=shape)
        for data in (both.data.real, both.data.imag)
    )
    return GameSums(games, np.bincount(number).astype(np.float64), counts, totals)


def correlations(before: Store, after: Store, layer: int) -> np.ndarray:
    """`(F,)`: Pearson correlation, over the same tokens, of each feature's activations before and after.

    NaN where a feature is constant in one of the two stores: never active, above all.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If the stores are not of the same tokens.
    """
    check_same_tokens(before, after)
    num_features = before.num_features(layer)
    sums = np.zeros((5, num_features))
    for one, other in _aligned(before, after, layer):
        a, b = _matrix(one, num_features), _matrix(other, num_features)
        parts = (a, b, a.multiply(a), b.multiply(b), a.multiply(b))
        sums += [np.asarray(part.sum(axis=0)).ravel() for part in parts]
    n = before.num_tokens
    mean_a, mean_b = sums[:2] / n
    variance_a, variance_b = sums[2] / n - mean_a**2, sums[3] / n - mean_b**2
    # What rounding leaves of a variance of 0
    varies = (variance_a > 1e-12 * sums[2] / n) & (variance_b > 1e-12 * sums[3] / n)
    found = np.full(num_features, np.nan)
    covariance = sums[4] / n - mean_a * mean_b
    found[varies] = covariance[varies] / np.sqrt(variance_a[varies] * variance_b[varies])
    return np.clip(found, -1, 1)


def _matrix(rows: Rows, num_features: int) -> csr_array:
    from scipy.sparse import csr_array

    return csr_array(
        (rows.value.astype(np.float64), rows.feature.astype(np.int32), rows.indptr),
        shape=(rows.num_tokens, num_features),
    )


def _aligned(before: Store, after: Store, layer: int) -> Iterator[tuple[Rows, Rows]]:
    """Rows of the same tokens from two stores, whatever the shards they lie in."""
    cuts = np.union1d(shard_bounds(before.shards), shard_bounds(after.shards))
    for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
        yield _slice(before, layer, start, stop), _slice(after, layer, start, stop)


def _slice(store: Store, layer: int, start: int, stop: int) -> Rows:
    bounds = shard_bounds(store.shards)
    shard = int(np.searchsorted(bounds, start, side="right")) - 1
    rows = store.shards[shard].rows(layer)
    indptr = rows.indptr[start - bounds[shard] : stop - bounds[shard] + 1]
    entries = slice(int(indptr[0]), int(indptr[-1]))
    return Rows(indptr - indptr[0], rows.feature[entries], rows.value[entries])
