"""Graphs of features as node-link JSON of networkx, in the form that the authors of arXiv 2410.08869 publish.

A node's `id` is `LAYER_FEATURE`; it has `layer`, `feature`, `explanation` and sometimes `community`. A link has
`source`, `target` and `similarity`. Which measure the similarities are of, the file's name says, such as
`pearson_louvain_threshold_0.1_size_12_37.json`. Graphs that are written here say it inside too, and name the dictionaries
of their layers, under `graph`, where networkx keeps what belongs to a whole graph.

Such files come from others: their text is data, shown and never interpreted.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..names import unknown
from .report_data import is_finite
from .store import written_whole


# Names of measures in files, and ours
FILE_MEASURES = {
    "pearson": "pearson",
    "cosine": "cosine",
    "cosine_similarity": "cosine",
    "jaccard": "jaccard",
    "jaccard_similarity": "jaccard",
    "sufficiency": "sufficiency",
    "necessity": "necessity",
    "mutual_information": "mutual_information",
    "decoder_cosine": "decoder_cosine",
}
MEASURES = tuple(dict.fromkeys(FILE_MEASURES.values()))
_ID = re.compile(r"(0|[1-9]\d{0,3})_(0|[1-9]\d{0,8})", re.ASCII)


@dataclass(frozen=True)
class NodeLink:
    """A graph of features as its file has it.

    Args:
        name (`str`): The file's name, without `.json`.
        measure (`str`): What the similarities are.
        data (`Mapping`): The whole file, checked. [`write_node_link`] writes it as it is.
    """

    name: str
    measure: str
    data: Mapping[str, Any]

    @property
    def nodes(self) -> list[dict[str, Any]]:
        return self.data["nodes"]

    @property
    def links(self) -> list[dict[str, Any]]:
        """Since version 3.4 networkx may call them `edges`."""
        return self.data["links" if "links" in self.data else "edges"]

    @cached_property
    def places(self) -> dict[str, tuple[int, int]]:
        """Layer and feature of each node's id."""
        return {node["id"]: _layer_and_feature(node["id"]) for node in self.nodes}


def read_node_link(path: str | os.PathLike, measure: str | None = None) -> NodeLink:
    """Reads a graph.

    Args:
        path (`str` or `PathLike`): The file.
        measure (`str`, *optional*): What its similarities are. Otherwise the file says it, or its name.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If the file is none of this form, or nothing says the measure.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_number, parse_float=_number)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} holds no JSON: {error}") from None
    try:
        _check_graph(data)
        said = data.get("graph", {}).get("measure")
        return NodeLink(path.stem, _measure(measure or said, path.stem), data)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def write_node_link(graph: NodeLink, path: str | os.PathLike) -> None:
    """Writes a graph, byte for byte as Python's `json` does, so that networkx and the authors' browser read it.

    Raises:
        `OSError`: If it cannot be written; a file that was there before stays.
    """
    with written_whole(Path(path)) as partial:
        partial.write_text(json.dumps(graph.data, allow_nan=False), encoding="utf-8")


def _measure(said: Any, name: str) -> str:
    if said is not None:
        if not isinstance(said, str) or said not in FILE_MEASURES:
            raise UsageError(unknown("measure", str(said), MEASURES))
        return FILE_MEASURES[said]
    for start in sorted(FILE_MEASURES, key=len, reverse=True):
        if name == start or name.startswith((f"{start}_", f"{start}-", f"{start}.")):
            return FILE_MEASURES[start]
    raise UsageError(f"the file's name begins with no measure, so it must be given: {', '.join(MEASURES)}")


def _check_graph(data: Any) -> None:
    if not isinstance(data, dict):
        raise UsageError("no node-link graph: the JSON is no object")
    if not isinstance(data.get("graph", {}), dict):
        raise UsageError("no node-link graph: 'graph' is no object")
    for key in ("directed", "multigraph"):
        if not isinstance(data.get(key, False), bool):
            raise UsageError(f"no node-link graph: {key!r} must be true or false, not {data[key]!r:.60}")
    links = "links" if "links" in data else "edges"
    for key in ("nodes", links):
        if not isinstance(data.get(key), list) or not all(isinstance(item, dict) for item in data[key]):
            raise UsageError(f"no node-link graph: there is no list of {'links' if key == links else key}")
    ids: set[str] = set()
    for n, node in enumerate(data["nodes"]):
        _check_node(node, n)
        if node["id"] in ids:
            raise UsageError(f"the node {node['id']} is there twice")
        ids.add(node["id"])
    for n, link in enumerate(data[links]):
        _check_link(link, n, ids)


def _check_node(node: Mapping[str, Any], n: int) -> None:
    layer, feature = _layer_and_feature(node.get("id"), f"node {n}")
    for key, value in (("layer", layer), ("feature", feature)):
        if key in node and (node[key] != value or isinstance(node[key], bool)):
            raise UsageError(f"the node {node['id']} says {key} {node[key]!r:.60}")
    if not isinstance(node.get("explanation"), str | None):
        raise UsageError(f"the node {node['id']}: its explanation must be text, not {node['explanation']!r:.60}")
    if not isinstance(node.get("community"), int | str | None):
        raise UsageError(
            f"the node {node['id']}: its community must be a number or a name, not {node['community']!r:.60}"
        )


def _check_link(link: Mapping[str, Any], n: int, ids: set[str]) -> None:
    for end in ("source", "target"):
        _layer_and_feature(link.get(end), f"link {n}, {end}")
        if link[end] not in ids:
            raise UsageError(f"link {n} names the node {link[end]}, which is missing")
    for key in ("similarity", *MEASURES):
        value = link.get(key)
        if value is not None and not is_finite(value):
            raise UsageError(f"link {n}: {key} must be a finite number, not {value!r:.60}")


def _layer_and_feature(value: Any, where: str = "a node") -> tuple[int, int]:
    match = _ID.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise UsageError(f"{where} has the id {value!r:.60}; it must be LAYER_FEATURE, such as 9_18685")
    return int(match[1]), int(match[2])


def _number(text: str) -> float:
    if not is_finite(number := float(text)):
        raise ValueError(f"{text} is no finite number")
    return number
