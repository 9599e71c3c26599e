"""Communities and neighbourhoods of a run, whole, in the form of the paper's authors.

A report holds only some of a run's features; [`~spiral_trl.sae.node_link.export_graph`] writes what it holds. Here the
relations themselves are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from .neuronpedia import neuronpedia_link
from .node_link import NodeLink, export_graph, unknown_feature
from .run_folder import Run, measures_of, open_run
from .selection import Place, choose_edges


def export_run(
    run: Run | str | Path,
    measure: str = "pearson",
    community: int | None = None,
    around: Place | None = None,
    hops: int = 1,
    threshold: float | None = None,
    rule: str = "absolute",
) -> NodeLink:
    """The graph of a community of a run, or of a feature's neighbourhood.

    Args:
        run ([`~spiral_trl.sae.run_folder.Run`], `str` or `Path`): The run, or its folder.
        measure (`str`, *optional*, defaults to `"pearson"`): What a link's `similarity` is.
        community (`int`, *optional*): The community's number.
        around (`tuple[int, int]`, *optional*): Layer and feature of the one whose neighbours are wanted.
        hops (`int`, *optional*, defaults to `1`): How many links away a neighbour may be.
        threshold (`float`, *optional*): Leaves out links below it; for a neighbourhood by default those that are not
            above 0.
        rule (`str`, *optional*, defaults to `"absolute"`): The activity rule.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If the run has no relations, or no such measure, community or feature.
    """
    run = run if isinstance(run, Run) else open_run(run)
    measures = measures_of(run, rule)
    if measure not in measures:
        raise UsageError(f"{run.folder} has no measure {measure!r}; it has {', '.join(measures) or 'no relations'}")
    if (community is None) == (around is None):
        raise UsageError("either a community or a feature's neighbourhood can be exported")
    places = _members(run, community) if around is None else _near(run, around, hops, measure, threshold, rule)
    index = {place: n for n, place in enumerate(places)}
    dictionaries = run.store.about["layers"]
    data: dict[str, Any] = {
        "measures": measures,
        "about": {"model": run.store.about.get("model"), "dictionaries": dictionaries},
        "features": [
            unknown_feature(
                layer, feature, neuronpedia_link(dictionaries[str(layer)].get("neuronpedia"), feature), community
            )
            for layer, feature in places
        ],
        "edges": [] if run.relations is None else choose_edges(run.relations, rule, measures, index, None),
        "communities": [{"id": community, "features": list(range(len(places)))}],
    }
    return export_graph(data, measure, community, around, hops, threshold)


def _members(run: Run, community: int | None) -> list[Place]:
    table = run.labels
    if table is None or "community" not in table or not (table["community"] == community).any():
        raise UsageError(f"{run.folder} has no community {community}")
    found = table[table["community"] == community]
    return sorted(zip(found["layer"].tolist(), found["feature"].tolist(), strict=True))


def _near(run: Run, around: Place, hops: int, measure: str, threshold: float | None, rule: str) -> list[Place]:
    layer, feature = around
    if not 0 <= feature < run.store.num_features(layer):
        raise UsageError(f"layer {layer} has features 0 to {run.store.num_features(layer) - 1}, not {feature}")
    found = {around}
    for _ in range(hops):
        found |= {
            end
            for pair in (run.relations.pairs if run.relations is not None else ())
            for end in _ends(run, pair, found, measure, threshold, rule)
        }
    return sorted(found)


def _ends(
    run: Run, pair: tuple[int, int], found: set[Place], measure: str, threshold: float | None, rule: str
) -> set[Place]:
    """Both ends of the links of a pair of layers that touch what was found."""
    assert run.relations is not None
    edges = run.relations.edges(pair, rule)
    value = np.nan_to_num(np.asarray(edges[measure], dtype=np.float64))
    ends = [np.asarray(edges[name]).astype(np.int64) for name in ("upstream", "downstream")]
    touching = np.zeros(len(value), bool)
    for layer, features in zip(pair, ends, strict=True):
        touching |= np.isin(features, [feature for at, feature in found if at == layer])
    rows = touching & (value > 0 if threshold is None else value >= threshold)
    return {
        (layer, feature) for layer, features in zip(pair, ends, strict=True) for feature in features[rows].tolist()
    }
