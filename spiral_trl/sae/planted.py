"""Codes whose relations between layers are known: what the labels and the communities are held against.

Two layers hold features that pass through, gates, duplicates, chains, subsets and features that nothing relates, each
many times over, of log-normal frequency. The kinds that deserve no label are near misses of one: a gate of three inputs,
a subset that is nearly the whole, a subset of the exceptions. Then every feature loses some of its firings and gains as
many at random tokens.

`python -m spiral_trl.sae.planted FOLDER` writes such a store with its truth.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .store import TOKEN, Rows, Store, feature_dtype, open_store, write_json, write_shard, write_store


LABELS = ("duplicate", "pass-through", "and", "or", "specialising", "none")
# Log-normal frequency: share of tokens in the middle, and spread of its logarithm
MEDIAN, SPREAD = 1e-3, 1.2
# No planted feature is active on more than this share of tokens
DENSEST = 0.1
VOCABULARY = 2000
# Firings that every decisive cell of a feature needs for its label to be held against the truth
ENOUGH = 200
TOKENS_PER_GROUP = 500


@dataclass(frozen=True)
class Truth:
    """What a downstream feature was planted as.

    Args:
        feature (`int`): The downstream feature.
        kind (`str`): One of the planted kinds, such as `"chain"`.
        label (`str`): The label it deserves, one of [`LABELS`].
        partners (`tuple[int, ...]`): The upstream features it was made of.
        decisive (`int`): Firings in the smallest of the cells that its label rests on, before the noise.
    """

    feature: int
    kind: str
    label: str
    partners: tuple[int, ...]
    decisive: int


class _Layer:
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


class _Planter:
    """Plants structures into an upstream and a downstream layer."""

    def __init__(self, rng: np.random.Generator, vocabulary: np.ndarray) -> None:
        self.rng, self.vocabulary = rng, vocabulary
        self.num_tokens = len(vocabulary)
        self.up, self.down = _Layer(), _Layer()
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

        def add(layer: _Layer, name: str) -> int:
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


def plant(
    folder: str | Path,
    seed: int,
    num_tokens: int = 1_000_000,
    of_each: int = 120,
    noise: float = 0.005,
    crowd: int = 20,
    shards: int = 2,
) -> tuple[Store, list[Truth]]:
    """Writes a store of two layers, 0 and 1, whose relations are known, and `truth.json` beside it.

    Args:
        folder (`str` or `Path`): Where to; a store that is there is written over.
        seed (`int`): Equal seeds give equal stores.
        num_tokens (`int`, *optional*, defaults to 1,000,000): Tokens.
        of_each (`int`, *optional*, defaults to 120): Structures of each kind. Of crowded gates there are a twelfth.
        noise (`float`, *optional*, defaults to 0.005): Share of each feature's firings that is dropped, and about as
            many are added at random tokens.
        crowd (`int`, *optional*, defaults to 20): Features around a crowded gate that hide its inputs from lists of the
            nearest neighbours.
        shards (`int`, *optional*, defaults to 2): Shards of the store.

    Returns:
        `tuple[Store, list[Truth]]`: The store and what each downstream feature is, in the order of the features.
    """
    rng = np.random.default_rng([seed, 8869])
    weights = 1 / np.arange(3, VOCABULARY + 3)
    vocabulary = rng.choice(VOCABULARY, num_tokens, p=weights / weights.sum())
    planter = _Planter(rng, vocabulary)
    for structure in (
        planter.pass_through,
        planter.duplicates,
        planter.conjunction,
        planter.disjunction,
        planter.chain,
        planter.subset,
        planter.three_inputs,
        planter.three_parts,
        planter.near_subset,
        planter.exceptions,
        planter.unrelated,
    ):
        for _ in range(of_each):
            structure()
    for _ in range(of_each // 12):
        planter.conjunction(crowd)
        planter.disjunction(crowd)
    orders = []
    for layer in (planter.up, planter.down):
        layer.noisy(rng, noise, num_tokens)
        # A feature's number says nothing of what it is
        orders.append(rng.permutation(len(layer.features)))
    new_up, new_down = (np.argsort(order) for order in orders)
    truth = [
        replace(
            item,
            feature=int(new_down[item.feature]),
            partners=tuple(int(new_up[partner]) for partner in item.partners),
        )
        for item in planter.truth
    ]
    truth.sort(key=lambda item: item.feature)
    rows = {0: planter.up.rows(orders[0], num_tokens), 1: planter.down.rows(orders[1], num_tokens)}
    settings = {"seed": seed, "num_tokens": num_tokens, "of_each": of_each, "noise": noise, "crowd": crowd}
    store = _write(Path(folder), vocabulary, rows, [len(order) for order in orders], settings, shards)
    write_json(Path(folder) / "truth.json", [asdict(item) for item in truth])
    return store, truth


def plant_communities(
    folder: str | Path,
    seed: int,
    num_tokens: int = 100_000,
    layers: int = 4,
    communities: int = 30,
    bridges: float = 0.05,
    noise: float = 0.005,
) -> tuple[Store, dict[tuple[int, int], int]]:
    """Writes a store of several layers whose features fall into communities of 8 to 60, and features of none.

    A community is a topic: a set of tokens. Each of its features fires on a random two fifths to four fifths of it and,
    now and then, elsewhere. Neighbouring topics share a tenth of their tokens, and a share of the features, `bridges`, also fires on a
    quarter of another topic, so that edges join the communities.

    Returns:
        `tuple[Store, dict]`: The store, and for (layer, feature) its community, -1 for none.
    """
    rng = np.random.default_rng([seed, 8870])
    planted = [_Layer() for _ in range(layers)]
    of: list[list[int]] = [[] for _ in range(layers)]
    tokens = rng.permutation(num_tokens)
    width = num_tokens // (2 * communities)
    topics = [tokens[start * width : (start + 1) * width + width // 10] for start in range(communities)]
    for community, topic in enumerate(topics):
        size = round(float(np.exp(rng.uniform(np.log(8), np.log(60)))))
        # No fewer than the layers, so that the community spans them
        for number in range(max(size, layers)):
            layer = number % layers
            fires = [
                rng.choice(topic, round(len(topic) * rng.uniform(0.4, 0.8)), replace=False),
                rng.integers(num_tokens, size=len(topic) // 20),
            ]
            if rng.random() < bridges:
                other = topics[rng.integers(communities)]
                fires.append(rng.choice(other, len(other) // 4, replace=False))
            at = np.unique(np.concatenate(fires))
            planted[layer].add(at, rng.uniform(0.5, 1.5, len(at)))
            of[layer].append(community)
    for layer in range(layers):
        for _ in range(2 * communities):
            at = rng.choice(num_tokens, rng.integers(20, width), replace=False)
            planted[layer].add(at, rng.uniform(0.5, 1.5, len(at)))
            of[layer].append(-1)
    rows, truth = {}, {}
    for layer, features in enumerate(planted):
        features.noisy(rng, noise, num_tokens)
        order = rng.permutation(len(features.features))
        rows[layer] = features.rows(order, num_tokens)
        truth.update({(layer, new): of[layer][old] for new, old in enumerate(order)})
    vocabulary = rng.integers(VOCABULARY, size=num_tokens)
    sizes = [len(features.features) for features in planted]
    settings = {"seed": seed, "num_tokens": num_tokens, "communities": communities, "bridges": bridges, "noise": noise}
    return _write(Path(folder), vocabulary, rows, sizes, settings, 1), truth


def _write(
    folder: Path,
    vocabulary: np.ndarray,
    rows: Mapping[int, Rows],
    sizes: Sequence[int],
    settings: Mapping[str, Any],
    shards: int,
) -> Store:
    import shutil

    num_tokens = len(vocabulary)
    shutil.rmtree(folder / "shards", ignore_errors=True)
    layers = {
        str(layer): {"num_features": size, "dictionary": "planted", "fingerprint": f"planted-{settings['seed']}"}
        for layer, size in enumerate(sizes)
    }
    write_store(folder, {"model": "planted", "source": {"kind": "planted", **settings}, "layers": layers})
    tokens = np.zeros(num_tokens, TOKEN)
    tokens["token"] = vocabulary
    tokens["group"] = tokens["document"] = np.arange(num_tokens) // TOKENS_PER_GROUP
    tokens["position"] = np.arange(num_tokens) % TOKENS_PER_GROUP
    tokens["player"] = tokens["turn"] = -1
    bounds = np.linspace(0, num_tokens, shards + 1).astype(int)
    for number, (start, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        part = {}
        for layer, all_rows in rows.items():
            cut = slice(all_rows.indptr[start], all_rows.indptr[end])
            indptr = all_rows.indptr[start : end + 1] - all_rows.indptr[start]
            part[layer] = Rows(indptr, all_rows.feature[cut], all_rows.value[cut])
        write_shard(folder, number, tokens[start:end], part)
    return open_store(folder)


def read_truth(folder: str | Path) -> list[Truth]:
    """The truth of a planted store."""
    read = json.loads((Path(folder) / "truth.json").read_text(encoding="utf-8"))
    return [Truth(**{**item, "partners": tuple(item["partners"])}) for item in read]


@dataclass(frozen=True)
class Score:
    """How well a label was given, over some features.

    Args:
        label (`str`): The label.
        planted, given, right (`int`): Features that deserve it, that got it, and both. A gate is right only with its own
            two inputs.
    """

    label: str
    planted: int
    given: int
    right: int

    @property
    def precision(self) -> float:
        return self.right / self.given if self.given else float("nan")

    @property
    def recall(self) -> float:
        return self.right / self.planted if self.planted else float("nan")


def score(truth: Iterable[Truth], labels: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[Score]:
    """Holds labels against the truth.

    Args:
        truth (`Iterable[Truth]`): The features to hold them against, such as those with enough firings.
        labels (`Sequence[str]`): The label of each downstream feature.
        pairs (`Sequence[tuple[int, int]]`): For each downstream feature the two inputs of its gate, if it is one.
    """
    truth = list(truth)
    scores = []
    for label in LABELS:
        right = [item for item in truth if item.label == label == labels[item.feature]]
        if label in ("and", "or"):
            right = [item for item in right if set(pairs[item.feature]) == set(item.partners)]
        planted = sum(item.label == label for item in truth)
        given = sum(labels[item.feature] == label for item in truth)
        scores.append(Score(label, planted, given, len(right)))
    return scores


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes a planted store."""
    parser = argparse.ArgumentParser(
        prog="python -m spiral_trl.sae.planted", description="Write codes of known truth."
    )
    parser.add_argument("folder", help="where to write the store")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal stores (default: 0)")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="how many tokens (default: 1000000)")
    parser.add_argument("--of-each", type=int, default=120, help="structures of each kind (default: 120)")
    parser.add_argument(
        "--score", action="store_true", help="also relate and label the features, and score the labels"
    )
    asked = parser.parse_args(arguments)
    store, truth = plant(asked.folder, asked.seed, asked.tokens, asked.of_each)
    print(f"{store.folder}: {store.num_tokens} tokens, {store.num_features(0)} and {len(truth)} features")
    if asked.score:
        _print_scores(store, truth)
    return 0


def _print_scores(store: Store, truth: Sequence[Truth]) -> None:
    from .labels import label_features
    from .relations import relate

    layer = label_features(store, relate(store, store.folder / "relations"))[1]
    pairs = list(zip(layer.partner.tolist(), layer.second.tolist(), strict=True))
    print(f"{'decisive cells':<16}{'label':<14}{'planted':>8}{'given':>8}{'precision':>11}{'recall':>8}")
    for name, some in (
        (f"{ENOUGH} and more", [item for item in truth if item.decisive >= ENOUGH]),
        (f"below {ENOUGH}", [item for item in truth if item.decisive < ENOUGH]),
    ):
        for part in score(some, layer.label.tolist(), pairs):
            rates = f"{part.precision:>11.3f}{part.recall:>8.3f}"
            print(f"{name:<16}{part.label:<14}{part.planted:>8}{part.given:>8}{rates}")


if __name__ == "__main__":
    raise SystemExit(main())
