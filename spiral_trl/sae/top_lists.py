"""Lists of the best pairs of features by a measure, filled one pair after the other by compiled loops.

What a list holds in the end depends on the pairs, not on their order: of equal measures the lower feature is better.
"""

from __future__ import annotations

import numpy as np
from numba import njit


# What is known of a pair: on how many tokens both are active by either rule, and the sum of the products of their
# activations
PAIR = np.dtype([("both", "i4"), ("both_relative", "i4"), ("product", "f8")])
# The smallest float32 above 0: what a measure must reach while a list has places free
_LEAST = np.float32(1e-45)


@njit(cache=True, error_model="numpy")
def as_key(value: np.float32, feature: int) -> np.uint64:
    """A pair in a list as one number, greater for a better pair: the bits of the measure, which compare as numbers above
    0 do, then the other feature, lower being better. A free place is 0."""
    return (np.uint64(np.float32(value).view(np.uint32)) << np.uint64(32)) | np.uint64(0xFFFFFFFF - feature)


def key_features(keys: np.ndarray) -> np.ndarray:
    """The other features of pairs, int64; of no meaning for free places."""
    return 0xFFFFFFFF - (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


@njit(cache=True, error_model="numpy")
def insert(keys: np.ndarray, places: np.ndarray, feature: int, which: int, key: np.uint64) -> tuple[int, np.float32]:
    """Puts a pair that is better than a list's last into it; see [`Lists`].

    Returns:
        `tuple[int, np.float32]`: Where what is known of the pair goes, and what the next one must reach.
    """
    at = keys.shape[2] - 1
    place = places[feature, which, at]
    while at > 0 and keys[feature, which, at - 1] < key:
        keys[feature, which, at] = keys[feature, which, at - 1]
        places[feature, which, at] = places[feature, which, at - 1]
        at -= 1
    keys[feature, which, at] = key
    places[feature, which, at] = place
    least = keys[feature, which, keys.shape[2] - 1]
    return place, np.uint32(least >> np.uint64(32)).view(np.float32) if least > 0 else _LEAST


class Lists:
    """Lists of the best pairs, one for each feature and measure, the best first.

    Args:
        features (`int`): How many features have lists.
        lists (`int`): How many each has.
        top_k (`int`): How many pairs a list holds.

    Attributes:
        keys (`np.ndarray`): `(features, lists, top_k)`, uint64: see [`as_key`].
        places (`np.ndarray`): `(features, lists, top_k)`, int16: where in `pairs` what is known of the pair is.
        pairs (`np.ndarray`): `(features, lists, top_k)` records of [`PAIR`].
        reach (`np.ndarray`): `(features, lists)`, float32: what a measure must reach to come into the list.
    """

    def __init__(self, features: int, lists: int, top_k: int):
        self.keys = np.zeros((features, lists, top_k), np.uint64)
        self.places = np.broadcast_to(np.arange(top_k, dtype=np.int16), self.keys.shape).copy()
        self.pairs = np.zeros((features, lists, top_k), PAIR)
        self.reach = np.full((features, lists), _LEAST, np.float32)

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """`keys`, `places`, `pairs` and `reach`, as loops take them."""
        return self.keys, self.places, self.pairs, self.reach

    def in_order(self) -> np.ndarray:
        """`(features, lists, top_k)` records of [`PAIR`], in the order of `keys`."""
        return np.take_along_axis(self.pairs, self.places.astype(np.int64), axis=2)

    def merge(self, keys: np.ndarray, pairs: np.ndarray) -> None:
        """Takes over the best of other lists of the same features, whose pairs are in the order of their keys. What the
        lists then hold depends on no order."""
        _merge(self.keys, self.places, self.pairs, self.reach, keys, pairs)


@njit(cache=True, error_model="numpy")
def offer_block(
    first: int,
    products: np.ndarray,
    error: float,
    vectors: tuple[np.ndarray, np.ndarray],
    eligible: tuple[np.ndarray, np.ndarray],
    rows: tuple[np.ndarray, ...],
    columns: tuple[np.ndarray, ...],
) -> None:
    """Offers the products of vectors to the first lists of their rows and columns. Which may come into a list is seen from
    a block of them in low precision, and only these are computed exactly.

    Args:
        first (`int`): The feature of the block's first row.
        products (`np.ndarray`): `(rows, features)`, float32.
        error (`float`): What a product may be wrong by.
        vectors (`tuple[np.ndarray, np.ndarray]`): `(features, width)`, float64, of the rows and of the columns.
        eligible (`tuple[np.ndarray, np.ndarray]`): `(features,)`, bool: the rows and the columns that count.
        rows, columns (`tuple[np.ndarray, ...]`): `arrays` of [`Lists`].
    """
    row_keys, row_places, _, row_reach = rows
    column_keys, column_places, _, column_reach = columns
    last = row_keys.shape[2] - 1
    for row in range(products.shape[0]):
        feature = first + row
        if not eligible[0][feature]:
            continue
        for column in range(products.shape[1]):
            most = products[row, column] + error
            if (most < row_reach[feature, 0] and most < column_reach[column, 0]) or not eligible[1][column]:
                continue
            value = np.float32(np.dot(vectors[0][feature], vectors[1][column]))
            key = as_key(value, column)
            if value >= row_reach[feature, 0] and key > row_keys[feature, 0, last]:
                _, row_reach[feature, 0] = insert(row_keys, row_places, feature, 0, key)
            key = as_key(value, feature)
            if value >= column_reach[column, 0] and key > column_keys[column, 0, last]:
                _, column_reach[column, 0] = insert(column_keys, column_places, column, 0, key)


@njit(cache=True, error_model="numpy")
def _merge(
    keys: np.ndarray,
    places: np.ndarray,
    pairs: np.ndarray,
    reach: np.ndarray,
    other_keys: np.ndarray,
    other_pairs: np.ndarray,
) -> None:
    last = keys.shape[2] - 1
    for feature in range(keys.shape[0]):
        for which in range(keys.shape[1]):
            for at in range(keys.shape[2]):
                key = other_keys[feature, which, at]
                # The rest is no better
                if key <= keys[feature, which, last]:
                    break
                place, reach[feature, which] = insert(keys, places, feature, which, key)
                pairs[feature, which, place] = other_pairs[feature, which, at]
