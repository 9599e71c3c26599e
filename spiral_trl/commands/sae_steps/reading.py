"""What a step's model reads: episodes, games that it plays, or texts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UsageError, usage_errors
from ...players.frozen_model import check_model, model_name
from ..loading import check_file
from ..output import one_line, print_table


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...sae.documents import Document
    from ...sae.store import Store


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """`--episodes`, or `--texts` and what belongs to it."""
    parser.add_argument(
        "--episodes", metavar="DATASET", help="games to read: a folder of episodes, or an id on the Hub"
    )
    parser.add_argument("--texts", metavar="DATASET", help="texts to read: a file, a folder, or an id on the Hub")
    parser.add_argument("--split", default="train", help="split of the texts (default: train)")
    parser.add_argument("--column", default="text", help="their column (default: text)")
    parser.add_argument("--max-length", type=int, default=256, help="tokens of a text's document (default: 256)")
    parser.add_argument(
        "--bos", action=argparse.BooleanOptionalAction, help="begin texts with the tokenizer's BOS token"
    )
    parser.add_argument("--drop-first", action="store_true", help="do not keep position 0 of texts")
    parser.add_argument("--max-tokens", type=int, help="read so many tokens of texts")


def check_reading(options: argparse.Namespace, model: str | None) -> None:
    """Refuses what could not be read, before a model is loaded.

    Raises:
        [`~spiral_trl.errors.UsageError`]: With what is wrong.
    """
    with usage_errors():
        if model is not None:
            check_model(model)
        check_file(options.json, "--json")
    if (options.episodes is None) == (options.texts is None):
        raise UsageError("one of --episodes and --texts says what is read")
    for name, low in (("max_length", 2), ("max_tokens", 1)):
        value = getattr(options, name)
        if value is not None and value < low:
            raise UsageError(f"--{name.replace('_', '-')} has to be at least {low}, not {value}")
    for given in (options.episodes, options.texts):
        if given is not None and given.startswith((".", "/", "~")) and not Path(given).exists():
            raise UsageError(f"{given} does not exist")


class Reading:
    """Documents that can be read again, and where they come from."""

    def __init__(self, options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase):
        from ...sae.documents import episode_documents
        from ...sae.sources import TextSource, read_episodes

        self.documents: Iterable[Document]
        if options.episodes is not None:
            episodes = read_episodes(options.episodes)
            self.documents = list(episode_documents(episodes, tokenizer))
            self.source = {"kind": "episodes", "dataset": model_name(options.episodes), "games": len(episodes)}
            return
        texts = TextSource(
            options.texts,
            split=options.split,
            column=options.column,
            max_tokens=options.max_length,
            bos=options.bos,
            drop_first=options.drop_first,
        )
        self.documents = texts.documents(tokenizer, options.max_tokens)
        self.source = {**texts.to_dict(), "tokens": options.max_tokens}


def layers_of(text: str | None) -> list[int] | None:
    """Layers of `0,3-5`.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If they are not so written.
    """
    if text is None:
        return None
    layers: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise UsageError(f"--layers {text!r}: layers are written as 0,3-5")
        layers.update(range(int(first), int(last or first) + 1))
    return sorted(layers)


def codes_of(run: str | Path) -> Store:
    """The codes of a run: its folder `codes`, or itself.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there are none.
    """
    from ...sae.store import open_store

    folder = Path(run)
    if not folder.is_dir():
        raise UsageError(f"the folder {run} does not exist")
    return open_store(folder / "codes" if (folder / "codes").is_dir() else folder)


@contextmanager
def bar(title: str, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar that is told what is done, of how much, and what."""
    from huggingface_hub.utils import tqdm

    shown = tqdm(desc=title, leave=False, disable=quiet or not sys.stderr.isatty())

    def progress(done: int, total: int, what: str) -> None:
        shown.total = total
        shown.set_postfix_str(what, refresh=False)
        shown.update(done - shown.n)

    with shown:
        yield progress


def write_result(options: argparse.Namespace, result: Mapping[str, Any]) -> None:
    """What `--json` asked for."""
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def print_tables(found: Mapping[str, Any]) -> None:
    """A summary and its tables."""
    print(one_line(found["summary"]))
    for table in found["tables"]:
        print()
        rows = [[_cell(cell) for cell in row] for row in table["rows"]]
        print_table(table["title"], [str(column) for column in table["columns"]], rows)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)
