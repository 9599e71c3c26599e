"""A whole run: checks, the embedded model where it is asked for, training, measurement, and the output folder.

Recipes parse their arguments and call [`run_self_play`]. It leaves in the output folder the model as
`save_pretrained` writes it, `metrics.json`, `episodes/` (a dataset of replays), `report.html` and the model card.
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError, did_you_mean, usage_errors
from ..games.chance import derive_seeds
from ..games.registry import make_game
from ..players.language_model import check_chat_template
from ..players.registry import check_player
from ..records import Episode, episodes_to_dataset
from ..rollout import play
from .checks import (
    can_play,
    check_embedded_games,
    check_engine,
    check_games,
    check_held_out,
    check_model_folder,
    check_opponent,
    check_opponents,
    check_output_dir,
    check_reference,
)
from .config import SelfPlayConfig
from .run_metrics import curve, game_figures, measure_games, results_of_games, run_metrics
from .schedule import deal_games
from .tiny import EMBEDDED, check_sizes, save_tiny_model, warm_start
from .trainer import SelfPlayTrainer


if TYPE_CHECKING:
    from trl import ModelConfig


# What may differ in plain self-play beside the magnet
_PLAIN_FIELDS = ("learning_rate", "adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm")


@dataclass
class RunArguments:
    r"""
    What a recipe does around training.

    Parameters:
        games (`list[str]`, *optional*, defaults to `["kuhn_poker"]`):
            Games to train on. Reports show the first one in full, and the main figures of the others.
        dataset_name (`str`, *optional*):
            Refused: self-play takes no dataset.
        embedded_hidden_size (`int`, *optional*, defaults to `32`), embedded_layers (`int`, *optional*, defaults to `2`):
            Size of the embedded model, used where `model_name_or_path` is `embedded`.
        warm_start_steps (`int`, *optional*, defaults to `150`):
            Steps of supervised training on random legal play that teach the embedded model the format.
        warm_start_learning_rate (`float`, *optional*, defaults to `1e-2`):
            Learning rate of these steps at the start.
        embedded_reasoning (`bool`, *optional*, defaults to `False`):
            Whether the embedded model learns replies with optional reasoning words.
        compare_plain (`bool`, *optional*, defaults to `False`):
            Whether to train plain self-play (no magnet) with the same budget beside it.
        plain_overrides (`dict`, *optional*):
            Fields of the configuration that differ in the plain run, such as its own tuned learning rate. Not read
            where there is none.
        report_opponents (`list[str]`, *optional*, defaults to `["random", "cfr"]`):
            Players the trained model is measured against, in those games that they can play.
        report_pairs (`int`, *optional*, defaults to `1000`):
            Deals played against each of them, each from both seats.
        replays (`int`, *optional*, defaults to `12`):
            Self-play games of the trained model to save and show.
    """

    games: list[str] = field(default_factory=lambda: ["kuhn_poker"], metadata={"help": "Games to train on."})
    dataset_name: str | None = field(default=None, metadata={"help": "Refused: self-play takes no dataset."})
    embedded_hidden_size: int = field(default=32, metadata={"help": "Hidden size of the embedded model."})
    embedded_layers: int = field(default=2, metadata={"help": "Layers of the embedded model."})
    warm_start_steps: int = field(default=150, metadata={"help": "Supervised steps that teach the format."})
    warm_start_learning_rate: float = field(default=1e-2, metadata={"help": "Learning rate of the supervised steps."})
    embedded_reasoning: bool = field(
        default=False, metadata={"help": "Whether the embedded model learns optional reasoning words."}
    )
    compare_plain: bool = field(
        default=False, metadata={"help": "Whether to train plain self-play with the same budget beside it."}
    )
    plain_overrides: dict | None = field(
        default=None, metadata={"help": "Fields of the configuration that differ in the plain run."}
    )
    report_opponents: list[str] = field(
        default_factory=lambda: ["random", "cfr"], metadata={"help": "Players to measure against."}
    )
    report_pairs: int = field(default=1000, metadata={"help": "Deals against each of them, from both seats."})
    replays: int = field(default=12, metadata={"help": "Self-play games to save and show."})


def run_self_play(
    run: RunArguments, args: SelfPlayConfig, model_args: ModelConfig, recipe: str | None = None
) -> dict[str, Any]:
    """Trains, measures and writes the output folder.

    Args:
        run ([`RunArguments`]): What to do around training.
        args ([`SelfPlayConfig`]): Training configuration.
        model_args ([`~trl.ModelConfig`]): The model; `model_name_or_path: embedded` builds the embedded one.
        recipe (`str`, *optional*): Path of the YAML, for the card.

    Returns:
        `dict`: What `metrics.json` holds.

    Raises:
        [`~spiral_trl.errors.UsageError`]: For bad input, before a model is loaded.
    """
    started = time.perf_counter()
    with usage_errors():
        games, resume, plain_args = _check(run, args, model_args)

    assert model_args.model_name_or_path is not None
    embedded = model_args.model_name_or_path == EMBEDDED
    model_folder, warm_seconds = model_args.model_name_or_path, 0.0
    if embedded:
        model_folder, warm_seconds = _embedded_model(run, args, games, resume is not None)

    try:
        trainer = _make_trainer(model_folder, games, args, model_args)
    except OSError as error:
        raise UsageError(f"model_name_or_path={model_folder!r}: {error}") from error
    measured = {"start": measure_games(trainer)}
    trainer.train(resume_from_checkpoint=resume)
    measured["final"] = measure_games(trainer)
    results = results_of_games(trainer, run.report_opponents, run.report_pairs)
    episodes = _replays(trainer, run, args)
    total = time.perf_counter() - started
    trainers = {"self_play": trainer}

    plain_seconds = None
    if plain_args is not None:
        began = time.perf_counter()
        plain_args.overwrite_output_dir = True  # the folder is this run's own
        trainers["plain"] = plain = _make_trainer(model_folder, games, plain_args, model_args)
        whole = _last(plain_args) if resume else None
        plain.train(resume_from_checkpoint=whole)
        measured["plain"] = measure_games(plain)
        plain_seconds = time.perf_counter() - began

    figures = {
        game: game_figures(
            game,
            {stage: of_games[game] for stage, of_games in measured.items()},
            results[game],
            {name: curve(trained, game) for name, trained in trainers.items()},
        )
        for game in games
    }
    overrides = run.plain_overrides if run.compare_plain else None
    metrics = run_metrics(trainer, args, model_args.model_name_or_path, embedded, recipe, figures, overrides)
    seconds = trainer.seconds
    metrics["seconds"] = {
        "total": total,
        "generation": seconds["generation"],
        "training": seconds["training"],
        "other": max(0.0, total - seconds["generation"] - seconds["training"]),
        "plain_total": plain_seconds,
        "warm_start": warm_seconds,
    }
    _write(trainer, args, metrics, episodes)
    return metrics


def _check(
    run: RunArguments, args: SelfPlayConfig, model_args: ModelConfig
) -> tuple[list[str], str | None, SelfPlayConfig | None]:
    """Everything that can be known to be wrong before a model is loaded."""
    if run.dataset_name is not None:
        raise ValueError(f"dataset_name={run.dataset_name!r}: self-play takes no dataset; set games and max_steps.")
    games = check_games(run.games)
    for opponent in args.eval_opponents:
        check_player(opponent)
    for opponent in run.report_opponents:
        # One that can play none of the games is a mistake; one that can play some is measured in those
        if not any(can_play(opponent, game) for game in games):
            check_opponent(opponent, games[0])
    for name in ("report_pairs", "replays", "warm_start_steps"):
        if getattr(run, name) < (2 if name == "report_pairs" else 0):
            raise ValueError(f"{name} is {getattr(run, name)}, which is too few.")
    if not 0 < run.warm_start_learning_rate < 1:
        raise ValueError(
            f"warm_start_learning_rate is {run.warm_start_learning_rate}, but must be above 0 and below 1."
        )
    if not model_args.model_name_or_path:
        raise ValueError("model_name_or_path is missing; give a Hub id, a folder, or `embedded`.")
    asked: str | bool | None = args.resume_from_checkpoint
    if isinstance(asked, str) and asked.lower() in ("true", "false"):
        asked = asked.lower() == "true"
    resume = check_output_dir(args, asked, games)
    check_engine(args)
    check_reference(args, model_args.use_peft)
    check_opponents(args, games)
    held_out = check_held_out(args, games)
    if model_args.model_name_or_path == EMBEDDED:
        check_embedded_games([*games, *held_out], args.max_completion_length, run.embedded_reasoning)
        check_sizes(run.embedded_hidden_size, run.embedded_layers)
    else:
        with usage_errors(f"model_name_or_path={model_args.model_name_or_path!r}"):
            check_model_folder(model_args.model_name_or_path)
        _check_tokenizer(args, model_args)
    plain = _plain_config(run, args) if run.compare_plain else None
    return games, resume, plain


def _check_tokenizer(args: SelfPlayConfig, model_args: ModelConfig) -> None:
    """Loads the tokenizer alone: a wrong name, or a missing chat template, shows before the weights are read."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model_args.model_name_or_path,
            revision=model_args.model_revision,
            trust_remote_code=args.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"model_name_or_path={model_args.model_name_or_path!r}: {error}") from error
    check_chat_template(tokenizer, args.prompt_template)


