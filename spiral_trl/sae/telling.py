"""Texts that tell what a community of features is about: where many of its features fire together, and strongly.

The score of a token is the mean over the community's features of activation over the feature's highest activation,
between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numba
import numpy as np

from .cards import Text, Windows
from .scan import Places, entries_of, offer, row_chunks
from .store import Store, shard_bounds


# Scores that are held at a time, in float32
_SCORES = 1 << 22


@dataclass(frozen=True)
class Members:
    """Which community each feature of a layer is in, and what one unit of its activation adds to the score.

    Args:
        community (`np.ndarray`): `(features,)`, int32; -1 for none.
        weight (`np.ndarray`): `(features,)`, float32.
    """

    community: np.ndarray
    weight: np.ndarray


def members_of(
    store: Store, communities: Sequence[np.ndarray], maxima: Mapping[int, np.ndarray]
) -> dict[int, Members]:
    """Communities by layer.

    Args:
        store ([`~spiral_trl.sae.store.Store`]): The codes.
        communities (`Sequence[np.ndarray]`): `(size, 2)` of each: layer and feature.
        maxima (`Mapping[int, np.ndarray]`): Of each layer the features' highest activations.
    """
    members = {
        layer: Members(np.full(len(highest), -1, np.int32), np.zeros(len(highest), np.float32))
        for layer, highest in maxima.items()
    }
    for number, nodes in enumerate(communities):
        for layer in np.unique(nodes[:, 0]).tolist():
            own = nodes[nodes[:, 0] == layer, 1]
            alive = own[maxima[layer][own] > 0]
            members[layer].community[own] = number
            members[layer].weight[alive] = 1 / (len(nodes) * maxima[layer][alive])
    return members


def telling_texts(
    store: Store,
    communities: Sequence[np.ndarray],
    maxima: Mapping[int, np.ndarray],
    windows: Windows,
    count: int = 6,
    progress: Callable[[int, int], object] | None = None,
) -> list[list[Text]]:
    """The most telling texts of each community, in one pass over the codes; their values are scores.

    Args:
        store ([`~spiral_trl.sae.store.Store`]): The codes.
        communities (`Sequence[np.ndarray]`): `(size, 2)` of each: layer and feature. No feature is in two.
        maxima (`Mapping[int, np.ndarray]`): Of each layer the features' highest activations.
        windows ([`~spiral_trl.sae.cards.Windows`]): Of the store.
        count (`int`, *optional*, defaults to `6`): How many texts, each of another game or text.
        progress (`Callable`, *optional*): Called with the number of shards that were read and of all.
    """
    members = members_of(store, communities, maxima)
    places = Places.empty(len(communities), 2 * count)
    size = max(1, _SCORES // max(1, len(communities)))
    first = 0
    for done, shard in enumerate(store.shards if len(communities) else ()):
        groups = shard.tokens()["group"].astype(np.int32)
        contexts = windows.contexts(first, shard.num_tokens)
        rows = {layer: shard.rows(layer) for layer in members}
        for start in range(0, shard.num_tokens, size):
            stop = min(start + size, shard.num_tokens)
            scores = np.zeros((stop - start, len(communities)), np.float32)
            for layer, own in members.items():
                indptr = rows[layer].indptr[start : stop + 1]
                for begin, end in row_chunks(np.asarray(indptr - indptr[0]), 1 << 20):
                    part = slice(indptr[begin], indptr[end])
                    _add(
                        np.asarray(indptr[begin : end + 1] - indptr[begin]),
                        np.asarray(rows[layer].feature[part]),
                        rows[layer].value[part].astype(np.float32),
                        own.community,
                        own.weight,
                        scores[begin:end],
                    )
            _offer_all(scores, first + start, groups[start:stop], contexts[start:stop], places.arrays)
        first += shard.num_tokens
        if progress is not None:
            progress(done + 1, len(store.shards))
    return _texts(store, members, places, windows, count)


def _texts(
    store: Store, members: Mapping[int, Members], places: Places, windows: Windows, count: int
) -> list[list[Text]]:
    best = [places.token[row, places.best(row)[:count]] for row in range(len(places.token))]
    owner = np.repeat(np.arange(len(best)), [len(tokens) for tokens in best])
    chosen = np.concatenate([*best, np.zeros(0, np.int64)])
    tokens = windows.numbers(chosen)
    values = np.zeros(tokens.shape, np.float32)
    bounds = shard_bounds(store.shards)
    for shard, start, stop in zip(store.shards, bounds[:-1], bounds[1:], strict=True):
        inside = np.nonzero((tokens >= start) & (tokens < stop))
        for layer, own in members.items() if len(inside[0]) else ():
            which, feature, value = entries_of(shard.rows(layer), tokens[inside] - start)
            mine = own.community[feature] == owner[inside[0][which]]
            np.add.at(
                values,
                (inside[0][which[mine]], inside[1][which[mine]]),
                value[mine] * own.weight[feature[mine]],
            )
    texts: list[list[Text]] = [[] for _ in best]
    for number, place, around, scores in zip(owner, chosen, tokens, values, strict=True):
        texts[number].append(windows.text(place, around, scores, "top"))
    return texts


@numba.njit(cache=True)
def _add(indptr, feature, value, community, weight, scores):  # type: ignore[no-untyped-def]
    for t in range(len(indptr) - 1):
        for e in range(indptr[t], indptr[t + 1]):
            c = community[feature[e]]
            if c >= 0:
                scores[t, c] += value[e] * weight[feature[e]]


@numba.njit(cache=True)
def _offer_all(scores, first, groups, contexts, places):  # type: ignore[no-untyped-def]
    for t in range(scores.shape[0]):
        for c in range(scores.shape[1]):
            score = scores[t, c]
            if score > 0 and score > places[5][c]:
                offer(c, score, first + t, score, groups[t], contexts[t], *places)
