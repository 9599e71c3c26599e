"""Which features and edges of a run go into its report, within limits.

Features come in by turns, each with a share of the places: those that other results name, all of them; inputs and outputs
of gates; examples of each label; members of communities; what is active on the prompts; neighbours of these; and, where
places are left, the features that fire most often. A run with fewer living features than places goes in whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from .relations import Relations

Place = tuple[int, int]
_NAMED = re.compile(r"(\d{1,4})/(\d{1,9})", re.ASCII)


@dataclass(frozen=True)
class Limits:
    """How much a report holds.

    Args:
        features, edges, communities (`int`, *optional*, defaults to `2000`, `20000` and `60`): At most so many. Features
            that other results name are in whatever the limit.
        members (`int`, *optional*, defaults to `80`): Of a community, so many features at most are chosen for it.
        prompts, prompt_tokens, prompt_features (`int`, *optional*, defaults to `12`, `160` and `60`): Prompts, tokens of
            each, and features that are chosen for it.
        texts, samples (`int`, *optional*, defaults to `5` and `3`): Texts of a feature with its highest activations, and
            with lower ones.
        before, after (`int`, *optional*, defaults to `16` and `8`): Tokens of a text around its peak.
        tokens (`int`, *optional*, defaults to `8`): Promoted and suppressed tokens of a feature.
    """

    features: int = 2000
    edges: int = 20_000
    communities: int = 60
    members: int = 80
    prompts: int = 12
    prompt_tokens: int = 160
    prompt_features: int = 60
    texts: int = 5
    samples: int = 3
    before: int = 16
    after: int = 8
    tokens: int = 8


class Selection:
    """Features in the order in which they were chosen.

    Args:
        counts (`Mapping[int, np.ndarray]`): Of each layer, how often each feature fires.
        limit (`int`): How many features at most, but for those that must be in.
    """

    def __init__(self, counts: Mapping[int, np.ndarray], limit: int):
        self.counts = counts
        self.limit = limit
        self._chosen: dict[Place, None] = {}

    def __len__(self) -> int:
        return len(self._chosen)

    def __contains__(self, place: Place) -> bool:
        return place in self._chosen

    def need(self, places: Iterable[Place]) -> None:
        """Takes all of those that there are."""
        for layer, feature in places:
            if layer in self.counts and 0 <= feature < len(self.counts[layer]):
                self._chosen[layer, feature] = None

    def offer(self, places: Iterable[Place], most: int | None = None) -> None:
        """Takes those that fire, one after the other, up to the limit, and at most `most` new ones."""
        room = self.limit - len(self) if most is None else min(most, self.limit - len(self))
        for layer, feature in places:
            if room <= 0:
                return
            if (layer, feature) not in self._chosen and self.counts[layer][feature] > 0:
                self._chosen[layer, feature] = None
                room -= 1

    def offer_most_frequent(self) -> None:
        """Takes what fires most often, layer by layer, until the limit: of a run that is small, everything."""
        orders = {layer: np.argsort(-counts, kind="stable") for layer, counts in self.counts.items()}
        longest = max((len(order) for order in orders.values()), default=0)
        self.offer((layer, int(order[n])) for n in range(longest) for layer, order in orders.items() if n < len(order))

    @property
    def by_layer(self) -> dict[int, np.ndarray]:
        """Chosen features of each layer, ascending."""
        places = sorted(self._chosen)
        return {layer: np.array([f for at, f in places if at == layer], dtype=np.int64) for layer in self.counts}


def mentioned(value: Any) -> list[Place]:
    """Features that results name, which the page makes links of: objects of JSON with `l` and `f`, or `layer` and
    `feature`, as numbers; and texts of the form `LAYER/FEATURE`."""
    found: list[Place] = []
    if isinstance(value, str):
        if match := _NAMED.fullmatch(value):
            found.append((int(match[1]), int(match[2])))
    elif isinstance(value, Mapping):
        for layer, feature in (("l", "f"), ("layer", "feature")):
            place = value.get(layer), value.get(feature)
            if all(isinstance(part, int) and not isinstance(part, bool) for part in place):
                found.append(place)  # type: ignore[arg-type]
        for part in value.values():
            found += mentioned(part)
    elif isinstance(value, list | tuple):
        for part in value:
            found += mentioned(part)
    return found


def without_links(tables: Sequence[Mapping[str, Any]], column: str, renamed: str) -> list[dict[str, Any]]:
    """Tables (`columns`, `rows`) in which a column's features are named otherwise: `3 · 18` for `3/18`, of which a page
    makes no link."""
    found = []
    for table in tables:
        at = table["columns"].index(column) if column in table["columns"] else -1
        found.append(
            {
                **table,
                "columns": [renamed if n == at else name for n, name in enumerate(table["columns"])],
                "rows": [
                    [str(cell).replace("/", " · ") if n == at else cell for n, cell in enumerate(row)]
                    for row in table["rows"]
                ],
            }
        )
    return found


def neighbours(relations: Relations, rule: str, measure: str, chosen: Selection, ranks: int = 3) -> list[Place]:
    """Nearest neighbours, both ways, of what was chosen, the strongest first."""
    found: list[tuple[float, Place]] = []
    own = chosen.by_layer
    for up_layer, down_layer in relations.pairs:
        edges = relations.edges((up_layer, down_layer), rule)
        up, down = np.asarray(edges["upstream"]), np.asarray(edges["downstream"])
        value = np.nan_to_num(np.asarray(edges[measure], dtype=np.float64))
        for here, there, layer, name in (
            (np.isin(up, own.get(up_layer, ())), down, down_layer, f"rank_down_{measure}"),
            (np.isin(down, own.get(down_layer, ())), up, up_layer, f"rank_up_{measure}"),
        ):
            rows = np.flatnonzero(here & (_ranks(edges, name) <= ranks) & (value > 0))
            found += [(-float(value[row]), (layer, int(there[row]))) for row in rows]
    return [place for _, place in sorted(found)]


def choose_edges(
    relations: Relations, rule: str, measures: Sequence[str], index: Mapping[Place, int], limit: int | None
) -> list[list[Any]]:
    """Edges between chosen features, as a report has them.

    Where there are more than `limit`, those stay that stand highest among the neighbours of either end by any measure;
    of equals those with the largest value of the first.

    Args:
        relations ([`~spiral_trl.sae.relations.Relations`]): The relations.
        rule (`str`): The activity rule.
        measures (`Sequence[str]`): The measures.
        index (`Mapping`): Place in the report of each chosen layer and feature.
        limit (`int`, *optional*): At most so many; `None` for all.
    """
    ends, values, ranks = [], [], []
    for up_layer, down_layer in relations.pairs:
        edges = relations.edges((up_layer, down_layer), rule)
        both = []
        for layer, name in ((up_layer, "upstream"), (down_layer, "downstream")):
            features = np.asarray(edges[name]).astype(np.int64)
            table = np.full(1 + int(features.max(initial=0)), -1, np.int64)
            for (at, feature), number in index.items():
                if at == layer and feature < len(table):
                    table[feature] = number
            both.append(table[features])
        rows = np.flatnonzero((both[0] >= 0) & (both[1] >= 0))
        ends.append(np.stack([both[0][rows], both[1][rows]], axis=1))
        values.append(np.stack([np.asarray(edges[name], dtype=np.float64)[rows] for name in measures], axis=1))
        columns = [_ranks(edges, f"rank_{way}_{name}")[rows] for name in measures for way in ("down", "up")]
        ranks.append(np.min(columns, axis=0))
    if not ends:
        return []
    all_ends, all_values = np.concatenate(ends), np.concatenate(values)
    order = np.lexsort((-np.nan_to_num(all_values[:, 0]), np.concatenate(ranks)))[:limit]
    return [
        [up, down, [None if np.isnan(value) else float(f"{value:.5g}") for value in row]]
        for (up, down), row in zip(all_ends[order].tolist(), all_values[order], strict=True)
    ]


def _ranks(edges: Mapping[str, Any], name: str) -> np.ndarray:
    """A column of ranks as numbers, infinite where a neighbour has none."""
    ranks = np.asarray(edges[name], dtype=np.float64)
    return np.where(np.isnan(ranks) | (ranks <= 0), np.inf, ranks)
