"""What SAE commands name: a model, and the games or texts that it reads. Names are checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError, did_you_mean, usage_errors
from ..games import make_game
from ..games.chance import derive_seeds
from ..games.registry import canonical_name
from ..players import frozen_model
from ..players.frozen_model import ModelSettings, load_causal_lm, model_name
from ..records import Episode, dataset_to_episodes, episodes_to_dataset
from ..rollout import play
from .documents import Document, text_documents, text_of


if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Keeps the deals of games that are played to be read apart from those of training, evaluation and reports
_DEALS = -7
# Files of texts, and what `datasets` calls them
_FILES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}


def load_model(name: str, revision: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model to be read, in evaluation mode, on the GPU where there is one, and its tokenizer.

    Args:
        name (`str`): A folder, with a whole model or a PEFT adapter, or an id on the Hub.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there is none.
    """
    with usage_errors():
        return load_causal_lm(name, ModelSettings(revision=revision))


def load_config(name: str, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a model, without its weights: what autoencoders have to fit.

    Args:
        name (`str`), revision (`str`, *optional*): As [`load_model`] takes them.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there is none.
    """
    with usage_errors():
        return frozen_model.load_config(name, revision)


def check_dataset(name: str) -> None:
    """Refuses what is meant for a file or folder, and is none.

    Raises:
        [`~spiral_trl.errors.UsageError`]: With the nearest name.
    """
    path = Path(name).expanduser()
    if path.exists() or not (name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix in _FILES):
        return
    beside = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UsageError(f"{name} does not exist{did_you_mean(path.name, beside)}")


def play_to_read(
    model: str, games: Sequence[str], count: int, seed: int, folder: str | Path, max_new_tokens: int = 256
) -> list[Episode]:
    """Games of a model against itself, shared among `games`; kept in a folder, and read from there the next time.

    Two models that play with one seed are dealt the same cards.

    Args:
        model (`str`): Folder or id of the model.
        games (`Sequence[str]`): Names of games.
        count (`int`): Games altogether.
        seed (`int`): Seed of deals and replies.
        folder (`str` or `Path`): Where they are kept, as a dataset.
        max_new_tokens (`int`, *optional*, defaults to `256`): Longest reply.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If a game is unknown, or the model cannot be loaded.
    """
    from ..players.registry import make_player

    folder = Path(folder)
    if (folder / "dataset_info.json").is_file():
        return read_episodes(str(folder))
    with usage_errors():
        names = [canonical_name(game) for game in games]
        player = make_player(model, ModelSettings(max_new_tokens=max_new_tokens))
    episodes: list[Episode] = []
    for number, (name, part) in enumerate(zip(names, np.array_split(np.arange(count), len(names)), strict=True)):
        seats = make_game(name).num_players
        episodes += play(name, [player] * seats, derive_seeds(seed, _DEALS, number, part)).episodes()
    folder.parent.mkdir(parents=True, exist_ok=True)
    episodes_to_dataset(episodes).save_to_disk(folder)
    return episodes


def read_episodes(name: str) -> list[Episode]:
    """Episodes of a dataset: a folder that `save_to_disk` wrote, such as `episodes/` of a run, or an id on the Hub.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there is none, it is empty, or it holds no episodes.
    """
    import datasets

    check_dataset(name)
    folder = Path(name).expanduser()
    try:
        if folder.is_dir():
            found = datasets.load_from_disk(str(folder))
            data = found if isinstance(found, datasets.Dataset) else next(iter(found.values()))
        else:
            data = datasets.load_dataset(name, split="train")
        episodes = dataset_to_episodes(data)
    except (OSError, ValueError, KeyError, TypeError, datasets.exceptions.DatasetNotFoundError) as error:
        raise UsageError(f"{name} holds no episodes: {error}") from error
    except IndexError:
        # How datasets reads the folder of an empty one
        episodes = []
    if not episodes:
        raise UsageError(f"{name} holds no episodes: it is empty")
    return episodes


@dataclass(frozen=True)
class TextSource:
    """A text dataset on the Hub or in files.

    Args:
        name (`str`): An id on the Hub, or a folder or file (`.jsonl`, `.json`, `.parquet`, `.csv`, `.txt`).
        config (`str`, *optional*): Its configuration.
        split (`str`, *optional*, defaults to `"train"`): Its split.
        column (`str`, *optional*, defaults to `"text"`): The column that holds the text.
        max_tokens (`int`, *optional*, defaults to `256`): Tokens of a document at most.
        bos (`bool`, *optional*), drop_first (`bool`, *optional*, defaults to `False`): See
            [`~spiral_trl.sae.documents.text_documents`].
    """

    name: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    max_tokens: int = 256
    bos: bool | None = None
    drop_first: bool = False

    def check(self) -> None:
        """Reads the first row.

        Raises:
            [`~spiral_trl.errors.UsageError`]: If the dataset cannot be loaded, is empty, or has no such column.
        """
        import datasets

        rows = self._rows()
        try:
            row = next(iter(rows), None)
        except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
            raise UsageError(f"the dataset {self.name!r} cannot be read: {error}") from error
        if row is None:
            raise UsageError(f"the dataset {self.name!r} is empty")
        text_of(row, self.column, 0)

    def documents(self, tokenizer: PreTrainedTokenizerBase, tokens: int | None = None) -> Documents:
        """Documents of the texts, until they have `tokens` tokens; streamed, anew each time they are read."""
        return Documents(self, tokenizer, tokens)

    def _rows(self) -> Iterable[Mapping[str, Any]]:
        import datasets

        check_dataset(self.name)
        path = Path(self.name).expanduser()
        try:
            if path.is_file():
                if path.suffix not in _FILES:
                    raise UsageError(f"{path} has to end with one of {', '.join(_FILES)}")
                return datasets.load_dataset(_FILES[path.suffix], data_files=str(path), split="train", streaming=True)
            if (path / "dataset_info.json").is_file():
                return datasets.load_from_disk(str(path))
            return datasets.load_dataset(self.name, self.config, split=self.split, streaming=True)
        except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
            raise UsageError(f"the dataset {self.name!r} cannot be loaded: {error}") from error
        except StopIteration:
            # How datasets reads a file without a row
            raise UsageError(f"the dataset {self.name!r} is empty") from None

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "text",
            "dataset": model_name(self.name),
            "config": self.config,
            "split": self.split,
            "column": self.column,
            "max_tokens": self.max_tokens,
            "bos": self.bos,
            "drop_first": self.drop_first,
        }


@dataclass(frozen=True)
class Documents:
    """Documents of texts that can be read again and again; see [`TextSource.documents`]."""

    texts: TextSource
    tokenizer: PreTrainedTokenizerBase
    tokens: int | None

    def __iter__(self) -> Iterator[Document]:
        texts = self.texts
        rows, bos, drop_first = texts._rows(), texts.bos, texts.drop_first
        found = text_documents(rows, self.tokenizer, texts.column, texts.max_tokens, bos=bos, drop_first=drop_first)
        return first_tokens(found, self.tokens)


def first_tokens(documents: Iterable[Document], tokens: int | None) -> Iterator[Document]:
    """Documents until those given hold `tokens` kept tokens or more; all of them for none."""
    kept = 0
    for document in documents:
        yield document
        kept += len(document.ids) - document.start
        if tokens is not None and kept >= tokens:
            return
