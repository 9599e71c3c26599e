"""From the codes of two layers to the neighbours of their features by every measure: the work of one layer pair.

1. Neighbours by the cosine of decoder directions, from a dense product in blocks, which no token enters into.
2. The downstream layer's rows are laid out once more, in a file that all processes map into memory.
3. Processes take ranges of upstream features in turn: each transposes its range and relates it to the whole downstream
   layer (see coactivation.py). What comes out depends neither on the ranges nor on who took which.
4. The lists of all measures, both ways, are joined to one table of pairs for each rule.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numba import njit

from .coactivation import (
    ACTIVATION_MEASURES,
    COUNT_MEASURES,
    NUM_LISTS,
    pack,
    packed_dtype,
    pair_measures,
    relate_rows,
    sides,
)
from .kernels import Features, transpose
from .relations import RULES
from .store import Store, open_store
from .top_lists import PAIR, Lists, key_features, offer_block


# Ranges of upstream features that are taken in turn; each reads the upstream layer once
RANGES = 32
# Rows of a block of the product of decoder directions
_BLOCK = 256


@dataclass(frozen=True)
class Pair:
    """What is needed to relate two layers, whichever process does it.

    Args:
        store (`Path`): The folder of the codes.
        layers (`tuple[int, int]`): The upstream layer, whose features are gone through, and the downstream one.
        folder (`Path`): Where the downstream layer's rows are laid out.
        features (`tuple[Features, Features]`): Sums of the two layers.
        num_tokens, top_k, min_count (`int`): Of the store, and settings.
        relative (`float`): Of the relative rule.
        wanted_indptr, wanted (`np.ndarray`): Pairs that are wanted whatever their measures, see
            [`~spiral_trl.sae.coactivation.relate_rows`].
    """

    store: Path
    layers: tuple[int, int]
    folder: Path
    features: tuple[Features, Features]
    num_tokens: int
    top_k: int
    min_count: int
    relative: float
    wanted_indptr: np.ndarray
    wanted: np.ndarray

    def ranges(self) -> list[range]:
        """Ranges of upstream features with about as many entries each."""
        ends = np.cumsum(self.features[0].count)
        cuts = np.searchsorted(ends, np.arange(1, RANGES) * ends[-1] / RANGES)
        bounds = np.unique([0, *cuts, len(ends)])
        return [range(start, stop) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]

    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Records of [`~spiral_trl.sae.coactivation.sides`] of both layers."""
        one, other = (sides(features, self.num_tokens, self.min_count) for features in self.features)
        return one, other


@dataclass(frozen=True)
class Part:
    """What one process made of its ranges of a [`Pair`]: the lists of these upstream features and their wanted pairs, and
    the lists of all downstream features as far as these upstream ones go."""

    rows: list[tuple[range, np.ndarray, np.ndarray, np.ndarray]]
    column_keys: np.ndarray
    column_pairs: np.ndarray


def _work(pair: Pair, numbers: Iterable[int]) -> Part:
    store = open_store(pair.store)
    row_start = np.load(pair.folder / "row_start.npy", mmap_mode="r")
    # No file holds nothing, as a layer does in which no feature ever fires
    packed = np.load(pair.folder / "packed.npy", mmap_mode="r" if row_start[-1] else None)
    both_sides, ranges = pair.sides(), pair.ranges()
    columns = Lists(len(both_sides[1]), NUM_LISTS, pair.top_k)
    rows = []
    for number in numbers:
        features = ranges[number]
        postings = transpose(
            store, pair.layers[0], features=pair.features[0], wanted=np.arange(features.start, features.stop)
        )
        limits = pair.relative * pair.features[0].max
        lists, wanted = relate_rows(
            features, postings, limits, row_start, packed, both_sides, columns, pair.wanted_indptr, pair.wanted
        )
        rows.append((features, lists.keys, lists.in_order(), wanted))
    return Part(rows, columns.keys, columns.in_order())


