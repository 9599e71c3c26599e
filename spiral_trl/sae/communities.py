"""Communities of features across layers: Leiden on the graph of the edges above a threshold, and how stable they are.

Nodes are features, (layer, feature); an edge weighs what its measure says. Stability is a bootstrap of the edges: the
tokens behind each edge are drawn anew by their sampling error, the measure is worked out again, and what passes the
threshold is clustered again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UsageError, did_you_mean
from .extra import require_extra


# Measures of the counts of tokens alone, and those that also weigh activations
OF_COUNTS = ("jaccard", "sufficiency", "necessity", "mutual_information")
OF_ACTIVATIONS = ("pearson", "cosine")
_ENDS = ("upstream_layer", "upstream", "downstream_layer", "downstream")
_COUNTS = ("count_up", "count_down", "count_both")


@dataclass(frozen=True, eq=False)
class Communities:
    """Communities of a graph, from the largest to the smallest.

    Args:
        measure (`str`), threshold, resolution (`float`), seed, min_size, bootstraps (`int`): How they were found.
        nodes (`np.ndarray`): `(n, 2)`, int64: layer and feature of each node with an edge, ascending.
        membership (`np.ndarray`): `(n,)`, int64: the community of each node, -1 where it is in none that is large enough.
        sizes (`np.ndarray`): `(communities,)`, int64.
        spread (`tuple[dict[int, int], ...]`): For each community, how many of its features each layer has.
        stability (`np.ndarray`): `(communities,)`: mean over the bootstraps of the largest Jaccard index with any
            community of the bootstrap (Hennig, Cluster-wise assessment of cluster stability, 2007); NaN without any.
        agreement (`np.ndarray`): `(bootstraps,)`: adjusted Rand index of each bootstrap's communities with these, over
            the nodes that are in one here.
        edges (`int`): How many edges are above the threshold.
    """

    measure: str
    threshold: float
    resolution: float
    seed: int
    min_size: int
    nodes: np.ndarray
    membership: np.ndarray
    sizes: np.ndarray
    spread: tuple[dict[int, int], ...]
    stability: np.ndarray
    agreement: np.ndarray
    edges: int

    def of(self, layer: int, num_features: int) -> np.ndarray:
        """`(num_features,)`, int64: the community of each feature of a layer, -1 for none."""
        communities = np.full(num_features, -1)
        here = self.nodes[:, 0] == layer
        communities[self.nodes[here, 1]] = self.membership[here]
        return communities

    def members(self, community: int) -> np.ndarray:
        """`(size, 2)`: layer and feature of each of a community's features."""
        return self.nodes[self.membership == community]

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds of it: everything but the membership, which goes with the features."""
        mean = float(self.agreement.mean()) if len(self.agreement) else None
        return {
            "measure": self.measure,
            "threshold": self.threshold,
            "resolution": self.resolution,
            "seed": self.seed,
            "min_size": self.min_size,
            "bootstraps": len(self.agreement),
            "nodes": len(self.nodes),
            "edges": self.edges,
            "in_communities": int((self.membership >= 0).sum()),
            "adjusted_rand_index": mean,
            "list": [
                {
                    "id": community,
                    "size": int(size),
                    "layers": {str(layer): count for layer, count in spread.items()},
                    "stability": None if np.isnan(stability) else float(stability),
                }
                for community, (size, spread, stability) in enumerate(
                    zip(self.sizes, self.spread, self.stability, strict=True)
                )
            ],
        }


def communities(
    edges: Mapping[str, np.ndarray],
    measure: str = "pearson",
    threshold: float = 0.1,
    seed: int = 42,
    resolution: float = 1.0,
    bootstraps: int = 20,
    min_size: int = 3,
    num_tokens: int | None = None,
    design_effect: float | np.ndarray = 1.0,
) -> Communities:
    """Finds the communities of a graph of features.

    The bootstrap redraws an edge's tokens. Where the edges carry `count_up`, `count_down` and `count_both`, the cells of
    tokens with both, with only the upstream and with only the downstream feature are drawn from Poisson distributions;
    measures of counts are worked out again, Pearson correlation and cosine are scaled by n11 / sqrt(n1 n2), as if each
    cell kept its mean activations. `decoder_cosine` has no sampling error, and published graphs carry no counts: there,
    as many edges are drawn with replacement. Edges below the threshold may come to pass it, those from a quarter of it on,
    and should be given too.

    Modularity has a limit of resolution (Fortunato and Barthelemy, 2007): of m edges, communities with fewer than about
    sqrt(2 m / resolution) each are merged where any edges join them. Raise the resolution, or the threshold.

    Args:
        edges (`Mapping[str, np.ndarray]`): Columns `upstream_layer`, `upstream`, `downstream_layer`, `downstream` and the
            measure, one row an edge, as [`~spiral_trl.sae.relations.Relations`] gives them; of all pairs of layers.
        measure (`str`, *optional*, defaults to `"pearson"`): The measure that an edge weighs.
        threshold (`float`, *optional*, defaults to 0.1): Edges count whose measure is at least this, and above 0.
        seed (`int`, *optional*, defaults to 42): Of Leiden and of the bootstrap.
        resolution (`float`, *optional*, defaults to 1.0): Of modularity: above 1, communities are smaller.
        bootstraps (`int`, *optional*, defaults to 20): How many; 0 for none.
        min_size (`int`, *optional*, defaults to 3): Nodes of smaller communities are in none.
        num_tokens (`int`, *optional*): Tokens behind the counts, for the bootstrap of mutual information.
        design_effect (`float` or `np.ndarray`, *optional*, defaults to 1.0): How many times the variance of a count is
            that of as many independent tokens, of each edge `(edges,)` or of all; above 1 where firings come in clusters,
            see [`~spiral_trl.sae.sampling.design_effects`].

    Raises:
        [`~spiral_trl.errors.UsageError`]: If the measure is not among the edges, or an option is out of range.
    """
    require_extra()
    _check(edges, measure, resolution, bootstraps, min_size, design_effect)
    kept = may_pass(edges[measure], threshold)
    if not kept.all():
        design_effect = np.broadcast_to(design_effect, len(kept))[kept]
        edges = {name: np.asarray(edges[name])[kept] for name in (*_ENDS, *_COUNTS, measure) if name in edges}
    ends = [np.asarray(edges[name]).astype(np.int64) for name in _ENDS]
    values = np.nan_to_num(np.asarray(edges[measure], dtype=np.float64))
    above = _above(values, threshold)
    shift = 1 + int(max(ends[1].max(initial=0), ends[3].max(initial=0)))
    up, down = ends[0] * shift + ends[1], ends[2] * shift + ends[3]
    # Nodes of edges below the threshold too: in a bootstrap they may pass it
    there = np.zeros(1 + int(max(up.max(initial=0), down.max(initial=0))), bool)
    there[up] = there[down] = True
    keys = np.nonzero(there)[0]
    place = np.cumsum(there) - 1
    up, down = place[up], place[down]
    which = np.nonzero(above)[0]
    membership, sizes = _cluster(up[which], down[which], values[which], len(keys), resolution, seed, min_size)
    stability, agreement = np.zeros(len(sizes)), np.zeros(bootstraps)
    inside = membership >= 0
    for number in range(bootstraps):
        rng = np.random.default_rng([seed, number])
        drawn, rows = _redraw(edges, measure, values, which, rng, num_tokens, design_effect, threshold)
        again, again_sizes = _cluster(
            up[rows], down[rows], drawn, len(keys), resolution, seed + 1 + number, min_size=1
        )
        stability += _best_jaccard(membership, sizes, again, again_sizes) / bootstraps
        # A node without an edge is a part by itself
        again = np.where(again < 0, -1 - np.arange(len(again)), again)
        agreement[number] = adjusted_rand_index(membership[inside], again[inside])
    touched = np.zeros(len(keys), bool)
    touched[up[which]] = touched[down[which]] = True
    nodes, membership = np.stack([keys // shift, keys % shift], axis=1)[touched], membership[touched]
    return Communities(
        measure,
        threshold,
        resolution,
        seed,
        min_size,
        nodes,
        membership,
        sizes,
        _spread(nodes, membership, len(sizes)),
        stability if bootstraps else np.full(len(sizes), np.nan),
        agreement,
        len(which),
    )


def _check(
    edges: Mapping[str, np.ndarray],
    measure: str,
    resolution: float,
    bootstraps: int,
    min_size: int,
    design_effect: float | np.ndarray,
) -> None:
    for name in _ENDS:
        if name not in edges:
            raise UsageError(f"the edges have no column {name}")
    check_measure(edges, measure)
    if resolution <= 0 or bootstraps < 0 or min_size < 1:
        raise UsageError(
            "resolution must be above 0, bootstraps at least 0 and min_size at least 1, not "
            f"{resolution}, {bootstraps} and {min_size}"
        )
    if (np.asarray(design_effect) < 1).any():
        raise UsageError(f"a design effect is at least 1, not {np.min(design_effect)}")


def check_measure(edges: Mapping[str, np.ndarray], measure: str) -> None:
    """Refuses a measure that edges do not have.

    Raises:
        [`~spiral_trl.errors.UsageError`]: With those they have.
    """
    if measure not in edges:
        known = sorted(name for name in edges if name not in (*_ENDS, *_COUNTS) and not name.startswith("rank_"))
        raise UsageError(
            f"the edges have no measure {measure!r}; they have {', '.join(known)}{did_you_mean(measure, known)}"
        )


def may_pass(values: np.ndarray, threshold: float) -> np.ndarray:
    """Edges that [`communities`] takes in: those that pass the threshold, and those that may in a bootstrap."""
    return np.nan_to_num(np.asarray(values, dtype=np.float64)) >= min(threshold, threshold / 4)


def _above(values: np.ndarray, threshold: float) -> np.ndarray:
    # Modularity knows no negative weights
    return (values >= threshold) & (values > 0)


def _cluster(
    one: np.ndarray,
    other: np.ndarray,
    weights: np.ndarray,
    num_nodes: int,
    resolution: float,
    seed: int,
    min_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Leiden; membership `(n,)` numbered from the largest community, -1 for smaller ones and lone nodes, and sizes."""
    from scipy.sparse import coo_matrix
    from sknetwork.clustering import Leiden

    membership = np.full(num_nodes, -1)
    if not len(weights):
        return membership, np.zeros(0, np.int64)
    adjacency = coo_matrix((weights, (one, other)), shape=(num_nodes, num_nodes)).tocsr()
    adjacency = (adjacency + adjacency.T).tocsr()
    _seed_c(seed)
    found = Leiden(resolution, random_state=seed).fit_predict(adjacency)
    alone = np.diff(adjacency.indptr) == 0
    sizes = np.bincount(found[~alone], minlength=found.max() + 1)
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] >= max(1, min_size)]
    number = np.full(len(sizes), -1)
    number[order] = np.arange(len(order))
    membership[~alone] = number[found[~alone]]
    return membership, sizes[order].astype(np.int64)


