"""Whether neighbours are causes: upstream features are ablated, and their downstream neighbours watched.

For a sample of upstream features of each pair of layers (arXiv 2410.08869):

1. Statistical measures between the upstream feature and all downstream ones are taken from the store of codes.
2. Its neighbours are the best downstream features by each measure. Each is held against another downstream feature of
   matched density that is no neighbour, one that fires together with the upstream feature where there are some.
3. The model reads documents in which the upstream feature fires: undisturbed, with it ablated, and with a step of the same
   length along the direction of another upstream feature of matched density.
4. The effect on a downstream feature is the share of its activation, over the tokens where the upstream feature fired,
   that is lost: 1 where it falls silent, 0 where it stays, below 0 where it grows. A pair is called causal where at least
   half is lost, and less with the steps in other directions.

The unit of all intervals is the upstream feature: its pairs share an ablation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..players.language_model import evaluating
from .ablate import part_of
from .activations import edited_residuals, read_residuals
from .blocks import batches
from .effect_summary import summarise
from .kernels import Features, feature_sums
from .matching import matched_features
from .pair_measures import chosen_measures, joint_sums
from .relations import MEASURES, RELATIVE, RULES
from .store import Store, write_json, written_whole


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from .dictionaries import Dictionary
    from .documents import Document

RESULT = "ablation.json"
# Steps of the same length in other directions, for each upstream feature
_CONTROLS = 2
# Entries of dense codes computed at once
_ENTRIES = 1 << 26


@dataclass(frozen=True)
class CausalEffects:
    """What [`measure_ablation`] found.

    Args:
        folder (`Path`): Where it lies: `ablation.json`, and one table for each pair of layers, `03-04.parquet`.
        settings (`dict`): What it was asked for.
        summary (`dict`): See [`~spiral_trl.sae.effect_summary.summarise`].
    """

    folder: Path
    settings: dict[str, Any]
    summary: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"settings": self.settings, **self.summary}

    def pairs(self, pair: tuple[int, int]) -> dict[str, np.ndarray]:
        """Pairs of features of two layers, as columns: `upstream`, `downstream`, `neighbour` (or drawn at random),
        `tokens` on which the upstream feature fired, `together` on which both did, `clean` activation of the downstream
        feature over them, `effect`, `effect_other` (of steps in other directions, mean), and the measures."""
        return _read_table(_table(self.folder, pair))


def measure_ablation(
    model: PreTrainedModel,
    dictionaries: Mapping[int, Dictionary],
    store: Store,
    documents: Sequence[Document],
    folder: str | Path,
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    features: Mapping[int, Sequence[int]] | None = None,
    num_features: int = 20,
    neighbours: int = 3,
    num_documents: int = 16,
    min_count: int = 20,
    min_tokens: int = 5,
    rule: str = "relative",
    relative: float = RELATIVE,
    batch_tokens: int = 4096,
    seed: int = 0,
    resume: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
) -> CausalEffects:
    """Ablates upstream features, and tells how well each measure predicts what becomes of downstream ones.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model.
        dictionaries (`Mapping[int, Dictionary]`): Those that the store was collected with.
        store ([`~spiral_trl.sae.store.Store`]): Codes of the documents.
        documents (`Sequence[Document]`): The store's documents, all of them in order.
        folder (`str` or `Path`): Where results go. Pairs of layers that are there are not measured again.
        pairs (`Sequence[tuple[int, int]]`, *optional*): Upstream and downstream layers; by default neighbouring ones.
        features (`Mapping[int, Sequence[int]]`, *optional*): Upstream features of layers; by default drawn at random
            among those that fire on `min_count` tokens.
        num_features (`int`, *optional*, defaults to `20`): How many are drawn for each pair of layers.
        neighbours (`int`, *optional*, defaults to `3`): Best downstream features by each measure.
        num_documents (`int`, *optional*, defaults to `16`): Documents read for each upstream feature at most.
        min_count (`int`, *optional*, defaults to `20`): Tokens on which a feature must fire to take part.
        min_tokens (`int`, *optional*, defaults to `5`): Tokens read on which both features of a pair must fire for the
            pair to count.
        rule (`str`, *optional*, defaults to `"relative"`), relative (`float`, *optional*, defaults to `0.2`): Of the
            measures that count tokens; see [`~spiral_trl.sae.relations`].
        batch_tokens (`int`, *optional*, defaults to `4096`): Tokens that the model reads at once.
        seed (`int`, *optional*, defaults to `0`): Of all draws.
        resume (`bool`, *optional*, defaults to `True`): Whether to go on with what is in the folder.
        progress (`Callable`, *optional*): Called after each upstream feature: how many are done, of how many, and which.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If a layer has no dictionary or codes, the documents are not the store's, no
            feature fires often enough, or the folder holds results of other settings.
    """
    layers = sorted(set(dictionaries) & set(store.layers))
    pairs = list(zip(layers, layers[1:], strict=False)) if pairs is None else [(up, down) for up, down in pairs]
    if rule not in RULES:
        raise UsageError(f"rule={rule!r}, but it must be one of {', '.join(RULES)}")
    for up, down in pairs:
        if up >= down:
            raise UsageError(f"layer {up} is not upstream of layer {down}")
        for layer in (up, down):
            if layer not in layers:
                raise UsageError(f"layer {layer} is not among those with a dictionary and codes: {layers}")
    if not pairs:
        raise UsageError(f"there is no pair of layers: dictionaries and codes are of {layers}")
    for layer in {layer for pair in pairs for layer in pair}:
        said = store.about["layers"][str(layer)].get("fingerprint")
        if said != dictionaries[layer].fingerprint:
            raise UsageError(f"{store.folder} was collected with another dictionary of layer {layer}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "store": [store.about.get("model_fingerprint"), store.about.get("documents_fingerprint"), store.num_tokens],
        "dictionaries": {str(layer): dictionaries[layer].fingerprint for layer in layers},
        "features": None if features is None else {str(layer): list(map(int, one)) for layer, one in features.items()},
        "num_features": num_features,
        "neighbours": neighbours,
        "num_documents": num_documents,
        "min_count": min_count,
        "min_tokens": min_tokens,
        "rule": rule,
        "relative": relative,
        "seed": seed,
    }
    _begin(folder, settings, resume)
    sums: dict[int, Features] = {}
    asked = {}
    for pair in pairs:
        for layer in pair:
            if layer not in sums:
                sums[layer] = feature_sums(store, layer, relative)
        asked[pair] = _upstream(pair, sums[pair[0]], features, num_features, min_count, seed)
    done, total = 0, sum(map(len, asked.values()))
    with evaluating(model):
        for pair in pairs:
            path = _table(folder, pair)
            if not path.exists():
                run = _Pair(model, dictionaries, store, documents, pair, sums[pair[0]], sums[pair[1]], settings)
                rows: list[dict[str, Any]] = []
                for at, found in enumerate(run.measure(asked[pair], batch_tokens)):
                    rows += found
                    if progress is not None:
                        progress(done + at + 1, total, f"layers {pair[0]} to {pair[1]}")
                _write_table(path, rows)
            done += len(asked[pair])
    tables = {pair: _read_table(_table(folder, pair)) for pair in pairs}
    summary = summarise(tables, min_tokens, seed)
    write_json(folder / RESULT, {"settings": settings, **summary})
    return CausalEffects(folder, settings, summary)


def _begin(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    path = folder / "settings.json"
    if resume and path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name, value in json.loads(json.dumps(settings)).items():
            if before.get(name) != value:
                raise UsageError(
                    f"{folder} holds results of other settings: {name} is {before.get(name)!r} there and {value!r} here; "
                    "take another folder, or do not resume"
                )
        return
    for old in folder.glob("*-*.parquet"):
        old.unlink()
    write_json(path, settings)


def _upstream(
    pair: tuple[int, int],
    sums: Features,
    features: Mapping[int, Sequence[int]] | None,
    num_features: int,
    min_count: int,
    seed: int,
) -> np.ndarray:
    able = np.flatnonzero(sums.count >= min_count)
    if features is not None:
        chosen = np.unique(np.asarray(features.get(pair[0], ()), dtype=np.int64))
        if len(chosen) and not 0 <= chosen[0] <= chosen[-1] < len(sums.count):
            raise UsageError(f"layer {pair[0]} has features 0 to {len(sums.count) - 1}, not {chosen[-1]}")
        return chosen[np.isin(chosen, able)]
    if not len(able):
        raise UsageError(f"no feature of layer {pair[0]} fires on {min_count} tokens: read more, or lower min_count")
    generator = np.random.default_rng([seed, *pair])
    return np.sort(generator.choice(able, min(num_features, len(able)), replace=False))


class _Pair:
    """One pair of layers."""

    def __init__(
        self,
        model: PreTrainedModel,
        dictionaries: Mapping[int, Dictionary],
        store: Store,
        documents: Sequence[Document],
        pair: tuple[int, int],
        up: Features,
        down: Features,
        settings: Mapping[str, Any],
    ):
        self.model, self.store, self.documents, self.pair, self.settings = model, store, documents, pair, settings
        self.up, self.down = up, down
        self.upper, self.lower = dictionaries[pair[0]], dictionaries[pair[1]]

    def measure(self, chosen: np.ndarray, batch_tokens: int) -> Iterable[list[dict[str, Any]]]:
        if not len(chosen):
            return
        joint = joint_sums(self.store, self.pair, chosen, self.up, self.down, self.settings["relative"])
        measures = chosen_measures(
            joint,
            self.up,
            self.down,
            chosen,
            self.store.num_tokens,
            self.upper.directions[chosen].float().cpu().numpy(),
            self.lower.directions.float().cpu().numpy(),
            self.settings["rule"],
        )
        places = self._places(chosen)
        able = np.flatnonzero(self.up.count >= self.settings["min_count"])
        for at, feature in enumerate(chosen):
            near, others = self._downstream(
                int(feature), {name: one[at] for name, one in measures.items()}, joint.both[at]
            )
            watched = np.concatenate([near, others])
            spare = np.setdiff1d(able, [feature])
            seed = [self.settings["seed"], *self.pair, int(feature)]
            controls = matched_features(self.up, np.repeat(feature, min(_CONTROLS, len(spare))), spare, seed)
            found = self._effects(int(feature), watched, controls, places[int(feature)], batch_tokens)
            yield [
                {
                    "upstream_layer": self.pair[0],
                    "upstream": int(feature),
                    "downstream_layer": self.pair[1],
                    "downstream": int(one),
                    "neighbour": number < len(near),
                    **{name: values[number].item() for name, values in found.items()},
                    **{name: float(values[at, one]) for name, values in measures.items()},
                }
                for number, one in enumerate(watched)
            ]

    def _downstream(
        self, feature: int, measures: Mapping[str, np.ndarray], both: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Neighbours of an upstream feature, and for each a feature of matched density that is none."""
        able = self.down.count >= self.settings["min_count"]
        near: set[int] = set()
        for values in measures.values():
            order = np.argsort(-np.where(able, values, -np.inf), kind="stable")[: self.settings["neighbours"]]
            near |= {int(one) for one in order if able[one] and values[one] > 0}
        neighbours = np.array(sorted(near), dtype=np.int64)
        rest = np.setdiff1d(np.flatnonzero(able), neighbours)
        together = rest[both[rest] >= self.settings["min_tokens"]]
        seed = [self.settings["seed"], *self.pair, feature, 1]
        drawn = matched_features(self.down, neighbours, together, seed)
        # Where too few fire together with it, any feature does
        missing = np.flatnonzero(drawn < 0)
        drawn[missing] = matched_features(self.down, neighbours[missing], np.setdiff1d(rest, together), [*seed, 1])
        return neighbours, drawn[drawn >= 0]

    def _places(self, chosen: np.ndarray) -> dict[int, list[Document]]:
        """For each feature some documents in which it fires, cut behind the last place."""
        row = np.full(self.store.num_features(self.pair[0]), -1, np.int64)
        row[chosen] = np.arange(len(chosen))
        which, tokens = [], []
        for shard in self.store.shards:
            rows = shard.rows(self.pair[0])
            kept = np.flatnonzero(row[rows.feature] >= 0)
            which.append(row[rows.feature[kept]])
            tokens.append(shard.tokens()[np.searchsorted(rows.indptr, kept, side="right") - 1])
        of, at = np.concatenate(which), np.concatenate(tokens)
        found = {}
        for number, feature in enumerate(chosen):
            places = at[of == number]
            documents = np.unique(places["document"])
            generator = np.random.default_rng([self.settings["seed"], *self.pair, int(feature), 2])
            size = min(self.settings["num_documents"], len(documents))
            found[int(feature)] = [
                self._cut(places[places["document"] == document])
                for document in np.sort(generator.choice(documents, size, replace=False))
            ]
        return found

    def _cut(self, places: np.ndarray) -> Document:
        """A document up to the last of some places in it."""
        number = int(places["document"][0])
        document = self.documents[number] if number < len(self.documents) else None
        end = int(places["position"].max()) + 1
        ids = np.asarray(() if document is None else document.ids[:end])
        if document is None or len(ids) < end or (ids[places["position"]] != places["token"]).any():
            raise UsageError(f"the documents are not those that {self.store.folder} was collected from")
        return replace(document, ids=document.ids[:end])

    def _effects(
        self, feature: int, watched: np.ndarray, controls: np.ndarray, documents: Sequence[Document], batch_tokens: int
    ) -> dict[str, np.ndarray]:
        import torch

        layer, below = self.pair
        device = self.model.device
        columns = torch.from_numpy(watched).to(device)
        chosen = torch.tensor([feature], device=device)
        others = self.upper.directions[torch.from_numpy(controls).to(device)]
        others = others / others.norm(dim=1, keepdim=True)
        sums = torch.zeros(2 + len(controls), len(watched), dtype=torch.float64, device=device)
        together = torch.zeros(len(watched), dtype=torch.int64, device=device)
        tokens = 0
        for batch in batches(documents, batch_tokens, device):
            read = read_residuals(self.model, batch.inputs, [layer, below])
            stream, valid = read[layer], batch.mask.bool()
            part, codes = part_of(self.upper, stream[valid], chosen)
            fired = torch.zeros_like(valid)
            fired[valid] = codes[:, 0] > 0
            measured = fired & batch.kept
            if not measured.any():
                continue
            part = part[codes[:, 0] > 0].to(stream.dtype)
            tokens += int(measured.sum())
            steps = [part, *(part.norm(dim=1, keepdim=True) * other.to(part.dtype) for other in others)]
            clean = self._codes(read[below][measured], columns)
            together += (clean > 0).sum(0)
            sums[0] += clean.double().sum(0)
            for number, step in enumerate(steps):
                edited = stream.clone()
                edited[fired] -= step
                with edited_residuals(self.model, {layer: partial(_replaced, edited)}):
                    after = read_residuals(self.model, batch.inputs, [below])[below]
                sums[1 + number] += self._codes(after[measured], columns).double().sum(0)
        before = sums[0]
        effects = torch.where(before > 0, 1 - sums[1:] / before.clamp(min=1e-300), torch.nan).cpu().numpy()
        return {
            "tokens": np.full(len(watched), tokens),
            "together": together.cpu().numpy(),
            "clean": (before / max(tokens, 1)).cpu().numpy(),
            "effect": effects[0],
            **{f"effect_other_{number}": effects[1 + number] for number in range(len(controls))},
        }

    def _codes(self, streams: Tensor, columns: Tensor) -> Tensor:
        import torch

        size = max(_ENTRIES // self.lower.num_features, 1)
        return torch.cat([self.lower.encode(rows)[:, columns] for rows in streams.split(size)])


def _replaced(edited: Tensor, stream: Tensor) -> Tensor:
    return edited


def _table(folder: Path, pair: tuple[int, int]) -> Path:
    return folder / f"{pair[0]:02d}-{pair[1]:02d}.parquet"


def _schema() -> Any:
    import pyarrow as pa

    whole = ("upstream_layer", "upstream", "downstream_layer", "downstream")
    floats = ("clean", "effect", *(f"effect_other_{number}" for number in range(_CONTROLS)), *MEASURES)
    return pa.schema(
        [
            *((name, pa.int32()) for name in whole),
            ("neighbour", pa.bool_()),
            ("tokens", pa.int64()),
            ("together", pa.int64()),
            *((name, pa.float64()) for name in floats),
        ]
    )


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    with written_whole(path) as partial:
        parquet.write_table(pa.Table.from_pylist(list(rows), schema=_schema()), partial)


def _read_table(path: Path) -> dict[str, np.ndarray]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"{path} cannot be read: {error}; remove it to measure it again") from None
    return {name: table[name].to_numpy() for name in table.column_names}
