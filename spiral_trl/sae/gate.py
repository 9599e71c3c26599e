"""Whether dictionaries of the model before serve the model after: asked before anything is compared by their features.

Where they do not, dictionaries trained on both models together may (see `others` of
[`~spiral_trl.sae.train.train_dictionaries`]); the gate then asks whether they serve the one as well as the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import UsageError


# What a dictionary's quality is said to be, and how it is called in words
QUALITIES = {
    "unexplained_variance": "unexplained variance",
    "l0": "active features for a token",
    "dead": "dead share",
    "ce_recovered": "cross-entropy recovered",
}


@dataclass(frozen=True)
class GateLimits:
    """How much worse a dictionary may serve the model after. What is worse by more makes features differ that did not.

    A density is a count of crossings of a threshold. Where the stream moves off what the dictionary was trained on, its
    error and its crossings grow for features of all kinds, and the comparison would count that.

    Args:
        unexplained_variance (`float`, *optional*, defaults to `0.25`): Share by which unexplained variance may grow. The
            part of the stream that features do not account for is then at most a quarter larger, which is about what
            dictionaries of different seeds or sizes differ by.
        unexplained_floor (`float`, *optional*, defaults to `0.02`): Growth below this is never material: 98 per cent of
            the stream are still explained where all of it was.
        l0 (`float`, *optional*, defaults to `1.5`): Factor by which active features for a token may grow or shrink. Beyond
            it the median density has moved by as much for no reason of any one feature.
        dead (`float`, *optional*, defaults to `0.1`): Growth of the share of features that are never active.
        ce_recovered (`float`, *optional*, defaults to `0.05`): Fall of the cross-entropy recovered: of what the stream is
            good for, a twentieth more is lost.
    """

    unexplained_variance: float = 0.25
    unexplained_floor: float = 0.02
    l0: float = 1.5
    dead: float = 0.1
    ce_recovered: float = 0.05


@dataclass(frozen=True)
class Gate:
    """What the gate says.

    Args:
        layers (`dict`): For each layer, as text: `transfers`, `reasons` (why not), `before` and `after` (each of
            [`QUALITIES`], `None` where it was not measured).
        limits ([`GateLimits`]): What it was held against.
    """

    layers: dict[str, dict[str, Any]]
    limits: GateLimits

    @property
    def transferring(self) -> tuple[int, ...]:
        return tuple(int(layer) for layer, said in self.layers.items() if said["transfers"])

    @property
    def failing(self) -> tuple[int, ...]:
        return tuple(int(layer) for layer, said in self.layers.items() if not said["transfers"])

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Qualities that some layer lacks."""
        return tuple(
            name
            for name in QUALITIES
            if any(said[side][name] is None for said in self.layers.values() for side in ("before", "after"))
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON; with each quality's mean over layers."""
        means: dict[str, Any] = {}
        for name in QUALITIES:
            sides = {
                side: [said[side][name] for said in self.layers.values() if said[side][name] is not None]
                for side in ("before", "after")
            }
            if all(sides.values()):
                means[name] = {side: sum(values) / len(values) for side, values in sides.items()}
        return {
            "passed": not self.failing,
            **means,
            "layers": self.layers,
            "limits": asdict(self.limits),
            "not_measured": list(self.unmeasured),
        }


def open_gate(before: Mapping[Any, Any], after: Mapping[Any, Any], limits: GateLimits | None = None) -> Gate:
    """Holds the quality of one model's dictionaries on both models, measured on the same tokens, against limits.

    Args:
        before, after (`Mapping`): For each layer (a number, or text as JSON has it) what
            [`~spiral_trl.sae.quality.measure_quality`] found, or its `to_dict()`.
        limits ([`GateLimits`], *optional*): How much worse is material.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If the layers differ, or there are none.
    """
    limits = limits or GateLimits()
    sides = [{int(layer): _values(said) for layer, said in side.items()} for side in (before, after)]
    if not sides[0] or set(sides[0]) != set(sides[1]):
        raise UsageError(
            "the gate needs the quality of the same layers on both models, not of "
            f"{sorted(sides[0])} before and {sorted(sides[1])} after"
        )
    layers = {}
    for layer in sorted(sides[0]):
        one, other = sides[0][layer], sides[1][layer]
        reasons = _reasons(one, other, limits)
        layers[str(layer)] = {"transfers": not reasons, "reasons": reasons, "before": one, "after": other}
    return Gate(layers, limits)


def _values(said: Any) -> dict[str, float | None]:
    values = said if isinstance(said, Mapping) else said.to_dict()
    return {name: None if values.get(name) is None else float(values[name]) for name in QUALITIES}


def _reasons(before: dict[str, float | None], after: dict[str, float | None], limits: GateLimits) -> list[str]:
    found = []
    for name, words in QUALITIES.items():
        one, other = before[name], after[name]
        if one is None or other is None:
            continue
        worse = {
            "unexplained_variance": other - one > max(limits.unexplained_variance * one, limits.unexplained_floor),
            "l0": max(other, 1e-9) > limits.l0 * max(one, 1e-9) or max(one, 1e-9) > limits.l0 * max(other, 1e-9),
            "dead": other - one > limits.dead,
            "ce_recovered": one - other > limits.ce_recovered,
        }[name]
        if worse:
            found.append(f"{words} {one:.3g} before, {other:.3g} after")
    return found
