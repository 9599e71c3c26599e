"""What [`~spiral_trl.sae.planted.plant`] plants: features of two layers that stand in known relations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .store import Rows, feature_dtype


# Log-normal frequency: share of tokens in the middle, and spread of its logarithm
MEDIAN, SPREAD = 1e-3, 1.2
# No planted feature is active on more than this share of tokens
DENSEST = 0.1
VOCABULARY = 2000


@dataclass(frozen=True)
class Truth:
    """What a downstream feature was planted as.

    Args:
        feature (`int`): The downstream feature.
        kind (`str`): One of the planted kinds, such as `"chain"`.
        label (`str`): The label it deserves, one of [`~spiral_trl.sae.labels.LABELS`].
        partners (`tuple[int, ...]`): The upstream features it was made of.
        decisive (`int`): Firings in the smallest of the cells that its label rests on, before the noise.
    """

    feature: int
    kind: str
    label: str
    partners: tuple[int, ...]
    decisive: int


class Layer:
    """Features of one layer as they are planted: the tokens of each, ascending, and its activations."""

    def __init__(self) -> None:
        self.features: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, tokens: np.ndarray, values: np.ndarray) -> int:
        order = np.argsort(tokens)
        self.features.append((tokens[order], values[order]))
        return len(self.features) - 1

    def noisy(self, rng: np.random.Generator, noise: float, num_tokens: int) -> None:
        """Drops a share of each feature's firings and adds as many at random tokens."""
        for at, (tokens, values) in enumerate(self.features):
            kept = rng.random(len(tokens)) >= noise
            lost = len(tokens) - int(kept.sum())
            if not lost:
                continue
            drawn = np.unique(rng.integers(num_tokens, size=2 * lost + 20))
            new = rng.permutation(np.setdiff1d(drawn, tokens, assume_unique=True))[:lost]
            new_values = rng.choice(values, size=len(new))
            tokens, values = np.concatenate([tokens[kept], new]), np.concatenate([values[kept], new_values])
            order = np.argsort(tokens)
            self.features[at] = tokens[order], values[order]

    def rows(self, order: np.ndarray, num_tokens: int) -> Rows:
        """Rows of the features in an order."""
        from scipy.sparse import csc_array

        kept = [self.features[at] for at in order]
        indptr = np.concatenate([[0], np.cumsum([len(tokens) for tokens, _ in kept])])
        tokens = np.concatenate([tokens for tokens, _ in kept])
        values = np.concatenate([values for _, values in kept])
        rows = csc_array((values, tokens, indptr), shape=(num_tokens, len(kept))).tocsr()
        rows.sort_indices()
        return Rows(
            rows.indptr.astype(np.int64),
            rows.indices.astype(feature_dtype(len(kept))),
            rows.data.astype(np.float16),
        )


