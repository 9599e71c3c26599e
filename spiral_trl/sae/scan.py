"""One pass over a store's codes for chosen features: how often and how strongly they fire, and where to look.

For each feature: counts, sums, a histogram, the tokens of its highest activations and a uniform sample of the tokens
where it fires. Memory is bounded by the number of features, whatever the number of tokens.

- Places are kept in tables of fixed length, of which the lowest rank makes way. A table holds no two tokens of one group
  (game or text), nor two that are preceded by the same words: games repeat, and the same context twenty times tells
  nothing. Where a new token clashes with two that the table holds, both go.
- The sample ranks tokens by a hash of their number, so that it does not depend on the order of reading.
- The histogram has bins of equal width that doubles, neighbours merging, whenever an activation lies above the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numba
import numpy as np

from ..errors import UsageError
from .documents_index import DocumentIndex
from .store import Rows, Store


BINS = 40
# Entries that are converted to float32 at a time
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Places:
    """Tables of places, one row a feature; unused ones have token -1.

    Args:
        rank (`np.ndarray`): `(N, size)`: what places are kept by, highest.
        token (`np.ndarray`): `(N, size)`: number of the token in the store.
        value (`np.ndarray`): `(N, size)`: activation there.
        group (`np.ndarray`): `(N, size)`: the token's group.
        context (`np.ndarray`): `(N, size)`: hash of the tokens up to it.
        lowest (`np.ndarray`): `(N,)`: the lowest rank of each row.
    """

    rank: np.ndarray
    token: np.ndarray
    value: np.ndarray
    group: np.ndarray
    context: np.ndarray
    lowest: np.ndarray

    @classmethod
    def empty(cls, rows: int, size: int) -> Places:
        shape = (rows, size)
        return cls(
            np.full(shape, -np.inf, np.float32),
            np.full(shape, -1, np.int64),
            np.zeros(shape, np.float32),
            np.full(shape, -1, np.int32),
            np.zeros(shape, np.uint64),
            np.full(rows, -np.inf, np.float32),
        )

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.rank, self.token, self.value, self.group, self.context, self.lowest

    def best(self, row: int) -> np.ndarray:
        """Columns of a row's places, highest rank first; of equal ranks the first token."""
        columns = np.flatnonzero(self.token[row] >= 0)
        return columns[np.lexsort((self.token[row, columns], -self.rank[row, columns]))]


@dataclass(frozen=True)
class Scan:
    """What a pass found for the chosen features of one layer.

    Args:
        layer (`int`): The layer.
        features (`np.ndarray`): `(N,)` chosen features, ascending.
        num_tokens (`int`): Tokens that were read.
        count (`np.ndarray`): `(N,)` tokens where each fires.
        total (`np.ndarray`): `(N,)` sum of its activations, float64.
        maximum (`np.ndarray`): `(N,)` its highest activation.
        width (`np.ndarray`): `(N,)` width of its histogram's bins.
        histogram (`np.ndarray`): `(N, BINS)` tokens in each bin.
        top, sample ([`Places`]): Where it fires most, and a sample of where it fires.
    """

    layer: int
    features: np.ndarray
    num_tokens: int
    count: np.ndarray
    total: np.ndarray
    maximum: np.ndarray
    width: np.ndarray
    histogram: np.ndarray
    top: Places
    sample: Places

    @classmethod
    def empty(cls, layer: int, features: np.ndarray, num_tokens: int, top: int, sample: int) -> Scan:
        n = len(features)
        return cls(
            layer,
            features,
            num_tokens,
            np.zeros(n, np.int64),
            np.zeros(n, np.float64),
            np.zeros(n, np.float32),
            np.zeros(n, np.float64),
            np.zeros((n, BINS), np.int64),
            Places.empty(n, top),
            Places.empty(n, sample),
        )