# In a worker: how many ranges of the pair have been taken
_taken: Any = None


def _begin(taken: Any) -> None:
    global _taken
    _taken = taken
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        # A worker whose parent was killed would wait for work for ever
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _take(number: int) -> Iterator[int]:
    while True:
        with _taken.get_lock():
            at = _taken.value
            _taken.value += 1
        if at >= number:
            return
        yield at


def _work_in_turn(pair: Pair) -> Part:
    return _work(pair, _take(len(pair.ranges())))


class Workers:
    """Processes that relate layers; the calling one where one is asked for.

    Args:
        processes (`int`): How many.
    """

    def __init__(self, processes: int):
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None
        if processes > 1:
            context = multiprocessing.get_context("spawn")
            self._taken = context.Value("q", 0)
            self._pool = ProcessPoolExecutor(processes, context, _begin, (self._taken,))

    def run(self, pair: Pair, progress: Callable[[int], object]) -> list[Part]:
        """Has all ranges of a pair related; `progress` is called with numbers of ranges that were begun.

        Raises:
            `BrokenProcessPool`: If a process was killed.
        """
        number = len(pair.ranges())
        if self._pool is None:
            return [_work(pair, _counted(number, progress))]
        self._taken.value = 0
        futures = [self._pool.submit(_work_in_turn, pair) for _ in range(self.processes)]
        begun, waiting = 0, set(futures)
        while waiting:
            _, waiting = wait(waiting, timeout=0.2)
            now = min(self._taken.value, number)
            progress(now - begun)
            begun = now
        return [future.result() for future in futures]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _counted(number: int, progress: Callable[[int], object]) -> Iterator[int]:
    for at in range(number):
        yield at
        progress(1)


