"""The form of a report's data: what [`~spiral_trl.sae.report.build_report`] makes and the page reads.

One JSON object. Features and edges are lists; an edge, a community and a prompt name features by their place in
`features`. What is not known is `null`, or an empty list or object:

```
version, title          1 and the page's heading
about                   model, source, tokens, settings, dictionaries (for each layer, as text)
measures, layers        names of the measures in the order of an edge's values; layers, ascending
quality                 for each layer, as text: unexplained_variance, l0, dead, ce_recovered
features                see `FEATURE`
edges                   [upstream, downstream, [value of each measure or null]]
flow                    for each pair of layers: layer, next, passing, disappearing, appearing, of, of_next; perhaps
                        fates, what became of features that disappear and of random ones
communities             id, size, layers (features in each), stability, features, texts; perhaps name, and the measure
                        that it is of
prompts                 id, tokens, active: [feature, token, value]
games, comparison, ablation    summaries of what else was measured, or null
```
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError


VERSION = 1


@dataclass(frozen=True)
class _OrNull:
    form: Any


@dataclass(frozen=True)
class _Maybe:
    """A key that may be missing."""

    form: Any


@dataclass(frozen=True)
class _Each:
    """An object whose keys are free and whose values have one form."""

    form: Any


@dataclass(frozen=True)
class _Row:
    """A list of fixed length."""

    forms: tuple[Any, ...]


TEXT = {"tokens": [str], "values": [float], "peak": int, "role": _OrNull(str), "document": _OrNull(int)}
FEATURE = {
    "l": int,
    "f": int,
    "density": _OrNull(float),
    "count": _OrNull(int),
    "max": _OrNull(float),
    "mean": _OrNull(float),
    "label": _OrNull(str),
    "badges": [str],
    "community": _OrNull(int),
    "explanation": _OrNull(str),
    "neuronpedia": _OrNull(str),
    "histogram": _OrNull({"edges": [float], "counts": [int]}),
    "texts": [TEXT],
    "promoted": [_Row((str, float))],
    "suppressed": [_Row((str, float))],
}
COMMUNITY = {
    "id": int,
    "name": _Maybe(_OrNull(str)),
    "measure": _Maybe(_OrNull(str)),
    "size": int,
    "layers": _Each(int),
    "stability": _OrNull(float),
    "features": [int],
    "texts": [TEXT],
}
_FATES = dict.fromkeys(("gone", "missed", "rebuilt", "unclear", "rare"), int)
FLOW = {
    **dict.fromkeys(("layer", "next", "passing", "disappearing", "appearing", "of", "of_next"), int),
    "fates": _Maybe({"features": _FATES, "controls": _FATES}),
}
PROMPT = {"id": str, "tokens": [str], "active": [_Row((int, int, float))]}
REPORT = {
    "version": int,
    "title": str,
    "about": {
        "model": _OrNull(str),
        "source": _OrNull(str),
        "tokens": _OrNull(int),
        "settings": dict,
        "dictionaries": _Each(dict),
    },
    "measures": [str],
    "layers": [int],
    "quality": _Each(dict),
    "features": [FEATURE],
    "edges": [_Row((int, int, [_OrNull(float)]))],
    "flow": [FLOW],
    "communities": [COMMUNITY],
    "prompts": [PROMPT],
    "games": _OrNull(dict),
    "comparison": _OrNull(dict),
    "ablation": _OrNull(dict),
}
_KINDS = {int: "a whole number", float: "a finite number", str: "text", dict: "an object"}


def check_report(data: Any) -> dict[str, Any]:
    """Refuses data that a page cannot show, and gives it back otherwise.

    Checks the form of everything, that numbers are finite, and that what names a feature, a community or a token names
    one that is there. Keys beyond the form are left alone.

    Raises:
        [`~spiral_trl.errors.UsageError`]: With the place, such as `features[3].texts[0].peak`.
    """
    if isinstance(data, Mapping) and data.get("version", VERSION) != VERSION:
        raise UsageError(f"report data of version {data['version']} cannot be shown; this is version {VERSION}")
    _check(data, REPORT, "")
    if data["layers"] != sorted(set(data["layers"])):
        raise UsageError(f"report data: layers must ascend, not {data['layers']}")
    layers, count, width = set(data["layers"]), len(data["features"]), len(data["measures"])
    communities = [community["id"] for community in data["communities"]]
    _distinct(communities, "communities", "id")
    _distinct([prompt["id"] for prompt in data["prompts"]], "prompts", "id")
    _distinct([(feature["l"], feature["f"]) for feature in data["features"]], "features", "layer and feature")
    known = set(communities)
    for n, feature in enumerate(data["features"]):
        where = f"features[{n}]"
        if feature["l"] not in layers:
            _refuse(f"{where}.l", "one of the layers", feature["l"])
        if feature["community"] is not None and feature["community"] not in known:
            _refuse(f"{where}.community", "the id of a community", feature["community"])
        if (link := feature["neuronpedia"]) is not None and not link.startswith("https://"):
            _refuse(f"{where}.neuronpedia", "an https address", link)
        histogram = feature["histogram"]
        if histogram is not None and len(histogram["edges"]) != len(histogram["counts"]) + 1:
            _refuse(f"{where}.histogram.edges", "one more than there are counts", len(histogram["edges"]))
        _check_texts(feature["texts"], where)
    for n, (up, down, values) in enumerate(data["edges"]):
        _in_range(up, count, f"edges[{n}][0]", "features")
        _in_range(down, count, f"edges[{n}][1]", "features")
        if len(values) != width:
            _refuse(f"edges[{n}][2]", f"{width} values, one a measure", len(values))
        if data["features"][up]["l"] > data["features"][down]["l"]:
            _refuse(f"edges[{n}]", "an edge from an earlier layer to a later one", [up, down])
    for n, community in enumerate(data["communities"]):
        if community.get("measure") not in (None, *data["measures"]):
            _refuse(f"communities[{n}].measure", "one of the measures", community["measure"])
        for k, feature in enumerate(community["features"]):
            _in_range(feature, count, f"communities[{n}].features[{k}]", "features")
        _check_texts(community["texts"], f"communities[{n}]")
    for n, prompt in enumerate(data["prompts"]):
        for k, (feature, token, _) in enumerate(prompt["active"]):
            _in_range(feature, count, f"prompts[{n}].active[{k}][0]", "features")
            _in_range(token, len(prompt["tokens"]), f"prompts[{n}].active[{k}][1]", "tokens")
    return data


def _check(value: Any, form: Any, where: str) -> None:
    if isinstance(form, _OrNull):
        if value is not None:
            _check(value, form.form, where)
    elif isinstance(form, Mapping):
        _check(value, dict, where)
        for key, part in form.items():
            inner = f"{where}.{key}" if where else key
            if key in value:
                _check(value[key], part.form if isinstance(part, _Maybe) else part, inner)
            elif not isinstance(part, _Maybe):
                raise UsageError(f"report data: {inner} is missing")
    elif isinstance(form, _Each):
        _check(value, dict, where)
        for key, inner in value.items():
            _check(key, str, f"a key of {where}")
            _check(inner, form.form, f"{where}.{key}")
    elif isinstance(form, list | _Row):
        if not isinstance(value, list | tuple):
            _refuse(where, "a list", value)
        if isinstance(form, _Row) and len(value) != len(form.forms):
            _refuse(where, f"a list of {len(form.forms)}", value)
        forms = form.forms if isinstance(form, _Row) else (form[0],) * len(value)
        for n, (item, part) in enumerate(zip(value, forms, strict=True)):
            _check(item, part, f"{where}[{n}]")
    elif not _is_a(value, form):
        _refuse(where or "report data", _KINDS[form], value)


def is_finite(value: Any) -> bool:
    """Whether it is a number that a float holds, and neither infinite nor NaN."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _is_a(value: Any, kind: type) -> bool:
    return is_finite(value) if kind is float else isinstance(value, kind) and not isinstance(value, bool)


def _check_texts(texts: list[dict[str, Any]], where: str) -> None:
    for n, text in enumerate(texts):
        if len(text["values"]) != len(text["tokens"]):
            _refuse(f"{where}.texts[{n}].values", f"{len(text['tokens'])}, one a token", len(text["values"]))
        _in_range(text["peak"], len(text["tokens"]), f"{where}.texts[{n}].peak", "tokens")


def _in_range(index: int, count: int, where: str, of: str) -> None:
    if not 0 <= index < count:
        _refuse(where, f"a place among the {count} {of}", index)


def _distinct(values: list[Any], where: str, what: str) -> None:
    if len(set(values)) < len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise UsageError(f"report data: {where} holds the {what} {twice!r} twice")


def _refuse(where: str, wanted: str, value: Any) -> None:
    shown = repr(value)
    raise UsageError(f"report data: {where} must be {wanted}, not {shown if len(shown) <= 60 else f'{shown[:57]}...'}")
