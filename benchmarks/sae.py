"""How many tokens a second the features of two layers are related at, and in how much memory.

    python benchmarks/sae.py
    python benchmarks/sae.py --tokens 500000 --json sae.json

Codes are made up: features of log-normal frequency, half of a row's downstream ones passed on from upstream, the rest at
random. `relate` is all of [`spiral_trl.sae.relations.relate`] for one pair of layers: reading and checking the store,
six measures by two rules of activity, the top 16 neighbours both ways for each, and both tables written as parquet. The
seventh measure, the cosine of decoder directions, knows no tokens and is timed apart. Memory is that of all processes
(proportional set size, what they share counted once), the mapped files among it.

Beside it stand, on fewer tokens, what one would write first: a dense torch product and a blocked scipy product, which make
one sum of products over all pairs of features, a block of them at a time, and neither counts, measures nor lists. Then
`relate` again on parts of the tokens and on rows of other lengths: its time is a constant, for the pairs of features,
plus one that is linear in tokens and quadratic in the features active on a token. All figures are of one run; CPU seconds
are of all processes and threads together, and suffer less where the machine has other things to do.

Last come the communities of a graph of 12 layers with as many features each and a million edges, nearly all of them within
communities of a thousand features.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peak import Peak

from spiral_trl.errors import UsageError, run_main
from spiral_trl.sae.relations import RELATIVE, relate
from spiral_trl.sae.store import TOKEN, Rows, Store, feature_dtype, open_store, write_shard, write_store


# What the package means to keep on two cores, at the default sizes
TARGET_RATE, TARGET_BYTES = 40_000, 2e9
TARGET_COMMUNITIES = 5.0
LAYERS, EDGES, COMMUNITY = 12, 1_000_000, 1024
SHARD = 100_000
# Upstream features of a block of the dense and of the scipy product
DENSE_BLOCK, SCIPY_BLOCK = 2048, 512


def made_up_rows(rng: np.random.Generator, tokens: int, l0: int, chance: np.ndarray, before: Rows | None) -> Rows:
    """Rows of `l0` features each, half of them those of `before`."""
    passed = np.zeros((tokens, 0), np.int64)
    if before is not None:
        passed = np.asarray(before.feature).reshape(tokens, -1)[:, : l0 // 2].astype(np.int64)
    draws = rng.random((tokens, l0 + l0 // 3))
    drawn = np.searchsorted(np.cumsum(chance), draws * chance.sum()).clip(0, len(chance) - 1)
    found = np.concatenate([passed, drawn], axis=1)
    # The first of each feature in a row, then as many as are wanted; a row with too few is filled with low features
    order = np.argsort(found, axis=1, kind="stable")
    ranked = np.take_along_axis(found, order, axis=1)
    again = np.zeros(found.shape, bool)
    np.put_along_axis(again, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], axis=1)
    keep = np.argsort(again, axis=1, kind="stable")[:, :l0]
    feature = np.sort(np.where(np.take_along_axis(again, keep, 1), -1, np.take_along_axis(found, keep, 1)), axis=1)
    for row in np.nonzero((feature < 0).any(axis=1))[0]:
        free = np.setdiff1d(np.arange(2 * l0), feature[row])
        missing = feature[row] < 0
        feature[row, missing] = free[: missing.sum()]
        feature[row].sort()
    value = rng.exponential(2.0, feature.size).astype(np.float16) + np.float16(0.01)
    indptr = np.arange(tokens + 1, dtype=np.int64) * l0
    return Rows(indptr, feature.ravel().astype(feature_dtype(len(chance))), value)


def make_store(folder: Path, features: int, l0: int, tokens: int, seed: int) -> Store:
    """Codes of layers 0 and 1."""
    rng = np.random.default_rng(seed)
    chances = [np.exp(rng.normal(0, 1.5, features)) for _ in range(2)]
    write_store(folder, {"model": "made up", "layers": {str(layer): {"num_features": features} for layer in (0, 1)}})
    for number, start in enumerate(range(0, tokens, SHARD)):
        size = min(SHARD, tokens - start)
        up = made_up_rows(rng, size, l0, chances[0], None)
        write_shard(folder, number, np.zeros(size, TOKEN), {0: up, 1: made_up_rows(rng, size, l0, chances[1], up)})
    return open_store(folder)


def first_tokens(store: Store, tokens: int) -> Store:
    """Whole shards of a store that hold the first `tokens`."""
    return Store(store.folder, store.about, store.shards[: -(-tokens // SHARD)])


class Taken(NamedTuple):
    """Seconds by the clock, and of all cores' time: that of this process and of children that have ended."""

    seconds: float
    cpu_seconds: float


