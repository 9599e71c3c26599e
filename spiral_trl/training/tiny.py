"""The embedded model: a Qwen3 of about 20,000 parameters with a tokenizer of its own, for small games on one CPU core.

It is built from a configuration and a seed, so nothing is downloaded, and saves and loads as any other checkpoint. It
reads the compact observation of games, one line such as

```
player 0 card J history none
player 1 board X . . . O . . . .
```

and answers `J [bet]<|end|>`: the card it holds, where there is one, then the action. Restating the card matters at this
size: with replies of the action alone, a prototype learned play of Kuhn poker that hardly depended on the card.

Its vocabulary is that of Kuhn poker, in a fixed order, and then the words of the other games it is built for (see
[`~spiral_trl.training.compact`]), so that a model for Kuhn poker alone does not change when games are added.

[`warm_start`] teaches the format and nothing else, on uniformly random legal play. What to do with a card is left to
self-play.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from ..games.base import ActionSampler
from ..games.chance import derive_seeds, uniforms
from ..games.registry import canonical_name, make_game
from ..games.table import tabulate
from ..players.bots import RandomPlayer
from ..records import Turn
from ..rollout import play
from .compact import compact_form, compact_words


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# What recipes take for the name of a model and build instead
EMBEDDED = "embedded"

SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|unk|>")
ACTIONS = ("[check]", "[bet]", "[call]", "[fold]")
OBSERVATION_WORDS = ("player", "0", "1", "card", "J", "Q", "K", "history", "none", "check", "bet", "call", "fold")
REASONING_WORDS = ("hmm", "maybe", "i", "think", "so", "weak", "strong", "bluff")
MAX_REASONING_WORDS = 6

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}<|assistant|> {{ message.content }}<|end|> "
    "{% else %}<|user|> {{ message.content }} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)

_ROWS_PER_STEP = 48
_POSITIONS = 128
# Random games that show the turns of a game without a table, and turns after which one is cut
_RANDOM_GAMES, _RANDOM_TURNS = 1000, 1000
# Keeps their deals apart from those of training and evaluation
_WARM_START = -3


def check_sizes(hidden_size: int, num_layers: int) -> None:
    """Refuses sizes that [`build_tiny_model`] cannot build."""
    if hidden_size < 8 or hidden_size % 8:
        raise ValueError(f"hidden_size={hidden_size}, but it must be a positive multiple of 8.")
    if num_layers < 1:
        raise ValueError(f"num_layers={num_layers}, but it must be at least 1.")


def build_tiny_model(
    seed: int,
    hidden_size: int = 32,
    num_layers: int = 2,
    reasoning: bool = False,
    games: Sequence[str] = (),
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Builds the embedded model and its tokenizer.

    Args:
        seed (`int`): Seed of the weights. The global random state is left as it was.
        hidden_size (`int`, *optional*, defaults to `32`): Width; a multiple of 8, for 4 heads of even size.
        num_layers (`int`, *optional*, defaults to `2`): Number of layers.
        reasoning (`bool`, *optional*, defaults to `False`): Whether the vocabulary has [`REASONING_WORDS`], so that
            replies can have words before the action.
        games (`Sequence[str]`, *optional*): Games beside Kuhn poker whose words the vocabulary has, such as
            `"tic_tac_toe(observation=compact)"`.

    Returns:
        `tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]`: The model in float32, and its tokenizer.

    Raises:
        `ValueError`: If `hidden_size` is not a positive multiple of 8, `num_layers` is below 1, or a game has no compact
            form that the model can read.
    """
    check_sizes(hidden_size, num_layers)
    tokenizer = _build_tokenizer(reasoning, games)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden_size // 4,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=False,
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    return model, tokenizer


def _build_tokenizer(reasoning: bool, games: Sequence[str]) -> PreTrainedTokenizerFast:
    words = (*SPECIAL_TOKENS, *ACTIONS, *OBSERVATION_WORDS, *(REASONING_WORDS if reasoning else ()))
    words = (*words, *compact_words(games, words))
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|unk|>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        unk_token="<|unk|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=max(_POSITIONS, *(-(-needed_positions(game, reasoning) // 64) * 64 for game in games), 0),
        clean_up_tokenization_spaces=False,
    )


