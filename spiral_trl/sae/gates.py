"""Quasi-boolean gates: downstream features that fire where two upstream features both do, or where either does.

The paper calls D an AND of the features whose necessity P(A | D) is high and an OR of those whose sufficiency P(D | A) is.
Two copies of one feature pass for an AND by that, and so does a chain of ever narrower features, so that the two inputs
are here counted jointly, over tokens on which only the one, only the other and both are active.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from .kernels import Features, raw_limits, raw_values, transpose, triple_counts
from .store import Store


# By how much P(D | A and B) is to be above P(D | only one)
MARGIN = 0.5
# Bounds on the memory of a pass: counts of (downstream, upstream) pairs, triples, and entries by feature
_COUNTS, _TRIPLES, _ENTRIES = 1 << 25, 1 << 22, 1 << 28


@dataclass(frozen=True)
class Gate:
    """A downstream feature and its two inputs.

    Args:
        kind (`str`): `"and"` or `"or"`.
        layer, feature (`int`): The downstream feature D.
        upstream_layer (`int`): The layer of the inputs.
        upstream (`tuple[int, int]`): The inputs A and B, the more frequent first.
        up (`tuple[int, int]`), down, both (`int`): Tokens with A, with B, with D, with A and B.
        down_up (`tuple[int, int]`), down_both (`int`): Tokens with A and D, with B and D, with all three.
    """

    kind: str
    layer: int
    feature: int
    upstream_layer: int
    upstream: tuple[int, int]
    up: tuple[int, int]
    down: int
    both: int
    down_up: tuple[int, int]
    down_both: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON: also the counts of tokens with only one input, the rates, and their 95% intervals."""
        only = [count - self.both for count in self.up]
        down_only = [count - self.down_both for count in self.down_up]
        rates = {}
        for name, part, whole in (
            ("down_given_both", self.down_both, self.both),
            ("down_given_only_first", down_only[0], only[0]),
            ("down_given_only_second", down_only[1], only[1]),
            ("first_given_down", self.down_up[0], self.down),
            ("second_given_down", self.down_up[1], self.down),
            ("either_given_down", sum(self.down_up) - self.down_both, self.down),
        ):
            low, high = wilson_bounds(np.array([part]), np.array([whole]))
            rates[name] = {"rate": part / whole if whole else None, "low": float(low[0]), "high": float(high[0])}
        return {
            "kind": self.kind,
            "layer": self.layer,
            "feature": self.feature,
            "upstream_layer": self.upstream_layer,
            "upstream": list(self.upstream),
            "counts": {
                "first": self.up[0],
                "second": self.up[1],
                "down": self.down,
                "both": self.both,
                "only_first": only[0],
                "only_second": only[1],
                "down_both": self.down_both,
                "down_only_first": down_only[0],
                "down_only_second": down_only[1],
            },
            "rates": rates,
        }


