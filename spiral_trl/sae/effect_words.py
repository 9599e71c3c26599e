"""What an ablation of upstream features found, in words and tables for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_effects(found: Mapping[str, Any]) -> dict[str, Any]:
    """Adds `summary` and `tables` to what [`~spiral_trl.sae.causal_effects.measure_ablation`] found.

    Args:
        found (`Mapping`): `to_dict()` of [`~spiral_trl.sae.causal_effects.CausalEffects`].
    """
    together = found["all"]
    near, random = together["neighbours"], together["random"]
    if near["effect"] is None:
        summary = "No upstream feature and a neighbour of it fired together often enough to tell what ablation does."
        return {**found, "summary": summary, "tables": []}
    ranked = sorted(
        ((name, of["spearman"]["estimate"]) for name, of in found["measures"].items() if of["spearman"] is not None),
        key=lambda item: -item[1],
    )
    summary = (
        f"{found['features']} upstream features were switched off where they fired, with the autoencoder's error kept. "
        f"Their neighbours' activations fell by {_interval(near['effect'])} of what they were, those of random features of "
        f"matched density by {_interval(random['effect'])} (95% intervals)."
    )
    if ranked:
        summary += (
            f" Of the measures, {_words(ranked[0][0])} predicts the effect best (rank correlation {ranked[0][1]:.2f}), "
            f"{_words(ranked[-1][0])} worst ({ranked[-1][1]:.2f})."
        )
    measures = [
        [_words(name), _interval(of["spearman"]), _interval(of["auc"]), _interval(of["best"])]
        for name, of in found["measures"].items()
    ]
    layers = [
        [
            f"{of['upstream_layer']} to {of['downstream_layer']}",
            of["pairs"],
            _interval(of["neighbours"]["effect"]),
            _interval(of["random"]["effect"]),
            _interval(of["difference"]),
        ]
        for of in found["layers"]
    ]
    tables = [
        {
            "title": "How well each measure predicts what ablation does",
            "columns": [
                "measure",
                "rank correlation",
                "chance to rank a causal pair first",
                "effect on the best neighbour",
            ],
            "rows": measures,
        },
        {
            "title": "Share of a downstream feature's activation that is lost",
            "columns": ["layers", "pairs", "neighbours", "random", "difference"],
            "rows": layers,
        },
    ]
    return {**found, "summary": summary, "tables": tables}


def _words(name: str) -> str:
    return name.replace("_", " ")


def _interval(value: Mapping[str, float | None] | None) -> str:
    if value is None or value["estimate"] is None:
        return "-"
    if value["low"] is None or value["high"] is None:
        return f"{value['estimate']:.3f}"
    return f"{value['estimate']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
