"""The report on a run: its data, put together from what the run's folder holds, and the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError, did_you_mean
from .cards import Windows, make_cards, short
from .neuronpedia import neuronpedia_link
from .node_link_file import MEASURES
from .pieces import Pieces
from .prompt_views import Prompt, choose_documents, read_prompts
from .report_data import VERSION, check_report
from .run_folder import RESULTS, Run, counts_of, measures_of, open_run
from .selection import Limits, Place, Selection, choose_edges, mentioned, neighbours
from .store import write_json
from .telling import telling_texts


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Shares of the places that features have which are chosen as examples
_OF_GATES, _OF_LABELS, _OF_COMMUNITIES, _OF_PROMPTS = 0.1, 0.15, 0.3, 0.25

Progress = Callable[[str, int, int], object]


def build_report(
    run: Run | str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    model: PreTrainedModel | None = None,
    directions: Mapping[int, np.ndarray] | None = None,
    *,
    title: str | None = None,
    measure: str | None = None,
    rule: str = "absolute",
    explanations: Mapping[Place, str] | None = None,
    wanted: Sequence[Place] = (),
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Puts the data of a report together; see [`~spiral_trl.sae.report_data`] and
    [`~spiral_trl.sae.selection`] for what goes in.

    Args:
        run ([`~spiral_trl.sae.run_folder.Run`], `str` or `Path`): The run, or its folder.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The model's; without one tokens are numbers.
        model ([`~transformers.PreTrainedModel`], *optional*): For the logit lens.
        directions (`Mapping[int, np.ndarray]`, *optional*): For it too: of each layer the decoder's `(features, width)`.
        title (`str`, *optional*): The page's heading.
        measure (`str`, *optional*): By which neighbours are chosen; by default that of the communities, or Pearson.
        rule (`str`, *optional*, defaults to `"absolute"`): The activity rule of the edges' values.
        explanations (`Mapping`, *optional*): Text for layers and features.
        wanted (`Sequence[tuple[int, int]]`, *optional*): Layers and features that must be in.
        limits ([`~spiral_trl.sae.selection.Limits`], *optional*): How much goes in.
        progress (`Callable`, *optional*): Called with what is being done, and how much of how much is.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If the run lacks what is asked for, or a file of it has another form.
    """
    run = run if isinstance(run, Run) else open_run(run)
    limits = limits or Limits()
    builder = _Builder(run, limits, Pieces(tokenizer), measure, rule, progress)
    builder.choose(wanted)
    features = builder.features(tokenizer, model, directions, explanations or {})
    source = run.store.about.get("source")
    data = {
        "version": VERSION,
        "title": title or f"Features of {run.store.about.get('model', 'a model')}",
        "about": {
            "model": run.store.about.get("model"),
            "source": source if isinstance(source, str | None) else _words(source),
            "tokens": run.store.num_tokens,
            "settings": {
                "rule": rule,
                "measure": builder.measure,
                "limits": asdict(limits),
                **run.graph.get("settings", {}),
            },
            "dictionaries": {str(layer): dict(said) for layer, said in run.store.about["layers"].items()},
        },
        # A page measures its edges by something, also where there are none
        "measures": list(builder.measures or MEASURES[:1]),
        "layers": list(run.store.layers),
        "quality": _quality(run),
        "features": features,
        "edges": builder.edges(),
        "flow": [_flow(said, run.presence) for said in run.graph.get("flow", [])],
        "communities": builder.communities(),
        "prompts": builder.prompts(),
        **{name: run.results.get(name) for name in RESULTS},
    }
    return check_report(data)


def write_report(
    run: Run | str | Path, out: str | Path, *args: Any, site: bool | None = None, **kwargs: Any
) -> dict[str, Any]:
    """Builds a report and writes its page, and its data beside it.

    Args:
        run ([`~spiral_trl.sae.run_folder.Run`], `str` or `Path`): The run, or its folder.
        out (`str` or `Path`): The page's file, `.html`; or a folder, for `index.html` and shards. The data goes to
            `report.json` in the folder, or beside the page under its name.
        site (`bool`, *optional*): Whether to write a folder; by default where `out` does not end in `.html`.
        args, kwargs: As [`build_report`] takes them.

    Returns:
        `dict`: The data.
    """
    return write_data(build_report(run, *args, **kwargs), out, site)


def write_data(data: dict[str, Any], out: str | Path, site: bool | None = None) -> dict[str, Any]:
    """Writes the page of a report's data, and the data; see [`write_report`]."""
    from .page import write_page, write_site

    out = Path(out)
    data = check_report(data)
    if (out.suffix != ".html") if site is None else site:
        write_site(data, out)
        write_json(out / "report.json", data, indent=None)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_page(data, out)
        write_json(out.with_suffix(".json"), data, indent=None)
    return data


# What became of a feature that disappears, by the verdict of [`~spiral_trl.sae.presence`]
PRESENCE = {
    "gone": "gone at layer {}",
    "missed": "in the error of layer {}",
    "rebuilt": "rebuilt by others at layer {}",
}


