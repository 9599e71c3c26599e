"""What can be known to be wrong before a model is loaded: games, model folder, output folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..games.registry import canonical_name, make_game, parse_name
from ..players.registry import make_player
from .checkpoint import checkpoints, last_whole_checkpoint, read_state
from .config import SelfPlayConfig


def check_games(games: str | Sequence[str]) -> list[str]:
    """Canonical names of `games`.

    Raises:
        `ValueError`: If there is none, or one is unknown or named twice.
    """
    names = [canonical_name(game) for game in ([games] if isinstance(games, str) else games)]
    if not names:
        raise ValueError("games is empty; name at least one, such as kuhn_poker.")
    if len(set(names)) < len(names):
        raise ValueError(f"A game is named twice in games: {', '.join(names)}.")
    return names


def check_opponent(opponent: str, game: str) -> None:
    """Asks a player for a first turn.

    Raises:
        `ValueError`: If there is no such player, or it cannot play the game.
    """
    player, started = make_player(opponent), make_game(game)
    started.reset(0)
    player.reply(list(started.turns())[:1])


def can_play(opponent: str, game: str) -> bool:
    """Whether a player can play a game."""
    try:
        check_opponent(opponent, game)
    except ValueError:
        return False
    return True


def check_embedded_games(games: Sequence[str]) -> None:
    """Refuses games that the embedded model has no words for."""
    for game in games:
        name, values = parse_name(game)
        if name != "kuhn_poker" or values["observation"] != "compact":
            raise ValueError(
                f"The embedded model reads only the compact observation: play kuhn_poker(observation=compact), not "
                f"{game}, or choose another model."
            )


def check_reference(args: SelfPlayConfig, peft: bool) -> None:
    """Refuses what TRL refuses only once the models are loaded: a refreshed reference beside an adapter."""
    if args.sync_ref_model and peft:
        raise ValueError(
            "sync_ref_model=True cannot be used with PEFT, whose reference is the model without its adapter. Set "
            "sync_ref_model=False, or train all parameters."
        )


def check_model_folder(model: str) -> None:
    """Refuses a path that does not exist, before anything looks for it on the Hub."""
    looks_like_path = (
        model.startswith((".", "/", "~")) or model.count("/") > 1 or os.sep in model.rstrip("/").split("/", 1)[-1]
    )
    if looks_like_path and not os.path.isdir(model):
        raise ValueError(f"The model folder {model} does not exist.")


def check_output_dir(args: SelfPlayConfig, resume_from_checkpoint: str | bool | None) -> str | None:
    """The checkpoint to resume from, if any, once the output folder is known to be free or to be resumed.

    Raises:
        `ValueError`: If the folder holds another run, or there is nothing whole to resume from.
    """
    if resume_from_checkpoint:
        if resume_from_checkpoint is True:
            last = last_whole_checkpoint(args.output_dir)
            if last is None:
                raise ValueError(f"There is no whole checkpoint to resume from in {args.output_dir}.")
            resume_from_checkpoint = str(last)
        if read_state(resume_from_checkpoint)["model_only"]:
            raise ValueError(
                f"{resume_from_checkpoint} was saved with save_only_model=True and holds no optimizer state, so it "
                "cannot be resumed. Pass it as the model of a new run."
            )
        return str(resume_from_checkpoint)
    folder = Path(args.output_dir)
    if not args.overwrite_output_dir and (checkpoints(folder) or (folder / "metrics.json").exists()):
        raise ValueError(
            f"{args.output_dir} holds another run. Resume it with resume_from_checkpoint, choose another output_dir, or "
            "set overwrite_output_dir=True."
        )
    return None
