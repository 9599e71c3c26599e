"""What `metrics.json` holds of a run: figures of each game before and after training, curves, settings, the machine."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from ..games.registry import make_game
from ..hub.redact import redact, redact_tree
from ..version import __version__
from .checks import can_play
from .config import SelfPlayConfig
from .measure import Measured, has_known_equilibrium, measure, nearest_alpha, results_by_seat, strategy_rows


if TYPE_CHECKING:
    from .trainer import SelfPlayTrainer

_SETTINGS = (
    "max_steps games_per_generation num_iterations learning_rate lr_scheduler_type adam_beta1 adam_beta2 "
    "weight_decay max_grad_norm loss_type beta sync_ref_model ref_model_sync_steps advantage baseline_decay "
    "illegal_moves max_completion_length temperature"
).split()


def measure_games(trainer: SelfPlayTrainer) -> dict[str, Measured]:
    """Exploitability and strategy of the current policy in each of its games."""
    args = trainer.args
    with trainer.generation():
        return {game: measure(trainer.player, game, args.exploitability_samples, args.seed) for game in trainer.games}


def results_of_games(
    trainer: SelfPlayTrainer, opponents: Sequence[str], pairs: int
) -> dict[str, list[dict[str, Any]]]:
    """Results of the current policy by seat, in each of its games, against those opponents who can play it."""
    results: dict[str, list[dict[str, Any]]] = {}
    with trainer.generation():
        for game in trainer.games:
            able = [name for name in opponents if can_play(name, game)] if make_game(game).num_players == 2 else []
            results[game] = results_by_seat(trainer.player, game, able, pairs, trainer.args.seed)
    return results


def curve(trainer: SelfPlayTrainer, game: str) -> list[dict[str, Any]]:
    """Points over training, from the trainer's log: an evaluation, with the training log nearest before it."""
    roles = make_game(game).roles
    several = len(trainer.games) > 1
    # With several games the figures without a name are means over them
    prefix = f"eval_{game}/" if several else "eval_"
    accumulation = trainer.args.gradient_accumulation_steps
    micro_steps = trainer.args.steps_per_generation * trainer.args.num_iterations
    points: list[dict[str, Any]] = []
    latest: dict[str, Any] = {}
    for entry in trainer.state.log_history:
        if "eval_runtime" in entry:
            point = {
                "step": entry["step"],
                "games": entry["step"] * accumulation // micro_steps * trainer.args.games_per_generation,
                "exploitability": entry.get(
                    f"{prefix}exploitability", entry.get(f"{prefix}exploitability_lower_bound")
                ),
                "illegal_move_rate": entry.get(f"{prefix}illegal_rate"),
                "return": {role: latest.get(f"self_play/{game}/{role}/return") for role in roles},
                "reply_length": _reply_length(latest, game, roles)
                if several
                else latest.get("completions/mean_length"),
                "entropy": latest.get("entropy"),
            }
            points.append(point)
        elif "loss" in entry:
            latest = entry
    return points


def _reply_length(entry: Mapping[str, Any], game: str, roles: Sequence[str]) -> float | None:
    lengths = [entry.get(f"self_play/{game}/{role}/reply_length") for role in roles]
    known = [length for length in lengths if length is not None]
    return sum(known) / len(known) if known else None


def game_figures(
    game: str,
    measured: Mapping[str, Measured],
    results: list[dict[str, Any]],
    curves: Mapping[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """Everything that `metrics.json` says of one game.

    Args:
        game (`str`): Name of the game.
        measured (`Mapping[str, Measured]`): By stage: `start`, `final`, and `plain` where there was a plain run.
        results (`list[dict]`): Rows of [`~spiral_trl.training.measure.results_by_seat`].
        curves (`Mapping[str, list[dict]]`): Points over training, by run.
    """
    final, plain = measured["final"].exploitability, measured.get("plain")
    return {
        "exploitability": {
            "start": measured["start"].value,
            "final": measured["final"].value,
            "plain": None if plain is None else plain.value,
            "final_given_legal": measured["final"].given_legal,
            "plain_given_legal": None if plain is None else plain.given_legal,
            "unexplored_mass": getattr(final, "unexplored_mass", None),
            "method": final.method,
            "unit": final.unit,
            "samples": getattr(final, "samples", None),
            "floor": getattr(final, "floor", None),
        },
        "illegal_move_rate": {
            "start": measured["start"].exploitability.illegal_rate,
            "final": final.illegal_rate,
            "plain": None if plain is None else plain.exploitability.illegal_rate,
        },
        "results": results,
        "strategy": strategy_rows(game, dict(measured)),
        "equilibrium_alpha": nearest_alpha(measured["final"].strategy) if has_known_equilibrium(game) else None,
        "curves": dict(curves),
    }


def run_metrics(
    trainer: SelfPlayTrainer,
    args: SelfPlayConfig,
    model: str,
    embedded: bool,
    recipe: str | None,
    figures: Mapping[str, dict[str, Any]],
    plain_overrides: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What `metrics.json` holds, without the seconds.

    Args:
        trainer ([`~spiral_trl.SelfPlayTrainer`]): After training.
        args ([`SelfPlayConfig`]): Its configuration as it was given.
        model (`str`): What was trained: an id, a folder, or the word for the embedded model.
        embedded (`bool`): Whether that is the embedded model.
        recipe (`str`, *optional*): Name of the YAML.
        figures (`Mapping[str, dict]`): [`game_figures`] of each game. Those of the first stand at the top; with several
            games all stand in `by_game` too.
        plain_overrides (`Mapping`, *optional*): What differed in the plain run.
    """
    unwrapped = trainer.accelerator.unwrap_model(trainer.model)
    parameters = sum(p.numel() for p in unwrapped.parameters())
    name = f"embedded Qwen3, {parameters:,} parameters" if embedded else model
    games = list(figures)
    training = {
        setting: value.value if hasattr(value := getattr(args, setting), "value") else value for setting in _SETTINGS
    }
    if args.opponent_weights != {"self": 1.0}:
        training["opponents"] = redact_tree(args.opponent_weights)
    if args.game_weights is not None:
        training["game_weights"] = args.game_weights
    if plain_overrides:
        training["plain_overrides"] = dict(plain_overrides)
    device = args.device
    return {
        "schema": 1,
        "game": games[0],
        "games_trained": games,
        "finished": trainer.state.global_step >= args.max_steps,
        "model": {
            "name": name,
            "architecture": type(unwrapped).__name__,
            "parameters": parameters,
            "embedded": embedded,
            "base_model": None if embedded or os.path.isdir(name) else name,
        },
        "recipe": recipe,
        # Tokens may be given as flags
        "command": redact(f"accelerate launch {' '.join(shlex.quote(part) for part in sys.argv)}"),
        **figures[games[0]],
        **({"by_game": dict(figures)} if len(games) > 1 else {}),
        **({} if trainer.pool is None else {"pool": trainer.pool.state.report()}),
        **trainer.played,
        "seed": args.seed,
        "versions": {
            "spiral_trl": __version__,
            **{package: version(package) for package in ("trl", "transformers", "torch", "datasets", "accelerate")},
            "python": platform.python_version(),
        },
        "machine": {
            "processor": f"{platform.machine()}, {os.cpu_count()} cores",
            "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "processes": args.world_size,
        },
        "training": training,
    }
