"""All measures between a few upstream features and every downstream one, from one pass over two layers' codes.

[`~spiral_trl.sae.relations`] finds the best pairs of whole layers; here the values of chosen features are wanted, those of
poor pairs included.

Axes: `U` chosen upstream features, `F` downstream features, `n` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .kernels import RELATIVE, Features
from .store import Rows, Store


MEASURES = ("pearson", "cosine", "jaccard", "sufficiency", "necessity", "mutual_information", "decoder_cosine")


@dataclass(frozen=True, eq=False)
class Joint:
    """What is known of pairs of features, `(U, F)`.

    Args:
        both (`np.ndarray`): Tokens on which both fire.
        both_relative (`np.ndarray`): Tokens on which both are active by the relative rule.
        product (`np.ndarray`): Sum of the products of their activations.
    """

    both: np.ndarray
    both_relative: np.ndarray
    product: np.ndarray


def joint_sums(
    store: Store,
    pair: tuple[int, int],
    chosen: np.ndarray,
    up: Features,
    down: Features,
    relative: float = RELATIVE,
) -> Joint:
    """Sums over the tokens on which chosen upstream features fire together with downstream ones.

    Args:
        store ([`~spiral_trl.sae.store.Store`]): The codes.
        pair (`tuple[int, int]`): Upstream and downstream layer.
        chosen (`np.ndarray`): `(U,)` upstream features.
        up, down ([`~spiral_trl.sae.kernels.Features`]): Sums over the two layers.
        relative (`float`, *optional*, defaults to 0.2): Of the relative rule.
    """
    from scipy import sparse

    shape = len(chosen), store.num_features(pair[1])
    joint = Joint(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape))
    row = np.full(store.num_features(pair[0]), -1, np.int64)
    row[chosen] = np.arange(len(chosen))
    for upstream, downstream in _rows(store, pair):
        at = np.repeat(np.arange(upstream.num_tokens), np.diff(upstream.indptr))
        kept = row[upstream.feature] >= 0
        place = row[upstream.feature[kept]], at[kept]
        value = upstream.value[kept].astype(np.float64)
        strong = value > relative * up.max[upstream.feature[kept]]
        below = downstream.value.astype(np.float64)
        below_strong = below > relative * down.max[downstream.feature]
        for into, one, other in (
            (joint.both, np.ones_like(value), np.ones_like(below)),
            (joint.both_relative, strong.astype(np.float64), below_strong.astype(np.float64)),
            (joint.product, value, below),
        ):
            left = sparse.csr_matrix((one, place), shape=(shape[0], upstream.num_tokens))
            right = sparse.csr_matrix(
                (other, downstream.feature, downstream.indptr), shape=(upstream.num_tokens, shape[1])
            )
            product = (left @ right).tocoo()
            np.add.at(into, (product.row, product.col), product.data.astype(into.dtype))
    return joint


def _rows(store: Store, pair: tuple[int, int]) -> Iterator[tuple[Rows, Rows]]:
    for shard in store.shards:
        yield shard.rows(pair[0]), shard.rows(pair[1])


def pair_measures(
    joint: Joint,
    up: Features,
    down: Features,
    chosen: np.ndarray,
    tokens: int,
    up_directions: np.ndarray,
    down_directions: np.ndarray,
    rule: str = "absolute",
) -> dict[str, np.ndarray]:
    """The measures of [`MEASURES`], each `(U, F)` float64; what does not exist is 0.

    With counts n1, n2 and n11 of the rule: Jaccard n11 / (n1 + n2 - n11), sufficiency n11 / n1, necessity n11 / n2,
    mutual information of the two events in nats. Pearson correlation and cosine are of the activations whatever the rule.

    Args:
        joint ([`Joint`]): Of the chosen features.
        up, down ([`~spiral_trl.sae.kernels.Features`]): Sums over the two layers.
        chosen (`np.ndarray`): `(U,)` upstream features.
        tokens (`int`): Tokens of the store.
        up_directions (`np.ndarray`): `(U, width)` decoder rows of the chosen ones.
        down_directions (`np.ndarray`): `(F, width)`.
        rule (`str`, *optional*, defaults to `"absolute"`): Of the counts; or `"relative"`.
    """
    absolute = rule == "absolute"
    both = (joint.both if absolute else joint.both_relative).astype(np.float64)
    one = (up.count if absolute else up.count_relative)[chosen][:, None].astype(np.float64)  # (U, 1)
    other = (down.count if absolute else down.count_relative)[None].astype(np.float64)  # (1, F)
    total, squares = up.total[chosen][:, None], up.total_squares[chosen][:, None]
    covariance = tokens * joint.product - total * down.total
    deviations = _deviation(tokens, total, squares) * _deviation(tokens, down.total[None], down.total_squares[None])
    norms = np.linalg.norm(up_directions, axis=1)[:, None] * np.linalg.norm(down_directions, axis=1)
    return {
        "pearson": _ratio(covariance, deviations),
        "cosine": _ratio(joint.product, np.sqrt(squares * down.total_squares)),
        "jaccard": _ratio(both, one + other - both),
        "sufficiency": _ratio(both, one + 0 * other),
        "necessity": _ratio(both, other + 0 * one),
        "mutual_information": _mutual_information(both, one, other, tokens),
        "decoder_cosine": _ratio(up_directions.astype(np.float64) @ down_directions.astype(np.float64).T, norms),
    }


def _deviation(tokens: int, total: np.ndarray, squares: np.ndarray) -> np.ndarray:
    variance = tokens * squares - total**2
    # Of a constant feature, rounding leaves a little
    return np.sqrt(np.where(variance > 1e-12 * tokens * squares, variance, 0))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    below = np.broadcast_to(below, above.shape)
    return np.divide(above, below, out=np.zeros(above.shape), where=below > 0)


def _mutual_information(both: np.ndarray, one: np.ndarray, other: np.ndarray, tokens: int) -> np.ndarray:
    total = np.zeros(both.shape)
    for cell, a, b in (
        (both, one, other),
        (one - both, one, tokens - other),
        (other - both, tokens - one, other),
        (tokens - one - other + both, tokens - one, tokens - other),
    ):
        ratio = _ratio(cell * tokens, a * b)
        total += cell * np.log(np.where(ratio > 0, ratio, 1))
    return np.maximum(total / tokens, 0)