class Planter:
    """Plants structures into an upstream and a downstream layer."""

    def __init__(self, rng: np.random.Generator, vocabulary: np.ndarray) -> None:
        self.rng, self.vocabulary = rng, vocabulary
        self.num_tokens = len(vocabulary)
        self.up, self.down = Layer(), Layer()
        self.truth: list[Truth] = []
        self.by_token = np.argsort(vocabulary, kind="stable")
        self.token_starts = np.searchsorted(vocabulary[self.by_token], np.arange(VOCABULARY + 1))

    # What the structures are made of

    def size(self, widest: float = 1.0) -> int:
        """A number of firings of log-normal frequency, such that `widest` times as many are not too many."""
        while True:
            size = round(self.num_tokens * MEDIAN * float(np.exp(SPREAD * self.rng.normal())))
            if 5 <= size and size * widest <= DENSEST * self.num_tokens:
                return size

    def tokens(self, count: int) -> np.ndarray:
        return self.rng.choice(self.num_tokens, count, replace=False, shuffle=True)

    def values(self, count: int) -> np.ndarray:
        # Narrow enough for every firing to be active by the relative rule too
        return self.rng.uniform(0.5, 1.5, count)

    def copy(self, values: np.ndarray) -> np.ndarray:
        """The same activations on another scale, not quite exactly."""
        return values * self.rng.uniform(0.5, 4) * self.rng.normal(1, 0.05, len(values)).clip(0.8, 1.2)

    def share(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def say(self, feature: int, kind: str, label: str, partners: Sequence[int], *cells: int) -> None:
        self.truth.append(Truth(feature, kind, label, tuple(partners), min(cells)))

    # The structures

    def pass_through(self) -> None:
        size = self.size()
        tokens, values = self.tokens(size), self.values(size)
        a, d = self.up.add(tokens, self.copy(values)), self.down.add(tokens, self.copy(values))
        self.say(d, "pass-through", "pass-through", [a], size)

    def duplicates(self) -> None:
        """Two upstream features into one, one into two, two into two, or two downstream that come from none."""
        size = self.size()
        tokens, values = self.tokens(size), self.values(size)
        ups, downs = [(2, 1), (1, 2), (2, 2), (0, 2)][self.rng.integers(4)]
        partners = [self.up.add(tokens, self.copy(values)) for _ in range(ups)]
        for _ in range(downs):
            self.say(self.down.add(tokens, self.copy(values)), "duplicate", "duplicate", partners, size)

    def conjunction(self, crowd: int = 0) -> None:
        """D fires where A and B do; with `crowd`, that many wider features hold all of D too."""
        one, other = self.share(0.1, 0.6), self.share(0.1, 0.6)
        size = self.size((6 if crowd else 1) * (1 / one + 1 / other))
        only_a, only_b = round(size / one) - size, round(size / other) - size
        everywhere = self.tokens(size + only_a + only_b)
        in_both, in_a, in_b = np.split(everywhere, [size, size + only_a])
        value_a, value_b = self.values(size + only_a), self.values(size + only_b)
        a = self.up.add(np.concatenate([in_both, in_a]), self.copy(value_a))
        b = self.up.add(np.concatenate([in_both, in_b]), self.copy(value_b))
        d = self.down.add(in_both, self.copy(np.minimum(value_a[:size], value_b[:size])))
        for _ in range(crowd):
            more = np.setdiff1d(self.tokens(round(len(everywhere) * self.share(1, 4))), everywhere)
            self.up.add(np.concatenate([everywhere, more]), self.values(len(everywhere) + len(more)))
        self.say(d, "crowded and" if crowd else "and", "and", [a, b], size, only_a, only_b)

    def disjunction(self, crowd: int = 0) -> None:
        """D fires where A or B does; with `crowd`, that many narrower features lie within D too."""
        overlap = self.share(0, 0.3)
        # A part with nearly all of D would be the same as D
        larger = self.share(0.75, 0.8) if crowd else self.share(0.5, 0.8)
        smaller = self.size(1 / (1 - larger))
        size = round(smaller / (1 - larger))
        of_a = size - smaller
        of_both = round(smaller * overlap)
        in_a, in_both, in_b = np.split(self.tokens(size), [of_a - of_both, of_a])
        values = self.values(size)
        a = self.up.add(np.concatenate([in_a, in_both]), self.copy(values[:of_a]))
        b = self.up.add(np.concatenate([in_both, in_b]), self.copy(values[of_a - of_both :]))
        everywhere = np.concatenate([in_a, in_both, in_b])
        d = self.down.add(everywhere, self.copy(values))
        for _ in range(crowd):
            within = self.rng.choice(everywhere, max(1, round(size * self.share(0.01, 0.03))), replace=False)
            self.up.add(within, self.values(len(within)))
        self.say(d, "crowded or" if crowd else "or", "or", [a, b], len(in_a), len(in_b))

    def chain(self) -> None:
        """Dog within animal within noun, of which the upper layer knows some and the lower layer some."""
        dogs, animals = self.share(0.1, 0.88), self.share(0.1, 0.45)
        size = self.size(1 / (dogs * animals))
        of_animal, of_noun = round(size / dogs), round(size / (dogs * animals))
        noun = self.tokens(of_noun)
        values = self.values(of_noun)
        sizes = {"noun": of_noun, "animal": of_animal, "dog": size}

        def add(layer: Layer, name: str) -> int:
            return layer.add(noun[: sizes[name]], self.copy(values[: sizes[name]]))

        cells = (size, of_animal - size, of_noun - of_animal)
        which = self.rng.integers(3)
        n, a = add(self.up, "noun"), add(self.up, "animal") if which != 2 else -1
        if which == 0:
            self.say(add(self.down, "dog"), "chain", "specialising", [a, n], *cells)
        elif which == 1:
            partners = {"noun": n, "animal": a, "dog": add(self.up, "dog")}
            for name, partner in partners.items():
                d = add(self.down, name)
                self.say(d, "chain, all of it", "pass-through", [partner], *cells)
        else:
            self.say(add(self.down, "animal"), "chain", "specialising", [n], of_animal, of_noun - of_animal)
            self.say(add(self.down, "dog"), "chain", "specialising", [n], size, of_noun - size)

    def subset(self) -> None:
        """D fires on some of A's firings: on any of them, or on those of some tokens of the vocabulary."""
        ratio = self.share(0.05, 0.45)
        size = self.size(1 / ratio)
        tokens = self.tokens(round(size / ratio))
        values = self.values(len(tokens))
        if self.rng.random() < 0.5:
            within = np.arange(size)
        else:
            chosen = self.rng.permutation(VOCABULARY)
            # The place of each token of the vocabulary in a random order: the first ones up to `ratio` of the firings
            place = np.argsort(chosen)[self.vocabulary[tokens]]
            within = np.nonzero(place <= np.sort(place)[size - 1])[0]
            if len(within) > 0.45 * len(tokens):
                within = within[:size]
        a = self.up.add(tokens, self.copy(values))
        d = self.down.add(tokens[within], self.copy(values[within]))
        self.say(d, "subset", "specialising", [a], len(within), len(tokens) - len(within))

    def three_inputs(self) -> None:
        """D fires where A, B and C do: on a subset of each, and no two of them tell where."""
        size = self.size(20)
        of_pair, alone = round(size * self.share(3, 5)), round(size * self.share(2, 5))
        parts = np.split(self.tokens(size + 3 * of_pair + 3 * alone), np.cumsum([size, *[of_pair] * 3, *[alone] * 2]))
        inputs = [
            np.concatenate([parts[0], *(parts[1 + k] for k in range(3) if k != i), parts[4 + i]]) for i in range(3)
        ]
        partners = [self.up.add(tokens, self.values(len(tokens))) for tokens in inputs]
        d = self.down.add(parts[0], self.values(size))
        self.say(d, "three-way and", "specialising", partners, size, of_pair, alone)

    def three_parts(self) -> None:
        """D fires where A or B or C does, and no two of them hold nearly all of it."""
        size = self.size()
        ends = [round(size * self.share(0.3, 0.4)), round(size * self.share(0.6, 0.75))]
        tokens, values = self.tokens(size), self.values(size)
        parts = np.split(np.arange(size), ends)
        partners = [self.up.add(tokens[part], self.copy(values[part])) for part in parts]
        self.say(self.down.add(tokens, self.copy(values)), "three-way or", "none", partners, *map(len, parts))

    def near_subset(self) -> None:
        """D fires on most of A's firings: neither the same nor well below it."""
        size = self.size()
        tokens, values = self.tokens(size), self.values(size)
        within = round(size * self.share(0.6, 0.85))
        a = self.up.add(tokens, self.copy(values))
        d = self.down.add(tokens[:within], self.copy(values[:within]))
        self.say(d, "near-subset", "none", [a], within, size - within)

    def exceptions(self) -> None:
        """A fires on one token of the vocabulary and, now and then, on others; D on some of those others."""
        often = np.zeros(0, np.int64)
        while not len(often):
            size = self.size(12)
            often = self.rng.permutation(np.nonzero(np.diff(self.token_starts) >= 10 * size)[0])
        at = self.by_token[self.token_starts[often[0]] : self.token_starts[often[0] + 1]]
        main = self.rng.choice(at, 8 * size, replace=False)
        others = np.setdiff1d(self.tokens(2 * size), at)
        tokens = np.concatenate([main, self.rng.permutation(others)])
        values = self.values(len(tokens))
        a = self.up.add(tokens, self.copy(values))
        within = slice(len(main), len(main) + size)
        d = self.down.add(tokens[within], self.copy(values[within]))
        self.say(d, "exceptions", "none", [a], len(tokens[within]))

    def unrelated(self) -> None:
        """One feature upstream and one downstream that nothing relates."""
        size = self.size()
        self.up.add(self.tokens(size), self.values(size))
        size = self.size()
        self.say(self.down.add(self.tokens(size), self.values(size)), "unrelated", "none", [], size)
