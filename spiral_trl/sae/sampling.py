"""How much more counts of firings vary than those of independent tokens would, as firings come in clusters."""

from __future__ import annotations

import numpy as np
from numba import njit

from .store import Store, groups_of


@njit(cache=True)
def _squares(
    indptr: np.ndarray, feature: np.ndarray, order: np.ndarray, group: np.ndarray, sizes: np.ndarray, sums: np.ndarray
) -> None:
    seen = np.zeros(len(sums), np.int64)
    touched = np.empty(len(sums), np.int64)
    number, before = 0, -1
    for place in range(len(order) + 1):
        row = order[place] if place < len(order) else -1
        now = group[row] if row >= 0 else -1
        if now != before:
            for at in range(number):
                column = touched[at]
                times = np.float64(seen[column])
                sums[column, 0] += times
                sums[column, 1] += times * times
                sums[column, 2] += times * sizes[before]
                seen[column] = 0
            number, before = 0, now
        if row >= 0:
            for at in range(indptr[row], indptr[row + 1]):
                column = feature[at]
                if seen[column] == 0:
                    touched[number] = column
                    number += 1
                seen[column] += 1


def design_effects(store: Store, layer: int) -> np.ndarray:
    """Design effect of the count of each feature, `(features,)`: at least 1, and 1 of features that never fire.

    With c_g firings among the n_g tokens of group g (a game, a text), of G groups, and p = sum c_g / sum n_g: the variance
    of the count, sum (c_g - p n_g)^2 G / (G - 1), over that of independent tokens, n p (1 - p) (Kish, Survey Sampling,
    1965).

    Args:
        store ([`~spiral_trl.sae.store.Store`]): The codes.
        layer (`int`): Which layer.
    """
    group, groups = groups_of(store.tokens)
    size = np.bincount(group, minlength=groups).astype(np.float64)
    num_tokens = store.num_tokens
    # Firings, their squares over groups, and products with the groups' sizes
    sums = np.zeros((store.num_features(layer), 3))
    if groups < 2:
        return np.ones(len(sums))
    start = 0
    for shard in store.shards:
        here = group[start : start + shard.num_tokens]
        rows = shard.rows(layer)
        # A group that two shards share is taken for two
        _squares(rows.indptr, rows.feature, np.argsort(here, kind="stable"), here, size, sums)
        start += shard.num_tokens
    p = sums[:, 0] / num_tokens
    variance = (sums[:, 1] - 2 * p * sums[:, 2] + p * p * (size**2).sum()) * groups / (groups - 1)
    independent = num_tokens * p * (1 - p)
    return np.maximum(1.0, np.divide(variance, independent, out=np.ones(len(p)), where=independent > 0))
