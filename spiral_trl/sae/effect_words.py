"""What ablations found, of upstream features and in play, in words and tables for the page."""

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


def describe_play(found: Mapping[str, Any]) -> dict[str, Any]:
    """Adds `summary` and `tables` to what [`~spiral_trl.sae.ablated_play.ablated_play`] found.

    Args:
        found (`Mapping`): `to_dict()` of [`~spiral_trl.sae.ablated_play.AblatedPlay`].
    """
    return {**found, "summary": play_summary(found, "given"), "tables": [play_table(found, "given")]}


def play_summary(found: Mapping[str, Any], which: str) -> str:
    """What play without `which` features lost."""
    removed = sum(len(features) for features in found["ablated"]["features"].values())
    apart = found["beyond_random"]
    returns = [found[name]["mean_return"]["estimate"] for name in ("ablated", "undisturbed")]
    beyond = apart["low"] is not None and apart["high"] is not None and (apart["low"] > 0 or apart["high"] < 0)
    ends = ", ".join("unbounded" if end is None else f"{end:.3g}" for end in (apart["low"], apart["high"]))
    return (
        f"Without {removed} {which} features the model's mean return in {found['game']} against {found['opponent']} is "
        f"{returns[0]:.3g}, with them {returns[1]:.3g}. Against random features of like density that is a difference of "
        f"{apart['estimate']:.3g} [{ends}], which is {'' if beyond else 'not '}beyond noise."
    )


def play_table(found: Mapping[str, Any], which: str) -> dict[str, Any]:
    """Play without `which` features, as a table."""
    conditions = [
        ("undisturbed", found["undisturbed"]),
        (f"without {which} features", found["ablated"]),
        *((f"without random features, set {number}", one) for number, one in enumerate(found["random"], 1)),
    ]
    rows = [
        [
            name,
            one["mean_return"]["estimate"],
            one["mean_return"]["low"],
            one["mean_return"]["high"],
            one["win_rate"]["estimate"],
            one["exploitability"],
            one["policy_shift"],
        ]
        for name, one in conditions
    ]
    columns = ["the model", "mean return", "from", "to", "win rate", "exploitability", "policy shift"]
    return {"title": f"Play of {found['game']} without features", "columns": columns, "rows": rows}


def _words(name: str) -> str:
    return name.replace("_", " ")


def _interval(value: Mapping[str, float | None] | None) -> str:
    if value is None or value["estimate"] is None:
        return "-"
    if value["low"] is None or value["high"] is None:
        return f"{value['estimate']:.3f}"
    return f"{value['estimate']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
