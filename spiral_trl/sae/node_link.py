"""Graphs in the authors' form opened in our report, and our communities and neighbourhoods written in theirs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .neuronpedia import PAPER_MODEL, PAPER_RELEASE, neuronpedia_ids, neuronpedia_link
from .node_link_file import MEASURES, NodeLink, read_node_link, write_node_link
from .report_data import VERSION, check_report


__all__ = ["NodeLink", "export_graph", "read_node_link", "report_of_graph", "unknown_feature", "write_node_link"]


def report_of_graph(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    measure: str | None = None,
    release: str | None = PAPER_RELEASE,
    title: str | None = None,
) -> dict[str, Any]:
    """Data of a report on graphs that were read from files.

    Each file becomes a community of its name. Where nodes name communities within their graph, these follow it. A
    feature that is in several files is one feature; of several values of one measure between two features the first
    stays.

    Args:
        paths: A file, a folder whose `.json` files are meant, or several.
        measure (`str`, *optional*): What all similarities are; see [`read_node_link`].
        release (`str`, *optional*, defaults to `"gpt2-small-res-jb"`): SAELens's release whose features they are, for
            files that do not name their dictionaries themselves. `None`: no links to Neuronpedia.
        title (`str`, *optional*): The page's heading.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If a file cannot be used.
    """
    graphs = [read_node_link(path, measure) for path in _files(paths)]
    measures = [name for name in MEASURES if any(name in _measures_in(graph) for graph in graphs)]
    report = _Report(measures)
    for graph in graphs:
        report.add(graph, release)
    return check_report(report.data(graphs, title))


def _files(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    files: list[Path] = []
    for path in map(Path, given):
        inside = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not inside:
            raise UsageError(f"{path} holds no .json file")
        files += inside
    if not files:
        raise UsageError("no graph was given")
    return list(dict.fromkeys(files))


class _Report:
    """Collects graphs into one report."""

    def __init__(self, measures: list[str]):
        self.measures = measures
        self.features: list[dict[str, Any]] = []
        self.index: dict[tuple[int, int], int] = {}
        self.edges: dict[tuple[int, int], list[float | None]] = {}
        self.communities: list[dict[str, Any]] = []
        self.dictionaries: dict[int, dict[str, Any]] = {}

    def add(self, graph: NodeLink, release: str | None) -> None:
        links = self._neuronpedia(graph, release)
        for node in graph.nodes:
            layer, feature = place = graph.places[node["id"]]
            explanation = _shown(node.get("explanation") or "")
            if place not in self.index:
                self.index[place] = len(self.features)
                self.features.append(unknown_feature(layer, feature, neuronpedia_link(links.get(layer), feature)))
            said = self.features[self.index[place]]
            said["explanation"] = said["explanation"] or explanation or None
            self.dictionaries.setdefault(layer, {"name": None, "neuronpedia": links.get(layer)})
        for link in graph.links:
            self._add_link(graph, link)
        self._add_communities(graph)

    def _neuronpedia(self, graph: NodeLink, release: str | None) -> Mapping[int, str]:
        """A graph that names its dictionaries is of no other release, also where it has no links for them."""
        own = graph.data.get("graph", {}).get("neuronpedia")
        if own is None:
            return neuronpedia_ids(release) if release else {}
        if not isinstance(own, dict):
            raise UsageError(f"{graph.name}: neuronpedia must name an id for each layer, not {own!r:.60}")
        return {int(layer): name for layer, name in own.items() if layer.isdecimal() and isinstance(name, str)}

    def _add_link(self, graph: NodeLink, link: Mapping[str, Any]) -> None:
        ends = [graph.places[link[end]] for end in ("source", "target")]
        if ends[0][0] > ends[1][0]:
            if graph.data.get("directed", False):
                raise UsageError(
                    f"{graph.name}: the link from {link['source']} to {link['target']} leads to an earlier layer"
                )
            ends.reverse()
        values = self.edges.setdefault((self.index[ends[0]], self.index[ends[1]]), [None for _ in self.measures])
        for n, name in enumerate(self.measures):
            value = link.get("similarity") if name == graph.measure else link.get(name)
            if values[n] is None and value is not None:
                values[n] = value

    def _add_communities(self, graph: NodeLink) -> None:
        everyone = [self.index[place] for place in graph.places.values()]
        self._community(graph, graph.name, everyone, own=not any("community" in node for node in graph.nodes))
        inside: dict[Any, list[int]] = {}
        for node in graph.nodes:
            if node.get("community") is not None:
                inside.setdefault(node["community"], []).append(self.index[graph.places[node["id"]]])
        for name in sorted(inside, key=lambda name: (isinstance(name, str), name)):
            self._community(graph, f"{graph.name}: {name}", inside[name], own=True)

    def _community(self, graph: NodeLink, name: str, features: list[int], own: bool) -> None:
        layers = [self.features[feature]["l"] for feature in features]
        number = len(self.communities)
        self.communities.append(
            {
                "id": number,
                "name": _shown(name),
                "measure": graph.measure,
                "size": len(features),
                "layers": {str(layer): layers.count(layer) for layer in sorted(set(layers))},
                "stability": None,
                "features": features,
                "texts": [],
            }
        )
        for feature in features if own else ():
            if self.features[feature]["community"] is None:
                self.features[feature]["community"] = number

    def data(self, graphs: Sequence[NodeLink], title: str | None) -> dict[str, Any]:
        models = {graph.data.get("graph", {}).get("model") for graph in graphs} - {None}
        paper = any((said["neuronpedia"] or "").startswith(f"{PAPER_MODEL}/") for said in self.dictionaries.values())
        model = models.pop() if len(models) == 1 else PAPER_MODEL if not models and paper else None
        return {
            "version": VERSION,
            "title": title or f"Features of {'one graph' if len(graphs) == 1 else f'{len(graphs)} graphs'}",
            "about": {
                "model": model if isinstance(model, str) else None,
                "source": _shown(", ".join(graph.name for graph in graphs)),
                "tokens": None,
                "settings": {},
                "dictionaries": {str(layer): said for layer, said in sorted(self.dictionaries.items())},
            },
            "measures": self.measures,
            "layers": sorted(self.dictionaries),
            "quality": {},
            "features": self.features,
            "edges": [[up, down, values] for (up, down), values in self.edges.items()],
            "flow": [],
            "communities": self.communities,
            "prompts": [],
            "games": None,
            "comparison": None,
            "ablation": None,
        }


def unknown_feature(layer: int, feature: int, link: str | None, community: int | None = None) -> dict[str, Any]:
    """A report's feature of which nothing else is known."""
    unknown = {**dict.fromkeys(("density", "count", "max", "mean", "label", "explanation")), "community": community}
    lists: dict[str, list] = {"badges": [], "texts": [], "promoted": [], "suppressed": []}
    return {"l": layer, "f": feature, **unknown, "neuronpedia": link, "histogram": None, **lists}