def _plain_config(run: RunArguments, args: SelfPlayConfig) -> SelfPlayConfig:
    """The configuration of plain self-play: no magnet, the same budget, and what `plain_overrides` says."""
    plain = copy.copy(args)
    plain.beta, plain.sync_ref_model = 0.0, False
    plain.output_dir = str(Path(args.output_dir) / "plain")
    for name, value in (run.plain_overrides or {}).items():
        if name not in _PLAIN_FIELDS:
            raise ValueError(
                f"plain_overrides: {name} cannot be changed: the same budget without a magnet is compared. Allowed: "
                f"{', '.join(_PLAIN_FIELDS)}{did_you_mean(name, _PLAIN_FIELDS)}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ValueError(f"plain_overrides: {name} is {value!r}, but must be a number of at least 0.")
        setattr(plain, name, value)
    return plain


def _embedded_model(run: RunArguments, args: SelfPlayConfig, games: list[str], resumed: bool) -> tuple[str, float]:
    """Folder of the warm-started embedded model, made where a resumed run has not left it, and the seconds it took."""
    folder = Path(args.output_dir) / "warm_start"
    began = time.perf_counter()
    if not (resumed and (folder / "config.json").is_file()):
        if args.process_index == 0:
            save_tiny_model(
                folder,
                args.seed,
                run.embedded_hidden_size,
                run.embedded_layers,
                reasoning=run.embedded_reasoning,
                games=[*games, *check_held_out(args, games)],  # it has to read those too
            )
        args.distributed_state.wait_for_everyone()
        warm_start(
            folder,
            games,
            folder,
            args.seed,
            steps=run.warm_start_steps,
            learning_rate=run.warm_start_learning_rate,
            reasoning=run.embedded_reasoning,
        )
    return str(folder), time.perf_counter() - began


def _make_trainer(model: str, games: list[str], args: SelfPlayConfig, model_args: ModelConfig) -> SelfPlayTrainer:
    from trl import get_peft_config, get_quantization_config

    args = copy.copy(args)
    args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(args.model_init_kwargs or {}),
    }
    return SelfPlayTrainer(
        model=model,
        games=games,
        args=args,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )


