"""A whole report: from a model, or a model before and after training, to the page. Each stage is kept and not made again.

The folder of a run:

```
games/before, games/after       games that the models played to be read, as datasets
dictionaries/                   autoencoders trained on the model before (where none are given)
shared/                         where there are two models: autoencoders trained on the streams of both
codes/                          codes that the report is about: of the model, or of the one after training
codes_before/                   of the model before, on the same games and by the same autoencoders
compared/before, after, own     by the autoencoders of the model before: it, the model after on the same games, and the
                                model after on its own games
relations/, graph.json, labels.parquet, presence.json, ablation.json, game_features.json, comparison.json, quality.json
report.html, report.json        the page and its data; a folder report/ where there is much to show
```

Two kinds of autoencoders are read. Those of the model before say what of its features training changed, as far as they
still describe the model after; the gate of the comparison says how far that is. Those trained on both describe both, and
carry what the page shows.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub.utils import tqdm

from ..errors import UsageError
from ..players.frozen_model import model_name
from ..records import Episode
from .arguments import SAEReportArguments
from .sources import TextSource, load_model, play_to_read, read_episodes
from .store import Store, write_json


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..players.language_model import LanguageModelPlayer
    from .dictionaries import Dictionary
    from .documents import Document
    from .relations import Relations

# More features than this are shown in a folder of shards
_ONE_FILE = 4000
# Tokens that quality, presence and ablation are measured on at most
_MEASURED = 200_000


def run_report(
    args: SAEReportArguments,
    before: str,
    after: str | None = None,
    title: str | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Makes a report, or goes on with one.

    Args:
        args ([`~spiral_trl.sae.arguments.SAEReportArguments`]): What is asked for, checked.
        before (`str`): The model, a folder or an id on the Hub.
        after (`str`, *optional*): The same model after training.
        title (`str`, *optional*): Heading of the page; by default it names the models.
        say (`Callable`, *optional*): Told what is being done; by default it is printed on stderr.

    Returns:
        `dict`: What `run.json` holds: `page`, `models`, `seconds` of each stage made now, and `summaries`.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If something given does not fit. Stages that were made are kept.
    """
    return _Run(args, before, after, title, say or (lambda text: print(text, file=sys.stderr, flush=True))).make()


