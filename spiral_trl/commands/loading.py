"""Players, games and files that a command line names: everything is checked before a model is loaded."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError, did_you_mean, usage_errors
from ..games import make_game
from ..games.registry import canonical_name
from ..players.base import Player
from ..players.registry import ModelSettings, canonical_player_name, check_player, make_player
from ..rollout import MAX_TURNS, IllegalMoves


_MAX_NEW_TOKENS = 256


def add_game_arguments(parser: argparse.ArgumentParser, pairs: int) -> None:
    """Arguments of commands that play matches on paired deals."""
    parser.add_argument(
        "--games", nargs="+", required=True, metavar="GAME", help="two-player games; see spiral-trl games"
    )
    parser.add_argument(
        "--pairs", type=int, default=pairs, help=f"deals of each match, each played from both seats (default: {pairs})"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="deals, and replies of own players, derive from it (default: 0)"
    )
    parser.add_argument(
        "--illegal",
        default="forfeit",
        help="what an illegal reply does: forfeit, spiral, retry(k) or random_legal (default: forfeit)",
    )
    parser.add_argument(
        "--max-turns", type=int, default=MAX_TURNS, help=f"games are truncated there (default: {MAX_TURNS})"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        help=f"longest reply of a model (default: that of the run whose folder it is in, or {_MAX_NEW_TOKENS})",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="sampling temperature of models (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def check_game_arguments(options: argparse.Namespace) -> list[str]:
    """Canonical names of the games of [`add_game_arguments`].

    Raises:
        `ValueError`: If an argument is wrong.
    """
    names = [canonical_name(game) for game in options.games]
    policy = IllegalMoves.parse(options.illegal)
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the game {name} is named twice")
        game = make_game(name)
        if game.num_players != 2:
            raise ValueError(f"matches are between two players, but {name} has {game.num_players} seats")
        policy.returns(0, game.worst_returns)
    for option, least in (("pairs", 2), ("max_turns", 1), ("max_new_tokens", 1)):
        value = getattr(options, option)
        if value is not None and value < least:
            raise ValueError(f"--{option.replace('_', '-')} has to be at least {least}, not {value}")
    if not 0 < options.temperature < float("inf"):
        raise ValueError(f"--temperature has to be above 0, not {options.temperature}")
    check_file(options.json, "--json")
    return names


def check_file(path: Path | None, option: str, suffixes: Sequence[str] = ()) -> None:
    """Refuses a file that could not be written at the end.

    Raises:
        `ValueError`: With what is wrong.
    """
    if path is None:
        return
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f"{option} {path} has to end with {' or '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"the folder of {option} {path} does not exist")


def why_none(name: str, games: Sequence[str]) -> str | None:
    """Why a player can play none of the games; `None` where it can play one.

    Raises:
        `ValueError`: If there is no such player.
    """
    check_player(name)
    reasons = []
    for game in games:
        try:
            check_player(name, game)
        except ValueError as error:
            reasons.append(str(error))
        else:
            return None
    return "; ".join(dict.fromkeys(reasons))


def player_labels(names: Sequence[str]) -> list[str]:
    """What players are called in tables: their own name, and folders by as many of their last parts as tell them apart.

    Raises:
        `ValueError`: If one is named twice.
    """
    own = [canonical_player_name(name) for name in names]
    called = []
    for name, label in zip(names, own, strict=True):
        if own.count(label) > 1:
            alike = [other for other, its in zip(names, own, strict=True) if its == label]
            paths = {other: Path(other).absolute().parts for other in alike}
            if not all(os.path.isdir(other) for other in alike) or len(set(paths.values())) < len(alike):
                raise ValueError(f"the player {label!r} is named twice")
            depth = 1
            while len({paths[other][-depth:] for other in alike}) < len(alike):
                depth += 1
            label = "/".join(paths[name][-depth:])
        called.append(label)
    return called


def choose(label: str, labels: Sequence[str], option: str) -> str:
    """`label`, if it is one of `labels`.

    Raises:
        `ValueError`: If it is not.
    """
    if label not in labels:
        raise ValueError(
            f"{option} {label!r} is none of the players: {', '.join(labels)}{did_you_mean(label, labels)}"
        )
    return label


def load_player(name: str, label: str, options: argparse.Namespace) -> Player:
    """A player that [`why_none`] accepted, called `label`.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If a model cannot be loaded.
    """
    if options.quiet:
        from transformers.utils import logging

        logging.disable_progress_bar()
    settings = ModelSettings(
        max_new_tokens=options.max_new_tokens or trained_length(name) or _MAX_NEW_TOKENS,
        temperature=options.temperature,
    )
    with usage_errors():
        player = make_player(name, settings)
    player.name = label
    return player


def trained_length(name: str) -> int | None:
    """`max_completion_length` of the run whose folder, or whose checkpoint, a model is in."""
    for folder in (Path(name), Path(name).absolute().parent):
        try:
            length = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["training"][
                "max_completion_length"
            ]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(length, int) and length > 0:
            return length
    return None


def whole_checkpoints(run: Path) -> list[str]:
    """Folders of a run's checkpoints that were written to their end, oldest first.

    Raises:
        `ValueError`: If there is none.
    """
    from ..training.checkpoint import checkpoints, is_whole

    found = [str(path) for path in checkpoints(run) if is_whole(path)]
    if not found:
        raise UsageError(f"{run} holds no whole checkpoint" if run.is_dir() else f"the folder {run} does not exist")
    return found
