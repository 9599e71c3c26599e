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
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..players.frozen_model import model_name
from .arguments import SAEReportArguments
from .run_inputs import Inputs
from .store import Store, write_json


if TYPE_CHECKING:
    from ..players.language_model import LanguageModelPlayer
    from .dictionaries import Dictionary
    from .graph import Graph
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


class _Run(Inputs):
    def make(self) -> dict[str, Any]:
        store = self.codes("codes", self.after or self.before, self.report_dictionaries, self.documents_before)
        relations = self.relate(store)
        graph = self.graph(store, relations)
        self.quality(store)
        self.presence(store, graph)
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

    def graph(self, store: Store, relations: Relations) -> Graph:
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
        return graph

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

    def presence(self, store: Store, graph: Graph) -> None:
        """Whether features that disappear are gone, or missing from the next autoencoder alone."""
        from .presence import measure_presence

        lost = {layer: np.flatnonzero(graph.layer(layer)["disappears"]).tolist() for layer in store.layers[:-1]}
        lost = {layer: features for layer, features in lost.items() if features}
        if not lost:
            return
        with self.stage("features that disappear") as progress:
            try:
                measure_presence(
                    self.after or self.before,
                    self.report_dictionaries,
                    store,
                    self.documents_before,
                    lost,
                    self.folder,
                    max_tokens=_MEASURED,
                    seed=self.args.seed,
                    progress=progress,
                )
            except UsageError as error:
                # Too little was read for it; the rest of the report stands without
                self.say(f"no features were looked for in the stream: {error}")

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


def _directions(dictionaries: Mapping[int, Dictionary]) -> dict[int, np.ndarray]:
    return {layer: dictionary.directions.float().cpu().numpy() for layer, dictionary in dictionaries.items()}


def format_summary(told: Mapping[str, Any]) -> str:
    """What a run prints at its end."""
    lines = [f"{name}: {text}" for name, text in told["summaries"].items()]
    total = sum(told["seconds"].values())
    return "\n".join([*lines, "", f"{total:.0f} s; page: {told['page']}"])
