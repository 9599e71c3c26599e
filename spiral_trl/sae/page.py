"""The page of an SAE report: one HTML file that opens offline, or a folder whose parts are loaded on demand.

Both hold the same parts, each compressed and in base64, a form in which no text of a model can end a script or pass for
markup: the core (every feature in columns, and all that is no feature), the edges (typed columns, not JSON), and shards
with what only an opened card, community or prompt needs. In one file the parts stand in the document; in a folder they
are small scripts, as a page that was opened from disk may not fetch.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError, did_you_mean
from ..hub.formatting import visible
from ..hub.templating import environment


VERSION = 1
LABELS = ("none", "pass-through", "and", "or", "specialising", "duplicate")  # as the legend lists them
SHARD_BYTES = 300_000  # JSON of one shard before compression: a card opens at once, and like texts compress together
_REQUIRED = ("about", "communities", "edges", "features", "flow", "layers", "measures", "prompts", "quality", "title")
_SCRIPTS = (
    "base", "data", "layout", "draw", "steer", "graph", "charts", "card", "findings", "pages", "explore", "views",
    "search", "routes",
)  # fmt: skip
_SHOWN_TOKENS = 12  # tokens by which a feature without an explanation is named and searched


def write_page(data: Mapping[str, Any], path: str | Path) -> None:
    """Writes the report as one HTML file, which opens offline and requests nothing.

    Args:
        data (`Mapping[str, Any]`): The report: `version` (1), `title`, `about`, `measures`, `layers`, `quality`,
            `features`, `edges`, `flow`, `communities`, `prompts`, and optionally `games`, `comparison` and `ablation`,
            as [`~spiral_trl.sae.report`] builds it. Numbers that are not finite are shown as missing. Text may hold
            anything: the page shows it and never reads it as markup.
        path (`str` or `Path`): The file to write.

    Raises:
        [`~spiral_trl.errors.UsageError`]: `data` lacks a section, or an edge, community or prompt names a feature that
            is not there.
    """
    core, edges, shards = _parts(data)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [("core", core), ("edges", edges), *((f"shard-{n}", shard) for n, shard in enumerate(shards))]
    path.write_text(_html(data, parts, "'none'"), encoding="utf-8", newline="\n")


def write_site(data: Mapping[str, Any], folder: str | Path) -> None:
    """Writes the report as a folder, for reports that are large: `index.html`, and `data/` with what it loads on demand.

    It opens from disk too: the parts in `data/` are scripts, each of which hands over one compressed text. Parts of an
    earlier report in the same folder are removed.

    Args:
        data (`Mapping[str, Any]`): The report; see [`write_page`].
        folder (`str` or `Path`): The folder to write.

    Raises:
        [`~spiral_trl.errors.UsageError`]: As [`write_page`] raises it.
    """
    core, edges, shards = _parts(data)
    folder = Path(folder)
    parts = folder / "data"
    parts.mkdir(parents=True, exist_ok=True)
    for old in (*parts.glob("shard-*.js"), parts / "edges.js"):
        old.unlink(missing_ok=True)
    for name, part in [("edges", edges), *((f"shard-{n}", shard) for n, shard in enumerate(shards))]:
        # base64 has neither quotes nor backslashes
        (parts / f"{name}.js").write_text(f'reportPart("{name}","{part}");\n', encoding="ascii", newline="\n")
    # Last, so that an index never stands without its parts
    (folder / "index.html").write_text(_html(data, [("core", core)], "'self' file:"), encoding="utf-8", newline="\n")


def script_text() -> str:
    """The page's script: the files of `templates/` in the order in which they build on each other."""
    parts = "\n".join(_template_text(f"sae_report.{name}.js.jinja") for name in _SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}\n}})();\n'