def reply_length(game: str, reasoning: bool = False) -> int:
    """Most tokens of the embedded model's replies with a legal action of `game`, the end included."""
    return compact_form(game).reply + 1 + (MAX_REASONING_WORDS if reasoning else 0)


def needed_positions(game: str, reasoning: bool = False) -> int:
    """Most tokens of a prompt of `game`, with the template's two, and the longest legal reply."""
    return 2 + compact_form(game).prompt + reply_length(game, reasoning)


def save_tiny_model(
    folder: str | Path,
    seed: int,
    hidden_size: int = 32,
    num_layers: int = 2,
    reasoning: bool = False,
    games: Sequence[str] = (),
) -> Path:
    """Saves a fresh embedded model and its tokenizer; see [`build_tiny_model`] for the arguments.

    Returns:
        `Path`: `folder`, which `AutoModelForCausalLM` and `AutoTokenizer` load.
    """
    model, tokenizer = build_tiny_model(seed, hidden_size, num_layers, reasoning, games)
    with _no_progress_bars():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return Path(folder)


def random_play_dataset(games: str | Sequence[str], rows: int, seed: int, reasoning: bool = False) -> Dataset:
    """Replies that choose at random among the legal actions, for teaching a model the format of its replies.

    Args:
        games (`str` or `Sequence[str]`): Names of games, which take the rows in turn.
        rows (`int`): Number of rows. Each takes one of the game's distinct turns, uniformly, whatever the
            probability that play reaches it: all of them where [`~spiral_trl.games.table.tabulate`] can tabulate the
            game, else those that 1,000 random games show.
        seed (`int`): Seed of the choices.
        reasoning (`bool`, *optional*, defaults to `False`): Whether 0 to [`MAX_REASONING_WORDS`] random words, each
            length as likely as any other, stand before the answer.

    Returns:
        [`~datasets.Dataset`]: Columns `prompt` and `completion`, both chats. Legal actions are equally likely; where
        actions are free text, they are what the game's own sampler draws.

    Raises:
        `ValueError`: If a game is unknown, or the random player cannot play it.
    """
    from datasets import Dataset

    names = [canonical_name(game) for game in ([games] if isinstance(games, str) else games)]
    turns = [_turns(game, seed) for game in names]
    # (rows, 3 + words + 8): turn, action, number of words, the words, and what a game's own sampler draws from
    draws = uniforms(seed, np.arange(rows)[:, None], np.arange(3 + MAX_REASONING_WORDS + 8))
    prompts, completions = [], []
    for row, draw in enumerate(draws):
        choice = turns[row % len(names)]
        turn = choice[int(draw[0] * len(choice))]
        length = int(draw[2] * (MAX_REASONING_WORDS + 1)) if reasoning else 0
        words = [REASONING_WORDS[int(u * len(REASONING_WORDS))] for u in draw[3 : 3 + length]]
        if turn.legal_actions:
            action = turn.legal_actions[int(draw[1] * len(turn.legal_actions))]
        else:
            assert isinstance(turn.state, ActionSampler)
            action = turn.state.sample_action(draw[3 + MAX_REASONING_WORDS :].tolist())
        answer = completion_text(turn, action)
        prompts.append([dict(message) for message in turn.messages])
        completions.append([{"role": "assistant", "content": " ".join([*words, answer])}])
    return Dataset.from_dict({"prompt": prompts, "completion": completions})


def _turns(game: str, seed: int) -> Sequence[Turn]:
    """Distinct turns of a game: all, or those that random play comes to."""
    table = tabulate(game)
    if table is not None:
        return table.turns
    player = RandomPlayer()
    seeds = derive_seeds(seed, _WARM_START, np.arange(_RANDOM_GAMES))
    batch = play(game, [player] * make_game(game).num_players, seeds, max_turns=_RANDOM_TURNS)
    distinct = {(step.turn.player, step.turn.messages[-1]["content"]): step.turn for step in batch.samples}
    return list(distinct.values())


