"""Supervised fine-tuning on expert decisions: the baseline that self-play is compared with.

The data are a set that `spiral-trl experts` made, any conversational prompt-completion set, or one that is made here;
the training is [`~trl.SFTTrainer`]'s.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import UsageError, usage_errors
from ..experts.collect import STATE, ExpertSettings, load_decisions, make_decisions, seat_players
from ..players.language_model import LanguageModelPlayer, check_chat_template
from .checks import can_play, check_games, check_model_folder, check_opponent
from .measure import measure, results_by_seat
from .tiny import EMBEDDED, check_sizes, completion_text, reply_length, save_tiny_model


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase
    from trl import ModelConfig, SFTConfig, SFTTrainer


@dataclass
class SFTArguments:
    r"""
    What to train on, and what is measured.

    Parameters:
        dataset_name (`str`, *optional*):
            A folder that `spiral-trl experts` wrote, or a conversational prompt-completion set on the Hub. By default
            the set is made here, from the fields below.
        games (`list[str]`, *optional*, defaults to `["kuhn_poker"]`):
            Games of a set that is made here, and games that the model is measured in.
        expert (`str`, *optional*, defaults to `"solver"`), opponent (`str`, *optional*), keep (`str`, *optional*),
        decisions (`int`, *optional*, defaults to `25000`), rationale (`bool`, *optional*, defaults to `False`),
        think (`bool`, *optional*, defaults to `False`), boxed (`bool`, *optional*, defaults to `False`):
            See [`~spiral_trl.experts.collect.ExpertSettings`]. The embedded model's replies have a form of their own,
            without reasons.
        embedded_hidden_size (`int`, *optional*, defaults to `32`), embedded_layers (`int`, *optional*, defaults to `2`):
            Size of the embedded model, used where `model_name_or_path` is `embedded`.
        report_opponents (`list[str]`, *optional*, defaults to `["random", "cfr"]`):
            Players the trained model is measured against, in those games that they can play.
        report_pairs (`int`, *optional*, defaults to `1000`):
            Deals played against each of them, each from both seats; 0 measures nothing.
        report_max_new_tokens (`int`, *optional*, defaults to `256`):
            Longest reply in tokens when the model is measured.
    """

    dataset_name: str | None = field(default=None, metadata={"help": "Folder or Hub id of the data."})
    games: list[str] = field(default_factory=lambda: ["kuhn_poker"], metadata={"help": "Games to learn and measure."})
    expert: str = field(default="solver", metadata={"help": "Who makes the data."})
    opponent: str | None = field(default=None, metadata={"help": "Who plays the other seats; by default the expert."})
    keep: str | None = field(default=None, metadata={"help": "Whose decisions are kept: all or winners."})
    decisions: int = field(default=25_000, metadata={"help": "Decisions to make."})
    rationale: bool = field(default=False, metadata={"help": "Whether a solver writes its reasons."})
    think: bool = field(default=False, metadata={"help": "Whether the reasons stand in <think>...</think>."})
    boxed: bool = field(default=False, metadata={"help": "Whether a solver writes \\boxed{action}."})
    embedded_hidden_size: int = field(default=32, metadata={"help": "Hidden size of the embedded model."})
    embedded_layers: int = field(default=2, metadata={"help": "Layers of the embedded model."})
    report_opponents: list[str] = field(
        default_factory=lambda: ["random", "cfr"], metadata={"help": "Players to measure against."}
    )
    report_pairs: int = field(default=1000, metadata={"help": "Deals against each of them, from both seats."})
    report_max_new_tokens: int = field(default=256, metadata={"help": "Longest reply when the model is measured."})


def run_sft(script: SFTArguments, args: SFTConfig, model_args: ModelConfig) -> dict[str, Any]:
    """Trains on expert decisions, measures, and writes the output folder: the model, TRL's card and `measured.json`.

    Args:
        script ([`SFTArguments`]): The data and what is measured.
        args ([`~trl.SFTConfig`]): Training configuration.
        model_args ([`~trl.ModelConfig`]): The model; `model_name_or_path: embedded` builds the embedded one.

    Returns:
        `dict`: What `measured.json` holds.

    Raises:
        [`~spiral_trl.errors.UsageError`]: For bad input, before a model is loaded.
    """
    from trl import SFTTrainer, get_peft_config

    embedded = model_args.model_name_or_path == EMBEDDED
    with usage_errors():
        games = _check(script, args, model_args)
        dataset = _dataset(script, games, args.seed, embedded)
    assert model_args.model_name_or_path is not None and args.output_dir is not None
    model = model_args.model_name_or_path
    if embedded:
        model = str(Path(args.output_dir) / "untrained")
        if args.process_index == 0:
            save_tiny_model(model, args.seed, script.embedded_hidden_size, script.embedded_layers, games=games)
        args.distributed_state.wait_for_everyone()
    args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **cast("dict[str, Any]", args.model_init_kwargs or {}),
    }
    began = time.perf_counter()
    try:
        trainer = SFTTrainer(model=model, args=args, train_dataset=dataset, peft_config=get_peft_config(model_args))
    except OSError as error:
        raise UsageError(f"model_name_or_path={model!r}: {error}") from error
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds = time.perf_counter() - began
    trainer.save_model(args.output_dir)
    # Every process plays the same games, as the model may be sharded over them
    told = {
        "games": games,
        "rows": len(dataset),
        "seconds": seconds,
        "seed": args.seed,
        "by_game": _measured(script, trainer, games, args.seed, embedded) if script.report_pairs else {},
    }
    if trainer.accelerator.is_main_process:
        folder = Path(args.output_dir)
        # A pickle that holds tokens and local paths, and nothing a reader of the model needs
        (folder / "training_args.bin").unlink(missing_ok=True)
        (folder / "measured.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        trainer.create_model_card(dataset_name=_shown_dataset(script), tags=["spiral-trl"])
    trainer.accelerator.wait_for_everyone()
    return told


def _shown_dataset(script: SFTArguments) -> str | None:
    """A set on the Hub; a folder says nothing to others."""
    name = script.dataset_name
    return None if name is None or Path(name).exists() else name


def _check(script: SFTArguments, args: SFTConfig, model_args: ModelConfig) -> list[str]:
    games = check_games(script.games)
    if script.report_pairs and script.report_pairs < 2:
        raise ValueError(f"report_pairs is {script.report_pairs}, but must be at least 2, or 0 to measure nothing.")
    for opponent in script.report_opponents if script.report_pairs else ():
        if not any(can_play(opponent, game) for game in games):
            check_opponent(opponent, games[0])
    name = model_args.model_name_or_path
    if not name:
        raise ValueError("model_name_or_path is missing; give a Hub id, a folder, or `embedded`.")
    if name == EMBEDDED:
        check_sizes(script.embedded_hidden_size, script.embedded_layers)
        if script.rationale or script.boxed:
            raise ValueError("The embedded model knows no words to reason with: leave out rationale and boxed.")
        for game in games:
            reply_length(game)  # refuses games without a compact form
    else:
        with usage_errors(f"model_name_or_path={name!r}"):
            check_model_folder(name)
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(name, revision=model_args.model_revision)
        except (OSError, ValueError) as error:
            raise ValueError(f"model_name_or_path={name!r}: {error}") from error
        if args.chat_template_path is None:
            check_chat_template(tokenizer)
    output = Path(args.output_dir or "")
    if (output / "measured.json").exists() and not args.resume_from_checkpoint:
        raise ValueError(f"{args.output_dir} holds another run; choose another output_dir.")
    return games


def _dataset(script: SFTArguments, games: list[str], seed: int, embedded: bool) -> Dataset:
    if script.dataset_name is None:
        settings = ExpertSettings(
            games=tuple(games),
            expert=script.expert,
            decisions=script.decisions,
            opponent=script.opponent,
            keep=script.keep,
            rationale=script.rationale,
            think=script.think,
            boxed=script.boxed,
            seed=seed,
        )
        return make_decisions(settings, seat_players(settings, render=completion_text if embedded else None))
    if (Path(script.dataset_name) / STATE).is_file():
        return load_decisions(script.dataset_name)
    from datasets import load_dataset

    try:
        return load_dataset(script.dataset_name, split="train")
    except Exception as error:  # of many kinds, by what is wrong with the name, the folder or the network
        raise ValueError(f"dataset_name={script.dataset_name!r}: {error}") from error


def _measured(
    script: SFTArguments, trainer: SFTTrainer, games: list[str], seed: int, embedded: bool
) -> dict[str, Any]:
    model = trainer.accelerator.unwrap_model(trainer.model)
    told = {}
    for game in games:
        tokens = reply_length(game) if embedded else script.report_max_new_tokens
        tokenizer = cast("PreTrainedTokenizerBase", trainer.processing_class)
        player = LanguageModelPlayer(model, tokenizer, max_new_tokens=tokens)
        measured = measure(player, game, None, seed)
        opponents = [name for name in script.report_opponents if can_play(name, game)]
        told[game] = {
            "exploitability": measured.value,
            "method": measured.exploitability.method,
            "unit": measured.exploitability.unit,
            "illegal_move_rate": measured.exploitability.illegal_rate,
            "results": results_by_seat(player, game, opponents, script.report_pairs, seed),
        }
    return told
