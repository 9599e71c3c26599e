"""Players by name, as the command line and configurations give them.

A name is one of [`player_names`], with parameters where wanted (`mcts(simulations=1000)`), or a model: an existing
folder, or an id on the Hub, which has a slash (`Qwen/Qwen3-0.6B`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..games.registry import first_turns
from ..names import Parameter, read_parameters, split_name, unknown
from ..records import Turn
from .base import Player
from .bots import CFRPlayer, RandomPlayer
from .endpoint import OPENAI_URL, EndpointPlayer, check_endpoint, endpoint_name
from .frozen_model import DTYPES, ModelSettings, check_model, load_model_player, model_name
from .human import HumanPlayer
from .search import MCTSPlayer, MinimaxPlayer


__all__ = ["ModelSettings", "canonical_player_name", "check_player", "make_player", "player_names"]

_Values = Mapping[str, Any]


def _accept(*anything: object) -> None:
    """The check of a player with which nothing can be wrong."""


@dataclass(frozen=True)
class _Entry:
    """A kind of player.

    Args:
        make (`Callable`): Makes the player from the values of all parameters and the settings of models.
        name (`Callable`): What the player will be called, from the same values.
        parameters (`Mapping[str, Parameter]`): In the order in which names list them.
        required (`str`, *optional*): The parameter that has to be stated.
        check (`Callable`): Raises `ValueError` where it can be known that `make` will fail.
        check_turn (`Callable`): Raises `ValueError` where the player cannot play the game that a turn is of.
    """

    make: Callable[[_Values, ModelSettings], Player]
    name: Callable[[_Values], str]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    required: str | None = None
    check: Callable[[_Values, ModelSettings], None] = _accept
    check_turn: Callable[[_Values, Turn], object] = _accept


def _mcts(values: _Values) -> MCTSPlayer:
    return MCTSPlayer(**values)


def _model_settings(values: _Values, settings: ModelSettings) -> ModelSettings:
    """The settings with what the name states in their place."""
    return replace(settings, **{key: value for key, value in values.items() if key != "path" and value is not None})


def _model_label(values: _Values) -> str:
    """The model's own name, with what else is stated in brackets; where it runs changes nothing."""
    label = model_name(values["path"])
    stated = [f"{key}={value}" for key, value in values.items() if key not in ("path", "device") and value is not None]
    if label in _PLAYERS:
        stated.insert(0, f"path={label}")
        label = "model"
    return f"{label}({','.join(stated)})" if stated else label


def _load_model(values: _Values, settings: ModelSettings) -> Player:
    return load_model_player(values["path"], _model_settings(values, settings), _model_label(values))


def _check_model(values: _Values, settings: ModelSettings) -> None:
    _model_settings(values, settings)
    check_model(values["path"])