def completion_text(turn: Turn, action: str) -> str:
    """The embedded model's reply to `turn`: the card that the newest message shows, if any, and the action.

    `J [bet]` for the action `bet` or `[bet]` at `player 0 card J history none`.
    """
    words = turn.messages[-1]["content"].split()
    card = words[words.index("card") + 1 : words.index("card") + 2] if "card" in words else []
    return " ".join([*card, action if action.startswith("[") else f"[{action}]"])


def warm_start(
    model: str | Path | PreTrainedModel,
    games: str | Sequence[str],
    output_dir: str | Path,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    steps: int = 150,
    learning_rate: float = 1e-2,
    reasoning: bool = False,
) -> Path:
    """Teaches the embedded model to answer in its format with a legal action, each equally likely; no strategy.

    Runs [`~trl.SFTTrainer`] on [`random_play_dataset`], with the loss on completions only. Equal arguments give equal
    weights. Under a launcher of several processes, call it on all of them.

    Args:
        model (`str`, `Path` or [`~transformers.PreTrainedModel`]): Folder of the model, or the model. A model given
            as an object is trained in place and keeps the trainer's patched `forward`: load it again from
            `output_dir` for further use.
        games (`str` or `Sequence[str]`): Names of the games, which take rows in turn.
        output_dir (`str` or `Path`): Where the trained model and its tokenizer are saved.
        seed (`int`): Seed of the data and its order.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): Needed where `model` is an object.
        steps (`int`, *optional*, defaults to `150`): Optimiser steps, of 48 rows each over all processes.
        learning_rate (`float`, *optional*, defaults to `1e-2`): Learning rate at the start; decays linearly to 0.
        reasoning (`bool`, *optional*, defaults to `False`): Whether replies have words before the answer.

    Returns:
        `Path`: `output_dir`. On Kuhn poker with the defaults, about 0.5% of the probability at each turn lies on illegal replies; with
        `reasoning`, about 2.5%, and about 1.5% after 250 steps.

    Raises:
        `ValueError`: If the tokenizer lacks a word of a game or of its replies.
    """
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    if isinstance(model, str | Path):
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(model)
        with _no_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(model)
    elif tokenizer is None:
        raise ValueError("A model given as an object needs its tokenizer: pass tokenizer=...")
    dataset = random_play_dataset(games, steps * _ROWS_PER_STEP, seed, reasoning)
    _check_words(dataset, tokenizer, games)

    world_size = int(os.environ.get("WORLD_SIZE", 1))
    args = SFTConfig(
        output_dir=str(output_dir),
        max_steps=steps,
        per_device_train_batch_size=max(1, _ROWS_PER_STEP // world_size),
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_length=tokenizer.model_max_length,
        completion_only_loss=True,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=not torch.accelerator.is_available(),
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    with _no_progress_bars():
        trainer = SFTTrainer(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        # Not trainer.save_model(): it adds training_args.bin, a pickle.
        if trainer.accelerator.is_main_process:
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(output_dir)
            tokenizer.save_pretrained(output_dir)
    trainer.accelerator.wait_for_everyone()
    return Path(output_dir)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Bars over one file or a second of work only hide what a run prints."""
    import datasets

    of_models, of_data = logging.is_progress_bar_enabled(), datasets.is_progress_bar_enabled()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if of_models:
            logging.enable_progress_bar()
        if of_data:
            datasets.enable_progress_bars()


def _check_words(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, games: str | Sequence[str]) -> None:
    texts = {message["content"] for column in ("prompt", "completion") for row in dataset[column] for message in row}
    words = sorted({word for text in texts for word in text.split()} - set(tokenizer.get_vocab()))
    if words:
        shown = ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")
        raise ValueError(
            f"The embedded model does not know these words of {games!r} or of the replies to it: {shown}. It reads "
            "games with observation=compact that it was built for, and Kuhn poker; replies with reasoning need a model "
            "built with reasoning=True."
        )
