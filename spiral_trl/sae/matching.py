"""Random features of matched density: what a chosen feature is held against."""

from __future__ import annotations

import numpy as np

from .kernels import Features


# Of these nearest ones, one is drawn
_NEAREST = 8


def matched_features(features: Features, chosen: np.ndarray, spare: np.ndarray, seed: int | list[int]) -> np.ndarray:
    """For each chosen feature another one, none twice, that fires on nearly as many tokens and as strongly.

    One of the eight nearest is drawn, by the distance of the logarithms of density and mean activation.

    Args:
        features ([`~spiral_trl.sae.kernels.Features`]): Sums over the layer.
        chosen (`np.ndarray`): `(k,)` features.
        spare (`np.ndarray`): Features to draw from, `chosen` not among them.
        seed (`int` or `list[int]`): Of the draws.

    Returns:
        `np.ndarray`: `(k,)` in the order of `chosen`; -1 where no feature was left.
    """
    mean = features.total / np.maximum(features.count, 1)
    place = np.log(np.stack([features.count + 0.5, mean + 1e-12], axis=1))
    return draw_near(place, chosen, np.unique(np.asarray(spare, dtype=np.int64)), np.random.default_rng(seed))


def draw_near(place: np.ndarray, chosen: np.ndarray, spare: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """For each chosen feature one of the eight nearest of `spare` that are left, none twice.

    Args:
        place (`np.ndarray`): `(F, dimensions)`: where each feature lies; distances are sums of absolute differences.
        chosen (`np.ndarray`): `(k,)` features.
        spare (`np.ndarray`): Features to draw from.
        generator (`np.random.Generator`): Draws.

    Returns:
        `np.ndarray`: `(k,)` in the order of `chosen`; -1 where no feature was left.
    """
    left = spare
    found = np.full(len(chosen), -1, dtype=np.int64)
    for at in generator.permutation(len(chosen)):
        if not len(left):
            break
        distance = np.abs(place[left] - place[chosen[at]]).sum(1)
        near = np.argsort(distance, kind="stable")[:_NEAREST]
        pick = int(near[generator.integers(len(near))])
        found[at] = left[pick]
        left = np.delete(left, pick)
    return found
