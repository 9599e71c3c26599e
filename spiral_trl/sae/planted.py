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

from .planted_structures import VOCABULARY, Layer, Planter, Truth
from .store import TOKEN, Rows, Store, open_store, write_json, write_shard, write_store


# Firings that every decisive cell of a feature needs for its label to be held against the truth
ENOUGH = 200
TOKENS_PER_GROUP = 500


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
        crowd (`int`, *optional*, defaults to 20): Wider, or narrower, upstream features around a crowded gate, which
            hide its inputs from the list of its nearest.
        shards (`int`, *optional*, defaults to 2): Shards of the store.

    Returns:
        `tuple[Store, list[Truth]]`: The store and what each downstream feature is, in the order of the features.
    """
    rng = np.random.default_rng([seed, 8869])
    weights = 1 / np.arange(3, VOCABULARY + 3)
    vocabulary = rng.choice(VOCABULARY, num_tokens, p=weights / weights.sum())
    planter = Planter(rng, vocabulary)
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
    now and then, elsewhere. Neighbouring topics share a tenth of their tokens.

    Args:
        folder (`str` or `Path`): Where to; a store that is there is written over.
        seed (`int`): Equal seeds give equal stores.
        num_tokens (`int`, *optional*, defaults to 100,000): Tokens.
        layers (`int`, *optional*, defaults to 4): Layers, which every community spans.
        communities (`int`, *optional*, defaults to 30): Communities.
        bridges (`float`, *optional*, defaults to 0.05): Share of the features that also fire on a quarter of another
            topic, so that edges join the communities.
        noise (`float`, *optional*, defaults to 0.005): As in [`plant`].

    Returns:
        `tuple[Store, dict]`: The store, and for (layer, feature) its community, -1 for none.
    """
    rng = np.random.default_rng([seed, 8870])
    planted = [Layer() for _ in range(layers)]
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
    from .labels import LABELS

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