def timed(work: Callable[[], object]) -> Taken:
    start, before = time.perf_counter(), os.times()
    work()
    return Taken(time.perf_counter() - start, sum(os.times()[:4]) - sum(before[:4]))


def time_directions(store: Store, width: int, top_k: int, seed: int) -> Taken:
    from spiral_trl.sae.neighbours import decoder_neighbours, unit

    rng = np.random.default_rng(seed)
    features = store.num_features(0)
    one, other = (rng.normal(size=(features, width)).astype(np.float32) for _ in range(2))
    decoder_neighbours(unit(one[:8]), unit(other[:8]), (np.ones(8, bool), np.ones(8, bool)), top_k)
    everything = np.ones(features, bool)
    return timed(lambda: decoder_neighbours(unit(one), unit(other), (everything, everything), top_k))


def time_torch(store: Store, tokens: int) -> Taken:
    import torch

    def dense(layer: int) -> torch.Tensor:
        rows = store.shards[0].rows(layer)
        codes = torch.zeros(tokens, store.num_features(layer))
        at = np.repeat(np.arange(tokens), np.diff(rows.indptr[: tokens + 1]))
        end = int(rows.indptr[tokens])
        codes[at, rows.feature[:end].astype(np.int64)] = torch.from_numpy(rows.value[:end].astype(np.float32))
        return codes

    up, down = dense(0), dense(1)

    def work() -> None:
        for start in range(0, up.shape[1], DENSE_BLOCK):
            torch.mm(up[:, start : start + DENSE_BLOCK].T, down)

    return timed(work)


def time_scipy(store: Store, tokens: int) -> Taken:
    from scipy.sparse import csr_array

    def sparse(layer: int) -> csr_array:
        part = first_tokens(store, tokens).rows(layer)
        end = int(part.indptr[tokens])
        value, feature = part.value[:end].astype(np.float32), part.feature[:end].astype(np.int32)
        return csr_array((value, feature, part.indptr[: tokens + 1]), shape=(tokens, store.num_features(layer)))

    up, down = sparse(0), sparse(1)

    def work() -> None:
        across = up.T.tocsr()
        for start in range(0, across.shape[0], SCIPY_BLOCK):
            across[start : start + SCIPY_BLOCK] @ down

    return timed(work)