class _Builder:
    """Chooses what goes in, and writes it down."""

    def __init__(
        self, run: Run, limits: Limits, pieces: Pieces, measure: str | None, rule: str, progress: Progress | None
    ):
        self.run, self.limits, self.rule, self.progress = run, limits, rule, progress
        self.counts, self.maxima = counts_of(run)
        self.windows = Windows(run.store, pieces, limits.before, limits.after)
        self.pieces = pieces
        self.selection = Selection(self.counts, limits.features)
        self.measures = measures_of(run, rule)
        said = run.graph.get("communities", {}).get("measure")
        self.measure = measure or (said if said in self.measures else self.measures[0] if self.measures else None)
        if self.measure is not None and self.measure not in self.measures:
            raise UsageError(
                f"the relations have no measure {measure!r}; they have {', '.join(self.measures) or 'none'}"
                f"{did_you_mean(str(measure), self.measures)}"
            )
        documents = choose_documents(self.windows.index, limits.prompts, limits.prompt_tokens)
        self._prompts: list[Prompt] = read_prompts(run.store, self.windows.index, documents)
        self._communities = self._chosen_communities()
        self.index: dict[Place, int] = {}

    def told(self, what: str) -> Callable[[int, int], object] | None:
        progress = self.progress
        return None if progress is None else lambda done, of: progress(what, done, of)

    def choose(self, wanted: Sequence[Place]) -> None:
        selection, limits = self.selection, self.limits
        self._check_wanted(wanted)
        selection.need(wanted)
        for result in self.run.results.values():
            selection.need(mentioned(result))
        gates = [place for gate in self.run.graph.get("gates", []) for place in _gate_places(gate)]
        selection.offer(gates, int(_OF_GATES * limits.features))
        for examples in self._examples():
            selection.offer(examples, int(_OF_LABELS * limits.features / 5))
        most = int(_OF_COMMUNITIES * limits.features)
        for nodes in self._communities.values():
            before = len(selection)
            selection.offer(self._foremost(nodes), min(limits.members, most))
            most -= len(selection) - before
        for prompt in self._prompts:
            share = int(_OF_PROMPTS * limits.features / len(self._prompts))
            selection.offer(prompt.foremost(self.maxima, limits.prompt_features), share)
        if self.run.relations is not None and self.measure is not None:
            selection.offer(neighbours(self.run.relations, self.rule, self.measure, selection))
        selection.offer_most_frequent()
        places = [(layer, int(feature)) for layer, chosen in selection.by_layer.items() for feature in chosen]
        self.index = {place: n for n, place in enumerate(places)}

    def _check_wanted(self, wanted: Sequence[Place]) -> None:
        for layer, feature in wanted:
            if not 0 <= feature < self.run.store.num_features(layer):
                raise UsageError(f"layer {layer} has features 0 to {len(self.counts[layer]) - 1}, not {feature}")

    def _foremost(self, nodes: np.ndarray) -> list[Place]:
        """Features, those that fire most often first."""
        places = [(int(layer), int(feature)) for layer, feature in nodes]
        return sorted(places, key=lambda place: (-self.counts[place[0]][place[1]], place))

    def _examples(self) -> list[list[Place]]:
        """Of each label, features that fire often, layer by layer."""
        if self.run.labels is None:
            return []
        table = self.run.labels
        found = []
        for label in ("duplicate", "pass-through", "and", "or", "specialising"):
            own = table[table["label"] == label]
            layers = [
                self._foremost(part[["layer", "feature"]].to_numpy()) for _, part in own.groupby("layer", sort=True)
            ]
            longest = max(map(len, layers), default=0)
            found.append([places[n] for n in range(longest) for places in layers if n < len(places)])
        return found

    def _chosen_communities(self) -> dict[int, np.ndarray]:
        """Layers and features of the largest communities, by their number."""
        if self.run.labels is None or "community" not in self.run.labels:
            return {}
        table = self.run.labels
        table = table[table["community"].notna() & (table["community"] >= 0)]
        sizes = table["community"].value_counts()
        largest = sorted(sizes.index, key=lambda number: (-sizes[number], number))[: self.limits.communities]
        return {
            int(number): table[table["community"] == number][["layer", "feature"]].to_numpy(np.int64)
            for number in largest
        }

    def features(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        model: PreTrainedModel | None,
        directions: Mapping[int, np.ndarray] | None,
        explanations: Mapping[Place, str],
    ) -> list[dict[str, Any]]:
        limits = self.limits
        cards = make_cards(
            self.run.store,
            self.selection.by_layer,
            tokenizer,
            model,
            directions,
            limits.texts,
            limits.samples,
            limits.before,
            limits.after,
            limits.tokens,
            self.told("cards"),
        )
        badges, labels = self._badges(), self._label_of()
        communities = {
            (int(layer), int(feature)): number
            for number, nodes in self._communities.items()
            for layer, feature in nodes
        }
        said = {layer: self.run.store.about["layers"][str(layer)] for layer in self.run.store.layers}
        return [
            {
                **card.to_dict(),
                "label": labels.get((card.layer, card.feature)),
                "badges": badges.get((card.layer, card.feature), []),
                "community": communities.get((card.layer, card.feature)),
                "explanation": explanations.get((card.layer, card.feature)),
                "neuronpedia": neuronpedia_link(said[card.layer].get("neuronpedia"), card.feature),
            }
            for card in cards
        ]

    def _label_of(self) -> dict[Place, str]:
        if self.run.labels is None:
            return {}
        columns = (self.run.labels[name].tolist() for name in ("layer", "feature", "label"))
        return {
            (layer, feature): label
            for layer, feature, label in zip(*columns, strict=True)
            if (layer, feature) in self.index
        }

    def _badges(self) -> dict[Place, list[str]]:
        found: dict[Place, list[str]] = {}
        for said in (self.run.results.get("games") or {}).get("stands_for", []):
            value = f" {said['value']}" if said.get("value") is not None else ""
            where = f" in the {said['position']}" if said.get("position") in ("prompt", "reply") else ""
            found.setdefault((said["l"], said["f"]), []).append(f"stands for: {said['name']}{value}{where}")
        for gate in self.run.graph.get("gates", []):
            own, *inputs = _gate_places(gate)
            names = " and ".join(f"{layer}/{feature}" for layer, feature in inputs)
            found.setdefault(own, []).append(f"{gate['kind'].upper()} of {names}")
        for place, (after, verdict) in self.run.presence.get("verdicts", {}).items():
            if verdict in PRESENCE:
                found.setdefault(place, []).append(PRESENCE[verdict].format(after))
        table = self.run.labels
        for name in ("appears", "disappears"):
            if table is not None and name in table:
                own = table[table[name].fillna(False).astype(bool)]
                for layer, feature in zip(own["layer"].tolist(), own["feature"].tolist(), strict=True):
                    found.setdefault((layer, feature), []).append(name)
        return found

    def edges(self) -> list[list[Any]]:
        if self.run.relations is None:
            return []
        return choose_edges(self.run.relations, self.rule, self.measures, self.index, self.limits.edges)

    def communities(self) -> list[dict[str, Any]]:
        found = self.run.graph.get("communities", {})
        said = {entry["id"]: entry for entry in found.get("list", [])}
        measure = found.get("measure")
        nodes = list(self._communities.values())
        texts = telling_texts(
            self.run.store, nodes, self.maxima, self.windows, progress=self.told("texts of communities")
        )
        return [
            {
                "id": number,
                "measure": measure if measure in self.measures else None,
                "size": len(own),
                "layers": {str(layer): int((own[:, 0] == layer).sum()) for layer in np.unique(own[:, 0])},
                "stability": said.get(number, {}).get("stability"),
                "features": [self.index[place] for place in map(tuple, own.tolist()) if place in self.index],
                "texts": [text.to_dict() for text in shown],
            }
            for (number, own), shown in zip(self._communities.items(), texts, strict=True)
        ]

    def prompts(self) -> list[dict[str, Any]]:
        tokens = self.windows.index.tokens
        found = []
        for prompt in self._prompts:
            entries = zip(
                prompt.layer.tolist(), prompt.feature.tolist(), prompt.at.tolist(), prompt.value.tolist(), strict=True
            )
            active = [
                [self.index[layer, feature], at, short(value)]
                for layer, feature, at, value in entries
                if (layer, feature) in self.index
            ]
            shown = self.pieces.split(tokens["token"][prompt.tokens].tolist())
            own = tokens[prompt.tokens[-1]]
            name = f"game {own['group']}/turn {own['turn']}" if own["player"] >= 0 else f"text {prompt.document}"
            found.append({"id": name, "tokens": shown, "active": active})
        return found