def _html(data: Mapping[str, Any], parts: Sequence[tuple[str, str]], sources: str) -> str:
    from jinja2 import FunctionLoader
    from markupsafe import Markup

    script = script_text()
    # Only this script may run, and nothing may be fetched, even if an escape were missing somewhere.
    allowed = f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    page = environment().overlay(loader=FunctionLoader(_template_text)).get_template("sae_report.html.jinja")
    return page.render(
        title=visible(str(data["title"])),
        css=Markup(_template_text("sae_report.css.jinja")),
        script=Markup(script),
        script_sources=Markup(allowed if sources == "'none'" else f"{allowed} {sources}"),
        parts=parts,
    )


def _template_text(name: str) -> str:
    return files("spiral_trl.sae").joinpath("templates", name).read_text(encoding="utf-8")


def _parts(data: Mapping[str, Any]) -> tuple[str, str, list[str]]:
    """Core, edges and shards, each compressed and in base64."""
    _check(data)
    edges, count = _edges(data)
    shards: list[str] = []
    where: dict[str, int] = {}
    for texts in _filled(_details(data)):
        where.update((key, len(shards)) for key, _ in texts)
        shards.append(_packed("{" + ",".join(f"{json.dumps(key)}:{text}" for key, text in texts) + "}"))
    return _packed(_json(_core(data, where, count))), edges, shards


def _check(data: Mapping[str, Any]) -> None:
    missing = [name for name in _REQUIRED if name not in data]
    if missing:
        near = did_you_mean(missing[0], [name for name in data if name not in _REQUIRED])
        raise UsageError(f"report data without {', '.join(missing)}{near}")
    if data.get("version") != VERSION:
        raise UsageError(f"report data of version {data.get('version')!r}, this page shows version {VERSION}")
    if not data["measures"]:
        raise UsageError("report data without a measure: measures is empty")
    count, seen = len(data["features"]), set()
    for feature in data["features"]:
        name = (feature["l"], feature["f"])
        if name in seen:
            raise UsageError(f"feature {name[0]}/{name[1]} stands twice in the report data")
        if feature["l"] not in data["layers"]:
            raise UsageError(f"feature {name[0]}/{name[1]} is of a layer that is not in layers: {data['layers']}")
        seen.add(name)
    for community in data["communities"]:
        _check_indices(community["features"], count, f"community {community['id']}")
    for prompt in data["prompts"]:
        _check_indices([active[0] for active in prompt["active"]], count, f"prompt {prompt['id']!r}")


def _check_indices(indices: Sequence[int], count: int, what: str) -> None:
    if len(indices) and not 0 <= min(indices) <= max(indices) < count:
        wrong = next(index for index in indices if not 0 <= index < count)
        raise UsageError(f"{what} names feature {wrong} of {count} in the report data")


def _core(data: Mapping[str, Any], where: Mapping[str, int], edge_count: int) -> dict[str, Any]:
    """All but edges and shards. Features are columns, which parse and compress better than 20,000 objects."""
    features = data["features"]
    labels = list(dict.fromkeys([*LABELS, *(feature.get("label") or "none" for feature in features)]))
    badges = list(dict.fromkeys(badge for feature in features for badge in feature.get("badges") or ()))
    at_label = {label: n for n, label in enumerate(labels)}
    at_badge = {badge: n for n, badge in enumerate(badges)}
    links = [feature.get("neuronpedia") for feature in features]
    columns: dict[str, list[Any]] = {
        name: [feature.get(name) for feature in features] for name in ("l", "f", "count", "community", "explanation")
    }
    for name in ("density", "max", "mean"):
        columns[name] = [_figure(feature.get(name)) for feature in features]
    columns["label"] = [at_label[feature.get("label") or "none"] for feature in features]
    columns["badges"] = [[at_badge[badge] for badge in feature.get("badges") or ()] for feature in features]
    # A link is followed by whoever reads the page: only to the web, never to a script or a file
    columns["neuronpedia"] = [link if link and link.startswith("https://") else None for link in links]
    columns["fires"] = [_fires(feature.get("texts") or ()) for feature in features]
    columns["shard"] = [where.get(f"f{index}", -1) for index in range(len(features))]
    return {
        **{key: value for key, value in data.items() if key not in ("features", "edges", "communities", "prompts")},
        "labels": labels,
        "badges": badges,
        "features": columns,
        "edge_count": edge_count,
        "communities": [
            {key: value for key, value in community.items() if key != "texts"}
            | {"shard": where.get(f"c{n}", -1)}
            for n, community in enumerate(data["communities"])
        ],
        "prompts": [
            {"id": str(prompt["id"]), "tokens": prompt["tokens"][:60], "length": len(prompt["tokens"]),
             "active": len({active[0] for active in prompt["active"]}), "shard": where.get(f"p{n}", -1)}
            for n, prompt in enumerate(data["prompts"])
        ],
    }  # fmt: skip


