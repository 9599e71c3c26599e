"""The embedded model: a Qwen3 of about 20,000 parameters with a tokenizer of its own, for Kuhn poker on one CPU core.

It is built from a configuration and a seed, so nothing is downloaded, and saves and loads as any other checkpoint. It
reads the observation of `kuhn_poker(observation=compact)`, one line such as

```
player 0 card J history none
player 0 card Q history check bet
```

and answers `J [bet]<|end|>`: the card it holds, then the action. Restating the card matters at this size: with replies
of the action alone, a prototype learned play that hardly depended on the card.

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

from ..games.chance import uniforms
from ..games.table import tabulate
from ..records import Turn


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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


def check_sizes(hidden_size: int, num_layers: int) -> None:
    """Refuses sizes that [`build_tiny_model`] cannot build."""
    if hidden_size < 8 or hidden_size % 8:
        raise ValueError(f"hidden_size={hidden_size}, but it must be a positive multiple of 8.")
    if num_layers < 1:
        raise ValueError(f"num_layers={num_layers}, but it must be at least 1.")


def build_tiny_model(
    seed: int, hidden_size: int = 32, num_layers: int = 2, reasoning: bool = False
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Builds the embedded model and its tokenizer.

    Args:
        seed (`int`): Seed of the weights. The global random state is left as it was.
        hidden_size (`int`, *optional*, defaults to `32`): Width; a multiple of 8, for 4 heads of even size.
        num_layers (`int`, *optional*, defaults to `2`): Number of layers.
        reasoning (`bool`, *optional*, defaults to `False`): Whether the vocabulary has [`REASONING_WORDS`], so that
            replies can have words before the action.

    Returns:
        `tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]`: The model in float32, and its tokenizer.

    Raises:
        `ValueError`: If `hidden_size` is not a positive multiple of 8, or `num_layers` is below 1.
    """
    check_sizes(hidden_size, num_layers)
    tokenizer = _build_tokenizer(reasoning)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden_size // 4,
        max_position_embeddings=128,
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


def _build_tokenizer(reasoning: bool) -> PreTrainedTokenizerFast:
    words = (*SPECIAL_TOKENS, *ACTIONS, *OBSERVATION_WORDS, *(REASONING_WORDS if reasoning else ()))
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
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )


def save_tiny_model(
    folder: str | Path, seed: int, hidden_size: int = 32, num_layers: int = 2, reasoning: bool = False
) -> Path:
    """Saves a fresh embedded model and its tokenizer; see [`build_tiny_model`] for the arguments.

    Returns:
        `Path`: `folder`, which `AutoModelForCausalLM` and `AutoTokenizer` load.
    """
    model, tokenizer = build_tiny_model(seed, hidden_size, num_layers, reasoning)
    with _no_progress_bars():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return Path(folder)


def random_play_dataset(game: str, rows: int, seed: int, reasoning: bool = False) -> Dataset:
    """Replies that choose uniformly among the legal actions, for teaching a model the format of its replies.

    Args:
        game (`str`): Name of a game that [`~spiral_trl.games.table.tabulate`] can tabulate.
        rows (`int`): Number of rows. Each takes one of the game's distinct turns, uniformly, whatever the
            probability that play reaches it.
        seed (`int`): Seed of the choices.
        reasoning (`bool`, *optional*, defaults to `False`): Whether 0 to [`MAX_REASONING_WORDS`] random words, each
            length as likely as any other, stand before the answer.

    Returns:
        [`~datasets.Dataset`]: Columns `prompt` and `completion`, both chats.

    Raises:
        `ValueError`: If the game has no table of turns with legal actions.
    """
    from datasets import Dataset

    turns = _turns(game)
    # (rows, 3 + words): turn, action, number of words, the words
    draws = uniforms(seed, np.arange(rows)[:, None], np.arange(3 + MAX_REASONING_WORDS))
    prompts, completions = [], []
    for draw in draws:
        turn = turns[int(draw[0] * len(turns))]
        legal = turn.legal_actions or ()
        length = int(draw[2] * (MAX_REASONING_WORDS + 1)) if reasoning else 0
        words = [REASONING_WORDS[int(u * len(REASONING_WORDS))] for u in draw[3 : 3 + length]]
        answer = completion_text(turn, legal[int(draw[1] * len(legal))])
        prompts.append([dict(message) for message in turn.messages])
        completions.append([{"role": "assistant", "content": " ".join([*words, answer])}])
    return Dataset.from_dict({"prompt": prompts, "completion": completions})


def _turns(game: str) -> Sequence[Turn]:
    table = tabulate(game)
    if table is None:
        raise ValueError(
            f"The game {game!r} has too many positions to list, simultaneous turns or free-text actions. The embedded "
            "model learns its format from small games with listed actions, such as 'kuhn_poker(observation=compact)'."
        )
    return table.turns


def completion_text(turn: Turn, action: str) -> str:
    """The embedded model's reply to `turn`: the card that the newest message shows, if any, and the action.

    `J [bet]` for the action `bet` or `[bet]` at `player 0 card J history none`.
    """
    words = turn.messages[-1]["content"].split()
    card = words[words.index("card") + 1 : words.index("card") + 2] if "card" in words else []
    return " ".join([*card, action if action.startswith("[") else f"[{action}]"])


def warm_start(
    model: str | Path | PreTrainedModel,
    game: str,
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
        game (`str`): Name of the game.
        output_dir (`str` or `Path`): Where the trained model and its tokenizer are saved.
        seed (`int`): Seed of the data and its order.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): Needed where `model` is an object.
        steps (`int`, *optional*, defaults to `150`): Optimiser steps, of 48 rows each over all processes.
        learning_rate (`float`, *optional*, defaults to `1e-2`): Learning rate at the start; decays linearly to 0.
        reasoning (`bool`, *optional*, defaults to `False`): Whether replies have words before the answer.

    Returns:
        `Path`: `output_dir`. With the defaults, about 0.5% of the probability at each turn lies on illegal replies; with
        `reasoning`, about 2.5%, and about 1.5% after 250 steps.

    Raises:
        `ValueError`: If the tokenizer lacks a word of the game or of its replies.
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
    dataset = random_play_dataset(game, steps * _ROWS_PER_STEP, seed, reasoning)
    _check_words(dataset, tokenizer, game)

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


def _check_words(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, game: str) -> None:
    texts = {message["content"] for column in ("prompt", "completion") for row in dataset[column] for message in row}
    words = sorted({word for text in texts for word in text.split()} - set(tokenizer.get_vocab()))
    if words:
        shown = ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")
        raise ValueError(
            f"The embedded model does not know these words of {game!r} or of the replies to it: {shown}. It reads "
            "'kuhn_poker(observation=compact)'; replies with reasoning need a model built with reasoning=True."
        )