def time_communities(features: int, seed: int) -> dict[str, Any]:
    from spiral_trl.sae.communities import adjusted_rand_index, communities

    rng = np.random.default_rng(seed)
    groups = max(1, features * LAYERS // COMMUNITY)
    layer = rng.integers(LAYERS - 1, size=EDGES)
    group = rng.integers(groups, size=EDGES)
    other = np.where(rng.random(EDGES) < 0.03, rng.integers(groups, size=EDGES), group)
    # Feature f of any layer is of community f modulo their number
    up, down = (of + groups * rng.integers(features // groups, size=EDGES) for of in (group, other))
    edges = {
        "upstream_layer": layer,
        "upstream": up,
        "downstream_layer": layer + 1,
        "downstream": down,
        "pearson": rng.uniform(0.2, 0.6, EDGES),
    }
    few = {name: values[:100] for name, values in edges.items()}
    communities(few, bootstraps=0)
    start = time.perf_counter()
    found = communities(edges, bootstraps=0)
    seconds = time.perf_counter() - start
    index = adjusted_rand_index(found.nodes[:, 1] % groups, found.membership)
    return {"nodes": features * LAYERS, "edges": EDGES, "seconds": seconds, "adjusted_rand_index": index}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=24_576, help="features of a layer (default: 24576)")
    parser.add_argument("--l0", type=int, default=50, help="features active on a token (default: 50)")
    parser.add_argument("--tokens", type=int, default=2_000_000, help="tokens (default: 2000000)")
    parser.add_argument("--width", type=int, default=768, help="width of decoder directions (default: 768)")
    parser.add_argument("--processes", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--dense-tokens", type=int, default=256, help="tokens of the dense product (default: 256)")
    parser.add_argument(
        "--scipy-tokens", type=int, default=100_000, help="tokens of scipy's product (default: 100000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the codes (default: 0)")
    parser.add_argument("--folder", type=Path, help="where the codes go meanwhile (default: a temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON too")
    options = parser.parse_args(argv)
    if options.l0 < 2 or options.features < 4 * options.l0 or options.tokens < 1000:
        raise UsageError("--l0 must be at least 2, --features at least four times that, and --tokens at least 1000")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        result = measure(options, Path(name))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    store = make_store(folder / "codes", options.features, options.l0, options.tokens, options.seed)
    # Compiles the loops, which the cache keeps
    tiny = make_store(folder / "tiny", 4 * options.l0, options.l0, 1000, options.seed)
    relate(tiny, folder / "warm", progress=False)
    rows: list[dict[str, Any]] = []
    print(
        f"{options.features} features a layer, {options.l0} active on a token, rules absolute and relative (above "
        f"{RELATIVE} of the largest), {options.processes} processes, {os.cpu_count()} cores\n"
        f"{'':34} {'tokens':>9} {'seconds':>8} {'tokens/s':>9} {'CPU s':>7} {'tokens/CPU s':>12} {'peak GB':>8}"
    )

    def show(what: str, tokens: int, taken: Taken, peak: int | None = None) -> None:
        rates = {"rate": tokens / taken.seconds, "cpu_rate": tokens / taken.cpu_seconds}
        rows.append({"what": what, "tokens": tokens, **taken._asdict(), **rates, "peak_bytes": peak})
        memory = "" if peak is None else f"{peak / 1e9:.2f}"
        print(
            f"{what:34} {tokens:9,} {taken.seconds:8.2f} {rates['rate']:9,.0f} {taken.cpu_seconds:7.2f} "
            f"{rates['cpu_rate']:12,.0f} {memory:>8}",
            flush=True,
        )

    def show_relate(what: str, of: Store) -> None:
        with Peak() as peak:
            taken = timed(
                lambda: relate(of, folder / f"relations_{len(rows)}", processes=options.processes, progress=False)
            )
        show(what, of.num_tokens, taken, peak.bytes)

    show_relate("relate", store)
    dense = min(options.dense_tokens, store.shards[0].num_tokens)
    show("dense torch, products alone", dense, time_torch(store, dense))
    scipy = min(options.scipy_tokens, options.tokens)
    show("blocked scipy, products alone", scipy, time_scipy(store, scipy))
    for share in (4, 2):
        show_relate(f"relate, 1/{share} of the tokens", open_store_of(store, options.tokens // share, folder, share))
    for l0 in (options.l0 // 2, 2 * options.l0):
        of = make_store(folder / f"l0_{l0}", options.features, l0, options.tokens // 4, options.seed)
        show_relate(f"relate, 1/4 of them, {l0} active", of)
    taken = time_directions(store, options.width, 16, options.seed)
    print(
        f"decoder cosine, width {options.width}, top 16 both ways: {taken.seconds:.2f} s, {taken.cpu_seconds:.2f} CPU s for "
        "the layer pair, whatever the tokens"
    )
    clustered = time_communities(options.features, options.seed)
    print(
        f"communities of {clustered['nodes']:,} features and {EDGES:,} edges: {clustered['seconds']:.2f} s, adjusted Rand "
        f"index with the planted ones {clustered['adjusted_rand_index']:.3f}"
    )
    fair = options.features == 24_576 and options.l0 == 50
    if fair:
        rate, peak = rows[0]["rate"], rows[0]["peak_bytes"]
        print(
            f"targets: {rate:,.0f} of {TARGET_RATE:,} tokens/s, {peak / 1e9:.2f} of at most {TARGET_BYTES / 1e9:.0f} GB, "
            f"{clustered['seconds']:.1f} of at most {TARGET_COMMUNITIES:.0f} s"
        )
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "features": options.features,
        "l0": options.l0,
        "processes": options.processes,
        "rows": rows,
        "decoder_cosine": taken._asdict(),
        "communities": clustered,
    }


def open_store_of(store: Store, tokens: int, folder: Path, number: int) -> Store:
    """A store of its own of the first shards: links to them, as processes open it by its folder."""
    part = first_tokens(store, tokens)
    own = folder / f"part_{number}"
    write_store(own, {key: value for key, value in store.about.items() if key != "version"})
    for shard in part.shards:
        (own / "shards" / shard.folder.name).symlink_to(shard.folder, target_is_directory=True)
    return open_store(own)


if __name__ == "__main__":
    run_main(main, sys.argv[1:])
