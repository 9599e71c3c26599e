"""Names that carry parameters, in OpenSpiel's form: `kuhn_poker(rounds=5,payoff=chips)`, `mcts(simulations=100)`.

Games and players are named so in YAML, on the command line and in records.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """One parameter of a name.

    Args:
        default (`int`, `float`, `str`, `None` or a callable): The value where the name does not say. A callable is given
            the values of the parameters before this one: a default may depend on them.
        kind (`type`): `int`, `float` or `str`.
        choices (`tuple[str, ...]`): Allowed values of a `str`; empty where any is.
        low, high (`float`, *optional*): Allowed range of a number, ends included.
    """

    default: Any
    kind: type = str
    choices: tuple[str, ...] = ()
    low: float = float("-inf")
    high: float = float("inf")


def unknown(what: str, given: str, allowed: Iterable[str]) -> ValueError:
    """The error for a name that nobody knows: what was given, what is allowed, and the nearest match."""
    options = list(allowed)
    near = difflib.get_close_matches(given.lower(), options, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {what} {given!r}; allowed: {', '.join(options) or 'none'}{hint}")


def split_name(name: str, what: str) -> tuple[str, dict[str, str]]:
    """`base` and the text of each stated parameter of `base(key=value,key=value)`. Values may nest brackets.

    Args:
        name (`str`): The name.
        what (`str`): What is named, for errors, such as `game`.
    """
    base, bracket, rest = name.strip().partition("(")
    given: dict[str, str] = {}
    if not bracket:
        return base.strip(), given
    if not rest.endswith(")"):
        raise ValueError(f"{what} name {name!r} must end with ')', as in 'name(parameter=value)'")
    for item in _split_outside_brackets(rest[:-1]):
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError(f"{what} name {name!r}: {item.strip()!r} is not of the form parameter=value")
        if key in given:
            raise ValueError(f"{what} name {name!r} sets {key!r} twice")
        given[key] = text
    return base.strip(), given


def _split_outside_brackets(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]] if text.strip() else []


def read_parameters(
    base: str, given: Mapping[str, str], parameters: Mapping[str, Parameter]
) -> tuple[dict[str, Any], str]:
    """The value of every parameter, defaults filled in, and the name's one spelling: parameters in their fixed order,
    defaults dropped."""
    for key in given:
        if key not in parameters:
            raise unknown(f"parameter of {base}", key, parameters)
    values: dict[str, Any] = {}
    stated = []
    for key, parameter in parameters.items():
        default = parameter.default(values) if callable(parameter.default) else parameter.default
        values[key] = _value(base, key, parameter, given[key]) if key in given else default
        if values[key] != default:
            stated.append(f"{key}={values[key]}")
    return values, f"{base}({','.join(stated)})" if stated else base


def _value(base: str, key: str, parameter: Parameter, text: str) -> Any:
    if parameter.kind is str:
        if parameter.choices and text not in parameter.choices:
            raise unknown(f"value of {key} in {base}", text, parameter.choices)
        return text
    try:
        value = parameter.kind(text)
    except ValueError:
        kind = "a whole number" if parameter.kind is int else "a number"
        raise ValueError(f"{key} of {base} must be {kind}, not {text!r}") from None
    if not parameter.low <= value <= parameter.high:
        raise ValueError(f"{key} of {base} must be from {parameter.low:g} to {parameter.high:g}, not {text}")
    # 2.0 and 2 are one value and need one spelling.
    return int(value) if float(value).is_integer() else value
