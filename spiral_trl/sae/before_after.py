"""The comparison of a report: by the autoencoders of the model before and, where there are some, by those trained on both.

The first say what training did to features that were there before, as far as they still describe the model: the gate says
how far. The second describe both models, and serve where the gate is shut; features that only one model has are among
them, which the first cannot have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .compare import Comparison, compare
from .selection import without_links
from .store import Store, write_json


# Most changed features that are switched off in play
_CAUSAL = 8

Causal = Callable[[Mapping[int, list[int]], Store], dict[str, Any] | None]


@dataclass(frozen=True)
class Compared:
    """What is compared by one set of autoencoders; see [`~spiral_trl.sae.compare.compare`].

    Args:
        same_text (`tuple[Store, Store]`): Codes of the model before and after, on the same documents.
        on_policy (`tuple[Store, Store]`, *optional*): Codes of each on its own games.
        quality (`tuple[Mapping, Mapping]`, *optional*): Of the autoencoders on either.
        graph (`Mapping`, *optional*): Difference of the graphs.
        candidates (`Mapping`, *optional*): Features that only one of the models has.
    """

    same_text: tuple[Store, Store]
    on_policy: tuple[Store, Store] | None = None
    quality: tuple[Mapping[Any, Any], Mapping[Any, Any]] | None = None
    graph: Mapping[str, Any] | None = None
    candidates: Mapping[int, Mapping[str, Any]] | None = None

    def compare(self, folder: Path, causal: Mapping[str, Any] | None, progress: Any) -> Comparison:
        return compare(
            folder,
            same_text=self.same_text,
            on_policy=self.on_policy,
            quality=self.quality,
            graph=self.graph,
            candidates=self.candidates,
            causal=causal,
            progress=progress,
        )


def compare_before_after(
    folder: str | Path,
    own: Compared,
    shared: Compared | None = None,
    causal: Causal | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Compares by one or two sets of autoencoders, and writes `comparison.json`; each one's tables go to `compared/`.

    Args:
        folder (`str` or `Path`): The run's folder.
        own ([`Compared`]): By the autoencoders of the model before.
        shared ([`Compared`], *optional*): By those trained on both models.
        causal (`Callable`, *optional*): Switches given features off in play, see
            [`~spiral_trl.sae.ablated_play.ablated_play`]; called with the most changed features by layer, and the store that
            they fire in.
        progress (`Callable`, *optional*): See [`~spiral_trl.sae.compare.compare`].
    """
    folder = Path(folder)
    parts = [("of the model before", "before", own)]
    if shared is not None:
        parts.append(("trained on both models", "shared", shared))
    told: dict[str, Any] = {"summary": "", "tables": []}
    for number, (words, name, compared) in enumerate(parts):
        place = folder / "compared" / f"by_{name}"
        found = compared.compare(place, None, progress)
        last = number == len(parts) - 1
        if last and causal is not None and (changed := most_changed(place / "comparison.parquet")):
            found = compared.compare(place, causal(changed, compared.same_text[1]), progress)
        prefix = f"By autoencoders {words}: " if shared is not None else ""
        told["summary"] = " ".join(filter(None, [told["summary"], prefix + found.data["summary"]]))
        tables = found.data["tables"]
        if not last:
            # The page shows the other autoencoders' features, and a link would lead to one of these
            tables = without_links(tables, "feature", "layer and feature, of the model before")
        told["tables"] += [{**table, "title": prefix + table["title"]} for table in tables]
        told[name] = found.data
    if shared is None:
        told = dict(told["before"])
    else:
        told |= {name: told["before"][name] for name in ("version", "gate")}
    write_json(folder / "comparison.json", told)
    return told


def most_changed(path: str | Path, count: int = _CAUSAL) -> dict[int, list[int]]:
    """The features that changed most on the same texts, of those beyond noise: by the logarithm of the ratio of densities,
    or of mean activations, whichever is larger.

    Args:
        path (`str` or `Path`): `comparison.parquet`.
        count (`int`, *optional*, defaults to `8`): How many.

    Returns:
        `dict[int, list[int]]`: By layer; empty where nothing is beyond noise.
    """
    import pandas as pd

    table = pd.read_parquet(path)
    if "same_text_beyond" not in table:
        return {}
    table = table[table["same_text_beyond"]]
    tiny = 1e-9

    def change(name: str) -> np.ndarray:
        before, after = (table[f"same_text_{name}_{side}"].to_numpy(float) + tiny for side in ("before", "after"))
        return np.abs(np.log(after / before))

    size = np.maximum(change("density"), change("activation"))
    # One that does not fire on the model after cannot be missed there
    size[table["same_text_density_after"].to_numpy(float) == 0] = -1
    order = np.argsort(-size, kind="stable")[:count]
    found: dict[int, list[int]] = {}
    for row in table.iloc[order[size[order] > 0]].itertuples():
        found.setdefault(int(row.layer), []).append(int(row.feature))
    return {layer: sorted(features) for layer, features in sorted(found.items())}
