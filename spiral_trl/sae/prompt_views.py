"""Prompts for a report: some documents of a store, and what is active on their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .documents_index import DocumentIndex
from .scan import entries_of
from .store import Store, shard_bounds


# Documents that are looked through for different ones
_LOOKED_AT = 4096


@dataclass(frozen=True)
class Prompt:
    """Tokens of a document, and the features active on them. E entries.

    Args:
        document (`int`): Its number in the store.
        tokens (`np.ndarray`): `(T,)` numbers of its tokens in the store.
        layer, feature, at (`np.ndarray`): `(E,)`: which feature is active, and on which of the `T` tokens.
        value (`np.ndarray`): `(E,)`: its activation there.
    """

    document: int
    tokens: np.ndarray
    layer: np.ndarray
    feature: np.ndarray
    at: np.ndarray
    value: np.ndarray

    def foremost(self, maxima: Mapping[int, np.ndarray], count: int) -> list[tuple[int, int]]:
        """Layer and feature of those that come nearest to their highest activation, as many of each layer, at most
        `count` in all."""
        layers = sorted(maxima)
        found: list[tuple[int, int]] = []
        for layer in layers:
            own = self.layer == layer
            share = np.zeros(len(maxima[layer]), np.float32)
            with np.errstate(divide="ignore", invalid="ignore"):
                np.maximum.at(share, self.feature[own], self.value[own] / maxima[layer][self.feature[own]])
            order = np.argsort(-share, kind="stable")[: max(1, count // len(layers))]
            found += [(layer, int(feature)) for feature in order if share[feature] > 0]
        return found


def choose_documents(index: DocumentIndex, count: int, length: int) -> list[np.ndarray]:
    """Tokens of some different documents, as many of each seat, spread over the beginning of the store.

    Args:
        index ([`~spiral_trl.sae.documents_index.DocumentIndex`]): The store's documents.
        count (`int`): How many.
        length (`int`): Tokens of each: the last of a game's document, where the reply is, the first of a text.
    """
    seats: dict[int, list[np.ndarray]] = {}
    known: set[bytes] = set()
    for number in range(min(len(index.first), _LOOKED_AT)):
        player = int(index.tokens["player"][index.first[number]])
        start, stop = int(index.start[number]), int(index.stop[number])
        positions = np.arange(max(0, stop - length), stop) if player >= 0 else np.arange(start, stop)[:length]
        tokens = index.at(np.full(len(positions), number), positions)
        tokens = tokens[tokens >= 0]
        words = index.tokens["token"][tokens].tobytes()
        if words not in known:
            known.add(words)
            seats.setdefault(player, []).append(tokens)
    chosen: list[np.ndarray] = []
    for place, (_, documents) in enumerate(sorted(seats.items())):
        own = count * (place + 1) // len(seats) - count * place // len(seats)
        chosen += [documents[n * len(documents) // own] for n in range(own)] if own < len(documents) else documents
    return chosen


def read_prompts(store: Store, index: DocumentIndex, documents: Sequence[np.ndarray]) -> list[Prompt]:
    """What is active on the tokens of documents, in all layers."""
    bounds = shard_bounds(store.shards)
    prompts = []
    for tokens in documents:
        parts: list[tuple[np.ndarray, ...]] = []
        for shard, start, stop in zip(store.shards, bounds[:-1], bounds[1:], strict=True):
            inside = np.flatnonzero((tokens >= start) & (tokens < stop))
            for layer in store.layers if len(inside) else ():
                which, feature, value = entries_of(shard.rows(layer), tokens[inside] - start)
                parts.append((np.full(len(which), layer), feature, inside[which], value))
        number = int(index.tokens["document"][tokens[-1]])
        prompts.append(Prompt(number, tokens, *(np.concatenate(part) for part in zip(*parts, strict=True))))
    return prompts