def wilson_bounds(
    successes: np.ndarray, trials: np.ndarray, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of Wilson's score interval of many rates, as [`~spiral_trl.stats.wilson_interval`] gives them for one.

    No trials leave the rate anywhere: 0 to 1.
    """
    from scipy.special import ndtri

    z2 = float(ndtri(0.5 + confidence / 2)) ** 2
    trials = np.asarray(trials, np.float64)
    n = np.maximum(trials, 1)
    rate = successes / n
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2) / (1 + z2 / n) * np.sqrt(np.maximum(rate * (1 - rate), 0) / n + z2 / (4 * n * n))
    low = np.where(trials > 0, np.clip(centre - half, 0, rate), 0.0)
    return low, np.where(trials > 0, np.clip(centre + half, rate, 1), 1.0)


def and_margins(counts: np.ndarray, threshold: float, min_exclusive: int) -> np.ndarray:
    """How far triples pass the test of an AND: at least 0 where they do, `-inf` where a condition fails outright.

    Both necessities P(A | D) and P(B | D) reach the threshold; neither input lies within the other to that degree (a
    chain, or two copies); "only A" and "only B" have enough tokens. The margin is the lower end of the interval of
    P(D | A and B) less [`MARGIN`] and less the larger of the upper ends of P(D | only A) and P(D | only B).

    Args:
        counts (`np.ndarray`): `(n, 7)`, see [`~spiral_trl.sae.kernels.triple_counts`].
        threshold (`float`): The threshold t.
        min_exclusive (`int`): Tokens that "only A" and "only B" each need.
    """
    a, b, d, ab, ad, bd, abd = counts.T
    passes = (np.minimum(ad, bd) >= threshold * d) & (d > 0)
    passes &= (ab < threshold * a) & (ab < threshold * b)
    passes &= np.minimum(a, b) - ab >= min_exclusive
    low, _ = wilson_bounds(abd, ab)
    _, high_a = wilson_bounds(ad - abd, a - ab)
    _, high_b = wilson_bounds(bd - abd, b - ab)
    return np.where(passes, low - MARGIN - np.maximum(high_a, high_b), -np.inf)


def or_margins(counts: np.ndarray, threshold: float) -> np.ndarray:
    """How far triples pass the test of an OR: at least 0 where they do.

    The lower ends of the intervals of P(D | only A) and of P(D | only B), the sufficiencies P(D | A) and P(D | B), which
    also take in the tokens with both, and P(A or B | D) reach the threshold. The margin is by how much the least does.
    """
    a, b, d, ab, ad, bd, abd = counts.T
    low_a, _ = wilson_bounds(ad - abd, a - ab)
    low_b, _ = wilson_bounds(bd - abd, b - ab)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = [np.nan_to_num(part / whole) for part, whole in ((ad, a), (bd, b), (ad + bd - abd, d))]
    return np.minimum.reduce([low_a, low_b, *rates]) - threshold


def find_gates(
    store: Store,
    layers: tuple[int, int],
    features: tuple[Features, Features],
    edges: Mapping[str, np.ndarray],
    wanted: np.ndarray,
    threshold: float,
    min_exclusive: int,
    rule: str,
    relative: float,
) -> tuple[list[Gate], Candidates]:
    """The gates among the downstream features of a pair of layers, and what was known of each feature's inputs.

    Args:
        store ([`~spiral_trl.sae.store.Store`]): The codes.
        layers (`tuple[int, int]`): The upstream and the downstream layer.
        features (`tuple[Features, Features]`): Sums of both.
        edges (`Mapping[str, np.ndarray]`): Their edges under the rule.
        wanted (`np.ndarray`): `(features,)`, bool: downstream features that may be gates.
        threshold, min_exclusive, rule, relative: See [`~spiral_trl.sae.labels.label_features`].
    """
    candidates = find_candidates(store, layers, features, edges, wanted, threshold, rule, relative)
    best: dict[tuple[str, int], tuple[float, np.ndarray, np.ndarray]] = {}
    for triples in _triples(candidates, threshold):
        for part in _blocks(triples, features, rule):
            up, down = (
                transpose(store, layer, rule, relative, of, np.unique(ends))
                for layer, of, ends in zip(layers, features, (part[:, :2], part[:, 2]), strict=True)
            )
            counts = triple_counts(up, down, part)
            for kind, margins in (
                ("and", and_margins(counts, threshold, min_exclusive)),
                ("or", or_margins(counts, threshold)),
            ):
                for at in np.nonzero(margins >= 0)[0]:
                    key = (kind, int(part[at, 2]))
                    if key not in best or margins[at] > best[key][0]:
                        best[key] = float(margins[at]), part[at], counts[at]
    gates = []
    for (kind, feature), (_, triple, counts) in sorted(best.items(), key=lambda item: (item[0][1], item[0][0])):
        # Were it both, it would be an AND: the label that stands first
        if kind == "or" and ("and", feature) in best:
            continue
        a, b = (0, 1) if counts[0] >= counts[1] else (1, 0)
        gates.append(
            Gate(
                kind,
                layers[1],
                feature,
                layers[0],
                (int(triple[a]), int(triple[b])),
                (int(counts[a]), int(counts[b])),
                int(counts[2]),
                int(counts[3]),
                (int(counts[4 + a]), int(counts[4 + b])),
                int(counts[6]),
            )
        )
    return gates, candidates


@dataclass(frozen=True, eq=False)
class Candidates:
    """Upstream features that may be inputs of downstream ones: one row a pair, downstream features ascending.

    All there are of the wanted downstream features: with necessity P(up | down) at least the threshold; and, of those
    with sufficiency P(down | up) at least the threshold, all where two of them together could hold that share of the
    downstream feature.

    Args:
        downstream, upstream (`np.ndarray`): `(n,)`, int64: features.
        both (`np.ndarray`): `(n,)`, int64: tokens with both.
        necessity, sufficiency (`np.ndarray`): `(n,)`, float64.
    """

    downstream: np.ndarray
    upstream: np.ndarray
    both: np.ndarray
    necessity: np.ndarray
    sufficiency: np.ndarray

    def by_feature(self) -> Iterator[tuple[int, slice]]:
        """Each downstream feature that has any, and its rows."""
        features, starts = np.unique(self.downstream, return_index=True)
        ends = np.append(starts, len(self.downstream))[1:]
        for feature, start, end in zip(features, starts, ends, strict=True):
            yield int(feature), slice(start, end)


def active_counts(features: Features, rule: str) -> np.ndarray:
    """`(features,)`: tokens on which each feature is active by a rule."""
    return features.count if rule == "absolute" else features.count_relative


def find_candidates(
    store: Store,
    layers: tuple[int, int],
    features: tuple[Features, Features],
    edges: Mapping[str, np.ndarray],
    wanted: np.ndarray,
    threshold: float,
    rule: str,
    relative: float,
) -> Candidates:
    """Inputs that each wanted downstream feature may have; see [`Candidates`].

    The edges hold the best k upstream features of each downstream one, by each measure. Where a whole list of k passes
    the threshold, what did not get into it may too: then the downstream feature's tokens are read again, and counted
    with every upstream feature.
    """
    count_up, count_down = (active_counts(of, rule) for of in features)
    again = np.zeros(len(count_down), bool)
    again[_incomplete(edges, len(count_down), threshold)] = True
    again &= wanted
    down = edges["downstream"].astype(np.int64)
    kept = wanted[down] & ~again[down] & (edges["count_both"] > 0)
    parts = [np.stack([down[kept], edges["upstream"][kept], edges["count_both"][kept]]).astype(np.int64)]
    parts += list(_recount(store, layers, features, np.nonzero(again)[0], threshold, rule, relative))
    downstream, upstream, both = np.concatenate(parts, axis=1)
    necessity, sufficiency = both / count_down[downstream], both / count_up[upstream]
    passes = (necessity >= threshold) | (sufficiency >= threshold)
    order = np.lexsort((upstream, downstream))
    order = order[passes[order]]
    return Candidates(downstream[order], upstream[order], both[order], necessity[order], sufficiency[order])


def _incomplete(edges: Mapping[str, np.ndarray], num_features: int, threshold: float) -> np.ndarray:
    """Downstream features whose lists may leave out an input; `(n,)`."""
    necessary = _full_list(edges, "necessity", num_features, threshold)
    sufficient = _full_list(edges, "sufficiency", num_features, threshold)
    # Of two parts that hold a share t of D, the larger holds t / 2 of it; with sufficiency t, its Jaccard index with D is
    # then at least 1 / (1 / t + 2 / t - 1), so that it is in that list, unless this is full of such
    larger = np.zeros(num_features, bool)
    is_larger = (edges["sufficiency"] >= threshold) & (edges["necessity"] >= threshold / 2)
    larger[edges["downstream"][is_larger]] = True
    larger |= _full_list(edges, "jaccard", num_features, 1 / (3 / threshold - 1))
    return np.nonzero(necessary | (sufficient & larger))[0]


def _full_list(edges: Mapping[str, np.ndarray], measure: str, num_features: int, threshold: float) -> np.ndarray:
    """`(features,)`, bool: downstream features whose whole list of upstream neighbours reaches a threshold."""
    rank = np.asarray(edges[f"rank_up_{measure}"])
    last = (rank == rank.max(initial=1)) & (edges[measure] >= np.float32(threshold))
    full = np.zeros(num_features, bool)
    full[edges["downstream"][last]] = True
    return full


@njit(cache=True)
def _count_with(
    up_indptr: np.ndarray,
    up_feature: np.ndarray,
    up_raw: np.ndarray,
    up_limits: np.ndarray,
    down_indptr: np.ndarray,
    down_feature: np.ndarray,
    down_raw: np.ndarray,
    down_limits: np.ndarray,
    slot: np.ndarray,
    counts: np.ndarray,
) -> None:
    for row in range(len(up_indptr) - 1):
        for at in range(down_indptr[row], down_indptr[row + 1]):
            to = slot[down_feature[at]]
            if to >= 0 and down_raw[at] > down_limits[down_feature[at]]:
                for other in range(up_indptr[row], up_indptr[row + 1]):
                    if up_raw[other] > up_limits[up_feature[other]]:
                        counts[to, up_feature[other]] += 1


def _recount(
    store: Store,
    layers: tuple[int, int],
    features: tuple[Features, Features],
    downstream: np.ndarray,
    threshold: float,
    rule: str,
    relative: float,
) -> Iterator[np.ndarray]:
    """`(3, n)`: downstream, upstream, tokens with both: all pairs of some downstream features that reach the threshold."""
    count_up, count_down = (active_counts(of, rule) for of in features)
    limits = [np.zeros(len(of.max)) if rule == "absolute" else relative * of.max for of in features]
    block = max(1, _COUNTS // len(count_up))
    for start in range(0, len(downstream), block):
        part = downstream[start : start + block]
        slot = np.full(len(count_down), -1, np.int32)
        slot[part] = np.arange(len(part))
        counts = np.zeros((len(part), len(count_up)), np.int32)
        for shard in store.shards:
            up, down = (shard.rows(layer) for layer in layers)
            _count_with(
                up.indptr,
                up.feature,
                raw_values(up.value),
                raw_limits(limits[0], up.value.dtype),
                down.indptr,
                down.feature,
                raw_values(down.value),
                raw_limits(limits[1], down.value.dtype),
                slot,
                counts,
            )
        for feature, with_it in zip(part, counts, strict=True):
            least = threshold * np.minimum(count_up, count_down[feature])
            upstream = np.nonzero((with_it >= least) & (with_it > 0))[0]
            yield np.stack([np.full(len(upstream), feature), upstream, with_it[upstream]]).astype(np.int64)


def _triples(candidates: Candidates, threshold: float) -> Iterator[np.ndarray]:
    """`(n, 3)`: pairs of candidates that may be a gate with their downstream feature, many features at a time."""
    held: list[np.ndarray] = []
    size = 0
    for feature, rows in candidates.by_feature():
        upstream, necessity = candidates.upstream[rows], candidates.necessity[rows]
        needed, enough = necessity >= threshold, candidates.sufficiency[rows] >= threshold
        # Too small a part, even beside the largest
        enough &= necessity >= threshold - necessity[enough].max(initial=0)
        some = np.nonzero(needed | enough)[0]
        one, other = (some[at] for at in np.triu_indices(len(some), 1))
        kept = needed[one] & needed[other]
        kept |= enough[one] & enough[other] & (necessity[one] + necessity[other] >= threshold)
        one, other = one[kept], other[kept]
        if not len(one):
            continue
        held.append(np.stack([upstream[one], upstream[other], np.full(len(one), feature)], axis=1))
        size += len(one)
        if size >= _TRIPLES:
            yield np.concatenate(held)
            held, size = [], 0
    if held:
        yield np.concatenate(held)


def _blocks(triples: np.ndarray, features: tuple[Features, Features], rule: str) -> Iterator[np.ndarray]:
    """Triples, of which there are some, in parts whose inputs have no more entries than memory is to hold, or of a single
    downstream feature."""
    weights = active_counts(features[0], rule)
    starts = np.nonzero(np.diff(triples[:, 2], prepend=-1))[0].tolist()
    begin, held, size = 0, np.zeros(len(weights), bool), 0
    for start, end in zip(starts, [*starts[1:], len(triples)], strict=True):
        upstream = np.unique(triples[start:end, :2])
        more = int(weights[upstream[~held[upstream]]].sum())
        if start > begin and size + more > _ENTRIES:
            yield triples[begin:start]
            begin, held, size = start, np.zeros(len(weights), bool), 0
            more = int(weights[upstream].sum())
        held[upstream] = True
        size += more
    yield triples[begin:]