def _replays(trainer: SelfPlayTrainer, run: RunArguments, args: SelfPlayConfig) -> list[Episode]:
    """Games of self-play to show, shared among the games."""
    shares = deal_games(run.replays, None, len(trainer.games))
    episodes: list[Episode] = []
    with trainer.generation():
        for g, game in enumerate(trainer.games):
            seeds = derive_seeds(args.seed, -2, np.flatnonzero(shares == g))
            players = [trainer.player] * make_game(game).num_players
            batch = play(game, players, seeds, illegal=args.illegal_moves, max_turns=args.max_turns)
            episodes += batch.episodes()
    return episodes


def _last(args: SelfPlayConfig) -> str | None:
    from .checkpoint import last_whole_checkpoint

    last = last_whole_checkpoint(args.output_dir)
    return None if last is None else str(last)


def _write(trainer: SelfPlayTrainer, args: SelfPlayConfig, metrics: dict[str, Any], episodes: list[Episode]) -> None:
    from ..hub.card import write_model_card
    from ..hub.report import write_report

    folder = Path(args.output_dir)
    trainer.save_model(str(folder))
    if trainer.accelerator.is_main_process:
        # A pickle that holds tokens and local paths, and nothing a reader of the model needs
        (folder / "training_args.bin").unlink(missing_ok=True)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        episodes_to_dataset(episodes).save_to_disk(folder / "episodes")
        write_report(metrics, episodes, folder / "report.html")
        write_model_card(metrics, folder / "README.md")
    trainer.accelerator.wait_for_everyone()
