"""Chance that derives from a seed and a counter alone.

Each game draws its deals, and each player its replies, from `uniforms(seed, stream, index, position)`: a pure function,
so the same seed gives the same game whatever else is played beside it, in whatever order, batch or process. The same
function takes one seed or an array of thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike


# Streams keep draws of different purpose apart: the deal never depends on how many tokens a reply had.
CHANCE = 0
REPLY = 1
ILLEGAL = 2
SEED = 3

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): 64 bits in, 64 well mixed bits out."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * _MIX_1
        x = (x ^ (x >> np.uint64(27))) * _MIX_2
        return x ^ (x >> np.uint64(31))


def hash_bits(*parts: ArrayLike) -> np.ndarray:
    """64 pseudo-random bits for each combination of `parts`: integers or integer arrays that broadcast together."""
    state = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = _mix(state + _GAMMA * (np.asarray(part).astype(np.int64).astype(np.uint64) + np.uint64(1)))
    return state


def uniforms(*parts: ArrayLike) -> np.ndarray:
    """Uniform float64 numbers in [0, 1) for each combination of `parts`; see [`hash_bits`]."""
    return (hash_bits(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def derive_seeds(*parts: ArrayLike) -> np.ndarray:
    """Non-negative int64 seeds for each combination of `parts`, such as (run seed, step, game index)."""
    return (hash_bits(SEED, *parts) >> np.uint64(1)).astype(np.int64)


class Chance(Protocol):
    """Where a game takes its random choices from."""

    def choose(self, probabilities: Sequence[float]) -> int:
        """Index of the chosen outcome."""
        ...


class SeededChance:
    """Chance of one game: the n-th choice is decided by `uniforms(seed, CHANCE, n)`."""

    def __init__(self, seed: int):
        self.seed = seed
        self.count = 0

    def choose(self, probabilities: Sequence[float]) -> int:
        draw = float(uniforms(self.seed, CHANCE, self.count))
        self.count += 1
        return int(choose_by_cdf(np.cumsum(probabilities), draw))


def choose_by_cdf(cdf: np.ndarray, draw: np.ndarray | float) -> np.ndarray:
    """Index of the outcome that `draw` falls on, for a cumulative distribution `cdf` (last axis: outcomes).

    The draw is scaled by the last entry, so that rounding in the cumulative sum never chooses past the end.
    """
    return np.searchsorted(cdf[:-1], np.asarray(draw) * cdf[-1], side="right")
