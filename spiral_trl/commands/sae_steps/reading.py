"""What a step's model reads: episodes, games that it plays, or texts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UsageError
from ...players.frozen_model import model_name
from ..output import one_line, print_table


if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ...sae.dictionaries import Dictionary
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


class Reading:
    """What is read, and where it comes from: looked at before a model is loaded.

    Raises:
        [`~spiral_trl.errors.UsageError`]: With what is wrong.
    """

    def __init__(self, options: argparse.Namespace):
        from ...sae.sources import TextSource, read_episodes

        if (options.episodes is None) == (options.texts is None):
            raise UsageError("one of --episodes and --texts says what is read")
        check_least(options, max_length=2, max_tokens=1)
        self.source: dict[str, Any]
        if options.episodes is not None:
            self._episodes = read_episodes(options.episodes)
            self.source = {
                "kind": "episodes",
                "dataset": model_name(options.episodes),
                "games": len(self._episodes),
            }
            return
        self._texts = TextSource(
            options.texts,
            split=options.split,
            column=options.column,
            max_tokens=options.max_length,
            bos=options.bos,
            drop_first=options.drop_first,
        )
        self._texts.check()
        self._tokens = options.max_tokens
        self.source = {**self._texts.to_dict(), "tokens": options.max_tokens}

    def documents(self, tokenizer: PreTrainedTokenizerBase) -> Iterable[Document]:
        """Documents that can be read again and again."""
        from ...sae.documents import episode_documents

        if self.source["kind"] == "episodes":
            return list(episode_documents(self._episodes, tokenizer))
        return self._texts.documents(tokenizer, self._tokens)


def check_least(options: argparse.Namespace, **least: int) -> None:
    """Refuses numbers that are too small; those that were not given may be missing.

    Raises:
        [`~spiral_trl.errors.UsageError`]: With the option.
    """
    for name, low in least.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise UsageError(f"--{name.replace('_', '-')} has to be at least {low}, not {value}")


def check_folder(path: str | None, option: str) -> None:
    """Refuses a folder that could not be written.

    Raises:
        [`~spiral_trl.errors.UsageError`]: With what is in the way.
    """
    if path is None:
        return
    for part in (Path(path), *Path(path).parents):
        if part.exists():
            if not part.is_dir():
                raise UsageError(f"{option} {path} cannot be a folder: {part} is a file")
            return


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
        part_of = range(int(first), int(last or first) + 1)
        if not part_of:
            raise UsageError(f"--layers {text!r}: {part} ends before it begins")
        layers.update(part_of)
    return sorted(layers)


def codes_of(run: str | Path) -> Store:
    """The codes of a run: its folder `codes`, or itself.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there are none.
    """
    from ...sae.sources import check_dataset
    from ...sae.store import open_store

    folder = Path(run)
    if not folder.is_dir():
        check_dataset(str(folder.absolute()))
        raise UsageError(f"{run} is no folder of a run")
    return open_store(folder / "codes" if (folder / "codes").is_dir() else folder)


def dictionaries_of(store: Store, name: str, config: PreTrainedConfig | None = None) -> dict[int, Dictionary]:
    """The dictionaries of a store's layers.

    Args:
        config ([`~transformers.PreTrainedConfig`], *optional*): Of the model that they have to fit too.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If the store was collected with others.
    """
    from ...sae.dictionaries import check_dictionaries, load_dictionaries

    check_dictionaries(name, config, store.layers, any_model=True)
    loaded = load_dictionaries(name, layers=store.layers)
    for layer, dictionary in loaded.items():
        if store.about["layers"][str(layer)].get("fingerprint") != dictionary.fingerprint:
            raise UsageError(
                f"{store.folder} was collected with {store.about['layers'][str(layer)].get('dictionary')}, not with "
                f"{dictionary.name}, which is another dictionary of layer {layer}"
            )
    return loaded


def directions_of(dictionaries: Mapping[int, Dictionary]) -> dict[int, np.ndarray]:
    """Decoder directions of each layer."""
    return {layer: dictionary.directions.float().cpu().numpy() for layer, dictionary in dictionaries.items()}


def load_for(options: argparse.Namespace, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model to be read, and its tokenizer; see [`~spiral_trl.sae.sources.load_model`]."""
    from transformers.utils import logging

    from ...sae.sources import load_model

    shown = logging.is_progress_bar_enabled()
    if options.quiet:
        logging.disable_progress_bar()
    try:
        return load_model(name)
    finally:
        if shown:
            logging.enable_progress_bar()


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
    from ...sae.store import write_json

    if options.json is not None:
        write_json(options.json, result)


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
