"""The graph of features across layers: what passes, appears and disappears, what each feature is, and communities.

```
graph.json        settings, flow between layers, counts of labels, gates with their counts, communities
labels.parquet    one row a feature: its label, partners, best similarity to both sides, community
```
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from .communities import Communities, check_measure, communities, may_pass
from .extra import require_extra
from .flow import best_similarity, flow_between, sides
from .sampling import design_effects
from .store import Store, write_json, written_whole


if TYPE_CHECKING:
    from .labels import LabelSettings, LayerLabels
    from .relations import Relations


VERSION = 1


@dataclass(frozen=True)
class CommunitySettings:
    """How communities are found; see [`~spiral_trl.sae.communities.communities`].

    Args:
        measure (`str`, *optional*, defaults to `"pearson"`): What an edge weighs.
        threshold (`float`, *optional*, defaults to 0.1): What it must reach.
        resolution (`float`, *optional*, defaults to 1.0): Of modularity.
        seed (`int`, *optional*, defaults to 42): Of Leiden and the bootstrap.
        bootstraps (`int`, *optional*, defaults to 20): How many.
        min_size (`int`, *optional*, defaults to 3): Nodes of smaller communities are in none.
        by_group (`bool`, *optional*, defaults to `True`): Whether the bootstrap's counts vary as much as firings that
            come in clusters, by game or text, make them; else as independent tokens would.
    """

    measure: str = "pearson"
    threshold: float = 0.1
    resolution: float = 1.0
    seed: int = 42
    bootstraps: int = 20
    min_size: int = 3
    by_group: bool = True


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph of features; see the module.

    Args:
        about (`dict`): What `graph.json` says.
        table (`dict[str, np.ndarray]`): The columns of `labels.parquet`; where it has no value, integers are -1, numbers
            NaN and truths `False`.
        folder (`Path`, *optional*): Where it lies.
    """

    about: Mapping[str, Any]
    table: Mapping[str, np.ndarray] = field(repr=False)
    folder: Path | None = None

    @property
    def flow(self) -> list[dict[str, Any]]:
        return self.about["flow"]

    @property
    def gates(self) -> list[dict[str, Any]]:
        return self.about["gates"]

    @property
    def communities(self) -> dict[str, Any]:
        return self.about["communities"]

    @cached_property
    def layers(self) -> tuple[int, ...]:
        return tuple(int(layer) for layer in np.unique(self.table["layer"]))

    def layer(self, layer: int) -> dict[str, np.ndarray]:
        """The table's rows of a layer.

        Raises:
            [`~spiral_trl.errors.UsageError`]: If the graph does not have it.
        """
        if layer not in self.layers:
            raise UsageError(f"the graph has layers {', '.join(map(str, self.layers))}, not {layer}")
        here = self.table["layer"] == layer
        return {name: column[here] for name, column in self.table.items()}

    def to_dict(self) -> dict[str, Any]:
        return dict(self.about)


