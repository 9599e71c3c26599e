"""How the graph of features changed between two models, held against how it differs between halves of the games.

An estimate of a correlation moves with the games it is made from, so that edges come and go at any threshold without any
change of the model. The floor is what two disjoint halves of one model's games show. Held against it is what the two
models show on disjoint halves, so that both have equally many games and none in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import UsageError
from .halves import split_store


if TYPE_CHECKING:
    from .store import Store


# Likeness of two graphs, each at most 1
LIKENESS = ("edges", "pass_through", "communities")


class RelationsLike(Protocol):
    """What is read of [`~spiral_trl.sae.relations.Relations`]."""

    @property
    def pairs(self) -> Sequence[tuple[int, int]]: ...

    def features(self, layer: int) -> Mapping[str, np.ndarray]: ...

    def edges(self, pair: tuple[int, int], rule: str) -> Mapping[str, np.ndarray]: ...


@dataclass(frozen=True)
class FeatureGraph:
    """Edges above a threshold.

    Args:
        edges (`np.ndarray`): `(edges, 4)`, ascending: upstream layer and feature, downstream layer and feature.
        forward (`dict`): For each pair of layers, which features of the upper one pass through, `(n,)`, ascending.
        alive (`dict`): For each pair, how many features of its upstream layer are ever active.
        nodes (`np.ndarray`): `(nodes, 2)`: features in communities' graph.
        membership (`np.ndarray`): `(nodes,)`: their community, -1 for none.
    """

    edges: np.ndarray
    forward: dict[tuple[int, int], np.ndarray]
    alive: dict[tuple[int, int], int]
    nodes: np.ndarray
    membership: np.ndarray

    @property
    def share(self) -> dict[tuple[int, int], float | None]:
        """Share of the features alive in the upstream layer that pass through, `None` where none is alive."""
        return {
            pair: len(passing) / self.alive[pair] if self.alive[pair] else None
            for pair, passing in self.forward.items()
        }


def feature_graph(
    relations: RelationsLike,
    *,
    measure: str = "pearson",
    rule: str = "absolute",
    threshold: float = 0.5,
    pass_threshold: float = 0.95,
    seed: int = 42,
) -> FeatureGraph:
    """Reads the graph of relations.

    Args:
        relations ([`~spiral_trl.sae.relations.Relations`]): The relations.
        measure (`str`, *optional*, defaults to `"pearson"`): What an edge weighs.
        rule (`str`, *optional*, defaults to `"absolute"`): When a feature counts as active.
        threshold (`float`, *optional*, defaults to `0.5`): From where on an edge counts.
        pass_threshold (`float`, *optional*, defaults to `0.95`): From where on a feature passes through.
        seed (`int`, *optional*, defaults to `42`): Of communities.
    """
    from .communities import communities

    kept: dict[str, list[np.ndarray]] = {}
    forward, alive = {}, {}
    for pair in relations.pairs:
        edges = relations.edges(pair, rule)
        if measure not in edges:
            raise UsageError(f"the relations have no measure {measure!r}")
        values = np.nan_to_num(np.asarray(edges[measure], dtype=np.float64))
        above = np.flatnonzero(values >= threshold)
        for name in ("upstream_layer", "upstream", "downstream_layer", "downstream", measure):
            kept.setdefault(name, []).append(np.asarray(edges[name])[above])
        forward[pair] = np.unique(np.asarray(edges["upstream"])[values >= pass_threshold])
        alive[pair] = int((np.asarray(relations.features(pair[0])["count"]) > 0).sum())
    columns = {name: np.concatenate(parts) for name, parts in kept.items()}
    found = communities(columns, measure=measure, threshold=threshold, seed=seed, bootstraps=0)
    ends = [
        columns[name].astype(np.int64) for name in ("upstream_layer", "upstream", "downstream_layer", "downstream")
    ]
    rows = np.unique(np.stack(ends, axis=1), axis=0)
    return FeatureGraph(rows, forward, alive, found.nodes, found.membership)


def likeness(one: FeatureGraph, other: FeatureGraph) -> dict[str, float | None]:
    """How like two graphs are: Jaccard index of the edges, and of the features that pass through, and adjusted Rand
    index of the communities over the features that both graphs have. `None` where there is nothing to hold together."""
    from .communities import adjusted_rand_index

    passing = [
        np.concatenate([_keys(np.stack([np.full(len(f), pair[0]), f], axis=1)) for pair, f in graph.forward.items()])
        for graph in (one, other)
    ]
    _, here, there = np.intersect1d(_keys(one.nodes), _keys(other.nodes), assume_unique=True, return_indices=True)
    return {
        "edges": _jaccard(_keys(one.edges), _keys(other.edges)),
        "pass_through": _jaccard(*passing),
        "communities": adjusted_rand_index(one.membership[here], other.membership[there]) if len(here) > 1 else None,
    }


def _keys(rows: np.ndarray) -> np.ndarray:
    """One integer for each row of non-negative integers: pairs (layer, feature), or two of them."""
    keys = np.zeros(len(rows), np.int64)
    for column, bits in zip(rows.T, (7, 24, 7, 24), strict=False):
        keys = keys << bits | column
    return keys


def _jaccard(one: np.ndarray, other: np.ndarray) -> float | None:
    union = len(np.union1d(one, other))
    return len(np.intersect1d(one, other)) / union if union else None


def graph_difference(
    before: RelationsLike,
    after: RelationsLike,
    cuts: Sequence[tuple[tuple[RelationsLike, RelationsLike], tuple[RelationsLike, RelationsLike]]],
    **settings: Any,
) -> dict[str, Any]:
    """How the graph changed, and whether by more than halves of one model's games differ.

    No test is claimed here: `beyond` says that, in every cut, halves of different models were less alike than halves of
    the same model. With one cut and no change, that happens about once in six; more cuts make it rarer.

    Args:
        before, after ([`~spiral_trl.sae.relations.Relations`]): Of all games.
        cuts (`Sequence`): For each of some random cuts of the games: the relations of the two halves before, and of the
            two halves after. See [`~spiral_trl.sae.halves.split_store`].
        **settings: Of [`feature_graph`].

    Returns:
        `dict`: `edges` (`before`, `after`, `gained`, `lost`); `likeness` of the models on all games; for each of
        [`LIKENESS`] in `floor`, the values `within` (halves of one model) and `across` (a half of each) and `beyond`,
        `None` where a value is missing; and in `flow`, for each pair of layers, the share that passes through `before`
        and `after`, the changes `within` and `across`, and `beyond`.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If the pairs of layers differ.
    """
    every = [before, after, *(relations for cut in cuts for side in cut for relations in side)]
    if any(list(relations.pairs) != list(before.pairs) for relations in every):
        raise UsageError("graphs of different pairs of layers cannot be compared")
    whole = [feature_graph(relations, **settings) for relations in (before, after)]
    within: list[tuple[FeatureGraph, FeatureGraph]] = []
    across: list[tuple[FeatureGraph, FeatureGraph]] = []
    for cut in cuts:
        (b0, b1), (a0, a1) = ([feature_graph(half, **settings) for half in side] for side in cut)
        within += [(b0, b1), (a0, a1)]
        across += [(b0, a1), (b1, a0)]
    likenesses = [[likeness(*graphs) for graphs in graphs_of] for graphs_of in (within, across)]
    keys = [_keys(graph.edges) for graph in whole]
    return {
        "settings": settings,
        "cuts": len(cuts),
        "edges": {
            "before": len(keys[0]),
            "after": len(keys[1]),
            "gained": len(np.setdiff1d(keys[1], keys[0])),
            "lost": len(np.setdiff1d(keys[0], keys[1])),
        },
        "likeness": likeness(*whole),
        "floor": {name: _floor(*([one[name] for one in of] for of in likenesses)) for name in LIKENESS},
        "flow": [
            {
                "layer": pair[0],
                "next": pair[1],
                "before": whole[0].share[pair],
                "after": whole[1].share[pair],
                **_flow_floor(*([_change(graphs, pair) for graphs in of] for of in (within, across))),
            }
            for pair in before.pairs
        ],
    }


def _floor(within: list[float | None], across: list[float | None]) -> dict[str, Any]:
    one, other = _known(within), _known(across)
    return {"within": within, "across": across, "beyond": None if not one or not other else max(other) < min(one)}


def _change(graphs: tuple[FeatureGraph, FeatureGraph], pair: tuple[int, int]) -> float | None:
    one, other = (graph.share[pair] for graph in graphs)
    return None if one is None or other is None else other - one


def _flow_floor(within: list[float | None], across: list[float | None]) -> dict[str, Any]:
    one, other = _known(within), _known(across)
    beyond = None
    if one and other:
        largest = max(abs(change) for change in one)
        beyond = min(other) > largest or max(other) < -largest
    return {"within": within, "across": across, "beyond": beyond}


def _known(values: list[float | None]) -> list[float]:
    """All values, or none where one is missing."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else []


