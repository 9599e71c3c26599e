"""Features of one layer that fire on the same tokens: duplicates within a dictionary.

Pairs are sought by min-hashes of each feature's tokens, which agree as often as the tokens overlap (Broder, On the
resemblance and containment of documents, 1997), in one pass over the codes and without any matrix of features by
features; what they propose is then counted exactly.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .kernels import Features, Postings, raw_limits, raw_values, transpose
from .relations import RELATIVE
from .store import Store, shard_bounds


# Of so many min-hashes so many must agree. A pair with a Jaccard index of 0.6 is proposed with probability 0.98, one of
# 0.1 with 0.0005.
HASHES, AGREEING = 16, 6
SAME_MEASURES = ("pearson", "cosine", "jaccard")


@njit(cache=True)
def _min_hashes(
    indptr: np.ndarray,
    feature: np.ndarray,
    raw: np.ndarray,
    limits: np.ndarray,
    first_token: int,
    salts: np.ndarray,
    lowest: np.ndarray,
) -> None:
    hashes = np.empty(len(salts), np.uint32)
    for row in range(len(indptr) - 1):
        if indptr[row] == indptr[row + 1]:
            continue
        for which in range(len(salts)):
            # The finisher of splitmix64
            mixed = (np.uint64(first_token + row) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ salts[which]
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            hashes[which] = np.uint32(mixed >> np.uint64(32))
        for at in range(indptr[row], indptr[row + 1]):
            column = feature[at]
            if raw[at] > limits[column]:
                for which in range(len(salts)):
                    lowest[column, which] = min(lowest[column, which], hashes[which])


@njit(cache=True)
def _joint(
    indptr: np.ndarray, token: np.ndarray, value: np.ndarray, pairs: np.ndarray, both: np.ndarray, product: np.ndarray
) -> None:
    for number in range(len(pairs)):
        one, other = indptr[pairs[number, 0]], indptr[pairs[number, 1]]
        one_end, other_end = indptr[pairs[number, 0] + 1], indptr[pairs[number, 1] + 1]
        while one < one_end and other < other_end:
            if token[one] == token[other]:
                both[number] += 1
                product[number] += value[one] * value[other]
                one += 1
                other += 1
            elif token[one] < token[other]:
                one += 1
            else:
                other += 1


def twins(
    store: Store,
    layer: int,
    features: Features,
    measure: str = "pearson",
    threshold: float = 0.95,
    rule: str = "absolute",
    relative: float = RELATIVE,
    min_count: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of features of one layer whose measure reaches a threshold.

    Args:
        store ([`~spiral_trl.sae.store.Store`]): The codes.
        layer (`int`): Which layer.
        features ([`~spiral_trl.sae.kernels.Features`]): Its sums.
        measure (`str`, *optional*, defaults to `"pearson"`): `"pearson"`, `"cosine"` or `"jaccard"`.
        threshold (`float`, *optional*, defaults to 0.95): What it must reach.
        rule, relative: The activity rule, for `"jaccard"`; the others take every activation.
        min_count (`int`, *optional*, defaults to 1): Firings that both features need.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: `(pairs, 2)`, the lower feature first, and the measure `(pairs,)`.
    """
    if measure != "jaccard":
        rule = "absolute"
    proposed = _propose(store, layer, features, rule, relative, max(1, min_count))
    if not len(proposed):
        return proposed, np.zeros(0)
    postings = transpose(store, layer, rule, relative, features, np.unique(proposed))
    values = pair_measure(postings, features, proposed, measure, store.num_tokens)
    kept = values >= threshold
    return proposed[kept], values[kept]


def _propose(store: Store, layer: int, features: Features, rule: str, relative: float, min_count: int) -> np.ndarray:
    num_features = store.num_features(layer)
    limits = np.zeros(num_features) if rule == "absolute" else relative * features.max
    salts = np.random.default_rng(0).integers(1 << 63, size=HASHES, dtype=np.uint64)
    lowest = np.full((num_features, HASHES), np.iinfo(np.uint32).max, np.uint32)
    for shard, first in zip(store.shards, shard_bounds(store.shards)[:-1], strict=True):
        rows = shard.rows(layer)
        raw = raw_values(rows.value)
        _min_hashes(rows.indptr, rows.feature, raw, raw_limits(limits, rows.value.dtype), int(first), salts, lowest)
    enough = np.nonzero(features.count >= min_count)[0]
    found = [_equal_pairs(enough, lowest[enough, which]) for which in range(HASHES)]
    one, other = np.concatenate(found, axis=1)
    keys, times = np.unique(one * num_features + other, return_counts=True)
    keys = keys[times >= AGREEING]
    return np.stack([keys // num_features, keys % num_features], axis=1)


def _equal_pairs(features: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """`(2, pairs)`: all pairs of features with equal hashes, the lower first."""
    order = np.argsort(hashes, kind="stable")
    features, hashes = features[order], hashes[order]
    pairs = []
    for apart in range(1, len(features)):
        same = np.nonzero(hashes[apart:] == hashes[:-apart])[0]
        if not len(same):
            break
        pairs.append(np.stack([features[same], features[same + apart]]))
    return np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), np.int64)


def pair_measure(
    postings: Postings, features: Features, pairs: np.ndarray, measure: str, num_tokens: int
) -> np.ndarray:
    """Pearson correlation, cosine or Jaccard index of pairs of features of one layer, `(pairs,)`; 0 where undefined."""
    both, product = np.zeros(len(pairs), np.int64), np.zeros(len(pairs))
    _joint(postings.indptr, postings.token, postings.value.astype(np.float32), pairs, both, product)
    one, other = pairs.T
    with np.errstate(divide="ignore", invalid="ignore"):
        if measure == "jaccard":
            values = both / (postings.count[one] + postings.count[other] - both)
        elif measure == "cosine":
            values = product / np.sqrt(features.total_squares[one] * features.total_squares[other])
        else:
            deviation = np.sqrt(np.maximum(num_tokens * features.total_squares - features.total**2, 0))
            values = (num_tokens * product - features.total[one] * features.total[other]) / (
                deviation[one] * deviation[other]
            )
    return np.nan_to_num(values, posinf=0.0, neginf=0.0)
