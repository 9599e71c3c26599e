"""What a run's folder holds, of which only the codes must be there.

```
store.json, shards/      the codes, or in codes/
quality.json             beside the codes: how well the dictionaries do
relations/               relations between layers
graph.json, labels.parquet    flow, gates, communities; what each feature is
game_features.json       what features stand for in the game
comparison.json          what training changed
ablation.json            how well the measures predict causal effect
presence.json, presence.parquet    whether features that disappear are gone
```
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from .extra import require_extra
from .node_link_file import MEASURES
from .selection import without_links
from .store import Store, open_store


if TYPE_CHECKING:
    from pandas import DataFrame

    from .relations import Relations

# Results that stand in the report as they are
RESULTS = {"games": "game_features.json", "comparison": "comparison.json", "ablation": "ablation.json"}


@dataclass
class Run:
    """What a run's folder holds; see the module.

    Args:
        folder (`Path`): The folder.
        store ([`~spiral_trl.sae.store.Store`]): The codes.
        relations ([`~spiral_trl.sae.relations.Relations`], *optional*): Their relations.
        graph (`dict`): `graph.json`, or empty.
        labels (`DataFrame`, *optional*): `labels.parquet`.
        quality (`dict`): `quality.json`, or empty.
        presence (`dict`): `presence.json`, or empty; with `verdicts`, for each feature that disappears (layer, feature) the
            next layer and what became of it there.
        results (`dict`): `games`, `comparison` and `ablation`, each as its file has it or `None`.
    """

    folder: Path
    store: Store
    relations: Relations | None = None
    graph: dict[str, Any] = field(default_factory=dict)
    labels: DataFrame | None = None
    quality: dict[str, Any] = field(default_factory=dict)
    presence: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)


def open_run(folder: str | Path) -> Run:
    """Opens a run's folder.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there are no codes in it, or a file cannot be read.
    """
    require_extra()
    import pandas as pd

    from .relations import open_relations, store_fingerprint

    folder = Path(folder)
    codes = folder / "codes" if (folder / "codes").is_dir() else folder
    labels = folder / "labels.parquet"
    store = open_store(codes)
    relations = open_relations(folder / "relations") if (folder / "relations").is_dir() else None
    if relations is not None and relations.about["store"] != store_fingerprint(store):
        raise UsageError(f"{relations.folder} holds relations of other codes than those in {codes}")
    results = {name: _read(folder / file) for name, file in RESULTS.items()}
    if results["comparison"] is not None:
        results["comparison"] = _of_these(results["comparison"], store)
    return Run(
        folder,
        store,
        relations,
        _read(folder / "graph.json") or {},
        pd.read_parquet(labels) if labels.exists() else None,
        _read(codes / "quality.json") or {},
        _read_presence(folder),
        results,
    )


def _read_presence(folder: Path) -> dict[str, Any]:
    import pandas as pd

    found = _read(folder / "presence.json")
    if not found or not (folder / "presence.parquet").is_file():
        return {}
    table = pd.read_parquet(folder / "presence.parquet")
    table = table[~table["control"].astype(bool)]
    columns = [table[name].tolist() for name in ("layer", "feature", "next", "verdict")]
    found["verdicts"] = {
        (layer, feature): (after, verdict) for layer, feature, after, verdict in zip(*columns, strict=True)
    }
    return found


def _of_these(comparison: dict[str, Any], store: Store) -> dict[str, Any]:
    """A comparison, its features named such that none passes for one of these codes where they are another
    dictionary's; see [`~spiral_trl.sae.before_after.compare_before_after`], of whose two parts one may be."""
    parts = {name: part for name, part in comparison.items() if isinstance(part, dict) and "settings" in part}
    if not parts:
        return comparison if _is_of(comparison, store) else _unlinked(comparison, comparison.get("tables", []))
    shown = dict(comparison)
    for name, part in parts.items():
        if not _is_of(part, store):
            shown[name] = _unlinked(part, part["tables"])
            shown = _unlinked(shown, part["tables"])
    return shown


def _is_of(comparison: Mapping[str, Any], store: Store) -> bool:
    used = [
        said["layers"]
        for stores in comparison.get("settings", {}).get("stores", {}).values()
        for said in stores
        if said is not None
    ]
    shown = {layer: said.get("fingerprint") for layer, said in store.about["layers"].items()}
    return all(fingerprint == shown.get(layer) for layers in used for layer, fingerprint in layers.items())


def _unlinked(comparison: Mapping[str, Any], tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A comparison without links in those of its tables that are among `tables`, under whatever title."""
    contents = [(table["columns"], table["rows"]) for table in tables]
    named = "layer and feature, of the dictionary of the model before"
    return {
        **comparison,
        "tables": [
            without_links([table], "feature", named)[0] if (table["columns"], table["rows"]) in contents else table
            for table in comparison.get("tables", [])
        ],
    }


def counts_of(run: Run) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Of each layer, how often each feature fires, and its highest activation."""
    counts, maxima = {}, {}
    for layer in run.store.layers:
        width = run.store.num_features(layer)
        if run.relations is not None and layer in {at for pair in run.relations.pairs for at in pair}:
            said = run.relations.features(layer)
            counts[layer], maxima[layer] = np.asarray(said["count"]), np.asarray(said["max"], dtype=np.float32)
            if len(counts[layer]) != width:
                raise UsageError(
                    f"the relations of {run.folder} are of other codes: layer {layer} has {len(counts[layer])} features "
                    f"there, {width} here"
                )
            continue
        counts[layer], maxima[layer] = np.zeros(width, np.int64), np.zeros(width, np.float32)
        for shard in run.store.shards:
            rows = shard.rows(layer)
            counts[layer] += np.bincount(rows.feature, minlength=width)
            np.maximum.at(maxima[layer], rows.feature, rows.value.astype(np.float32))
    return counts, maxima


def measures_of(run: Run, rule: str) -> tuple[str, ...]:
    """Measures that a run's relations have."""
    if run.relations is None or not len(run.relations.pairs):
        return ()
    edges = run.relations.edges(run.relations.pairs[0], rule)
    # Decoder directions may not have been given
    return tuple(name for name in MEASURES if name in edges and _known(edges[name]))


def _known(values: Any) -> bool:
    return not len(values) or not np.isnan(np.asarray(values, dtype=np.float64)).all()


def _read(path: Path) -> dict[str, Any] | None:
    """JSON of a run, or `None` where it has none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} cannot be read: it holds no JSON object")
    return value