def _gate_places(gate: Mapping[str, Any]) -> list[Place]:
    """The gate's output, then its inputs."""
    above = gate.get("upstream_layer", gate["layer"] - 1)
    return [(gate["layer"], gate["feature"]), *((above, feature) for feature in gate["upstream"])]


def _flow(said: Mapping[str, Any], presence: Mapping[str, Any]) -> dict[str, Any]:
    flow = {name: said[name] for name in ("layer", "next", "passing", "disappearing", "appearing", "of", "of_next")}
    for found in presence.get("layers", []):
        if (found["layer"], found["next"]) == (flow["layer"], flow["next"]):
            flow["fates"] = {
                kind: {name: found[kind][name] for name in ("gone", "missed", "rebuilt", "unclear", "rare")}
                for kind in ("features", "controls")
            }
    return flow


def _quality(run: Run) -> dict[str, Any]:
    layers = run.quality.get("layers", run.quality)
    return {str(layer): said for layer, said in layers.items() if isinstance(said, dict)}


def _words(source: Any) -> str:
    """What codes were read from, in words."""
    if not isinstance(source, Mapping):
        return json.dumps(source)
    return ", ".join(
        f"{key}: {value if isinstance(value, str | int | float) else json.dumps(value)}"
        for key, value in source.items()
        if value is not None
    )
