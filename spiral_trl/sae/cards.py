"""Cards of features: the texts they fire on, how often and how strongly, and the tokens they promote.

One pass over the codes finds the places ([`~spiral_trl.sae.scan.scan`]); then only the windows around them are read. No
model is run: the logit lens needs its unembedding alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from .documents_index import DocumentIndex
from .logit_lens import LogitLens
from .pieces import Pieces
from .scan import Scan, scan
from .store import Store, shard_bounds


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Features whose windows are read together
_BLOCK = 4096


@dataclass(frozen=True)
class Text:
    """Tokens around a place, and what a feature does on each.

    Args:
        tokens (`list[str]`): Pieces of text, untrusted.
        values (`list[float]`): Activation at each.
        peak (`int`): Index of the token that the text was chosen for.
        role (`str`, *optional*): Whose text it is, in games: `player 0 · reply`.
        document (`int`): The document's number in the store.
        kind (`str`): `top`, or `sample` for one of the lower activations.
    """

    tokens: list[str]
    values: list[float]
    peak: int
    role: str | None
    document: int
    kind: str

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Card:
    """What there is to see of one feature.

    Args:
        layer, feature (`int`): Which.
        count (`int`): Tokens where it fires.
        density (`float`): Share of the tokens.
        maximum, mean (`float`): Its highest activation, and the mean where it fires.
        edges, counts (`list`): Histogram of its activations where it fires.
        texts (`list[Text]`): The highest places first, then samples of lower ones.
        promoted, suppressed (`list[tuple[str, float]]`): Tokens by the logit lens, see
            [`~spiral_trl.sae.logit_lens`].
    """

    layer: int
    feature: int
    count: int
    density: float
    maximum: float
    mean: float
    edges: list[float]
    counts: list[int]
    texts: list[Text]
    promoted: list[tuple[str, float]] = field(default_factory=list)
    suppressed: list[tuple[str, float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """In the form of a report's features, [`~spiral_trl.sae.report_data.FEATURE`], as far as it goes."""
        return {
            "l": self.layer,
            "f": self.feature,
            "density": short(self.density),
            "count": self.count,
            "max": short(self.maximum),
            "mean": short(self.mean),
            "histogram": {"edges": self.edges, "counts": self.counts} if self.counts else None,
            "texts": [text.to_dict() for text in self.texts],
            "promoted": [[text, short(score)] for text, score in self.promoted],
            "suppressed": [[text, short(score)] for text, score in self.suppressed],
        }


def make_cards(
    store: Store,
    features: Mapping[int, Sequence[int] | np.ndarray],
    tokenizer: PreTrainedTokenizerBase | None = None,
    model: PreTrainedModel | None = None,
    directions: Mapping[int, np.ndarray] | None = None,
    top: int = 5,
    samples: int = 3,
    before: int = 16,
    after: int = 8,
    promoted: int = 8,
    progress: Callable[[int, int], object] | None = None,
) -> Iterator[Card]:
    """Cards of chosen features, by layer and feature; made as they are asked for, after one pass over the codes.

    Args:
        store ([`~spiral_trl.sae.store.Store`]): The codes.
        features (`Mapping[int, Sequence[int]]`): Chosen features of each layer.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The model's; without one tokens are numbers.
        model ([`~transformers.PreTrainedModel`], *optional*): For promoted and suppressed tokens.
        directions (`Mapping[int, np.ndarray]`, *optional*): For these too: of each layer the decoder's `(features, width)`.
        top (`int`, *optional*, defaults to `5`): How many texts of the highest activations, each of another game or text.
        samples (`int`, *optional*, defaults to `3`): How many texts of lower activations, spread over its range.
        before, after (`int`, *optional*, defaults to `16` and `8`): Tokens that are shown around a place.
        promoted (`int`, *optional*, defaults to `8`): How many promoted and how many suppressed tokens.
        progress (`Callable`, *optional*): Called with the number of shards that were read and of all.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If the store has no such layer or feature.
    """
    scans = scan(store, features, 2 * top, 4 * samples, before, progress)
    pieces = Pieces(tokenizer)
    lens = LogitLens(model) if model is not None and directions is not None else None
    windows = Windows(store, pieces, before, after)
    for layer, found in scans.items():
        for start in range(0, len(found.features), _BLOCK):
            rows = range(start, min(start + _BLOCK, len(found.features)))
            chosen = [choose_places(found, row, top, samples) for row in rows]
            texts = windows.of_features(layer, found.features[list(rows)], chosen)
            lists: list[tuple[list, list]] = [([], [])] * len(rows)
            if lens is not None and directions is not None and layer in directions:
                lists = _lens_lists(lens, directions[layer][found.features[list(rows)]], promoted, pieces)
            for row, shown, (high, low) in zip(rows, texts, lists, strict=True):
                yield _card(found, row, shown, high, low)


