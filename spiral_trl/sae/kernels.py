"""Loops over sparse codes, compiled by numba: sums over a layer, the tokens of each feature, and counts of triples.

Activations reach a loop as they are stored: half precision as its bits, which compare as the numbers do because no
activation is below 0, and single precision as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from ..errors import UsageError
from .relations import RELATIVE, RULES
from .store import Rows, Shard, Store, shard_bounds


def raw_values(value: np.ndarray) -> np.ndarray:
    """Activations as the loops take them: `float16` as `uint16`, `float32` as it is."""
    return value.view(np.uint16) if value.dtype == np.float16 else value


def raw_limits(limits: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """For limits `(n,)` in float64 the largest numbers of a precision that are not above them, as the loops take them.

    An activation of that precision is above the limit exactly where it is above this number.
    """
    rounded = limits.astype(dtype)
    above = rounded.astype(np.float64) > limits
    rounded[above] = np.nextafter(rounded[above], np.array(-np.inf, dtype))
    return raw_values(rounded)


def number(raw: Any) -> Any:
    """An activation in float64."""
    return float(np.uint16(raw).view(np.float16)) if isinstance(raw, np.integer) else float(raw)


@overload(number, strict=False)
def _number_for_numba(raw: Any) -> Any:
    if isinstance(raw, types.Integer):
        # The exponent's offset is 15 in half precision and 1023 in double; subnormal numbers come out right too
        return lambda raw: np.int64(np.int64(raw) << 42).view(np.float64) * 2.0**1008
    return lambda raw: np.float64(raw)


# What `sum_rows` found wrong with rows
FAULTS = {
    1: "the rows overlap",
    2: "a feature is outside the dictionary",
    3: "a token's features do not ascend",
    4: "an activation is not above 0, or not finite",
}


@njit(cache=True)
def sum_rows(
    indptr: np.ndarray,
    feature: np.ndarray,
    raw: np.ndarray,
    ceiling: float,
    count: np.ndarray,
    sums: np.ndarray,
    largest: np.ndarray,
) -> tuple[int, int]:
    """Adds the rows of a shard to the sums of each feature, checking all of them first.

    Args:
        indptr, feature, raw (`np.ndarray`): The rows, see [`~spiral_trl.sae.store.Rows`] and [`raw_values`].
        ceiling (`float`): What every activation must be below.
        count (`np.ndarray`): `(features,)`, int64: tokens on which the feature is active.
        sums (`np.ndarray`): `(features, 4)`, float64: the sum of activations and what rounding lost of it, the sum of
            squares and what rounding lost of it. Without the losses a constant feature would seem to vary.
        largest (`np.ndarray`): `(features,)`, float64: largest activation.

    Returns:
        `tuple[int, int]`: A key of [`FAULTS`] and the row it was found in, with nothing added; or 0 and -1.
    """
    num_features = len(count)
    for row in range(len(indptr) - 1):
        start, end = indptr[row], indptr[row + 1]
        if start < 0 or end < start or end > len(feature):
            return 1, row
        last = np.int64(-1)
        for at in range(start, end):
            column = np.int64(feature[at])
            if column >= num_features:
                return 2, row
            if column <= last:
                return 3, row
            last = column
            value = number(raw[at])
            if not 0.0 < value < ceiling:
                return 4, row
    for at in range(len(feature)):
        column = np.int64(feature[at])
        value = number(raw[at])
        count[column] += 1
        largest[column] = max(largest[column], value)
        for which, term in ((0, value), (2, value * value)):
            total = sums[column, which]
            after = total + term
            sums[column, which + 1] += (total - after) + term if total >= term else (term - after) + total
            sums[column, which] = after
    return 0, -1


@njit(cache=True)
def count_above(feature: np.ndarray, raw: np.ndarray, limits: np.ndarray, count: np.ndarray) -> None:
    """Adds to `count` of each feature how many activations are above its limit; see [`raw_limits`]."""
    for at in range(len(feature)):
        if raw[at] > limits[feature[at]]:
            count[feature[at]] += 1


@dataclass(frozen=True, eq=False)
class Features:
    """What is known of the features of a layer by themselves: arrays `(features,)`.

    Args:
        count (`np.ndarray`): Tokens on which the feature is active, `a > 0`.
        count_relative (`np.ndarray`): Tokens on which it is active by the relative rule, `a > relative * max`.
        total, total_squares (`np.ndarray`): Sums of its activations and of their squares, float64.
        max (`np.ndarray`): Its largest activation, 0 for a feature that never fires.
    """

    count: np.ndarray
    count_relative: np.ndarray
    total: np.ndarray
    total_squares: np.ndarray
    max: np.ndarray


def check_rows(rows: Rows, num_features: int, shard: Shard, layer: int) -> None:
    """Refuses rows that a loop must not read.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If a feature is outside the dictionary, say.
    """
    _sum_checked(rows, _no_sums(num_features), shard, layer)


def _no_sums(num_features: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.zeros(num_features, np.int64), np.zeros((num_features, 4)), np.zeros(num_features)


def _sum_checked(rows: Rows, sums: tuple[np.ndarray, np.ndarray, np.ndarray], shard: Shard, layer: int) -> None:
    if rows.value.dtype not in (np.float16, np.float32) or rows.feature.dtype not in (np.uint16, np.uint32):
        raise UsageError(
            f"the shard {shard.folder} is corrupt: layer {layer} has features of {rows.feature.dtype} and activations of "
            f"{rows.value.dtype}"
        )
    # The bits of a half that is infinite, no number or below 0 are read as a number that no half reaches
    ceiling = 2.0**16 if rows.value.dtype == np.float16 else np.inf
    fault, row = sum_rows(rows.indptr, rows.feature, raw_values(rows.value), ceiling, *sums)
    if fault:
        raise UsageError(f"the shard {shard.folder} is corrupt: layer {layer}, row {row}: {FAULTS[fault]}")


def feature_sums(store: Store, layer: int, relative: float = RELATIVE) -> Features:
    """Sums over a layer, which also checks it: two passes over its codes, one shard in memory at a time.

    Args:
        store ([`~spiral_trl.sae.store.Store`]): The codes.
        layer (`int`): Which layer.
        relative (`float`, *optional*, defaults to 0.2): Of the relative rule.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If the store does not have the layer, or a shard is corrupt.
    """
    num_features = store.num_features(layer)
    count, sums, largest = _no_sums(num_features)
    for shard in store.shards:
        _sum_checked(shard.rows(layer), (count, sums, largest), shard, layer)
    above = np.zeros(num_features, np.int64)
    for shard in store.shards:
        rows = shard.rows(layer)
        count_above(rows.feature, raw_values(rows.value), raw_limits(relative * largest, rows.value.dtype), above)
    return Features(count, above, sums[:, 0] + sums[:, 1], sums[:, 2] + sums[:, 3], largest)


@dataclass(frozen=True, eq=False)
class Postings:
    """A layer's codes by feature, as scipy's CSC has them.

    Args:
        indptr (`np.ndarray`): `(features + 1,)`, int64.
        token (`np.ndarray`): `(entries,)`, int32: tokens on which the feature is active, numbered over the whole store,
            ascending.
        value (`np.ndarray`): `(entries,)`: its activations, in the store's precision.
    """

    indptr: np.ndarray
    token: np.ndarray
    value: np.ndarray

    @property
    def count(self) -> np.ndarray:
        """`(features,)`: entries of each feature."""
        return np.diff(self.indptr)


@njit(cache=True)
def place(
    indptr: np.ndarray,
    feature: np.ndarray,
    raw: np.ndarray,
    first_token: int,
    limits: np.ndarray,
    wanted: np.ndarray,
    free: np.ndarray,
    token: np.ndarray,
    value: np.ndarray,
) -> None:
    """Puts the entries of a shard where they belong in [`Postings`]: those above their feature's limit.

    Args:
        wanted (`np.ndarray`): `(features,)`, bool: the features to place.
        free (`np.ndarray`): `(features,)`, int64: where the next entry of each goes; moved on.
    """
    for row in range(len(indptr) - 1):
        for at in range(indptr[row], indptr[row + 1]):
            column = feature[at]
            if wanted[column] and raw[at] > limits[column]:
                to = free[column]
                token[to] = first_token + row
                value[to] = raw[at]
                free[column] = to + 1


def transpose(
    store: Store,
    layer: int,
    rule: str = "absolute",
    relative: float = RELATIVE,
    features: Features | None = None,
    wanted: np.ndarray | None = None,
) -> Postings:
    """A layer's codes by feature, in memory: 6 bytes an entry where the store holds half precision.

    Args:
        store ([`~spiral_trl.sae.store.Store`]): The codes.
        layer (`int`): Which layer.
        rule (`str`, *optional*, defaults to `"absolute"`): Which activations are entries: all (`a > 0`), or those of the
            relative rule.
        relative (`float`, *optional*, defaults to 0.2): Of the relative rule.
        features (`Features`, *optional*): What [`feature_sums`] made of the same layer, where it is known.
        wanted (`np.ndarray`, *optional*): Features to give entries of; the others get none. All of them without it.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If the store does not have the layer, or a shard is corrupt.
    """
    if rule not in RULES:
        raise UsageError(f"the rule must be one of {', '.join(RULES)}, not {rule!r}")
    num_features = store.num_features(layer)
    if features is None:
        features = feature_sums(store, layer, relative)
    mask = np.ones(num_features, bool)
    if wanted is not None:
        mask[:] = False
        mask[wanted] = True
    counts = np.where(mask, features.count if rule == "absolute" else features.count_relative, 0)
    limits = np.zeros(num_features) if rule == "absolute" else relative * features.max
    indptr = np.concatenate([[0], np.cumsum(counts)])
    token = np.empty(indptr[-1], np.int32)
    value = np.empty(indptr[-1], store.shards[0].rows(layer).value.dtype)
    free = indptr[:-1].copy()
    for shard, first in zip(store.shards, shard_bounds(store.shards)[:-1], strict=True):
        rows = shard.rows(layer)
        raw = raw_values(rows.value)
        place(
            rows.indptr,
            rows.feature,
            raw,
            first,
            raw_limits(limits, rows.value.dtype),
            mask,
            free,
            token,
            raw_values(value),
        )
    return Postings(indptr, token, value)


@njit(cache=True)
def _triple_counts(
    up_indptr: np.ndarray,
    up_token: np.ndarray,
    down_indptr: np.ndarray,
    down_token: np.ndarray,
    triples: np.ndarray,
    order: np.ndarray,
    mark: np.ndarray,
    counts: np.ndarray,
) -> None:
    # Bit 0 marks the tokens of A, bit 1 those of D
    one, other, both = -1, -1, 0
    for at in order:
        first, second, down = triples[at]
        if down != other:
            if other >= 0:
                for token in down_token[down_indptr[other] : down_indptr[other + 1]]:
                    mark[token] &= 1
            for token in down_token[down_indptr[down] : down_indptr[down + 1]]:
                mark[token] |= 2
        if down != other or first != one:
            if one >= 0:
                for token in up_token[up_indptr[one] : up_indptr[one + 1]]:
                    mark[token] &= 2
            both = 0
            for token in up_token[up_indptr[first] : up_indptr[first + 1]]:
                both += mark[token] >> 1
                mark[token] |= 1
        one, other = first, down
        with_first, with_down, with_both = 0, 0, 0
        for token in up_token[up_indptr[second] : up_indptr[second + 1]]:
            bits = mark[token]
            with_first += bits & 1
            with_down += bits >> 1
            with_both += bits == 3
        counts[at, 0] = up_indptr[first + 1] - up_indptr[first]
        counts[at, 1] = up_indptr[second + 1] - up_indptr[second]
        counts[at, 2] = down_indptr[down + 1] - down_indptr[down]
        counts[at, 3] = with_first
        counts[at, 4] = both
        counts[at, 5] = with_down
        counts[at, 6] = with_both


def triple_counts(up: Postings, down: Postings, triples: np.ndarray) -> np.ndarray:
    """On how many tokens the features of triples are active together.

    Args:
        up, down (`Postings`): Of the upstream and of the downstream layer, over the same tokens.
        triples (`np.ndarray`): `(n, 3)`: two upstream features A and B, and a downstream feature D. The time taken is
            that of reading the entries of each B, and those of each A and D where they change in the order of (D, A).

    Returns:
        `np.ndarray`: `(n, 7)`, int64: n(A), n(B), n(D), n(A and B), n(A and D), n(B and D), n(A and B and D).

    Raises:
        `ValueError`: If a triple names a feature that is not there.
    """
    triples = np.ascontiguousarray(triples, np.int64).reshape(-1, 3)
    counts = np.zeros((len(triples), 7), np.int64)
    if not len(triples):
        return counts
    sizes = np.array([len(up.count), len(up.count), len(down.count)])
    if (triples < 0).any() or (triples >= sizes).any():
        raise ValueError(f"triples name features outside {sizes[0]} upstream and {sizes[2]} downstream ones")
    order = np.lexsort((triples[:, 0], triples[:, 2]))
    num_tokens = 1 + max(int(up.token.max(initial=-1)), int(down.token.max(initial=-1)))
    mark = np.zeros(num_tokens, np.uint8)
    _triple_counts(up.indptr, up.token, down.indptr, down.token, triples, order, mark, counts)
    return counts
