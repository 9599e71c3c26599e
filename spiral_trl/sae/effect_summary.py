"""What the effects of ablations say of statistical measures: how well each predicts cause."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .relations import MEASURES


_REPLICATES = 500
# A pair is causal where at least this share of the downstream feature is lost, and less with steps in other directions
LOST = 0.5


def summarise(
    tables: Mapping[tuple[int, int], Mapping[str, np.ndarray]], min_tokens: int, seed: int
) -> dict[str, Any]:
    """Summary of tables of pairs; see [`~spiral_trl.sae.causal_effects.CausalEffects`].

    Intervals are of 95%, from resampling upstream features with all their pairs.

    Args:
        tables (`Mapping`): For each pair of layers its pairs of features.
        min_tokens (`int`): Tokens on which both must have fired for a pair to count.
        seed (`int`): Of the resampling.

    Returns:
        `dict`: `features` and `pairs` that count, `left_out` (pairs that do not fire together often enough), `lost`
        (the effect from which a pair is causal, if steps in other directions do less), `all` and `layers` (for each pair of layers; both with mean effect and
        causal share of `neighbours`, of `random` features of matched density, and the effect of steps in other directions
        on the neighbours), and `measures`: for each `spearman` (of the measure and the effect, over all pairs), `auc` (the
        chance that of a causal pair and another one the causal one has the larger measure) and `best` (mean effect on the
        best neighbour by that measure). What cannot be told is `None`.
    """
    columns: dict[str, list[np.ndarray]] = {}
    unit: list[np.ndarray] = []
    layer: list[np.ndarray] = []
    units = 0
    left_out = 0
    pairs = list(tables)
    for number, table in enumerate(tables.values()):
        counted = (table["together"] >= min_tokens) & np.isfinite(table["effect"])
        left_out += int((~counted).sum())
        _, of = np.unique(table["upstream"][counted], return_inverse=True)
        unit.append(of + units)
        units += len(set(of.tolist()))
        layer.append(np.full(int(counted.sum()), number))
        for name, values in table.items():
            columns.setdefault(name, []).append(values[counted])
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    units_of, layers_of = np.concatenate(unit), np.concatenate(layer)
    steps = np.stack([values for name, values in joined.items() if name.startswith("effect_other_")])
    other = np.where(np.isfinite(steps), steps, -np.inf)
    data = {
        **joined,
        "other": _mean_of(steps),
        "causal": (joined["effect"] >= LOST) & (joined["effect"] > other.max(0)),
    }
    resample = _Resampling(units_of, seed)
    return {
        "features": units,
        "pairs": len(units_of),
        "left_out": left_out,
        "lost": LOST,
        "all": _groups(data, np.ones(len(units_of), bool), resample),
        "layers": [
            {"upstream_layer": up, "downstream_layer": down, **_groups(data, layers_of == number, resample)}
            for number, (up, down) in enumerate(pairs)
        ],
        "measures": {name: _prediction(data, name, units_of, resample) for name in MEASURES},
    }


def _mean_of(steps: np.ndarray) -> np.ndarray:
    there = np.isfinite(steps)
    return np.where(there.any(0), np.where(there, steps, 0).sum(0) / np.maximum(there.sum(0), 1), np.nan)


class _Resampling:
    """Draws of units with replacement, the same ones for every statistic."""

    def __init__(self, units: np.ndarray, seed: int):
        self.units = units
        self.count = int(units.max(initial=-1)) + 1
        self.order = np.argsort(units, kind="stable")
        self.bounds = np.searchsorted(units[self.order], np.arange(self.count + 1))
        self.draws = np.random.default_rng([seed, self.count]).integers(
            max(self.count, 1), size=(_REPLICATES, self.count)
        )

    def interval(
        self, statistic: Callable[[np.ndarray], float | None], rows: np.ndarray
    ) -> dict[str, float | None] | None:
        """The statistic of the rows `(n,)` bool, with its interval."""
        estimate = statistic(np.flatnonzero(rows))
        if estimate is None:
            return None
        found = []
        for draw in self.draws:
            parts = [self.order[self.bounds[unit] : self.bounds[unit + 1]] for unit in draw]
            at = np.concatenate(parts)
            value = statistic(at[rows[at]])
            if value is not None:
                found.append(value)
        low, high = np.quantile(found, [0.025, 0.975]) if len(found) > 1 else (None, None)
        return {
            "estimate": estimate,
            "low": None if low is None else float(low),
            "high": None if high is None else float(high),
        }


def _groups(data: Mapping[str, np.ndarray], rows: np.ndarray, resample: _Resampling) -> dict[str, Any]:
    near, random = rows & data["neighbour"], rows & ~data["neighbour"]

    def mean(name: str) -> Callable[[np.ndarray], float | None]:
        def of(at: np.ndarray) -> float | None:
            values = data[name][at].astype(np.float64)
            values = values[np.isfinite(values)]
            return float(values.mean()) if len(values) else None

        return of

    def difference(at: np.ndarray) -> float | None:
        one, other = at[data["neighbour"][at]], at[~data["neighbour"][at]]
        if not len(one) or not len(other):
            return None
        return float(data["effect"][one].mean() - data["effect"][other].mean())

    return {
        "pairs": int(rows.sum()),
        "neighbours": {
            "pairs": int(near.sum()),
            "effect": resample.interval(mean("effect"), near),
            "causal": resample.interval(mean("causal"), near),
        },
        "random": {
            "pairs": int(random.sum()),
            "effect": resample.interval(mean("effect"), random),
            "causal": resample.interval(mean("causal"), random),
        },
        "difference": resample.interval(difference, rows),
        "other_directions": resample.interval(mean("other"), near),
    }


def _prediction(
    data: Mapping[str, np.ndarray], measure: str, units: np.ndarray, resample: _Resampling
) -> dict[str, Any]:
    values, effect, causal = data[measure], data["effect"], data["causal"]
    best = np.zeros(len(units), bool)
    # Of each upstream feature the row whose measure is largest; the first of equal ones
    order = np.lexsort((np.arange(len(units)), -values, units))
    if len(order):
        best[order[np.concatenate([[True], units[order][1:] != units[order][:-1]])]] = True
    every = np.ones(len(units), bool)
    return {
        "spearman": resample.interval(lambda at: spearman(values[at], effect[at]), every),
        "auc": resample.interval(lambda at: auc(values[at], causal[at]), every),
        "best": resample.interval(lambda at: float(effect[at].mean()) if len(at) else None, best),
    }


def spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    """Rank correlation, ties sharing their mean rank; `None` where one of the two does not vary."""
    from scipy.stats import rankdata

    if len(one) < 3:
        return None
    a, b = rankdata(one) - (len(one) + 1) / 2, rankdata(other) - (len(other) + 1) / 2
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread > 0 else None


def auc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Chance that a positive scores above a negative one, ties counting half; `None` where there are not both."""
    from scipy.stats import rankdata

    hits = int(positive.sum())
    misses = len(positive) - hits
    if not hits or not misses:
        return None
    ranks = rankdata(score)
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))