_PLAYERS: dict[str, _Entry] = {
    "random": _Entry(
        make=lambda values, settings: RandomPlayer(),
        name=lambda values: "random",
        check_turn=lambda values, turn: RandomPlayer().reply([turn]),
    ),
    "cfr": _Entry(
        make=lambda values, settings: CFRPlayer(),
        name=lambda values: "cfr",
        check_turn=lambda values, turn: CFRPlayer().check(turn),
    ),
    "minimax": _Entry(
        make=lambda values, settings: MinimaxPlayer(),
        name=lambda values: "minimax",
        check_turn=lambda values, turn: MinimaxPlayer().check(turn),
    ),
    "mcts": _Entry(
        make=lambda values, settings: _mcts(values),
        name=lambda values: _mcts(values).name,
        parameters={
            "simulations": Parameter(100, int, low=1, high=1_000_000),
            "uct_c": Parameter(2, float, low=0, high=1000),
            "rollouts": Parameter(1, int, low=1, high=1000),
        },
        check_turn=lambda values, turn: _mcts(values).check(turn),
    ),
    "endpoint": _Entry(
        make=lambda values, settings: EndpointPlayer(**values),
        name=lambda values: endpoint_name(*(values[key] for key in ("model", "max_tokens", "temperature", "top_p"))),
        parameters={
            "model": Parameter(None),
            "base_url": Parameter(OPENAI_URL),
            "api_key_env": Parameter("OPENAI_API_KEY"),
            "max_tokens": Parameter(1024, int, low=1),
            "max_tokens_field": Parameter("max_tokens", choices=("max_tokens", "max_completion_tokens")),
            "temperature": Parameter(None, float, low=0, high=100),
            "top_p": Parameter(None, float, low=0, high=1),
            "timeout": Parameter(120, float, low=0.001, high=86_400),
            "max_retries": Parameter(5, int, low=0, high=1000),
            "max_calls": Parameter(None, int, low=0),
            "concurrency": Parameter(8, int, low=1, high=1000),
        },
        required="model",
        check=lambda values, settings: check_endpoint(values["base_url"], values["api_key_env"]),
    ),
    "human": _Entry(make=lambda values, settings: HumanPlayer(), name=lambda values: "human"),
    "model": _Entry(
        make=_load_model,
        name=_model_label,
        parameters={
            "path": Parameter(None),
            "max_new_tokens": Parameter(None, int, low=1),
            "temperature": Parameter(None, float, low=0, high=1000),
            "top_p": Parameter(None, float, low=0, high=1),
            "top_k": Parameter(None, int, low=0),
            "prompt_template": Parameter(None),
            "device": Parameter(None),
            "dtype": Parameter(None, choices=DTYPES),
            "revision": Parameter(None),
        },
        required="path",
        check=_check_model,
    ),
}


def player_names() -> list[str]:
    """Names that [`make_player`] knows besides models, sorted."""
    return sorted(_PLAYERS)


def make_player(name: str, settings: ModelSettings | None = None) -> Player:
    """A new player.

    Args:
        name (`str`): Such as `random`, `mcts(simulations=1000)`, `outputs/kuhn` or `Qwen/Qwen3-0.6B`.
        settings ([`~spiral_trl.players.frozen_model.ModelSettings`], *optional*): How models are loaded and sampled;
            parameters in the name go before.

    Raises:
        `ValueError`: If the name, a parameter, the folder, the key or the URL is wrong, or a model cannot be loaded.
    """
    entry, values = _read(name)
    settings = settings or ModelSettings()
    entry.check(values, settings)
    return entry.make(values, settings)


def check_player(name: str, game: str | None = None) -> None:
    """Everything that can be known to be wrong with a player without loading a model or calling an endpoint.

    Args:
        name (`str`): Name of the player.
        game (`str`, *optional*): A game that it shall play. Models, endpoints and people can play any.

    Raises:
        `ValueError`: In one line: what is wrong, what is allowed, and the nearest match.
        [`~spiral_trl.errors.PlayError`]: If the game's code raises.
    """
    entry, values = _read(name)
    entry.check(values, ModelSettings())
    if game is not None:
        for turn in first_turns(game)[:1]:
            entry.check_turn(values, turn)


def canonical_player_name(name: str) -> str:
    """What the player of that name is called in records and tables: its kind and what changes its play.

    Of a folder only the last part shows, of an endpoint neither the URL nor the key's variable.
    """
    entry, values = _read(name)
    return entry.name(values)


def _read(name: str) -> tuple[_Entry, dict[str, Any]]:
    """The kind of a player, and the value of every parameter."""
    base = name.partition("(")[0].strip()
    if base not in _PLAYERS:
        path = name.strip()
        if path and ("/" in base or os.path.isdir(os.path.expanduser(path))):
            return _PLAYERS["model"], dict.fromkeys(_PLAYERS["model"].parameters) | {"path": path}
        raise unknown("player", base or name, [*player_names(), "FOLDER", "ORG/MODEL"])
    entry = _PLAYERS[base]
    _, given = split_name(name, "player")
    values, _ = read_parameters(base, given, entry.parameters)
    if entry.required is not None and not values[entry.required]:
        raise ValueError(f"player {base} needs {entry.required}, as in {base}({entry.required}=...)")
    return entry, values