def _fires(texts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The distinct tokens on which a feature fires most, strongest first."""
    best: dict[str, float] = defaultdict(float)
    for text in texts:
        for token, value in zip(text["tokens"], text["values"], strict=False):
            if value and token.strip():
                best[token.strip()] = max(best[token.strip()], value)
    return sorted(best, key=lambda token: -best[token])[:_SHOWN_TOKENS]


def _details(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is loaded once it is opened: key and JSON of each feature, community and prompt that has any."""
    for index, feature in enumerate(data["features"]):
        card = {key: feature[key] for key in ("histogram", "texts", "promoted", "suppressed") if feature.get(key)}
        if card:
            yield f"f{index}", _json(card)
    for n, community in enumerate(data["communities"]):
        if community.get("texts"):
            yield f"c{n}", _json({"texts": community["texts"]})
    for n, prompt in enumerate(data["prompts"]):
        yield f"p{n}", _json({"tokens": prompt["tokens"], "active": prompt["active"]})


def _filled(details: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    shard: list[tuple[str, str]] = []
    size = 0
    for key, text in details:
        shard.append((key, text))
        size += len(text)
        if size >= SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _edges(data: Mapping[str, Any]) -> tuple[str, int]:
    """Upstream and downstream as int32, then one float32 column for each measure; NaN where it was not measured."""
    count, measures = len(data["features"]), data["measures"]
    rows = data["edges"]
    ends = np.array([row[:2] for row in rows], dtype=np.int64).reshape(-1, 2)
    if ends.size and not 0 <= ends.min() <= ends.max() < count:
        _check_indices(ends.ravel().tolist(), count, "an edge")
    wrong = next((row for row in rows if len(row[2]) != len(measures)), None)
    if wrong is not None:
        raise UsageError(f"edge {wrong[0]} to {wrong[1]} has {len(wrong[2])} values for {len(measures)} measures")
    values = np.array([row[2] for row in rows], dtype=np.float32).reshape(-1, len(measures))
    # Of most values twelve bits of the mantissa give the three decimals that the page shows; zeros in the others compress
    bits = values.view(np.uint32)
    short = (bits + np.uint32(0x400)) & np.uint32(0xFFFFF800)
    with np.errstate(invalid="ignore"):
        same = np.round(short.view(np.float32).astype(np.float64), 3) == np.round(values.astype(np.float64), 3)
    rounded = np.where(np.isfinite(values), np.where(same, short, bits), np.uint32(0x7FC00000))
    columns = [*ends.T.astype("<i4"), *rounded.astype("<u4").T]
    return _packed(b"".join(np.ascontiguousarray(column).tobytes() for column in columns)), len(rows)


def _figure(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def _json(value: object) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError):
        return json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)


def _finite(value: Any) -> Any:
    """`value` as JSON can hold it: numbers that are not finite become null, NumPy's become plain ones."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _packed(content: str | bytes) -> str:
    content = content.encode() if isinstance(content, str) else content
    # No time of writing in it: the same report gives the same bytes
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
