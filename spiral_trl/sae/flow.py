"""The flow of features between layers: what passes, what disappears, what appears.

As in arXiv 2410.08869: an upstream feature i passes if max_j r_ij reaches a threshold and disappears otherwise; a
downstream feature j appears if max_i r_ij does not reach it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Flow:
    """Features between two layers, of those that fire at all.

    Args:
        layer, next (`int`): The layers.
        of, of_next (`int`): Features of each that fire.
        silent, silent_next (`int`): Those that never do.
        passing (`int`): Upstream features with max_j r >= t.
        disappearing (`int`): Upstream features without.
        reached (`int`): Downstream features with max_i r >= t.
        appearing (`int`): Downstream features without.
    """

    layer: int
    next: int
    of: int
    of_next: int
    silent: int
    silent_next: int
    passing: int
    disappearing: int
    reached: int
    appearing: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON; with the shares, which are `None` of no features."""
        return {
            **asdict(self),
            "disappearing_share": self.disappearing / self.of if self.of else None,
            "appearing_share": self.appearing / self.of_next if self.of_next else None,
        }


def best_similarity(
    edges: Mapping[str, np.ndarray], measure: str, num_up: int, num_down: int
) -> tuple[np.ndarray, np.ndarray]:
    """max_j r of each upstream feature and max_i r of each downstream one, float64; 0 without an edge (NaN counts as 0)."""
    values = np.nan_to_num(np.asarray(edges[measure], dtype=np.float64))
    forward, backward = np.zeros(num_up), np.zeros(num_down)
    np.maximum.at(forward, np.asarray(edges["upstream"]).astype(np.int64), values)
    np.maximum.at(backward, np.asarray(edges["downstream"]).astype(np.int64), values)
    return forward, backward


def flow_between(
    layers: tuple[int, int], forward: np.ndarray, backward: np.ndarray, active: Sequence[np.ndarray], threshold: float
) -> Flow:
    """Counts the flow between two layers from their features' best similarities; `active` tells which of each fire."""
    up, down = (int(of.sum()) for of in active)
    passing, reached = int((forward[active[0]] >= threshold).sum()), int((backward[active[1]] >= threshold).sum())
    silent, silent_next = len(forward) - up, len(backward) - down
    return Flow(*layers, up, down, silent, silent_next, passing, up - passing, reached, down - reached)


def sides(
    forward: np.ndarray | None,
    backward: np.ndarray | None,
    features: np.ndarray,
    threshold: float,
    active: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Columns of a table of features of a layer: their best similarity to the next layer (`forward`) and to the one
    before (`backward`), NaN where there is none, and whether those that are active disappear and appear."""
    none = np.full(len(features), np.nan)
    ahead = none if forward is None else forward[features]
    behind = none if backward is None else backward[features]
    fires = np.ones(len(features), bool) if active is None else active
    return {
        "forward": ahead,
        "backward": behind,
        # Comparisons with NaN are false: where there is no layer on that side
        "disappears": (ahead < threshold) & fires,
        "appears": (behind < threshold) & fires,
    }