def scan(
    store: Store,
    features: Mapping[int, Sequence[int] | np.ndarray],
    top: int = 12,
    sample: int = 16,
    before: int = 16,
    progress: Callable[[int, int], object] | None = None,
) -> dict[int, Scan]:
    """Reads every shard once.

    Args:
        store ([`~spiral_trl.sae.store.Store`]): The codes.
        features (`Mapping[int, Sequence[int]]`): Chosen features of each layer.
        top (`int`, *optional*, defaults to `12`): How many of the highest places of a feature to keep.
        sample (`int`, *optional*, defaults to `16`): How many places to sample.
        before (`int`, *optional*, defaults to `16`): How many tokens before a place tell contexts apart.
        progress (`Callable`, *optional*): Called with the number of shards that were read and of all.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If the store has no such layer or feature.
    """
    scans, slots = {}, {}
    for layer, chosen in sorted(features.items()):
        numbers = np.unique(np.asarray(chosen, dtype=np.int64))
        width = store.num_features(layer)
        if len(numbers) and not 0 <= numbers[0] <= numbers[-1] < width:
            wrong = numbers[0] if numbers[0] < 0 else numbers[-1]
            raise UsageError(f"layer {layer} has features 0 to {width - 1}, not {wrong}")
        scans[layer] = Scan.empty(layer, numbers, store.num_tokens, top, sample)
        slots[layer] = np.full(width, -1, np.int32)
        slots[layer][numbers] = np.arange(len(numbers))
    index = DocumentIndex(store)
    first = 0
    for done, shard in enumerate(store.shards):
        contexts = index.contexts(first, shard.num_tokens, before)
        groups = shard.tokens()["group"].astype(np.int32)
        for layer, found in scans.items():
            rows = shard.rows(layer)
            for start, stop in row_chunks(rows.indptr, _CHUNK):
                part = slice(rows.indptr[start], rows.indptr[stop])
                _scan(
                    np.asarray(rows.indptr[start : stop + 1]) - rows.indptr[start],
                    np.asarray(rows.feature[part]),
                    rows.value[part].astype(np.float32),
                    slots[layer],
                    groups[start:stop],
                    contexts[start:stop],
                    first + start,
                    found.count,
                    found.total,
                    found.maximum,
                    found.width,
                    found.histogram,
                    found.top.arrays,
                    found.sample.arrays,
                )
        first += shard.num_tokens
        if progress is not None:
            progress(done + 1, len(store.shards))
    return scans


def row_chunks(indptr: np.ndarray, entries: int) -> list[tuple[int, int]]:
    """Ranges of rows that hold about so many entries each."""
    count = len(indptr) - 1
    wanted = np.arange(0, int(indptr[-1]) + entries, entries)
    bounds = np.unique(np.concatenate([[0], np.searchsorted(indptr, wanted, "left").clip(0, count), [count]]))
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))


def entries_of(rows: Rows, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entries of some tokens of a layer: for each the place of its token in `tokens`, its feature and its activation."""
    starts = np.asarray(rows.indptr[tokens])
    counts = np.asarray(rows.indptr[tokens + 1]) - starts
    which = np.repeat(np.arange(len(tokens)), counts)
    entries = np.arange(len(which)) + np.repeat(starts - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    return which, rows.feature[entries].astype(np.int64), rows.value[entries].astype(np.float32)


@numba.njit(cache=True)
def offer(row, rank, token, value, group, context, ranks, tokens, values, groups, contexts, lowest):  # type: ignore[no-untyped-def]
    """Puts a place into a row of a table, if it ranks high enough; see the module."""
    size = ranks.shape[1]
    for k in range(size):
        if tokens[row, k] >= 0 and (groups[row, k] == group or contexts[row, k] == context) and ranks[row, k] >= rank:
            return
    at = 0
    for k in range(size):
        if tokens[row, k] >= 0 and (groups[row, k] == group or contexts[row, k] == context):
            tokens[row, k] = -1
            ranks[row, k] = -np.inf
        if ranks[row, k] < ranks[row, at]:
            at = k
    ranks[row, at] = rank
    tokens[row, at] = token
    values[row, at] = value
    groups[row, at] = group
    contexts[row, at] = context
    least = ranks[row, 0]
    for k in range(1, size):
        least = min(least, ranks[row, k])
    lowest[row] = least


@numba.njit(cache=True)
def _tally(row, value, width, histogram):  # type: ignore[no-untyped-def]
    bins = histogram.shape[1]
    if width[row] == 0.0:
        width[row] = 2.0 ** np.ceil(np.log2(value / bins))
    while value > bins * width[row]:
        for b in range(bins // 2):
            histogram[row, b] = histogram[row, 2 * b] + histogram[row, 2 * b + 1]
        histogram[row, bins // 2 :] = 0
        width[row] *= 2.0
    histogram[row, min(int(value / width[row]), bins - 1)] += 1


@numba.njit(cache=True)
def _scan(indptr, feature, value, slot, groups, contexts, first, count, total, maximum, width, histogram, top, sample):  # type: ignore[no-untyped-def]
    for t in range(len(indptr) - 1):
        for e in range(indptr[t], indptr[t + 1]):
            row = slot[feature[e]]
            if row < 0:
                continue
            v = value[e]
            count[row] += 1
            total[row] += v
            maximum[row] = max(maximum[row], v)
            _tally(row, np.float64(v), width, histogram)
            if v > top[5][row]:
                offer(row, v, first + t, v, groups[t], contexts[t], *top)
            rank = _hashed(np.uint64(first + t), np.uint64(feature[e]))
            if rank > sample[5][row]:
                offer(row, rank, first + t, v, groups[t], contexts[t], *sample)


@numba.njit(cache=True)
def _hashed(token, feature):  # type: ignore[no-untyped-def]
    """A number in [0, 1) of a token and a feature, by the finalizer of splitmix64."""
    x = token * np.uint64(0x9E3779B97F4A7C15) + feature * np.uint64(0xD1B54A32D192ED03) + np.uint64(1)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return np.float32(x >> np.uint64(40)) / np.float32(1 << 24)
