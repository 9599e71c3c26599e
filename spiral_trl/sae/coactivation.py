"""The loop over pairs of features, compiled by numba: joint counts, products, measures and the lists of the best.

For one upstream feature, the rows of the downstream layer on the tokens where it fires are added into an accumulator as
long as the downstream dictionary. From it follow the measures of all pairs with this feature; the best go into the lists
of this feature and, one pair each, into the lists of the downstream features. Then the next feature has its turn: no
matrix of upstream by downstream features is ever held. The time is that of (entries upstream) x (entries of a
downstream row), thus linear in tokens and quadratic in the number of features active on a token.

Measures are compared as float32, as they are saved, so that equal ones are equal; of these the feature with the lower
number comes first. A list holds pairs whose measure is above 0 and that are active together on at least one token, by the
rule for measures of counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from .kernels import Features, Postings, number, raw_limits, raw_values
from .store import Rows
from .top_lists import PAIR, Lists, as_key, insert


ACTIVATION_MEASURES = ("pearson", "cosine")
COUNT_MEASURES = ("jaccard", "sufficiency", "necessity", "mutual_information")
# The loop's lists, in this order: the activations are related once, the counts under the absolute and the relative rule
NUM_LISTS = len(ACTIVATION_MEASURES) + 2 * len(COUNT_MEASURES)

JOINT = np.dtype([("both", "i8"), ("product", "f8")])
SIDE = np.dtype(
    [
        ("count", "f8"),
        ("count_relative", "f8"),
        ("total", "f8"),
        ("norm", "f8"),
        ("deviation", "f8"),
        ("spread", "f8"),
        ("spread_relative", "f8"),
        ("eligible", "?"),
    ],
    align=True,
)
# Variance over mean square below which a feature is constant, and correlates with nothing
CONSTANT = 1e-12
# How many of the tokens to come have their rows fetched into the cache, and how many entries a line of it holds
_AHEAD, _LINE = 8, 16
# How many upstream features are summed before their pairs are looked at, and how many downstream ones are looked at for
# all of these in turn: so that the accumulators, and the lists that pairs go into, stay in the cache
BATCH, _BLOCK = 16, 8


def sides(features: Features, num_tokens: int, min_count: int) -> np.ndarray:
    """What the measures need of single features.

    Args:
        features ([`~spiral_trl.sae.kernels.Features`]): Sums over a layer.
        num_tokens (`int`): Tokens of the store.
        min_count (`int`): Features active on fewer tokens are not eligible, nor are those that never fire.

    Returns:
        `np.ndarray`: `(features,)` records. `norm` is 1 over the root of the sum of squares, `deviation` 1 over
        `num_tokens` times the standard deviation, `spread` 1 over `count` times `num_tokens - count`; 0 where that does
        not exist.
    """
    side = np.zeros(len(features.count), SIDE)
    count, relative = features.count.astype(np.float64), features.count_relative.astype(np.float64)
    side["count"], side["count_relative"], side["total"] = count, relative, features.total
    side["norm"] = _reciprocal(np.sqrt(features.total_squares))
    variance = num_tokens * features.total_squares - features.total**2
    varies = variance > CONSTANT * num_tokens * features.total_squares
    side["deviation"] = _reciprocal(np.sqrt(np.where(varies, variance, 0)))
    side["spread"] = _reciprocal(count * (num_tokens - count))
    side["spread_relative"] = _reciprocal(relative * (num_tokens - relative))
    side["eligible"] = features.count >= max(1, min_count)
    return side


def _reciprocal(values: np.ndarray) -> np.ndarray:
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)


def packed_dtype(num_features: int, value_dtype: np.dtype) -> np.dtype:
    """Of packed rows: the feature in the upper half, below it one bit for the relative rule, then the activation."""
    return np.dtype(np.uint32 if num_features <= 1 << 16 and value_dtype == np.float16 else np.uint64)


def pack(rows: Rows, limits: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The entries of a shard, `(entries,)`, as the loop reads them; see [`packed_dtype`].

    Args:
        rows ([`~spiral_trl.sae.store.Rows`]): A shard's rows.
        limits (`np.ndarray`): `(features,)`, float64: above it a feature is active by the relative rule.
        dtype (`np.dtype`): The wanted form.
    """
    above = rows.value > limits[rows.feature]
    half, value = (16, rows.value) if dtype == np.uint32 else (32, rows.value.astype(np.float32))
    packed = rows.feature.astype(dtype) << dtype.type(half)
    packed |= above.astype(dtype) << dtype.type(half - 1)
    packed |= value.view(f"uint{half}")
    return packed