def build_graph(
    store: Store,
    relations: Relations,
    folder: str | Path,
    labels: LabelSettings | None = None,
    flow_threshold: float | None = None,
    community: CommunitySettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Graph:
    """Labels every feature, follows the flow between layers, finds communities, and writes it all into a folder.

    Args:
        store ([`~spiral_trl.sae.store.Store`]): The codes.
        relations ([`~spiral_trl.sae.relations.Relations`]): Their relations.
        folder (`str` or `Path`): Where to write `graph.json` and `labels.parquet`; each is written whole.
        labels ([`~spiral_trl.sae.labels.LabelSettings`], *optional*): What the labels rest on. The flow takes its measure.
        flow_threshold (`float`, *optional*): Of the flow: the paper's t, first 0.4, later 0.95. By default the
            labels' `pass_threshold`.
        community ([`CommunitySettings`], *optional*): How communities are found.
        progress (`Callable[[int, int], None]`, *optional*): Told how many layers are labelled, and of how many.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If the relations hold no consecutive layers or were made otherwise.
    """
    require_extra()
    from .labels import LabelSettings, consecutive, label_features

    labels = labels or LabelSettings()
    community = community or CommunitySettings()
    threshold = labels.pass_threshold if flow_threshold is None else flow_threshold
    labelled = {of.layer: of for of in label_features(store, relations, labels, progress)}
    forward: dict[int, np.ndarray] = {}
    backward: dict[int, np.ndarray] = {}
    flows = []
    for up, down in consecutive(relations.pairs):
        edges = relations.edges((up, down), labels.rule)
        forward[up], backward[down] = best_similarity(
            edges, labels.measure, len(labelled[up].label), len(labelled[down].label)
        )
        active = [np.asarray(relations.features(layer)["count"]) > 0 for layer in (up, down)]
        flows.append(flow_between((up, down), forward[up], backward[down], active, threshold))
    found = _communities(store, relations, labels.rule, community)
    tables = [
        _table(store, relations, of, forward.get(layer), backward.get(layer), threshold, found)
        for layer, of in sorted(labelled.items())
    ]
    about = {
        "version": VERSION,
        "settings": {
            "labels": asdict(labels),
            "flow": {"measure": labels.measure, "threshold": threshold},
            "communities": asdict(community),
            "tokens": store.num_tokens,
        },
        "flow": [flow.to_dict() for flow in flows],
        "labels": [_label_counts(of) for _, of in sorted(labelled.items())],
        "gates": [gate.to_dict() for _, of in sorted(labelled.items()) for gate in of.gates],
        "communities": found.to_dict(),
    }
    table = {name: np.concatenate([part[name] for part in tables]) for name in tables[0]}
    return write_graph(Graph(about, table), folder)


def graph_from_edges(
    edges: Mapping[str, np.ndarray],
    measure: str,
    flow_threshold: float,
    community: CommunitySettings | None = None,
    nodes: np.ndarray | None = None,
    folder: str | Path | None = None,
) -> Graph:
    """The graph of edges that have no codes behind them, such as the paper's published ones: flow and communities.

    Args:
        edges (`Mapping[str, np.ndarray]`): Columns `upstream_layer`, `upstream`, `downstream_layer`, `downstream` and the
            measure.
        measure (`str`): The measure.
        flow_threshold (`float`): Of the flow.
        community ([`CommunitySettings`], *optional*): How communities are found; its measure is not read.
        nodes (`np.ndarray`, *optional*): `(n, 2)`: layer and feature of all features there are; else those of the edges.
        folder (`str` or `Path`, *optional*): Where to write it.
    """
    require_extra()
    settings = CommunitySettings(**{**asdict(community or CommunitySettings()), "measure": measure, "by_group": False})
    options = {name: value for name, value in asdict(settings).items() if name != "by_group"}
    found = communities(edges, **options)
    ends = np.concatenate(
        [
            np.stack([np.asarray(edges["upstream_layer"]), np.asarray(edges["upstream"])], axis=1),
            np.stack([np.asarray(edges["downstream_layer"]), np.asarray(edges["downstream"])], axis=1),
        ]
    ).astype(np.int64)
    nodes = np.unique(ends if nodes is None else np.concatenate([np.asarray(nodes, np.int64), ends]), axis=0)
    layers = [int(layer) for layer in np.unique(nodes[:, 0])]
    sizes = {layer: 1 + int(nodes[nodes[:, 0] == layer, 1].max()) for layer in layers}
    there = {layer: nodes[nodes[:, 0] == layer, 1] for layer in layers}
    forward: dict[int, np.ndarray] = {}
    backward: dict[int, np.ndarray] = {}
    flows = []
    for up, down in zip(layers[:-1], layers[1:], strict=True):
        here = (np.asarray(edges["upstream_layer"]) == up) & (np.asarray(edges["downstream_layer"]) == down)
        part = {name: np.asarray(edges[name])[here] for name in ("upstream", "downstream", measure)}
        forward[up], backward[down] = best_similarity(part, measure, sizes[up], sizes[down])
        active = [np.isin(np.arange(sizes[layer]), there[layer]) for layer in (up, down)]
        flow = flow_between((up, down), forward[up], backward[down], active, flow_threshold)
        # The features that are not among the nodes are not known to be silent
        flows.append({**flow.to_dict(), "silent": None, "silent_next": None})
    columns = []
    for layer in layers:
        of = {"layer": np.full(len(there[layer]), layer), "feature": there[layer]}
        columns.append(
            {
                **of,
                **sides(forward.get(layer), backward.get(layer), there[layer], flow_threshold),
                "community": found.of(layer, sizes[layer])[there[layer]],
            }
        )
    about = {
        "version": VERSION,
        "settings": {"flow": {"measure": measure, "threshold": flow_threshold}, "communities": asdict(settings)},
        "flow": flows,
        "labels": [],
        "gates": [],
        "communities": found.to_dict(),
    }
    graph = Graph(about, {name: np.concatenate([part[name] for part in columns]) for name in columns[0]})
    return graph if folder is None else write_graph(graph, folder)


def _communities(store: Store, relations: Relations, rule: str, settings: CommunitySettings) -> Communities:
    wanted = ["upstream_layer", "upstream", "downstream_layer", "downstream", "count_up", "count_down", "count_both"]
    parts = []
    for pair in relations.pairs:
        part = relations.edges(pair, rule)
        check_measure(part, settings.measure)
        kept = may_pass(part[settings.measure], settings.threshold)
        parts.append({name: part[name][kept] for name in (*wanted, settings.measure)})
    edges = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    effect: np.ndarray | float = 1.0
    if settings.by_group and settings.bootstraps:
        of = {layer: design_effects(store, layer) for layer in {layer for pair in relations.pairs for layer in pair}}
        effect = np.concatenate(
            [
                np.maximum(of[up][part["upstream"]], of[down][part["downstream"]])
                for (up, down), part in zip(relations.pairs, parts, strict=True)
            ]
        )
    return communities(
        edges,
        settings.measure,
        settings.threshold,
        settings.seed,
        settings.resolution,
        settings.bootstraps,
        settings.min_size,
        store.num_tokens,
        effect,
    )


def _table(
    store: Store,
    relations: Relations,
    labels: LayerLabels,
    forward: np.ndarray | None,
    backward: np.ndarray | None,
    threshold: float,
    found: Communities,
) -> dict[str, np.ndarray]:
    size = len(labels.label)
    count = np.asarray(relations.features(labels.layer)["count"])
    return {
        "layer": np.full(size, labels.layer),
        "feature": np.arange(size),
        "count": count.astype(np.int64),
        "density": count / store.num_tokens,
        "label": labels.label,
        "upstream_layer": np.full(size, -1 if labels.upstream is None else labels.upstream),
        "partner": labels.partner,
        "second": labels.second,
        "twin": labels.twin,
        "token_entropy": labels.token_entropy,
        **sides(forward, backward, np.arange(size), threshold, count > 0),
        "community": found.of(labels.layer, size),
    }


def _label_counts(labels: LayerLabels) -> dict[str, Any]:
    from .labels import LABELS

    counts = {label: int((labels.label == label).sum()) for label in LABELS}
    return {"layer": labels.layer, "upstream_layer": labels.upstream, **counts}


def write_graph(graph: Graph, folder: str | Path) -> Graph:
    """Writes a graph into a folder and gives it with that folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    columns = {}
    for name, values in graph.table.items():
        if values.dtype.kind == "f":
            columns[name] = pa.array(values, mask=np.isnan(values))
        elif values.dtype.kind == "i" and name != "layer":
            columns[name] = pa.array(values, mask=values < 0)
        else:
            columns[name] = pa.array(values)
    with written_whole(folder / "labels.parquet") as partial:
        pq.write_table(pa.table(columns), partial)
    write_json(folder / "graph.json", graph.to_dict())
    return Graph(graph.about, graph.table, folder)


def open_graph(folder: str | Path) -> Graph:
    """Opens a graph that [`build_graph`] or [`graph_from_edges`] wrote.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there is none, or it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    folder = Path(folder)
    try:
        about = json.loads((folder / "graph.json").read_text(encoding="utf-8"))
        read = pq.read_table(folder / "labels.parquet")
    except FileNotFoundError as error:
        raise UsageError(f"{folder} holds no graph: there is no {Path(error.filename).name}") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UsageError(f"the graph in {folder} cannot be read: {error}") from None
    if not isinstance(about, dict) or about.get("version") != VERSION:
        raise UsageError(f"the graph in {folder} was written by another version than {VERSION}")
    table = {}
    for name in read.column_names:
        column = read[name]
        if pa.types.is_integer(column.type):
            column = pc.fill_null(column, -1)
        elif pa.types.is_floating(column.type):
            column = pc.fill_null(column, float("nan"))
        table[name] = column.to_numpy() if not pa.types.is_string(column.type) else np.array(column.to_pylist())
    return Graph(about, table, folder)
