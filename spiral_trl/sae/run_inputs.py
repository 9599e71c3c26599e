"""What the stages of a report work on: models, what they read, autoencoders and codes; each made once, when it is asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.utils import tqdm

from ..players.frozen_model import model_name
from ..records import Episode
from .arguments import SAEReportArguments
from .sources import load_model, play_to_read, read_episodes
from .store import Store


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .dictionaries import Dictionary
    from .documents import Document


class Inputs:
    """See the module.

    Args:
        args ([`~spiral_trl.sae.arguments.SAEReportArguments`]): What is asked for, checked.
        before (`str`): The model, a folder or an id on the Hub.
        after (`str`, *optional*): The same model after training.
        title (`str`, *optional*): Heading of the page; by default it names the models.
        say (`Callable`): Told what is being done.
    """

    def __init__(
        self,
        args: SAEReportArguments,
        before: str,
        after: str | None,
        title: str | None,
        say: Callable[[str], None],
    ):
        self.args, self.names, self.say = args, (before, after), say
        models = [model_name(name) for name in (before, after) if name is not None]
        self.title = title or f"Features of {', before and after training: '.join(reversed(models))}"
        self.folder = Path(args.output_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.seconds: dict[str, float] = {}
        self.summaries: dict[str, str] = {}
        self.began = time.perf_counter()

    # --------------------------------------------------------------------------------------------- what is read

    @cached_property
    def _before(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return load_model(self.names[0])

    @property
    def before(self) -> PreTrainedModel:
        return self._before[0]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._before[1]

    @cached_property
    def after(self) -> PreTrainedModel | None:
        return None if self.names[1] is None else load_model(self.names[1])[0]

    @cached_property
    def episodes_before(self) -> list[Episode] | None:
        if self.args.dataset_name is not None:
            return None
        return self._episodes("before", self.names[0], self.args.episodes)

    @cached_property
    def episodes_after(self) -> list[Episode] | None:
        if self.names[1] is None or self.args.dataset_name is not None:
            return None
        if self.args.episodes is not None and self.args.episodes_after is None:
            return None
        return self._episodes("after", self.names[1], self.args.episodes_after)

    def _episodes(self, name: str, model: str, given: str | None) -> list[Episode]:
        if given is not None:
            return read_episodes(given)
        with self.stage(f"games of the model {name}"):
            assert self.args.games is not None
            return play_to_read(
                model,
                self.args.games,
                self.args.num_games,
                self.args.seed,
                self.folder / "games" / name,
                self.args.max_new_tokens,
            )

    @cached_property
    def documents_before(self) -> list[Document]:
        if self.episodes_before is not None:
            return self._of_games(self.episodes_before)
        return list(self.args.texts.documents(self.tokenizer, self.args.num_tokens))

    @cached_property
    def documents_after(self) -> list[Document] | None:
        return None if self.episodes_after is None else self._of_games(self.episodes_after)

    def _of_games(self, episodes: Sequence[Episode]) -> list[Document]:
        from .documents import episode_documents

        return list(episode_documents(episodes, self.tokenizer))

    def source(self, of: str) -> dict[str, Any]:
        """Where documents come from, without the name of a folder."""
        args = self.args
        if args.dataset_name is not None:
            return {"kind": "text", "dataset": model_name(args.dataset_name), "tokens": args.num_tokens}
        if args.episodes is not None:
            return {"kind": "episodes", "of": of}
        return {"kind": "games", "games": args.games, "of": of, "count": args.num_games, "seed": args.seed}

    # ------------------------------------------------------------------------------------------------- dictionaries

    @cached_property
    def dictionaries(self) -> dict[int, Dictionary]:
        """Those of the model before."""
        return self._dictionaries("dictionaries", self.args.dictionaries, ())

    @cached_property
    def report_dictionaries(self) -> dict[int, Dictionary]:
        """Those that the page shows: where they are trained here and there are two models, trained on both."""
        if self.after is None or self.args.dictionaries is not None:
            return self.dictionaries
        return self._dictionaries("shared", None, (self.after,))

    def _dictionaries(self, name: str, given: str | None, others: Sequence[PreTrainedModel]) -> dict[int, Dictionary]:
        from .dictionaries import load_dictionaries
        from .train import train_dictionaries

        args = self.args
        if given is None:
            with self.stage(f"autoencoders: {name}") as progress:
                train_dictionaries(
                    self.before,
                    self.documents_before,
                    self.folder / name,
                    model_name=model_name(self.names[0]),
                    layers=args.layers,
                    num_features=args.num_features,
                    architecture=args.architecture,
                    active=args.active_features,
                    tokens=args.train_tokens,
                    learning_rate=args.learning_rate,
                    seed=args.seed,
                    source=self.source("before"),
                    others=others,
                    progress=progress,
                )
        found = load_dictionaries(
            given or str(self.folder / name), self.before, args.layers, any_model=given is not None
        )
        return {layer: dictionary.to(self.before.device) for layer, dictionary in found.items()}

    def codes(
        self,
        name: str,
        model: PreTrainedModel,
        dictionaries: dict[int, Dictionary],
        documents: Iterable[Document],
        of: str = "before",
    ) -> Store:
        from .collect import collect

        called = model_name(self.names[0] if model is self.before else str(self.names[1]))
        with self.stage(f"codes: {name}"):
            return collect(
                model, dictionaries, documents, self.folder / name, model_name=called, source=self.source(of)
            )

    # ----------------------------------------------------------------------------------------------------- telling

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int, str], None]]:
        """Says what is being done, and how long it took; yields a progress callback."""
        began = time.perf_counter()
        self.say(f"[{began - self.began:5.0f} s] {name}")
        bar = tqdm(desc=name, unit="", leave=False, disable=not sys.stderr.isatty())

        def progress(done: int, total: int, what: str) -> None:
            bar.total = total
            bar.set_postfix_str(what, refresh=False)
            bar.update(done - bar.n)

        with bar:
            yield progress
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