class _Run:
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

    def make(self) -> dict[str, Any]:
        store = self.codes("codes", self.after or self.before, self.report_dictionaries, self.documents_before)
        relations = self.relate(store)
        self.graph(store, relations)
        self.quality(store)
        self.presence()
        self.ablation(store)
        if self.episodes_before is not None:
            self.game_features(store)
        if self.after is not None:
            self.comparison(store)
        page = self.report(store)
        told = {
            "page": page,
            "models": [model_name(name) for name in self.names if name is not None],
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "summaries": self.summaries,
        }
        write_json(self.folder / "run.json", told)
        return told

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
        args = self.args
        assert args.dataset_name is not None
        texts = TextSource(
            args.dataset_name,
            args.dataset_config,
            args.dataset_split,
            args.dataset_text_field,
            args.max_length,
            args.add_bos,
            args.drop_first,
        )
        return list(texts.documents(self.tokenizer, args.num_tokens))

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

    # ------------------------------------------------------------------------------------------- relations and graph

    def relate(self, store: Store, name: str = "relations") -> Relations:
        from .relations import relate

        with self.stage("relations between layers"):
            return relate(
                store,
                self.folder / name,
                directions=_directions(self.report_dictionaries),
                top_k=self.args.top_k,
                processes=self.args.processes,
            )

    def graph(self, store: Store, relations: Relations) -> None:
        from .graph import CommunitySettings, build_graph
        from .labels import LabelSettings

        args = self.args
        with self.stage("labels, flow and communities"):
            graph = build_graph(
                store,
                relations,
                self.folder,
                LabelSettings(pass_threshold=args.pass_threshold, gate_threshold=args.gate_threshold),
                community=CommunitySettings(measure=args.community_measure, threshold=args.community_threshold),
            )
        gates, groups = len(graph.gates), len(graph.communities["list"])
        self.summaries["graph"] = f"{gates} gates, {groups} communities"

    # ------------------------------------------------------------------------------------------------ model-based checks

    def quality(self, store: Store) -> None:
        """Adds the cross-entropy that is recovered to what the codes' collection measured."""
        from .quality import measure_quality

        path = store.folder / "quality.json"
        known = json.loads(path.read_text(encoding="utf-8"))
        if all("ce_recovered" in of_layer for of_layer in known.values()):
            return
        with self.stage("quality of the autoencoders"):
            measured = measure_quality(
                self.after or self.before, self.report_dictionaries, self.documents_before, max_tokens=_MEASURED
            )
        for layer, quality in measured.items():
            known[str(layer)] |= {
                name: value for name, value in quality.to_dict().items() if name.startswith(("ce_", "predictions"))
            }
        write_json(path, known)

    def presence(self) -> None: ...

    def ablation(self, store: Store) -> None:
        """How well the measures predict causal effect."""
        from .causal_effects import measure_ablation
        from .effect_words import describe_effects

        path = self.folder / "ablation.json"
        if path.is_file():
            self.summaries["ablation"] = json.loads(path.read_text(encoding="utf-8"))["summary"]
            return
        with self.stage("upstream features ablated") as progress:
            try:
                found = measure_ablation(
                    self.after or self.before,
                    self.report_dictionaries,
                    store,
                    self.documents_before,
                    self.folder / "ablation",
                    seed=self.args.seed,
                    progress=progress,
                )
                told = describe_effects(found.to_dict())
            except UsageError as error:
                # Too little was read for it; the rest of the report stands without
                told = {"summary": f"Nothing was ablated: {error}."}
        write_json(path, told)
        self.summaries["ablation"] = told["summary"]

    def game_features(self, store: Store) -> None:
        from .game_features import associations
        from .patch import patch_hands

        path = self.folder / "game_features.json"
        if path.is_file():
            self.summaries["games"] = json.loads(path.read_text(encoding="utf-8"))["summary"]
            return
        assert self.episodes_before is not None
        first = after = store
        if self.after is not None:
            first = self.codes("codes_before", self.before, self.report_dictionaries, self.documents_before)
        with self.stage("features and the game"):
            found = associations(
                first, self.episodes_before, after=after if first is not after else None, seed=self.args.seed
            )
        with self.stage("hands swapped"):
            try:
                found.result["patch"] = patch_hands(
                    self.player(), self.report_dictionaries, found, store, self.episodes_before, seed=self.args.seed
                )
            except UsageError as error:
                # Not every game has hands; what was found stands without
                found.result["patch"] = {"summary": f"No hands were swapped: {error}."}
        found.save(self.folder)
        self.summaries["games"] = found.result["summary"]

    def player(self) -> LanguageModelPlayer:
        """The model that the report is about, as a player."""
        from ..players.language_model import LanguageModelPlayer

        return LanguageModelPlayer(self.after or self.before, self.tokenizer, max_new_tokens=self.args.max_new_tokens)

    def comparison(self, store: Store) -> None:
        from .before_after import Compared, compare_before_after
        from .graph_difference import compare_graphs
        from .specific import paired_streams, specific_features

        path = self.folder / "comparison.json"
        if path.is_file():
            self.summaries["comparison"] = json.loads(path.read_text(encoding="utf-8"))["summary"]
            return
        assert self.after is not None
        folder = self.folder / "compared"
        one = self.codes("compared/before", self.before, self.dictionaries, self.documents_before)
        other = self.codes("compared/after", self.after, self.dictionaries, self.documents_before)
        own = Compared(
            (one, other), self._on_policy(one, self.dictionaries, "own"), self._both_qualities(self.dictionaries)
        )
        shared = None
        if self.report_dictionaries is not self.dictionaries:
            first = self.codes("codes_before", self.before, self.report_dictionaries, self.documents_before)
            with self.stage("candidates for new directions"):
                candidates = {
                    layer: specific_features(
                        dictionary, paired_streams(self.before, self.after, self.documents_before, layer)
                    ).to_dict()
                    for layer, dictionary in self.report_dictionaries.items()
                }
            with self.stage("graphs before and after"):
                graph = compare_graphs(first, store, folder / "graphs")
            shared = Compared(
                (first, store),
                self._on_policy(first, self.report_dictionaries, "own_shared"),
                self._both_qualities(self.report_dictionaries),
                graph,
                candidates,
            )
        else:
            with self.stage("graphs before and after"):
                own = replace(own, graph=compare_graphs(one, other, folder / "graphs"))
        with self.stage("comparison") as progress:
            told = compare_before_after(self.folder, own, shared, self._causal, progress)
        self.summaries["comparison"] = told["summary"]

    def _on_policy(self, first: Store, dictionaries: dict[int, Dictionary], name: str) -> tuple[Store, Store] | None:
        if self.documents_after is None:
            return None
        assert self.after is not None
        own = self.codes(f"compared/{name}", self.after, dictionaries, self.documents_after, of="after")
        return first, own

    def _both_qualities(self, dictionaries: dict[int, Dictionary]) -> tuple[dict[int, Any], dict[int, Any]]:
        from .quality import measure_quality

        assert self.after is not None
        with self.stage("quality before and after"):
            one, other = (
                measure_quality(model, dictionaries, self.documents_before, max_tokens=_MEASURED)
                for model in (self.before, self.after)
            )
        return dict(one), dict(other)

    def _causal(self, features: Mapping[int, list[int]], store: Store) -> dict[str, Any] | None:
        """The model after, in play without the most changed features."""
        from ..players.registry import check_player, make_player
        from .ablated_play import ablated_play

        if not self.args.games:
            return None
        game = self.args.games[0]
        opponent = "cfr"
        try:
            check_player(opponent, game)
        except ValueError:
            opponent = "random"
        with self.stage("most changed features switched off in play") as progress:
            return ablated_play(
                self.player(),
                self.report_dictionaries,
                features,
                store,
                game,
                make_player(opponent),
                random_sets=19,
                seed=self.args.seed,
                progress=progress,
            ).to_dict()

    # ----------------------------------------------------------------------------------------------------- the page

    def report(self, store: Store) -> str:
        from .report import write_report
        from .selection import Limits

        args = self.args
        limits = Limits(features=args.report_features)
        name = "report.html" if args.report_features <= _ONE_FILE else "report"
        with self.stage("page"):
            write_report(
                self.folder,
                self.folder / name,
                self.tokenizer,
                self.after or self.before,
                _directions(self.report_dictionaries),
                title=self.title,
                measure=args.community_measure,
                limits=limits,
            )
        return name if name.endswith(".html") else f"{name}/index.html"

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


def _directions(dictionaries: Mapping[int, Dictionary]) -> dict[int, np.ndarray]:
    return {layer: dictionary.directions.float().cpu().numpy() for layer, dictionary in dictionaries.items()}


def format_summary(told: Mapping[str, Any]) -> str:
    """What a run prints at its end."""
    lines = [f"{name}: {text}" for name, text in told["summaries"].items()]
    total = sum(told["seconds"].values())
    return "\n".join([*lines, "", f"{total:.0f} s; page: {told['page']}"])
