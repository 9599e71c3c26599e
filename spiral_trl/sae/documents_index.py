"""Where a store's documents lie among its tokens, and what precedes a token.

A document of a game may begin behind tokens that an earlier document of the same seat already had; what precedes its
first token is looked up there.
"""

from __future__ import annotations

import numpy as np

from .store import Store


_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class DocumentIndex:
    """Documents of a store, in its order.

    Args:
        store ([`~spiral_trl.sae.store.Store`]): The store. Its records of tokens are held in memory.
    """

    def __init__(self, store: Store):
        self.tokens = tokens = store.tokens
        document = tokens["document"]
        new = np.concatenate([[True], document[1:] != document[:-1]]) if len(document) else np.zeros(0, bool)
        # Place among the documents of each token; first token of each document, and its position
        self.place = np.cumsum(new) - 1
        self.first = np.flatnonzero(new)
        self.start = tokens["position"][self.first].astype(np.int64)
        self.stop = self.start + np.diff(np.append(self.first, len(tokens)))
        self.earlier = self._earlier()
        self._words = tokens["token"].astype(np.int64).astype(np.uint64) + np.uint64(1)

    def _earlier(self) -> np.ndarray:
        """The document before each of the same group and seat, or -1."""
        groups, players = (self.tokens[name][self.first] for name in ("group", "player"))
        earlier = np.full(len(self.first), -1, np.int64)
        last: dict[tuple[int, int], int] = {}
        for n, seat in enumerate(zip(groups.tolist(), players.tolist(), strict=True)):
            if seat[1] >= 0:
                earlier[n] = last.get(seat, -1)
                last[seat] = n
        return earlier

    def at(self, document: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Numbers of the tokens at positions of documents; -1 where the store has none.

        Args:
            document (`np.ndarray`): Places among the documents.
            position (`np.ndarray`): Positions, of the same shape.
        """
        document, position = np.broadcast_arrays(document, position)
        document = np.where(position >= 0, document, -1)
        while True:
            outside = (document >= 0) & (position < self.start[document])
            if not outside.any():
                break
            document[outside] = self.earlier[document[outside]]
        found = (document >= 0) & (position < self.stop[document])
        return np.where(found, self.first[document] + position - self.start[document], -1)

    def windows(self, tokens: np.ndarray, before: int, after: int) -> np.ndarray:
        """Numbers of the tokens around tokens, `(N, before + 1 + after)`; -1 beyond the document's ends."""
        tokens = np.asarray(tokens, dtype=np.int64)
        position = self.tokens["position"][tokens].astype(np.int64)[:, None] + np.arange(-before, after + 1)
        return self.at(self.place[tokens][:, None], position)

    def contexts(self, first: int, count: int, before: int) -> np.ndarray:
        """`(count,)` hashes, uint64, of each of `count` tokens with the `before` ones that precede it."""
        number = np.arange(first, first + count)
        place = self.place[number]
        position = self.tokens["position"][number].astype(np.int64)
        inside = position - self.start[place]  # tokens of its own document before it
        hashed = np.zeros(count, np.uint64)
        for back in range(before, -1, -1):
            at = number - back
            elsewhere = np.flatnonzero(inside < back)
            at[elsewhere] = self.at(place[elsewhere], position[elsewhere] - back)
            hashed = _mixed(hashed * _FACTOR + np.where(at >= 0, self._words[at], np.uint64(0)))
        return hashed


def _mixed(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return x ^ (x >> np.uint64(32))