def _unpack(entry: Any) -> Any:
    """Feature, bit of the relative rule, and activation in float64 divided by [`_scale`]; for compiled code alone."""
    raise NotImplementedError


def _scale(entry: Any) -> Any:
    """What activations of [`_unpack`] are to be multiplied with; for compiled code alone."""
    raise NotImplementedError


@overload(_unpack, strict=False)
def _unpack_compiled(entry: Any) -> Any:
    if entry == types.uint32:
        return lambda entry: (
            np.int64(entry >> 16),
            np.int64(entry >> 15) & 1,
            np.int64(np.int64(entry & 0x7FFF) << 42).view(np.float64),
        )
    return lambda entry: (
        np.int64(entry >> np.uint64(32)),
        np.int64(entry >> np.uint64(31)) & 1,
        np.float64(np.uint32(entry & np.uint64(0x7FFFFFFF)).view(np.float32)),
    )


@overload(_scale, strict=False)
def _scale_compiled(entry: Any) -> Any:
    # Bits of a half in the places of a double lack the difference of the exponents' offsets, 1023 - 15
    scale = 2.0**1008 if entry == types.uint32 else 1.0
    return lambda entry: scale


def _compile_prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Asks the processor to bring an array's element into its cache.

    Rows are read in no order: without it the loop takes five times as long, most of it spent waiting for memory.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, number, number, number]), "llvm.prefetch.p0"
        )
        address = builder.bitcast(builder.gep(values.data, [arguments[1]]), byte)
        # For reading, kept as close as can be, and as data
        builder.call(function, [address, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, index), generate


_prefetch: Any = intrinsic(_compile_prefetch)


@njit(cache=True, error_model="numpy")
def _log1p(x: float) -> float:
    if abs(x) < 1 / 64:
        # To the last bit of a double
        tail = 1 / 6 - x * (1 / 7 - x * (1 / 8 - x * (1 / 9)))
        return x * (1 - x * (1 / 2 - x * (1 / 3 - x * (1 / 4 - x * (1 / 5 - x * tail)))))
    return np.log1p(x)


@njit(cache=True, error_model="numpy")
def mutual_information(both: Any, one: float, other: float, tokens: float) -> float:
    """Of two events with a joint and single counts, in nats.

    The sum over the four cells of n_ab / n log(n_ab n / (n_a n_b)), where every n_ab n - n_a n_b is the same number but
    for its sign.
    """
    off = both * tokens - one * other
    not_one, not_other = tokens - one, tokens - other
    neither = not_one - (other - both)
    total = 0.0
    if both > 0:
        total += both * _log1p(off / (one * other))
    if one > both:
        total += (one - both) * _log1p(-off / (one * not_other))
    if other > both:
        total += (other - both) * _log1p(-off / (not_one * other))
    if neither > 0:
        total += neither * _log1p(off / (not_one * not_other))
    return max(total / tokens, 0.0)


@njit(cache=True, error_model="numpy")
def information_bound(both: Any, one: float, other: float, tokens: float) -> np.float32:
    """A number that [`mutual_information`] is not above, and for rare events not far below, without a logarithm.

    The joint cell's logarithm is the exponent of two and, for the rest, a chord raised to be a tangent; those of the
    three other cells, which are near 1, stay below the tangent in 1. Where `both` is 0 there is no bound.
    """
    off = both * tokens - one * other
    not_one, not_other = tokens - one, tokens - other
    bits = np.float64(both * tokens / (one * other)).view(np.int64)
    rest = np.int64((bits & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000).view(np.float64)
    total = both * ((bits >> 52) - 1023 + rest - 0.91392) * np.log(2.0)
    neither = not_one - (other - both)
    cells = neither / (not_one * not_other) - (one - both) / (one * not_other) - (other - both) / (not_one * other)
    return np.float32((total + off * cells) / tokens * 1.00001)


@njit(cache=True, error_model="numpy")
def pearson(one: Any, other: Any, product: float, tokens: float) -> float:
    """Correlation of two features with records of [`SIDE`] and the sum of the products of their activations."""
    return (tokens * product - one.total * other.total) * (one.deviation * other.deviation)


@njit(cache=True, error_model="numpy")
def cosine(one: Any, other: Any, product: float) -> float:
    """Of the activations over all tokens, not centred; see [`pearson`]."""
    return product * (one.norm * other.norm)


@njit(cache=True, error_model="numpy")
def pair_measures(
    upstream: np.ndarray,
    downstream: np.ndarray,
    pairs: np.ndarray,
    up: np.ndarray,
    down: np.ndarray,
    tokens: float,
    relative: bool,
) -> np.ndarray:
    """All measures of pairs under one rule, computed as the loop computes them.

    Args:
        upstream, downstream (`np.ndarray`): `(pairs,)`: the features.
        pairs (`np.ndarray`): `(pairs,)` records of [`PAIR`].
        up, down (`np.ndarray`): Records of [`SIDE`] of the two layers.
        tokens (`float`): Tokens of the store.
        relative (`bool`): The rule of the counts.

    Returns:
        `np.ndarray`: `(6, pairs)`, float32: [`ACTIVATION_MEASURES`], then [`COUNT_MEASURES`].
    """
    values = np.zeros((6, len(pairs)), np.float32)
    for at in range(len(pairs)):
        one, other = up[upstream[at]], down[downstream[at]]
        values[0, at] = pearson(one, other, pairs[at].product, tokens)
        values[1, at] = cosine(one, other, pairs[at].product)
        if relative:
            both, count, other_count = np.int64(pairs[at].both_relative), one.count_relative, other.count_relative
        else:
            both, count, other_count = np.int64(pairs[at].both), one.count, other.count
        values[2, at] = both / (count + other_count - both)
        values[3, at] = both / count
        values[4, at] = both / other_count
        values[5, at] = mutual_information(both, count, other_count, tokens)
    return values


@njit(cache=True, nogil=True, error_model="numpy")
def _add_rows(
    begin: int,
    end: int,
    token: np.ndarray,
    raw: np.ndarray,
    limit: float,
    row_start: np.ndarray,
    packed: np.ndarray,
    joint: np.ndarray,
) -> None:
    scale = _scale(packed[0])
    last = len(token) - 1
    for at in range(begin, end):
        _prefetch(row_start, token[min(at + 2 * _AHEAD, last)])
        coming = token[min(at + _AHEAD, last)]
        for place in range(row_start[coming], row_start[coming + 1], _LINE):
            _prefetch(packed, place)
        activation = number(raw[at]) * scale
        above = np.int64(raw[at] > limit)
        for place in range(row_start[token[at]], row_start[token[at] + 1]):
            column, flag, other = _unpack(packed[place])
            # By the absolute rule in the lower half, by the relative rule above
            joint[column].both += 1 + ((flag & above) << 32)
            joint[column].product += activation * other


@njit(cache=True, nogil=True, error_model="numpy")
def _relate_rows(
    first: int,
    indptr: np.ndarray,
    token: np.ndarray,
    raw: np.ndarray,
    limits: np.ndarray,
    row_start: np.ndarray,
    packed: np.ndarray,
    up: np.ndarray,
    down: np.ndarray,
    joint: np.ndarray,
    rows: tuple[np.ndarray, ...],
    columns: tuple[np.ndarray, ...],
    wanted_indptr: np.ndarray,
    wanted: np.ndarray,
    wanted_pairs: np.ndarray,
) -> None:
    row_keys, row_places, row_pairs, row_reach = rows
    column_keys, column_places, column_pairs, column_reach = columns
    last = row_keys.shape[2] - 1
    tokens = np.float64(len(row_start) - 1)
    values = np.empty(NUM_LISTS, np.float32)
    batch = np.empty(len(joint), np.int64)
    row = 0
    while row < len(row_keys):
        filled = 0
        while row < len(row_keys) and filled < len(batch):
            feature = first + row
            if up[feature].eligible:
                sums = joint[filled]
                _add_rows(indptr[feature], indptr[feature + 1], token, raw, limits[feature], row_start, packed, sums)
                for at in range(wanted_indptr[feature], wanted_indptr[feature + 1]):
                    place = at - wanted_indptr[first]
                    wanted_pairs[place].both = sums[wanted[at]].both & 0x7FFFFFFF
                    wanted_pairs[place].both_relative = sums[wanted[at]].both >> 32
                    wanted_pairs[place].product = sums[wanted[at]].product
                batch[filled] = row
                filled += 1
            row += 1
        for block in range(0, len(down), _BLOCK):
            for member in range(filled):
                one, own = up[first + batch[member]], batch[member]
                for column in range(block, min(block + _BLOCK, len(down))):
                    counts = joint[member, column].both
                    if counts == 0:
                        continue
                    product = joint[member, column].product
                    joint[member, column].both = 0
                    joint[member, column].product = 0.0
                    two = down[column]
                    if not two.eligible:
                        continue
                    both, both_relative = counts & 0x7FFFFFFF, counts >> 32
                    values[0] = pearson(one, two, product, tokens)
                    values[1] = cosine(one, two, product)
                    values[2] = both / (one.count + two.count - both)
                    values[3] = both / one.count
                    values[4] = both / two.count
                    values[6] = both_relative / (one.count_relative + two.count_relative - both_relative)
                    values[7] = both_relative / one.count_relative
                    values[8] = both_relative / two.count_relative
                    # Not yet mutual information, but the square of phi, which is not below it (the logarithm is concave);
                    # a little more, for rounding
                    off = both * tokens - one.count * two.count
                    values[5] = off * off * (one.spread * two.spread) * 1.00001
                    off = both_relative * tokens - one.count_relative * two.count_relative
                    values[9] = off * off * (one.spread_relative * two.spread_relative) * 1.00001
                    if both_relative == 0:
                        values[9] = 0.0
                    for which in range(NUM_LISTS):
                        value = values[which]
                        if value < row_reach[own, which] and value < column_reach[column, which]:
                            continue
                        if which == 5 or which == 9:
                            joint_count, count, other = both, one.count, two.count
                            if which == 9:
                                joint_count, count, other = both_relative, one.count_relative, two.count_relative
                            value = information_bound(joint_count, count, other, tokens)
                            if value < row_reach[own, which] and value < column_reach[column, which]:
                                continue
                            value = np.float32(mutual_information(joint_count, count, other, tokens))
                        key = as_key(value, column)
                        if value >= row_reach[own, which] and key > row_keys[own, which, last]:
                            place, row_reach[own, which] = insert(row_keys, row_places, own, which, key)
                            row_pairs[own, which, place].both = both
                            row_pairs[own, which, place].both_relative = both_relative
                            row_pairs[own, which, place].product = product
                        key = as_key(value, first + own)
                        if value >= column_reach[column, which] and key > column_keys[column, which, last]:
                            place, column_reach[column, which] = insert(column_keys, column_places, column, which, key)
                            column_pairs[column, which, place].both = both
                            column_pairs[column, which, place].both_relative = both_relative
                            column_pairs[column, which, place].product = product


def relate_rows(
    features: range,
    postings: Postings,
    limits: np.ndarray,
    row_start: np.ndarray,
    packed: np.ndarray,
    sides_of: tuple[np.ndarray, np.ndarray],
    columns: Lists,
    wanted_indptr: np.ndarray,
    wanted: np.ndarray,
) -> tuple[Lists, np.ndarray]:
    """Relates a range of upstream features to all downstream ones.

    Args:
        features (`range`): Which upstream features.
        postings ([`~spiral_trl.sae.kernels.Postings`]): Their entries.
        limits (`np.ndarray`): `(upstream features,)`, float64: above it one is active by the relative rule.
        row_start (`np.ndarray`): `(tokens + 1,)`, int64: where the downstream layer's row of each token begins.
        packed (`np.ndarray`): Its rows, see [`pack`].
        sides_of (`tuple[np.ndarray, np.ndarray]`): Records of [`sides`] of the two layers.
        columns ([`Lists`]): Of the downstream features: the pairs are offered to them.
        wanted_indptr, wanted (`np.ndarray`): As CSR has it, for each upstream feature the downstream ones whose pair is
            wanted whatever its measures.

    Returns:
        `tuple[Lists, np.ndarray]`: The lists of the upstream features, and `(wanted,)` records of [`PAIR`].
    """
    up, down = sides_of
    rows = Lists(len(features), NUM_LISTS, columns.keys.shape[2])
    wanted_pairs = np.zeros(wanted_indptr[features.stop] - wanted_indptr[features.start], PAIR)
    if len(packed):
        _relate_rows(
            features.start,
            postings.indptr,
            postings.token,
            raw_values(postings.value),
            raw_limits(limits, postings.value.dtype),
            row_start,
            packed,
            up,
            down,
            np.zeros((BATCH, len(down)), JOINT),
            rows.arrays,
            columns.arrays,
            wanted_indptr,
            wanted,
            wanted_pairs,
        )
    return rows, wanted_pairs
