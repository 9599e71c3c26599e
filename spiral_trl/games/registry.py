"""Games by name. A name carries its parameters, in OpenSpiel's form: `kuhn_poker(rounds=5,payoff=chips)`.

A game module calls [`register`] when it is imported. Names are parsed and checked once and remembered, since thousands
of games are made per training step.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .base import Game


@dataclass(frozen=True)
class Parameter:
    """One parameter of a game.

    Args:
        default (`int`, `float`, `str` or a callable): The value where the name does not say. A callable is given the
            values of the parameters registered before this one: a default may depend on them.
        kind (`type`): `int`, `float` or `str`.
        choices (`tuple[str, ...]`): Allowed values of a `str`.
        low, high (`float`, *optional*): Allowed range of a number, ends included.
    """

    default: Any
    kind: type = str
    choices: tuple[str, ...] = ()
    low: float = float("-inf")
    high: float = float("inf")


@dataclass(frozen=True)
class _Entry:
    make: Callable[..., Game]
    parameters: Mapping[str, Parameter]
    check: Callable[[Mapping[str, Any]], None] | None


_GAMES: dict[str, _Entry] = {}


def register(
    name: str,
    make: Callable[..., Game],
    parameters: Mapping[str, Parameter] | None = None,
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Adds a game.

    Args:
        name (`str`): Base name, without parameters.
        make (`Callable`): Called with every parameter by keyword; answers a new [`~spiral_trl.games.base.Game`].
        parameters (`Mapping[str, Parameter]`, *optional*): In the order in which canonical names list them.
        check (`Callable`, *optional*): Called with all values; raises `ValueError` where they do not go together.
    """
    if name in _GAMES:
        raise ValueError(f"a game named {name!r} is registered already")
    _GAMES[name] = _Entry(make, dict(parameters or {}), check)


def game_names() -> list[str]:
    """Base names of all games, sorted."""
    return sorted(_GAMES)


def make_game(name: str) -> Game:
    """A new game, to be reset and played once."""
    base, values, _ = _parse(name)
    return _GAMES[base].make(**values)


def parse_name(name: str) -> tuple[str, dict[str, Any]]:
    """Base name and the value of every parameter, defaults filled in."""
    base, values, _ = _parse(name)
    return base, dict(values)


def canonical_name(name: str) -> str:
    """The one spelling of a game's name: parameters in their fixed order, defaults dropped."""
    return _parse(name)[2]


def format_name(base: str, values: Mapping[str, Any]) -> str:
    """Canonical name of `base` with the parameters `values`, which are checked. `None` means the default."""
    return canonical_name(
        f"{base}({','.join(f'{key}={value}' for key, value in values.items() if value is not None)})"
    )


def unknown(what: str, given: str, allowed: Iterable[str]) -> ValueError:
    """The error for a name that nobody knows: what was given, what is allowed, and the nearest match."""
    options = list(allowed)
    near = difflib.get_close_matches(given.lower(), options, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {what} {given!r}; allowed: {', '.join(options) or 'none'}{hint}")


@lru_cache(maxsize=1024)
def _parse(name: str) -> tuple[str, dict[str, Any], str]:
    """Base name, all values, canonical name."""
    base, bracket, rest = name.strip().partition("(")
    base = base.strip()
    if base not in _GAMES:
        raise unknown("game", base, game_names())
    entry = _GAMES[base]
    given: dict[str, str] = {}
    if bracket:
        if not rest.endswith(")"):
            raise ValueError(f"game name {name!r} must end with ')', as in 'name(parameter=value)'")
        for item in rest[:-1].split(",") if rest[:-1].strip() else ():
            key, equals, text = (part.strip() for part in item.partition("="))
            if not equals:
                raise ValueError(f"game name {name!r}: {item.strip()!r} is not of the form parameter=value")
            if key not in entry.parameters:
                raise unknown(f"parameter of {base}", key, entry.parameters)
            if key in given:
                raise ValueError(f"game name {name!r} sets {key!r} twice")
            given[key] = text

    values: dict[str, Any] = {}
    stated = []
    for key, parameter in entry.parameters.items():
        default = parameter.default(values) if callable(parameter.default) else parameter.default
        values[key] = _value(base, key, parameter, given[key]) if key in given else default
        if values[key] != default:
            stated.append(f"{key}={values[key]}")
    if entry.check is not None:
        entry.check(values)
    return base, values, f"{base}({','.join(stated)})" if stated else base


def _value(base: str, key: str, parameter: Parameter, text: str) -> Any:
    if parameter.kind is str:
        if text not in parameter.choices:
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
