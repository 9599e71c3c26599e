"""Games by name. A name carries its parameters, in OpenSpiel's form: `kuhn_poker(rounds=5,payoff=chips)`.

A game module calls [`register`] when it is imported. A prefix names a whole library of games, such as
`openspiel:goofspiel(num_cards=4)`; its adapter calls [`register_source`]. Names are parsed and checked once and
remembered, since thousands of games are made per training step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from ..errors import game_failed
from ..names import Parameter, read_parameters, split_name, unknown
from ..records import Turn
from .base import Game


class GameSource(Protocol):
    """A library of games behind a prefix. Names here are without the prefix.

    `parse` and `make` raise `ValueError` for names and parameters that the library does not have, or games that it
    has and that cannot be played here, with the reason.
    """

    def names(self) -> list[str]:
        """Base names of the games that can be played, sorted."""
        ...

    def parse(self, name: str) -> tuple[str, dict[str, Any], str]:
        """Base name, value of every parameter, canonical name."""
        ...

    def make(self, name: str) -> Game:
        """A new game; `name` is canonical. Its `Game.name` carries the prefix."""
        ...


@dataclass(frozen=True)
class _Entry:
    make: Callable[..., Game]
    parameters: Mapping[str, Parameter]
    check: Callable[[Mapping[str, Any]], None] | None


_GAMES: dict[str, _Entry] = {}
_SOURCES: dict[str, GameSource] = {}


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


def register_source(prefix: str, source: GameSource) -> None:
    """Adds a library of games, named `prefix:NAME`."""
    if prefix in _SOURCES:
        raise ValueError(f"a source of games named {prefix!r} is registered already")
    _SOURCES[prefix] = source


def game_names() -> list[str]:
    """Base names of all games with words of their own, sorted."""
    return sorted(_GAMES)


def source_names() -> list[str]:
    """Prefixes of libraries of games, sorted."""
    return sorted(_SOURCES)


def game_source(prefix: str) -> GameSource:
    """The library of games behind `prefix`."""
    if prefix not in _SOURCES:
        raise unknown("prefix of a game", prefix, source_names())
    return _SOURCES[prefix]


def make_game(name: str) -> Game:
    """A new game, to be reset and played once."""
    base, values, canonical = _parse(name)
    prefix, colon, _ = base.partition(":")
    if colon:
        return _SOURCES[prefix].make(canonical[len(prefix) + 1 :])
    return _GAMES[base].make(**values)


def first_turns(name: str, seed: int = 0) -> Sequence[Turn]:
    """Who is asked at the start of a game, and what.

    Raises:
        [`~spiral_trl.errors.PlayError`]: If the game's code raises.
    """
    game = make_game(name)
    try:
        game.reset(seed)
        return game.turns()
    except Exception as error:
        raise game_failed(f"{game.name} with seed {seed}", error) from error


def parse_name(name: str) -> tuple[str, dict[str, Any]]:
    """Base name, with the prefix where there is one, and the value of every parameter, defaults filled in."""
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


@lru_cache(maxsize=1024)
def _parse(name: str) -> tuple[str, dict[str, Any], str]:
    """Base name, all values, canonical name."""
    base, given = split_name(name, "game")
    prefix, colon, _ = base.partition(":")
    if colon:
        base, values, canonical = game_source(prefix).parse(name.strip()[len(prefix) + 1 :])
        return f"{prefix}:{base}", values, f"{prefix}:{canonical}"
    if base not in _GAMES:
        raise unknown("game", base, [*game_names(), *(f"{prefix}:NAME" for prefix in source_names())])
    entry = _GAMES[base]
    values, canonical = read_parameters(base, given, entry.parameters)
    if entry.check is not None:
        entry.check(values)
    return base, values, canonical