def choose_places(found: Scan, row: int, top: int, samples: int) -> list[tuple[int, str]]:
    """Which tokens to show of a feature: number of the token, and `top` or `sample`."""
    best = found.top.best(row)[:top]
    chosen = [(int(found.top.token[row, column]), "top") for column in best]
    lower = [column for column in found.sample.best(row) if not _shown_already(found, row, column, best)]
    lower.sort(key=lambda column: (-found.sample.value[row, column], found.sample.token[row, column]))
    # The middle of each of so many equal parts
    places = [(2 * part + 1) * len(lower) // (2 * samples) for part in range(samples)] if samples else []
    kept = dict.fromkeys(places[: len(lower)] if len(lower) > samples else range(len(lower)))
    return [*chosen, *((int(found.sample.token[row, lower[place]]), "sample") for place in kept)]


def _shown_already(found: Scan, row: int, column: int, best: np.ndarray) -> bool:
    top, sample = found.top, found.sample
    return bool(
        (top.group[row, best] == sample.group[row, column]).any()
        or (top.context[row, best] == sample.context[row, column]).any()
    )


class Windows:
    """Texts around places of a store.

    Args:
        store ([`~spiral_trl.sae.store.Store`]): The codes.
        pieces ([`~spiral_trl.sae.pieces.Pieces`]): The tokens' texts.
        before, after (`int`): Tokens that are shown around a place.
    """

    def __init__(self, store: Store, pieces: Pieces, before: int, after: int):
        self.store = store
        self.index = DocumentIndex(store)
        self._pieces = pieces
        self._around = before, after
        self._bounds = shard_bounds(store.shards)

    def of_features(
        self, layer: int, features: np.ndarray, chosen: Sequence[Sequence[tuple[int, str]]]
    ) -> list[list[Text]]:
        """Texts of each of several features of a layer, `chosen` being its places and their kinds."""
        counts = [len(places) for places in chosen]
        places = np.array([token for given in chosen for token, _ in given], dtype=np.int64)
        tokens = self.numbers(places)
        wanted = np.broadcast_to(np.repeat(features, counts)[:, None], tokens.shape)
        values = self._values(layer, tokens, wanted)
        kinds = iter(kind for given in chosen for _, kind in given)
        texts = [self.text(*item, next(kinds)) for item in zip(places, tokens, values, strict=True)]
        ends = np.cumsum([0, *counts])
        return [texts[start:stop] for start, stop in zip(ends[:-1], ends[1:], strict=True)]

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """Numbers of the tokens around places, `(N, window)`, -1 where there is none."""
        return self.index.windows(places, *self._around)

    def contexts(self, first: int, count: int) -> np.ndarray:
        """`(count,)` hashes of tokens with those that are shown before them."""
        return self.index.contexts(first, count, self._around[0])

    def text(self, place: int, tokens: np.ndarray, values: np.ndarray, kind: str) -> Text:
        """The text of a window.

        Args:
            place (`int`): Number of the token that it is about.
            tokens (`np.ndarray`): Numbers of the window's tokens; -1 is left out.
            values (`np.ndarray`): A value for each.
            kind (`str`): See [`Text`].
        """
        kept = tokens >= 0
        at = self.index.tokens[tokens[kept]]
        peak = int(np.flatnonzero(tokens[kept] == place)[0])
        own = at[peak]
        shown = self._pieces.split(at["token"].tolist(), peak)
        return Text(shown, [short(value) for value in values[kept]], peak, role(own), int(own["document"]), kind)

    def _values(self, layer: int, tokens: np.ndarray, features: np.ndarray) -> np.ndarray:
        values = np.zeros(tokens.shape, np.float32)
        for shard, start, stop in zip(self.store.shards, self._bounds[:-1], self._bounds[1:], strict=True):
            inside = np.nonzero((tokens >= start) & (tokens < stop))
            if not len(inside[0]):
                continue
            rows = shard.rows(layer)
            entries = _find(rows.indptr, rows.feature, tokens[inside] - start, features[inside].astype(np.int64))
            hit = entries >= 0
            values[inside[0][hit], inside[1][hit]] = rows.value[entries[hit]]
        return values


@numba.njit(cache=True)
def _find(indptr, feature, tokens, features):  # type: ignore[no-untyped-def]
    """For each token and feature the entry of the token's row, whose features ascend, or -1."""
    found = np.full(len(tokens), -1, np.int64)
    for n in range(len(tokens)):
        low, high = indptr[tokens[n]], indptr[tokens[n] + 1]
        end = high
        while low < high:
            middle = (low + high) // 2
            if feature[middle] < features[n]:
                low = middle + 1
            else:
                high = middle
        if low < end and feature[low] == features[n]:
            found[n] = low
    return found


def role(token: np.void) -> str | None:
    """Whose token it is, and whether it was shown to the player or written by it; `None` outside games."""
    if token["player"] < 0:
        return None
    return f"player {token['player']} · {'reply' if token['reply'] else 'prompt'}"


def short(value: float) -> float:
    """Four significant digits: what a page shows."""
    return float(f"{float(value):.4g}")


def _lens_lists(
    lens: LogitLens, directions: np.ndarray, count: int, pieces: Pieces
) -> list[tuple[list[tuple[str, float]], list[tuple[str, float]]]]:
    high, high_scores, low, low_scores = lens.extremes(directions, count, pieces.count)

    def named(tokens: np.ndarray, scores: np.ndarray) -> list[tuple[str, float]]:
        return [(pieces.of(token), score) for token, score in zip(tokens.tolist(), scores.tolist(), strict=True)]

    return [
        (named(*above), named(*below))
        for above, below in zip(zip(high, high_scores, strict=True), zip(low, low_scores, strict=True), strict=True)
    ]


def _card(found: Scan, row: int, texts: list[Text], high: list, low: list) -> Card:
    count, maximum, width = int(found.count[row]), float(found.maximum[row]), float(found.width[row])
    used = np.trim_zeros(found.histogram[row], "b")
    return Card(
        layer=found.layer,
        feature=int(found.features[row]),
        count=count,
        density=count / found.num_tokens,
        maximum=maximum,
        mean=float(found.total[row]) / count if count else 0.0,
        edges=[short(width * edge) for edge in range(len(used) + 1)] if count else [],
        counts=used.tolist(),
        texts=texts,
        promoted=high,
        suppressed=low,
    )
