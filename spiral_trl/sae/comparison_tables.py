"""What a comparison found, in words and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .discoveries import OF_LENGTH
from .effect_words import play_summary, play_table
from .gate import QUALITIES, Gate


if TYPE_CHECKING:
    from .compare import Changes, CompareSettings


_TITLES = {"same_text": "On the same texts", "on_policy": "On each model's own games"}
_CONTROLS = {
    "same_text": "with the models' names swapped in a random half of the games",
    "on_policy": "the model before against itself on other games",
}


def describe(
    found: Sequence[Changes],
    gate: Gate | None,
    settings: CompareSettings,
    top: int,
    *,
    graph: Mapping[str, Any] | None,
    candidates: Mapping[int, Mapping[str, Any]] | None,
    causal: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """`summary` (plain words), `verdict`, `gate`, `counts` and `tables` (`title`, `columns`, `rows`)."""
    counts = {changes.kind: _counts(changes, settings) for changes in found}
    stopped = gate is not None and not gate.transferring
    sentences = [_gate_words(gate)]
    if not stopped:
        for changes in found:
            sentences += _words(changes, counts[changes.kind], settings)
        sentences += _graph_words(graph) + _candidate_words(candidates)
        sentences += [play_summary(causal, "of the changed")] if causal else []
    tables = _gate_tables(gate)
    if not stopped:
        for changes in found:
            tables += [_layer_table(changes, counts[changes.kind]), _feature_table(changes, top)]
        tables += (
            _graph_tables(graph)
            + _candidate_tables(candidates, top)
            + ([play_table(causal, "changed")] if causal else [])
        )
    if stopped:
        verdict = "the dictionary does not transfer"
    elif any(said["beyond"] for said in counts.values()):
        verdict = "changed beyond noise"
    else:
        verdict = "nothing beyond noise"
    return {
        "summary": " ".join(sentences),
        "verdict": verdict,
        "gate": gate.to_dict() if gate is not None else {"passed": None, "layers": {}},
        "counts": {} if stopped else counts,
        "tables": tables,
    }


def _counts(changes: Changes, settings: CompareSettings) -> dict[str, Any]:
    layers = {str(layer): _layer_counts(columns, settings) for layer, columns in changes.layers.items()}
    control = {str(layer): _layer_counts(columns, settings) for layer, columns in changes.control.items()}
    names = ("features", "active", "tested", "beyond", "up", "down", "large")
    # With names swapped, what one half of the games has too much of the other one lacks, for all features alike
    swapped = changes.kind == "same_text"
    total: dict[str, Any] = {name: sum(said[name] for said in layers.values()) for name in names}
    return total | {
        "agreement": _agreement(list(changes.layers.values())),
        "control": {name: sum(said[name] for said in control.values()) for name in ("tested", "beyond")}
        | {"agreement": None if swapped else _agreement(list(changes.control.values()))},
        "layers": {
            layer: said
            | {
                "control": {name: control[layer][name] for name in ("tested", "beyond")}
                | {"agreement": None if swapped else control[layer]["agreement"]}
            }
            for layer, said in layers.items()
        },
        "about": {str(layer): said for layer, said in changes.about.items()},
        "control_about": {str(layer): said for layer, said in changes.control_about.items()},
    }


def _layer_counts(columns: Mapping[str, np.ndarray], settings: CompareSettings) -> dict[str, Any]:
    beyond, direction = columns["beyond"], columns["direction"]
    return {
        "features": len(beyond),
        "active": int((columns["games_before"] + columns["games_after"] > 0).sum()),
        "tested": int(columns["tested"].sum()),
        "beyond": int(beyond.sum()),
        "up": int((beyond & (direction > 0)).sum()),
        "down": int((beyond & (direction < 0)).sum()),
        "large": int((beyond & _large(columns, settings.material)).sum()),
        "agreement": _agreement([columns]),
    }


def _large(columns: Mapping[str, np.ndarray], factor: float) -> np.ndarray:
    """Whether density or mean activation changed by a factor; from or to 0 is by any factor."""
    large = (columns["density_before"] == 0) != (columns["density_after"] == 0)
    for name in ("density", "activation"):
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = columns[f"{name}_after"] / columns[f"{name}_before"]
        large |= (ratio >= factor) | (ratio <= 1 / factor)
    return large


def _agreement(tables: Sequence[Mapping[str, np.ndarray]]) -> float | None:
    """Rank correlation, over tested features, of their changes in two halves of the games."""
    from scipy.stats import spearmanr

    if not tables:
        return None
    tested = np.concatenate([columns["tested"] for columns in tables])
    one, other = (np.concatenate([columns[name] for columns in tables])[tested] for name in ("half_0", "half_1"))
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(spearmanr(one, other).statistic)


def _gate_words(gate: Gate | None) -> str:
    if gate is None:
        return "Whether the dictionaries serve the model after training was not measured: read what follows with that in mind."
    without = [name for name in gate.unmeasured if name != "unexplained_variance"]
    note = f" ({', '.join(QUALITIES[name] for name in without)} not measured)" if without else ""
    if not gate.failing:
        return f"The dictionaries serve the model after training as well{note}."
    layers = "; ".join(f"layer {layer}: {', '.join(gate.layers[str(layer)]['reasons'])}" for layer in gate.failing)
    if not gate.transferring:
        return (
            f"The dictionaries do not transfer to the model after training ({layers}): features cannot be compared, and "
            "nothing else was. Dictionaries trained on both models together may serve."
        )
    return f"Some dictionaries do not transfer and are left out ({layers}). The others serve both models{note}."


def _words(changes: Changes, counts: Mapping[str, Any], settings: CompareSettings) -> list[str]:
    about = next(iter(changes.about.values()))
    games = about["games"]
    amount = f"{games[0]} games" if changes.kind == "same_text" else f"{games[0]} and {games[1]} games"
    tested, beyond = counts["tested"], counts["beyond"]
    rate = f"false-discovery rate {settings.false_discoveries:g} over all layers, clustered by game"
    start = f"{_TITLES[changes.kind]} ({amount}), "
    if not tested:
        return [
            f"{start}no feature is active in {settings.min_games} games: there are too few games to tell anything."
        ]
    if beyond:
        said = (
            f"{beyond} of {tested} features changed beyond noise ({rate}): {counts['up']} up, {counts['down']} down; "
            f"{counts['large']} of them by a factor of {settings.material:g} or more in density or mean activation."
        )
    else:
        said = f"0 of {tested} features changed beyond noise ({rate})."
    control = counts["control"]
    sentences = [
        start + said,
        f"The control, {_CONTROLS[changes.kind]}, finds {control['beyond']} of {control['tested']}.",
    ]
    if control["beyond"]:
        sentences.append("Where a control finds something, hold the rest against it.")
    if len(about["counted"]) < 4 and any(name not in about["counted"] for name in OF_LENGTH):
        before, after = about["length"]
        sentences.append(
            f"Games have {before:.0f} tokens before and {after:.0f} after, so only what does not follow from their length "
            "counts."
        )
    return sentences


def _graph_words(graph: Mapping[str, Any] | None) -> list[str]:
    if not graph:
        return []
    edges, floor = graph["edges"], graph["floor"]
    words = {"edges": "edges", "pass_through": "features that pass through", "communities": "communities"}
    beyond = [words[name] for name in words if floor[name]["beyond"]]
    within = [words[name] for name in words if floor[name]["beyond"] is False]
    sentences = [
        f"Of {edges['before']} edges between features {edges['lost']} are gone, and {edges['gained']} are new."
    ]
    if beyond:
        sentences.append(f"Beyond what halves of one model's games differ by: {', '.join(beyond)}.")
    if within:
        sentences.append(f"Not beyond it: {', '.join(within)}.")
    if not beyond and not within:
        sentences.append("Halves of the games were not held together, so this may be noise.")
    return sentences


def _candidate_words(candidates: Mapping[int, Mapping[str, Any]] | None) -> list[str]:
    if not candidates:
        return []
    after, before = (
        sum(said[name]["count"] for said in candidates.values()) for name in ("after_specific", "before_specific")
    )
    scaled = sum(said["scaled"] for said in candidates.values())
    return [
        f"Dictionaries of both models together have {after} after-specific candidates of {scaled} features (and {before} "
        "of the model before)."
    ]


def _gate_tables(gate: Gate | None) -> list[dict[str, Any]]:
    if gate is None:
        return []
    columns = ["layer"]
    for words in QUALITIES.values():
        columns += [f"{words} before", "after"]
    rows = []
    for layer, said in gate.layers.items():
        values = [said[side][name] for name in QUALITIES for side in ("before", "after")]
        rows.append([int(layer), *values, "yes" if said["transfers"] else "no: " + "; ".join(said["reasons"])])
    return [{"title": "Do the dictionaries transfer", "columns": [*columns, "transfers"], "rows": rows}]


def _layer_table(changes: Changes, counts: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [
            int(layer),
            said["features"],
            said["tested"],
            said["beyond"],
            said["up"],
            said["down"],
            said["large"],
            said["control"]["beyond"],
            said["agreement"],
            said["control"]["agreement"],
        ]
        for layer, said in counts["layers"].items()
    ]
    return {
        "title": f"{_TITLES[changes.kind]}: features beyond noise",
        "columns": [
            "layer",
            "features",
            "tested",
            "beyond noise",
            "up",
            "down",
            "large",
            "beyond noise in the control",
            "agreement of halves",
            "agreement in the control",
        ],
        "rows": rows,
    }


def _feature_table(changes: Changes, top: int) -> dict[str, Any]:
    """The discoveries, smallest probability first."""
    names = [
        "density_before",
        "density_after",
        "density_ratio",
        "ratio_low",
        "ratio_high",
        "activation_before",
        "activation_after",
        *(["correlation"] if changes.kind == "same_text" else []),
        "games_before",
        "games_after",
        "q",
    ]
    listed = [
        (columns["p"][feature], layer, feature)
        for layer, columns in changes.layers.items()
        for feature in _smallest(columns, top)
    ]
    rows = [
        [f"{layer}/{feature}", *(_value(changes.layers[layer][name][feature]) for name in names)]
        for _, layer, feature in sorted(listed)[:top]
    ]
    words = {"density_ratio": "ratio", "ratio_low": "from", "ratio_high": "to", "q": "adjusted p"}
    return {
        "title": f"{_TITLES[changes.kind]}: features that changed most surely",
        "columns": ["feature", *(words.get(name, name.replace("_", " ")) for name in names)],
        "rows": rows,
    }


def _smallest(columns: Mapping[str, np.ndarray], top: int) -> list[int]:
    found = np.flatnonzero(columns["beyond"])
    return [int(feature) for feature in found[np.argsort(columns["p"][found], kind="stable")][:top]]


def _value(value: Any) -> Any:
    number = value.item()
    return None if isinstance(number, float) and not np.isfinite(number) else number


def _graph_tables(graph: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if not graph:
        return []
    said = {True: "yes", False: "no", None: "not known"}
    flow = [
        [
            f"{row['layer']} to {row['next']}",
            row["before"],
            row["after"],
            _farthest(row["within"]),
            said[row["beyond"]],
        ]
        for row in graph["flow"]
    ]
    names = {
        "edges": "edges (Jaccard index)",
        "pass_through": "features that pass through (Jaccard index)",
        "communities": "communities (adjusted Rand index)",
    }
    floor = [
        [
            words,
            graph["likeness"][name],
            _mean(graph["floor"][name]["across"]),
            _mean(graph["floor"][name]["within"]),
            said[graph["floor"][name]["beyond"]],
        ]
        for name, words in names.items()
    ]
    return [
        {
            "title": "The graph of features: how like before and after are",
            "columns": ["of", "all games", "halves of two models", "halves of one model", "beyond the floor"],
            "rows": floor,
        },
        {
            "title": "The graph of features: share that passes through",
            "columns": ["layers", "before", "after", "largest change between halves of one model", "beyond the floor"],
            "rows": flow,
        },
    ]


def _farthest(values: Sequence[float | None]) -> float | None:
    return max((abs(value) for value in values if value is not None), default=None)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _candidate_tables(candidates: Mapping[int, Mapping[str, Any]] | None, top: int) -> list[dict[str, Any]]:
    if not candidates:
        return []
    rows = [
        [f"{layer}/{one['feature']}", one["ratio"], one["low"], one["high"], one["games_before"], one["games_after"]]
        for layer, said in candidates.items()
        for one in said["after_specific"]["candidates"]
    ]
    return [
        {
            "title": "After-specific candidates, of dictionaries of both models",
            # Not "feature": these are no features of the dictionaries that the report shows
            "columns": ["candidate", "ratio", "from", "to", "games before", "games after"],
            "rows": sorted(rows, key=lambda row: row[1])[:top],
        }
    ]