def _seed_c(seed: int) -> None:
    """Seeds `rand` of the C library, by which scikit-network's Leiden refines, whatever `random_state` is."""
    import ctypes
    import os

    ctypes.CDLL("ucrtbase" if os.name == "nt" else None).srand(seed & 0x7FFFFFFF)


def _spread(nodes: np.ndarray, membership: np.ndarray, count: int) -> tuple[dict[int, int], ...]:
    spread: tuple[dict[int, int], ...] = tuple({} for _ in range(count))
    kept = membership >= 0
    pairs, counts = np.unique(np.stack([membership[kept], nodes[kept, 0]], axis=1), axis=0, return_counts=True)
    for (community, layer), features in zip(pairs, counts, strict=True):
        spread[community][int(layer)] = int(features)
    return spread


def _redraw(
    edges: Mapping[str, np.ndarray],
    measure: str,
    values: np.ndarray,
    above: np.ndarray,
    rng: np.random.Generator,
    num_tokens: int | None,
    design_effect: float | np.ndarray,
    threshold: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a bootstrap's edges, and which edges of all they are (rows, some perhaps several times)."""
    counted = all(name in edges for name in _COUNTS) and measure in OF_COUNTS + OF_ACTIVATIONS
    if not counted or (measure == "mutual_information" and num_tokens is None):
        which = rng.choice(above, len(above)) if len(above) else above
        return values[which], which
    up, down, both = (np.asarray(edges[name]).astype(np.float64) for name in _COUNTS)

    def draw(count: np.ndarray) -> np.ndarray:
        return rng.poisson(np.maximum(count, 0) / design_effect) * design_effect

    new_both, only_up, only_down = draw(both), draw(up - both), draw(down - both)
    new_up, new_down = new_both + only_up, new_both + only_down
    if measure in OF_ACTIVATIONS:
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = (new_both / np.sqrt(new_up * new_down)) / (both / np.sqrt(up * down))
        drawn = np.minimum(1.0, values * np.nan_to_num(factor, posinf=0.0))
    else:
        drawn = measure_of_counts(measure, new_up, new_down, new_both, num_tokens)
    which = np.nonzero(_above(drawn, threshold))[0]
    return drawn[which], which


def measure_of_counts(
    measure: str, up: np.ndarray, down: np.ndarray, both: np.ndarray, num_tokens: int | None = None
) -> np.ndarray:
    """Jaccard index, sufficiency, necessity or mutual information (in nats) from counts of tokens; 0 where undefined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if measure == "jaccard":
            return np.nan_to_num(both / (up + down - both))
        if measure == "sufficiency":
            return np.nan_to_num(both / up)
        if measure == "necessity":
            return np.nan_to_num(both / down)
    if num_tokens is None:
        raise ValueError("Mutual information needs the number of tokens.")
    from scipy.special import rel_entr

    total = 0.0
    for cell, of_up, of_down in (
        (both, up, down),
        (up - both, up, num_tokens - down),
        (down - both, num_tokens - up, down),
        (num_tokens - up - down + both, num_tokens - up, num_tokens - down),
    ):
        total = total + rel_entr(np.maximum(cell, 0) / num_tokens, of_up / num_tokens * (of_down / num_tokens))
    return np.nan_to_num(total, posinf=0.0)


def _best_jaccard(one: np.ndarray, sizes: np.ndarray, other: np.ndarray, other_sizes: np.ndarray) -> np.ndarray:
    """For each community of `one` its largest Jaccard index with a community of `other`."""
    best = np.zeros(len(sizes))
    both = (one >= 0) & (other >= 0)
    pairs, counts = np.unique(one[both] * max(1, len(other_sizes)) + other[both], return_counts=True)
    if len(pairs):
        mine, theirs = np.divmod(pairs, len(other_sizes))
        np.maximum.at(best, mine, counts / (sizes[mine] + other_sizes[theirs] - counts))
    return best


def adjusted_rand_index(one: np.ndarray, other: np.ndarray) -> float:
    """How far two partitions of the same things agree: 1 if wholly, about 0 if by chance (Hubert and Arabie, 1985).

    With a, b, n_ij the sizes of the parts and of their overlaps and C2(x) = x (x - 1) / 2, it is (sum C2(n_ij) - e) /
    ((sum C2(a) + sum C2(b)) / 2 - e), where e = sum C2(a) sum C2(b) / C2(n).

    Args:
        one, other (`np.ndarray`): `(n,)`: the part each thing is in, as any integers; -1 is a part like others.
    """
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"Two partitions of the same things are needed, not of {one.shape} and {other.shape}.")
    _, first = np.unique(one, return_inverse=True)
    _, second = np.unique(other, return_inverse=True)

    def pairs(labels: np.ndarray) -> float:
        counts = np.unique(labels, return_counts=True)[1].astype(np.float64)
        return float((counts * (counts - 1) / 2).sum())

    together = pairs(first * (second.max(initial=0) + 1) + second)
    a, b, every = pairs(first), pairs(second), len(one) * (len(one) - 1) / 2
    expected = a * b / every if every else 0.0
    most = (a + b) / 2
    # Both all in one part, or all apart: the same partition
    return 1.0 if most == expected else (together - expected) / (most - expected)
