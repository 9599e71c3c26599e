"""All measures between a few upstream features and every downstream one, from one pass over two layers' codes.

[`~spiral_trl.sae.relations`] finds the best pairs of whole layers; here the values of chosen features are wanted, those of
poor pairs included.

Axes: `U` chosen upstream features, `F` downstream features, `n` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .coactivation import ACTIVATION_MEASURES, COUNT_MEASURES, PAIR, pair_measures, sides
from .kernels import Features
from .relations import MEASURES, RELATIVE
from .store import Rows, Store


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


def chosen_measures(
    joint: Joint,
    up: Features,
    down: Features,
    chosen: np.ndarray,
    tokens: int,
    up_directions: np.ndarray,
    down_directions: np.ndarray,
    rule: str = "absolute",
) -> dict[str, np.ndarray]:
    """The measures of [`~spiral_trl.sae.relations`], each `(U, F)`; 0 for features that never fire together, except for
    the cosine of decoder directions.

    Args:
        joint ([`Joint`]): Of the chosen features.
        up, down ([`~spiral_trl.sae.kernels.Features`]): Sums over the two layers.
        chosen (`np.ndarray`): `(U,)` upstream features.
        tokens (`int`): Tokens of the store.
        up_directions (`np.ndarray`): `(U, width)` decoder rows of the chosen ones.
        down_directions (`np.ndarray`): `(F, width)`.
        rule (`str`, *optional*, defaults to `"absolute"`): When a feature is active, for measures that count tokens; or
            `"relative"`.
    """
    row, downstream = np.nonzero(joint.both)
    pairs = np.zeros(len(row), PAIR)
    pairs["both"], pairs["both_relative"] = joint.both[row, downstream], joint.both_relative[row, downstream]
    pairs["product"] = joint.product[row, downstream]
    values = pair_measures(
        chosen[row], downstream, pairs, sides(up, tokens, 1), sides(down, tokens, 1), float(tokens), rule == "relative"
    )
    found = {name: np.zeros(joint.both.shape) for name in MEASURES}
    for name, value in zip((*ACTIVATION_MEASURES, *COUNT_MEASURES), values, strict=True):
        found[name][row, downstream] = value
    norms = np.linalg.norm(up_directions, axis=1)[:, None] * np.linalg.norm(down_directions, axis=1)
    product = up_directions @ down_directions.T
    found["decoder_cosine"] = np.divide(product, norms, out=np.zeros(product.shape), where=norms > 0)
    return found