def lay_out(store: Store, layer: int, limits: np.ndarray, folder: Path) -> None:
    """Writes a layer's rows into `folder` as the loop over pairs reads them, over all shards.

    Raises:
        `OSError`: If the disk is full, say.
    """
    starts, end = [np.zeros(1, np.int64)], 0
    dtype = packed_dtype(store.num_features(layer), store.shards[0].rows(layer).value.dtype)
    entries = sum(shard.entries[layer] for shard in store.shards)
    with open(folder / "packed.npy", "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (entries,)}
        np.lib.format.write_array_header_1_0(file, header)
        for shard in store.shards:
            rows = shard.rows(layer)
            starts.append(rows.indptr[1:] + end)
            end += int(rows.indptr[-1])
            file.write(pack(rows, limits, dtype).data)
    np.save(folder / "row_start.npy", np.concatenate(starts))


def unit(directions: np.ndarray) -> np.ndarray:
    """Directions `(features, width)` of length 1, float64; 0 where a length is 0 or not finite."""
    directions = np.asarray(directions, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    good = np.isfinite(lengths) & (lengths > 0)
    return np.divide(directions, lengths, out=np.zeros_like(directions), where=good)


def decoder_neighbours(
    up: np.ndarray, down: np.ndarray, eligible: tuple[np.ndarray, np.ndarray], top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest directions of the other layer, for the features of both, by cosine above 0.

    Args:
        up, down (`np.ndarray`): Of length 1, `(features, width)`.
        eligible (`tuple[np.ndarray, np.ndarray]`): `(features,)`, bool, for both: the features that count.
        top_k (`int`): How many.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: `(features, top_k)` places of lists for both, see
        [`~spiral_trl.sae.top_lists.as_key`].
    """
    rows, columns = Lists(len(up), 1, top_k), Lists(len(down), 1, top_k)
    for first in range(0, len(up), _BLOCK):
        products = up[first : first + _BLOCK] @ down.T
        products[~eligible[0][first : first + _BLOCK]] = 0
        offer_block(first, products, eligible[1], rows.arrays, columns.arrays)
    return rows.keys[:, 0], columns.keys[:, 0]


@njit(cache=True)
def _dot(upstream: np.ndarray, downstream: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    values = np.empty(len(upstream), np.float32)
    for at in range(len(upstream)):
        values[at] = np.dot(up[upstream[at]], down[downstream[at]])
    return values


def _listed(
    keys: np.ndarray, pairs: np.ndarray | None, upstream_first: bool, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Of lists `(features, top_k)` the pairs in them as `upstream * width + downstream`, their ranks from 1, and what is
    known of them."""
    feature, at = np.nonzero(keys)
    other = key_features(keys[feature, at])
    codes = feature * width + other if upstream_first else other * width + feature
    return codes, (at + 1).astype(np.int16), None if pairs is None else pairs[feature, at]


def _distinct(codes: Sequence[np.ndarray]) -> np.ndarray:
    """The numbers in arrays, each once and ascending: `np.unique`, which takes 60 times as long on millions."""
    ordered = np.sort(np.concatenate(codes))
    return ordered[np.concatenate([np.ones(len(ordered[:1]), bool), ordered[1:] != ordered[:-1]])]


def _positions(code: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Where in ascending `code` each of `codes` is; looked up in their order, which the memory's cache likes."""
    order = np.argsort(codes)
    at = np.empty(len(codes), np.int64)
    at[order] = np.searchsorted(code, codes[order])
    return at


class Neighbours:
    """All lists of a layer pair, from which the tables of both rules are made.

    Args:
        pair ([`Pair`]): What was related.
        parts (`list[Part]`): What its processes made of it.
        decoder (`tuple[np.ndarray, np.ndarray]`, *optional*): What [`decoder_neighbours`] gave.
        directions (`tuple[np.ndarray, np.ndarray]`, *optional*): The directions of length 1.
    """

    def __init__(
        self,
        pair: Pair,
        parts: list[Part],
        decoder: tuple[np.ndarray, np.ndarray] | None,
        directions: tuple[np.ndarray, np.ndarray] | None,
    ):
        self.pair, self.decoder, self.directions = pair, decoder, directions
        self.sides = pair.sides()
        shape = len(self.sides[0]), NUM_LISTS, pair.top_k
        self.row_keys, self.row_pairs = np.zeros(shape, np.uint64), np.zeros(shape, PAIR)
        self.wanted_pairs = np.zeros(len(pair.wanted), PAIR)
        columns = Lists(len(self.sides[1]), NUM_LISTS, pair.top_k)
        while parts:
            part = parts.pop()
            for features, keys, pairs, wanted in part.rows:
                own = slice(features.start, features.stop)
                self.row_keys[own], self.row_pairs[own] = keys, pairs
                self.wanted_pairs[pair.wanted_indptr[own.start] : pair.wanted_indptr[own.stop]] = wanted
            columns.merge(part.column_keys, part.column_pairs)
        self.column_keys, self.column_pairs = columns.keys, columns.in_order()

    def table(self, rule: str) -> dict[str, np.ndarray]:
        """The pairs that stand in any list of a rule, ascending; ranks are 0 where a pair stands not in that list."""
        width = len(self.sides[1])
        lists = [0, 1, *range(2 + 4 * RULES.index(rule), 6 + 4 * RULES.index(rule))]
        names = [*ACTIVATION_MEASURES, *COUNT_MEASURES]
        found = {}
        for which, name in zip(lists, names, strict=True):
            found[f"rank_down_{name}"] = _listed(self.row_keys[:, which], self.row_pairs[:, which], True, width)
            found[f"rank_up_{name}"] = _listed(self.column_keys[:, which], self.column_pairs[:, which], False, width)
        if self.decoder is not None:
            found["rank_down_decoder_cosine"] = _listed(self.decoder[0], None, True, width)
            found["rank_up_decoder_cosine"] = _listed(self.decoder[1], None, False, width)
        code = _distinct([codes for codes, _, _ in found.values()])
        pairs, ranks = np.zeros(len(code), PAIR), {}
        for name, (codes, rank, known) in found.items():
            at = _positions(code, codes)
            ranks[name] = np.zeros(len(code), np.int16)
            ranks[name][at] = rank
            if known is not None:
                pairs[at] = known
        if self.decoder is not None:
            own = np.repeat(np.arange(len(self.sides[0])), np.diff(self.pair.wanted_indptr))
            pairs[_positions(code, own * width + self.pair.wanted)] = self.wanted_pairs
        del found
        upstream, downstream = code // width, code % width
        suffix = "_relative" if rule == "relative" else ""
        table = {
            "upstream_layer": np.full(len(code), self.pair.layers[0], np.int32),
            "upstream": upstream.astype(np.int32),
            "downstream_layer": np.full(len(code), self.pair.layers[1], np.int32),
            "downstream": downstream.astype(np.int32),
            "count_up": self.sides[0][f"count{suffix}"][upstream].astype(np.int64),
            "count_down": self.sides[1][f"count{suffix}"][downstream].astype(np.int64),
            "count_both": pairs[f"both{suffix}"].astype(np.int64),
        }
        values = pair_measures(
            upstream, downstream, pairs, *self.sides, float(self.pair.num_tokens), rule == "relative"
        )
        table |= dict(zip(names, values, strict=True))
        if self.directions is not None:
            table["decoder_cosine"] = _dot(upstream, downstream, *self.directions)
        for way in ("down", "up"):
            table |= {name: rank for name, rank in ranks.items() if name.startswith(f"rank_{way}_")}
        return table


def wanted_pairs(decoder: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The pairs in lists of decoder directions, as CSR has them: `indptr` `(upstream + 1,)` and downstream features."""
    width = len(decoder[1])
    listed = _listed(decoder[0], None, True, width)[0], _listed(decoder[1], None, False, width)[0]
    codes = _distinct(listed)
    indptr = np.searchsorted(codes, np.arange(len(decoder[0]) + 1) * width)
    return indptr, (codes % width).astype(np.int32)


def relate_pair(
    store: Store,
    layers: tuple[int, int],
    folder: Path,
    features: tuple[Features, Features],
    directions: tuple[np.ndarray, np.ndarray] | None,
    settings: Mapping[str, Any],
    workers: Workers,
    progress: Callable[[int], object],
) -> Neighbours:
    """Relates two layers, of which the downstream one was laid out by [`lay_out`] in `folder`.

    Args:
        store ([`~spiral_trl.sae.store.Store`]): The codes.
        layers (`tuple[int, int]`): The upstream and the downstream layer.
        folder (`Path`): Where the downstream layer's rows are.
        features (`tuple[Features, Features]`): Sums of both layers.
        directions (`tuple[np.ndarray, np.ndarray]`, *optional*): Decoder directions of both.
        settings (`Mapping[str, Any]`): `top_k`, `relative` and `min_count`.
        workers ([`Workers`]): Who does it.
        progress (`Callable`): Called with numbers of parts that were begun, of [`RANGES`].
    """
    top_k, min_count = settings["top_k"], settings["min_count"]
    decoder, units = None, None
    indptr, wanted = np.zeros(len(features[0].count) + 1, np.int64), np.zeros(0, np.int32)
    if directions is not None:
        units = unit(directions[0]), unit(directions[1])
        eligible = features[0].count >= max(1, min_count), features[1].count >= max(1, min_count)
        decoder = decoder_neighbours(*units, eligible, top_k)
        indptr, wanted = wanted_pairs(decoder)
    pair = Pair(
        store.folder,
        layers,
        folder,
        features,
        store.num_tokens,
        top_k,
        min_count,
        settings["relative"],
        indptr,
        wanted,
    )
    return Neighbours(pair, workers.run(pair, progress), decoder, units)
