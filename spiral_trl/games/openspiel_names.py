"""Names of OpenSpiel's games: parsed, checked against the library's own list of parameters, and loaded once.

A name is OpenSpiel's, without defaults: `goofspiel(num_cards=4)`, `turn_based_simultaneous_game(game=blotto(coins=5))`.
One parameter of ours may stand among its own: `observation`; no game of the library has one of that name.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyspiel

from ..names import split_name, unknown


OBSERVATIONS = ("words", "latest")
_SEATS = ("players", "numPlayers")
_TRIAL = Path(__file__).with_name("openspiel_trial.py")
# Some values make the library run without end. What can be played starts within a second.
_TRIAL_SECONDS = 30


@dataclass(frozen=True, eq=False)
class Loaded:
    """A game of the library and what its name says.

    Args:
        base (`str`): OpenSpiel's short name.
        values (`dict[str, Any]`): Every parameter, `observation` included; nested games by their canonical name.
        name (`str`): Canonical name, without the prefix `openspiel:`.
        game (`pyspiel.Game`): The loaded game.
    """

    base: str
    values: dict[str, Any]
    name: str
    game: pyspiel.Game


@lru_cache(maxsize=1)
def game_types() -> dict[str, pyspiel.GameType]:
    """Every game of the library, by short name."""
    return {kind.short_name: kind for kind in pyspiel.registered_games()}


@lru_cache(maxsize=1)
def zero_sum_names() -> tuple[str, ...]:
    """Short names of the zero-sum games that need no parameter, sorted. Those that importing `open_spiel.python` adds
    are left out, so that the list depends on nothing but the version of the library."""
    zero_sum = pyspiel.GameType.Utility.ZERO_SUM
    return tuple(
        sorted(
            name
            for name, kind in game_types().items()
            if kind.utility == zero_sum and kind.default_loadable and not name.startswith("python_")
        )
    )


@lru_cache(maxsize=1024)
def load(name: str) -> Loaded:
    """The game of that name, without prefix.

    Where the name states parameters, the game is first loaded and played a little by another process, which takes
    about 0.1 s: the library refuses most wrong values, but runs without end or ends the process at some.

    Raises:
        `ValueError`: If the library has no such game or parameter, refuses a value, or the game is not zero-sum
            between two players or more.
    """
    base, given = split_name(name, "openspiel game")
    if base not in game_types():
        raise unknown("openspiel game", base, zero_sum_names())
    observation = given.pop("observation", "words")
    if observation not in OBSERVATIONS:
        raise unknown(f"value of observation in openspiel:{base}", observation, OBSERVATIONS)
    parameters, values, stated = _read(base, given, ("observation",))
    if given or not game_types()[base].default_loadable:
        _try(base, parameters)
    try:
        game = pyspiel.load_game(base, parameters)
    except pyspiel.SpielError as error:
        raise _refused(base, str(error)) from None
    _check(base, game)
    values["observation"] = observation
    if observation != "words":
        stated.append(f"observation={observation}")
    return Loaded(base, values, _spelled(base, stated), game)


def _check(base: str, game: pyspiel.Game) -> None:
    """Whether what was loaded can be played here. Wrappers take these properties from the game that they wrap."""
    kind = game.get_type()
    utility = kind.utility.name.lower().replace("_", "-")
    if kind.utility != pyspiel.GameType.Utility.ZERO_SUM:
        raise ValueError(
            f"openspiel:{base} is not zero-sum as given, but {utility}; only zero-sum games can be played"
        )
    if game.num_players() < 2:
        raise ValueError(f"openspiel:{base} has {game.num_players()} player as given; at least 2 are needed")
    if kind.chance_mode == pyspiel.GameType.ChanceMode.SAMPLED_STOCHASTIC:
        raise ValueError(f"openspiel:{base} draws its chance inside the library, so no seed can deal it again")


def _read(
    base: str, given: dict[str, str], ours: tuple[str, ...] = ()
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """What is stated, as `pyspiel.load_game` takes it; every value; and the stated ones as canonical text. `ours` are
    further parameters that an error may name."""
    kind = game_types()[base]
    defaults = kind.parameter_specification
    for key in given:
        if key not in defaults:
            raise unknown(f"parameter of openspiel:{base}", key, [*defaults, *ours])
    parameters: dict[str, Any] = {}
    values: dict[str, Any] = {}
    stated: list[str] = []
    for key, default in sorted(defaults.items()):
        if key not in given:
            if default == {}:
                example = "universal_poker()" if "poker" in base else "goofspiel(num_cards=4)"
                raise ValueError(f"openspiel:{base} needs the parameter {key}, a game, such as {key}={example}")
            values[key] = default
            continue
        value, text = _value(base, key, default, given[key])
        values[key] = text if isinstance(value, dict) else value
        # The library states a default even for parameters that have none, in games that it cannot load without.
        if value != default or not kind.default_loadable:
            parameters[key] = value
            stated.append(f"{key}={text}")
        if key in _SEATS and not max(2, kind.min_num_players) <= value <= kind.max_num_players:
            low, high = max(2, kind.min_num_players), kind.max_num_players
            raise ValueError(f"{key} of openspiel:{base} must be from {low} to {high}, not {value}")
    return parameters, values, stated


def _value(base: str, key: str, default: Any, text: str) -> tuple[Any, str]:
    """A stated value, and its one spelling."""
    where = f"{key} of openspiel:{base}"
    if isinstance(default, dict):
        inner, given = split_name(text, "openspiel game")
        if inner not in game_types():
            raise unknown(f"game as {where}", inner, zero_sum_names())
        parameters, _, stated = _read(inner, given)
        return {"name": inner, **parameters}, _spelled(inner, stated) if stated else f"{inner}()"
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{where} must be true or false, not {text!r}")
        return text.lower() == "true", text.lower()
    if isinstance(default, int):
        if not re.fullmatch(r"[+-]?\d{1,9}", text):
            raise ValueError(f"{where} must be a whole number, not {text!r}")
        return int(text), str(int(text))
    if isinstance(default, float):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{where} must be a number, not {text!r}")
        return value, str(int(value)) if value.is_integer() else repr(value)
    return text, text


def _spelled(base: str, stated: list[str]) -> str:
    return f"{base}({','.join(stated)})" if stated else base


def _try(base: str, parameters: dict[str, Any]) -> None:
    command = [sys.executable, "-P", str(_TRIAL), json.dumps([base, parameters])]
    try:
        trial = subprocess.run(command, capture_output=True, text=True, timeout=_TRIAL_SECONDS)
    except subprocess.TimeoutExpired:
        raise _refused(base, f"it did not start within {_TRIAL_SECONDS} seconds") from None
    if trial.returncode:
        raise _refused(base, trial.stdout or "the library ends the process at these values")


def _refused(base: str, reason: str) -> ValueError:
    """One line, without the library's file names."""
    reason = re.sub(r"^\S+\.(?:cc|h):\d+ ", "", " ".join(reason.split()))
    missing = re.fullmatch(r"Missing parameter (\w+)", reason)
    if missing:
        return ValueError(f"openspiel:{base} needs the parameter {missing[1]}")
    return ValueError(f"openspiel:{base} cannot be played with these parameters: {reason}")