def export_graph(
    data: Mapping[str, Any],
    measure: str,
    community: int | None = None,
    around: tuple[int, int] | None = None,
    hops: int = 1,
    threshold: float | None = None,
) -> NodeLink:
    """The graph of a community of a report, or of a feature's neighbourhood, in the authors' form.

    A link's `similarity` is the wanted measure; the others stand beside it under their names.

    Args:
        data (`Mapping`): A report's data; see [`~spiral_trl.sae.report_data`].
        measure (`str`): One of its measures.
        community (`int`, *optional*): The community's id.
        around (`tuple[int, int]`, *optional*): Layer and feature of the one whose neighbours are wanted.
        hops (`int`, *optional*, defaults to `1`): How many edges away a neighbour may be.
        threshold (`float`, *optional*): Leaves out links below it.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If the report has no such measure, community or feature.
    """
    if measure not in data["measures"]:
        raise UsageError(f"the report has no measure {measure!r}; it has {', '.join(data['measures'])}")
    if (community is None) == (around is None):
        raise UsageError("either a community or a feature's neighbourhood can be exported")
    at = data["measures"].index(measure)
    edges = [
        (up, down, values)
        for up, down, values in data["edges"]
        if values[at] is not None and (threshold is None or values[at] >= threshold)
    ]
    if around is None:
        name, kept = f"{measure}_community_{community}", _members(data, community)
    else:
        name, kept = f"{measure}_neighbourhood_{around[0]}_{around[1]}", _near(data, edges, around, hops)
    features = data["features"]
    dictionaries = data["about"]["dictionaries"]
    layers = sorted({features[n]["l"] for n in kept})
    graph = {
        "measure": measure,
        "model": data["about"]["model"],
        "neuronpedia": {str(layer): dictionaries.get(str(layer), {}).get("neuronpedia") for layer in layers},
    }
    nodes = [_node(features[n]) for n in kept]
    chosen = set(kept)
    links = [
        {
            "similarity": values[at],
            **{other: value for other, value in zip(data["measures"], values, strict=True) if value is not None},
            "source": f"{features[up]['l']}_{features[up]['f']}",
            "target": f"{features[down]['l']}_{features[down]['f']}",
        }
        for up, down, values in edges
        if up in chosen and down in chosen
    ]
    return NodeLink(
        name, measure, {"directed": True, "multigraph": False, "graph": graph, "nodes": nodes, "links": links}
    )


def _members(data: Mapping[str, Any], community: int | None) -> list[int]:
    for said in data["communities"]:
        if said["id"] == community:
            return list(said["features"])
    raise UsageError(f"the report has no community {community}; it has {len(data['communities'])}")


def _near(data: Mapping[str, Any], edges: Iterable[tuple], around: tuple[int, int], hops: int) -> list[int]:
    start = [n for n, feature in enumerate(data["features"]) if (feature["l"], feature["f"]) == tuple(around)]
    if not start:
        raise UsageError(f"the report has no feature {around[1]} of layer {around[0]}")
    found = set(start)
    edges = list(edges)
    for _ in range(hops):
        found |= {end for up, down, _ in edges if up in found or down in found for end in (up, down)}
    return sorted(found)


def _node(feature: Mapping[str, Any]) -> dict[str, Any]:
    node = {"layer": feature["l"], "feature": feature["f"], "explanation": feature["explanation"] or ""}
    if feature["community"] is not None:
        node["community"] = feature["community"]
    return {**node, "id": f"{feature['l']}_{feature['f']}"}


def _measures_in(graph: NodeLink) -> set[str]:
    return {graph.measure} | {key for link in graph.links for key in link if key in MEASURES}


def _shown(text: str) -> str:
    """Text without halves of surrogate pairs, which JSON may hold and no page can."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