def compare_graphs(
    before: Store,
    after: Store,
    folder: str | Path,
    *,
    cuts: int = 3,
    seed: int = 42,
    relate_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Relates the features of two stores of the same texts, and of halves of their games, and holds the graphs together.

    Args:
        before, after ([`~spiral_trl.sae.store.Store`]): Codes of the same dictionaries.
        folder (`str` or `Path`): Where halves and relations go; what is there already is not made again.
        cuts (`int`, *optional*, defaults to `3`): How many times the games are cut in halves: each costs two passes over
            the codes of either store.
        seed (`int`, *optional*, defaults to `42`): Seed of the first cut; the next ones count up.
        relate_options (`Mapping`, *optional*): Options of [`~spiral_trl.sae.relations.relate`].
        **settings: Of [`feature_graph`].

    Returns:
        `dict`: See [`graph_difference`].
    """
    from .relations import relate

    folder = Path(folder)
    options = {"directions": None, **(relate_options or {})}

    def related(store: Store, name: str) -> Any:
        return relate(store, folder / "relations" / name, **options)

    def related_halves(store: Store, name: str, cut: int) -> tuple[Any, Any]:
        halves = split_store(store, folder / "halves" / f"{name}-{cut}", seed=seed + cut)
        return related(halves[0], f"{name}-{cut}-0"), related(halves[1], f"{name}-{cut}-1")

    found = [(related_halves(before, "before", cut), related_halves(after, "after", cut)) for cut in range(cuts)]
    return graph_difference(related(before, "before"), related(after, "after"), found, **settings)
