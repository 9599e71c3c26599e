"""Whether features that disappear from one layer's dictionary to the next are gone from the stream, or merely missed.

For a feature of layer `l` with decoder direction `d` and code `a`, whatever vector `v` is there at the next layer is
projected on the direction: `y = v . d / |d|^2`, which is `a` where `v` holds the feature as layer `l` did. `v` is in turn
the stream that the next dictionary reads, and its reconstruction error; what is left, stream less error, is its
reconstruction. The share of the feature in `v` is

    (mean of y over the tokens where the feature fires - mean of y over the others) / mean of a where it fires

so that the shares in error and reconstruction sum to the one in the stream (arXiv 2410.08869, which projects the error).

- `gone`: the stream holds less than half of it;
- `missed`: the error holds at least half of it: the next dictionary lacks the feature;
- `rebuilt`: the reconstruction does: other features stand for it;
- `unclear`: the intervals do not tell;
- `rare`: it fired on too few tokens to tell, or on all of them.

Intervals are of 95%, by a jackknife over blocks of games or texts. The same is done for random features of matched density.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..players.language_model import evaluating
from .activations import check_layers
from .blocks import Batch, batches, read_kept, readable
from .kernels import feature_sums
from .matching import matched_features
from .store import Store, write_json, written_whole


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from .dictionaries import Dictionary
    from .documents import Document

RESULT, TABLE = "presence.json", "presence.parquet"
VERDICTS = ("gone", "missed", "rebuilt", "unclear", "rare")
# Groups of games or texts that the jackknife leaves out one after the other
_BLOCKS = 20
# Entries of dense codes and projections computed at once
_ENTRIES = 1 << 26


@dataclass(frozen=True)
class Presence:
    """What [`measure_presence`] found.

    Args:
        settings (`dict`): What it was asked for.
        layers (`list[dict]`): For each layer `layer`, `next`, `tokens`, and for `features` and `controls` how many have
            each verdict, the median shares in stream, error and reconstruction, and `beyond`: the share of features whose
            share in the error is above that of 95% of the controls.
        table (`dict[str, np.ndarray]`): One row a feature: `layer`, `next`, `feature`, `control`, `tokens` it fired on,
            `stream`, `error` and `rebuilt` (shares) with `_low` and `_high`, `slope` and `correlation` of the error's
            projection on the code where it fires, and `verdict`.
    """

    settings: dict[str, Any]
    layers: list[dict[str, Any]]
    table: dict[str, np.ndarray]

    def to_dict(self) -> dict[str, Any]:
        return {"settings": self.settings, "layers": self.layers}

    def save(self, folder: str | Path) -> None:
        """Writes `presence.json` and `presence.parquet`."""
        import pyarrow as pa
        from pyarrow import parquet

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(folder / TABLE) as partial:
            parquet.write_table(pa.table(self.table), partial)
        write_json(folder / RESULT, self.to_dict())


def measure_presence(
    model: PreTrainedModel,
    dictionaries: Mapping[int, Dictionary],
    store: Store,
    documents: Iterable[Document],
    features: Mapping[int, Sequence[int]],
    folder: str | Path | None = None,
    *,
    controls: int = 200,
    threshold: float = 0.5,
    min_tokens: int = 20,
    max_tokens: int | None = None,
    batch_tokens: int = 4096,
    seed: int = 0,
    resume: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
) -> Presence:
    """Looks for features in the stream and in the next dictionary's reconstruction error.

    The model runs once over the documents.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model.
        dictionaries (`Mapping[int, Dictionary]`): By layer; the next of a layer is the next one there is.
        store ([`~spiral_trl.sae.store.Store`]): Codes that tell how often features fire, for the controls.
        documents (`Iterable[Document]`): What the model reads.
        features (`Mapping[int, Sequence[int]]`): For each layer the features to look for, such as those that disappear.
        folder (`str` or `Path`, *optional*): Where the result is saved, and read from when it is there.
        controls (`int`, *optional*, defaults to `200`): Random features of each layer at most.
        threshold (`float`, *optional*, defaults to `0.5`): The share that tells.
        min_tokens (`int`, *optional*, defaults to `20`): Tokens that a feature must fire on.
        max_tokens (`int`, *optional*): Stops once so many tokens were read.
        batch_tokens (`int`, *optional*, defaults to `4096`): Tokens that the model reads at once.
        seed (`int`, *optional*, defaults to `0`): Of the controls.
        resume (`bool`, *optional*, defaults to `True`): Whether to take a result of the same settings from the folder.
        progress (`Callable`, *optional*): Called after each batch with the tokens read, of how many at most (0 where that
            is not known), and a word.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If a layer has no next one, there are no such features, there is nothing to
            read, or the folder holds a result of other settings.
    """
    check_layers(model, list(dictionaries))
    order = sorted(dictionaries)
    wanted = {layer: np.unique(np.asarray(one, np.int64)) for layer, one in features.items() if len(one)}
    if not wanted:
        raise UsageError("there are no features to look for")
    for layer, one in wanted.items():
        if layer not in order or layer == order[-1]:
            raise UsageError(
                f"features of layer {layer} are to be looked for, but there is no dictionary of it and of a later layer; "
                f"there are those of {', '.join(map(str, order))}"
            )
        if one[0] < 0 or one[-1] >= dictionaries[layer].num_features:
            raise UsageError(f"layer {layer} has features 0 to {dictionaries[layer].num_features - 1}, not {one[-1]}")
    settings = {
        "features": {str(layer): one.tolist() for layer, one in wanted.items()},
        "dictionaries": {str(layer): dictionaries[layer].fingerprint for layer in order},
        "store": [store.about.get("model_fingerprint"), store.about.get("documents_fingerprint"), store.num_tokens],
        "controls": controls,
        "threshold": threshold,
        "min_tokens": min_tokens,
        "max_tokens": max_tokens,
        "seed": seed,
    }
    if folder is not None and resume and (found := _saved(Path(folder), settings)) is not None:
        return found
    sums = []
    for layer, one in wanted.items():
        known = feature_sums(store, layer)
        spare = np.setdiff1d(np.flatnonzero(known.count), one)
        generator = np.random.default_rng([seed, layer])
        like = one if len(one) <= controls else generator.choice(one, controls, replace=False)
        drawn = matched_features(known, like, spare, [seed, layer, 1])
        following = dictionaries[order[order.index(layer) + 1]]
        sums.append(_Sums(dictionaries[layer], following, one, drawn[drawn >= 0]))
    tokens = 0
    needed = sorted({layer for one in sums for layer in (one.upper.layer, one.lower.layer)})
    with evaluating(model):
        for batch in batches(readable(model, documents), batch_tokens, model.device):
            streams = read_kept(model, batch, needed)
            blocks = _blocks(batch)
            for part in sums:
                part.add(streams[part.upper.layer], streams[part.lower.layer], blocks)
            tokens += len(blocks)
            if progress is not None:
                progress(tokens, max_tokens or 0, "tokens read")
            if max_tokens is not None and tokens >= max_tokens:
                break
    if not tokens:
        raise UsageError("there are no tokens to look for features in")
    tables = [one.table(threshold, min_tokens) for one in sums]
    presence = Presence(
        settings,
        [_summary(one, table, tokens) for one, table in zip(sums, tables, strict=True)],
        {name: np.concatenate([table[name] for table in tables]) for name in tables[0]},
    )
    if folder is not None:
        presence.save(folder)
    return presence


def _saved(folder: Path, settings: Mapping[str, Any]) -> Presence | None:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        said = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        if said["settings"] != json.loads(json.dumps(settings)):
            raise UsageError(
                f"{folder / RESULT} is of other settings: take another folder, or do not resume, which overwrites it"
            )
        table = parquet.read_table(folder / TABLE)
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, json.JSONDecodeError, pa.ArrowInvalid) as error:
        raise UsageError(f"{folder / RESULT} cannot be read: {error!r}") from None
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    return Presence(said["settings"], said["layers"], columns)


def _blocks(batch: Batch) -> Tensor:
    """`(kept tokens,)` the block of each."""
    import torch

    groups = torch.tensor([document.group % _BLOCKS for document in batch.documents], device=batch.kept.device)
    return groups[:, None].expand_as(batch.kept)[batch.kept]


class _Sums:
    """Sums over tokens for some features of a layer, one row for each block of groups."""

    def __init__(self, upper: Dictionary, lower: Dictionary, features: np.ndarray, controls: np.ndarray):
        import torch

        self.upper, self.lower = upper, lower
        self.features = np.concatenate([features, controls])
        self.control = np.arange(len(self.features)) >= len(features)
        device = upper.directions.device
        self.chosen = torch.from_numpy(self.features).to(device)
        directions = upper.directions[self.chosen].float()
        self.directions = directions / directions.square().sum(1, keepdim=True).clamp(min=1e-30)
        names = ("fired", "a", "aa", "stream", "error", "all_stream", "all_error", "ee", "ae")
        shape = _BLOCKS, len(self.features)
        self.sums = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name in names}
        self.tokens = torch.zeros(_BLOCKS, dtype=torch.float64, device=device)

    def add(self, upper: Tensor, lower: Tensor, blocks: Tensor) -> None:
        """Adds streams `(n, width)` of the two layers."""
        import torch

        widest = max(self.upper.num_features, self.lower.num_features)
        for rows, below, block in zip(
            *(one.split(max(_ENTRIES // widest, 1)) for one in (upper, lower, blocks)), strict=True
        ):
            block = block.to(self.tokens.device)
            codes = self.upper.encode(rows)[:, self.chosen] * self.upper.scale(rows)  # (n, k)
            fired = codes > 0
            stream = self.lower.read(below).float() @ self.directions.T
            error = self.lower.error(below).float() @ self.directions.T
            values = {
                "fired": fired,
                "a": codes,
                "aa": codes.double() ** 2,
                "stream": stream * fired,
                "error": error * fired,
                "all_stream": stream,
                "all_error": error,
                "ee": fired * error.double() ** 2,
                "ae": codes.double() * error,
            }
            for name, value in values.items():
                self.sums[name].index_add_(0, block, value.double())
            self.tokens.index_add_(0, block, torch.ones_like(block, dtype=torch.float64))

    def table(self, threshold: float, min_tokens: int) -> dict[str, np.ndarray]:
        sums = {name: value.cpu().numpy() for name, value in self.sums.items()}  # (blocks, k)
        tokens = self.tokens.cpu().numpy()[:, None]
        total = {name: value.sum(0) for name, value in sums.items()}
        estimate = _shares(total, tokens.sum())
        # Without each of the blocks in turn
        left = _shares({name: total[name] - value for name, value in sums.items()}, tokens.sum() - tokens)
        # A block without tokens leaves nothing out
        there = (tokens > 0)[:, 0]
        count = int(there.sum())
        columns: dict[str, np.ndarray] = {
            "layer": np.full(len(self.features), self.upper.layer, np.int32),
            "next": np.full(len(self.features), self.lower.layer, np.int32),
            "feature": self.features.astype(np.int32),
            "control": self.control,
            "tokens": total["fired"].astype(np.int64),
        }
        bounds = {}
        for name, value in estimate.items():
            spread = left[name][there]
            # Shares that lose all their tokens with a block have no spread
            error = np.sqrt((count - 1) / max(count, 1) * ((spread - spread.mean(0)) ** 2).sum(0))
            half = _quantile(count) * np.where(np.isfinite(error), error, np.inf)
            bounds[name] = value - half, value + half
            columns |= {name: value, f"{name}_low": bounds[name][0], f"{name}_high": bounds[name][1]}
        columns["slope"], columns["correlation"] = _regression(total)
        rare = (total["fired"] < min_tokens) | (total["fired"] >= tokens.sum()) | ~np.isfinite(estimate["stream"])
        columns["verdict"] = np.select(
            [
                rare,
                bounds["stream"][1] < threshold,
                bounds["error"][0] >= threshold,
                bounds["rebuilt"][0] >= threshold,
            ],
            ["rare", "gone", "missed", "rebuilt"],
            "unclear",
        ).astype(object)
        return columns


def _shares(sums: Mapping[str, np.ndarray], tokens: Any) -> dict[str, np.ndarray]:
    """Shares of features in stream, error and reconstruction, from sums over tokens; NaN where there is none."""
    fired, others = sums["fired"], tokens - sums["fired"]
    with np.errstate(divide="ignore", invalid="ignore"):
        strength = sums["a"] / fired
        found = {
            name: (sums[name] / fired - (sums[f"all_{name}"] - sums[name]) / others) / strength
            for name in ("stream", "error")
        }
    return {**found, "rebuilt": found["stream"] - found["error"]}


def _regression(total: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Slope and correlation of the error's projection on the code, over tokens where the feature fires; NaN where it
    always fires alike."""
    with np.errstate(divide="ignore", invalid="ignore"):
        number = total["fired"]
        a, e = total["a"] / number, total["error"] / number
        aa, ee = total["aa"] / number - a**2, total["ee"] / number - e**2
        ae = total["ae"] / number - a * e
        varies = aa > 1e-9 * total["aa"] / number
        slope = np.where(varies, ae / aa, np.nan)
        correlation = np.where(varies & (ee > 0), ae / np.sqrt(aa * ee), np.nan)
    return slope, correlation


def _quantile(blocks: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(blocks - 1, 0.975)) if blocks > 1 else np.inf


def _summary(sums: _Sums, table: Mapping[str, np.ndarray], tokens: int) -> dict[str, Any]:
    known = table["verdict"] != "rare"
    of_controls = table["error"][table["control"] & known]
    limit = float(np.quantile(of_controls, 0.95)) if len(of_controls) else None

    def part(rows: np.ndarray) -> dict[str, Any]:
        there = rows & known
        return {
            "features": int(rows.sum()),
            **{verdict: int((table["verdict"][rows] == verdict).sum()) for verdict in VERDICTS},
            "median": {
                name: float(np.median(table[name][there])) if there.any() else None
                for name in ("stream", "error", "rebuilt")
            },
            "beyond": None if limit is None or not there.any() else float((table["error"][there] > limit).mean()),
        }

    return {
        "layer": sums.upper.layer,
        "next": sums.lower.layer,
        "tokens": tokens,
        "features": part(~table["control"]),
        "controls": part(table["control"]),
    }
