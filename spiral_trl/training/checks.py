"""What can be known to be wrong before a model is loaded: games, model folder, output folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..games.registry import canonical_name
from ..players.frozen_model import check_model
from ..players.registry import canonical_player_name, check_player
from .checkpoint import REFERENCE_NAME, checkpoints, last_whole_checkpoint, read_state
from .config import SelfPlayConfig
from .opponents import others
from .schedule import deal_games
from .tiny import reply_length


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
    """Refuses a player that cannot play a game; see [`~spiral_trl.players.registry.check_player`]."""
    check_player(opponent, game)


def can_play(opponent: str, game: str) -> bool:
    """Whether a player can play a game."""
    try:
        check_opponent(opponent, game)
    except ValueError:
        return False
    return True


def check_opponents(args: SelfPlayConfig, games: Sequence[str]) -> None:
    """Refuses opponents in training that do not exist or cannot play every game, and shares that do not fit the games.

    Raises:
        `ValueError`: If there is no such player, it cannot play one of the games, or a game has no share.
    """
    for name in others(args.opponent_weights):
        for game in games:
            try:
                check_opponent(name, game)
            except ValueError as error:
                hint = "; self and pool(...) are allowed here too" if str(error).startswith("unknown player") else ""
                raise ValueError(f"opponents: {error}{hint}") from None
    labels = [canonical_player_name(name) for name in others(args.opponent_weights)]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"opponents names two players that are both called {label}; rename one of them.")
    weights = args.game_weights
    if weights is None:
        return
    if len(weights) != len(games):
        raise ValueError(
            f"game_weights needs one share for each of the games ({', '.join(games)}), {len(games)} in all, not "
            f"{len(weights)}."
        )
    dealt = np.bincount(deal_games(args.games_per_generation, weights, len(games)), minlength=len(games))
    for game, weight, count in zip(games, weights, dealt, strict=True):
        if not count:
            raise ValueError(
                f"game_weights: a share of {weight:g} gives {game} none of the {args.games_per_generation} games of a "
                "generation. Raise it, or games_per_generation."
            )


def check_held_out(args: SelfPlayConfig, games: Sequence[str]) -> list[str]:
    """Canonical names of the games that evaluation plays beside those of training.

    Raises:
        `ValueError`: If one is unknown, named twice, or a game of training.
    """
    names = []
    for game in args.eval_held_out_games:
        try:
            name = canonical_name(game)
        except ValueError as error:
            raise ValueError(f"eval_held_out_games: {error}") from None
        if name in games:
            raise ValueError(f"eval_held_out_games names {name}, which is trained on; held-out games are others.")
        if name in names:
            raise ValueError(f"eval_held_out_games names {name} twice.")
        names.append(name)
    return names


def check_embedded_games(games: Sequence[str], max_completion_length: int, reasoning: bool) -> None:
    """Refuses games that the embedded model has no words for, and replies too short to hold a legal action."""
    for game in games:
        needed = reply_length(game, reasoning)
        if max_completion_length < needed:
            raise ValueError(
                f"max_completion_length is {max_completion_length}, but a legal reply of the embedded model in {game} "
                f"has up to {needed} tokens, the end included."
            )


def check_reference(args: SelfPlayConfig, peft: bool) -> None:
    """Refuses what TRL refuses only once the models are loaded: a refreshed reference beside an adapter."""
    if args.sync_ref_model and peft:
        raise ValueError(
            "sync_ref_model=True cannot be used with PEFT, whose reference is the model without its adapter. Set "
            "sync_ref_model=False, or train all parameters."
        )


def check_model_folder(model: str) -> None:
    """Refuses a path that holds no model, before anything looks for it on the Hub."""
    check_model(model)


def check_engine(args: SelfPlayConfig) -> None:
    """Refuses vLLM where it is not installed."""
    if args.use_vllm and find_spec("vllm") is None:
        raise ValueError("use_vllm=True, but vllm is not installed. Install trl[vllm], or set use_vllm=False.")


def check_output_dir(
    args: SelfPlayConfig, resume_from_checkpoint: str | bool | None, games: Sequence[str] | None = None
) -> str | None:
    """The checkpoint to resume from, if any, once the output folder is known to be free or to be resumed.

    Args:
        args ([`SelfPlayConfig`]): Configuration of the run.
        resume_from_checkpoint (`str` or `bool`, *optional*): What was asked for.
        games (`Sequence[str]`, *optional*): Games of the run, which must be those of the checkpoint.

    Raises:
        `ValueError`: If the folder holds another run, there is nothing whole to resume from, or the checkpoint is of
            other games.
    """
    folder = Path(args.output_dir)
    holds_run = bool(checkpoints(folder)) or (folder / "metrics.json").exists()
    if resume_from_checkpoint:
        if resume_from_checkpoint is True:
            last = last_whole_checkpoint(args.output_dir)
            if last is None:
                raise ValueError(f"There is no whole checkpoint to resume from in {args.output_dir}.")
            resume_from_checkpoint = str(last)
        elif not os.path.isdir(resume_from_checkpoint):
            raise ValueError(f"The checkpoint {resume_from_checkpoint} does not exist.")
        elif checkpoints(resume_from_checkpoint):
            last = last_whole_checkpoint(resume_from_checkpoint)
            raise ValueError(f"{resume_from_checkpoint} is a folder of checkpoints; name one of them, such as {last}.")
        elif holds_run and Path(resume_from_checkpoint).resolve().parent != folder.resolve():
            raise ValueError(
                f"{args.output_dir} holds another run than {resume_from_checkpoint}. Choose another output_dir, or "
                "resume from a checkpoint in it."
            )
        state = read_state(resume_from_checkpoint)
        if games is not None and list(games) != state["games"]:
            raise ValueError(
                f"{resume_from_checkpoint} is of a run on {', '.join(state['games'])}, not on {', '.join(games)}."
            )
        if args.sync_ref_model and not (Path(resume_from_checkpoint) / REFERENCE_NAME).is_file():
            raise ValueError(
                f"{resume_from_checkpoint} holds no reference model: its run had sync_ref_model=False, and cannot go "
                "on with sync_ref_model=True."
            )
        spent = args.steps_per_generation * args.num_iterations
        if state["unspent_generation"] and state["micro_steps_per_generation"] != spent:
            raise ValueError(
                f"{resume_from_checkpoint} was saved inside a generation of {state['micro_steps_per_generation']} "
                f"micro-steps; resume it with the same steps_per_generation and num_iterations, not {spent}."
            )
        if state["model_only"]:
            raise ValueError(
                f"{resume_from_checkpoint} was saved with save_only_model=True and holds no optimizer state, so it "
                "cannot be resumed. Pass it as the model of a new run."
            )
        return str(resume_from_checkpoint)
    if holds_run and not args.overwrite_output_dir:
        raise ValueError(
            f"{args.output_dir} holds another run. Resume it with resume_from_checkpoint, choose another output_dir, or "
            "set overwrite_output_dir=True."
        )
    return None
