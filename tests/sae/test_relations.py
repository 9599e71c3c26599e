"""Sums, postings and relations of codes, against dense float64 references."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import datasets
import numpy as np
import psutil
import pytest

from spiral_trl.errors import UsageError
from spiral_trl.sae import neighbours
from spiral_trl.sae.coactivation import mutual_information
from spiral_trl.sae.kernels import feature_sums, transpose, triple_counts
from spiral_trl.sae.relations import MEASURES, open_relations, relate
from spiral_trl.sae.store import open_store


TOP_K = 5


def random_codes(tokens, features, seed, density=0.2):
    """Codes with features of very different frequency. Feature 0 never fires, 1 always does with one value, 2 fires once,
    3 on every token; 4, 9 and 10 are the same."""
    rng = np.random.default_rng(seed)
    chance = np.clip(rng.lognormal(np.log(density), 1.0, features), 0, 0.9)
    codes = np.where(rng.random((tokens, features)) < chance, rng.exponential(2.0, (tokens, features)), 0)
    codes[:, 0], codes[:, 1], codes[:, 2] = 0, 0.1, 0
    codes[tokens // 3, 2], codes[:, 3] = 1.5, rng.exponential(2.0, tokens) + 0.01
    codes[:, 9:11] = codes[:, 4:5]
    return codes.astype(np.float32)


def dense_measures(up, down, rule, directions):
    """All measures of all pairs `(upstream, downstream)` from dense codes, with matrix products in float64."""
    a, b = up.astype(np.float64), down.astype(np.float64)
    limits = (0, 0) if rule == "absolute" else (0.2 * a.max(0), 0.2 * b.max(0))
    one, other = (a > limits[0]).astype(np.float64), (b > limits[1]).astype(np.float64)
    n, n1, n2, n11 = len(a), one.sum(0)[:, None], other.sum(0)[None], one.T @ other
    with np.errstate(invalid="ignore", divide="ignore"):
        centred = a - a.mean(0), b - b.mean(0)
        pearson = (centred[0].T @ centred[1]) / np.outer(*(np.sqrt((c**2).sum(0)) for c in centred))
        pearson[np.ptp(a, axis=0) == 0] = 0
        pearson[:, np.ptp(b, axis=0) == 0] = 0
        found = {
            "pearson": pearson,
            "cosine": (a.T @ b) / np.outer(*(np.sqrt((c**2).sum(0)) for c in (a, b))),
            "jaccard": n11 / (n1 + n2 - n11),
            "sufficiency": n11 / n1,
            "necessity": n11 / n2,
            "mutual_information": 0,
            "decoder_cosine": np.array(
                [[x @ y / np.sqrt((x @ x) * (y @ y)) for y in directions[1]] for x in directions[0]], np.float64
            ),
        }
        for joint, p, q in (
            (n11, n1, n2),
            (n1 - n11, n1, n - n2),
            (n2 - n11, n - n1, n2),
            (n - n1 - n2 + n11, n - n1, n - n2),
        ):
            found["mutual_information"] += np.where(joint > 0, joint / n * np.log(joint * n / (p * q)), 0)
    counts = np.broadcast_to(n1, n11.shape), np.broadcast_to(n2, n11.shape), n11
    return {name: np.nan_to_num(value) for name, value in found.items()}, counts


def check_against_dense(edges, up, down, rule, directions, min_count=1):
    measures, counts = dense_measures(up, down, rule, directions)
    i, j = edges["upstream"], edges["downstream"]
    for name, expected in zip(("count_up", "count_down", "count_both"), counts, strict=True):
        assert np.array_equal(edges[name], expected[i, j])
    fires = (up > 0).sum(0) >= max(1, min_count), (down > 0).sum(0) >= max(1, min_count)
    together = (up > 0).T.astype(int) @ (down > 0).astype(int) > 0
    listed = np.zeros(together.shape, bool)
    for name in MEASURES:
        assert edges[name].dtype == np.float32
        assert np.abs(edges[name] - measures[name][i, j]).max() < 1e-6, name
        value = measures[name].astype(np.float32)
        value[np.abs(measures[name]) < 1e-12] = 0
        value[~fires[0]] = value[:, ~fires[1]] = 0
        if name in ("pearson", "cosine"):
            value[~together] = 0
        elif name != "decoder_cosine":
            value[counts[2] == 0] = 0
        for way, table in (("down", value), ("up", value.T)):
            # Of equal ones the lower number first: a stable sort
            order = np.argsort(-table, axis=1, kind="stable")[:, :TOP_K]
            expected = np.zeros(table.shape, int)
            np.put_along_axis(expected, order, np.arange(1, order.shape[1] + 1)[None], axis=1)
            expected[table <= 0] = 0
            expected = expected if way == "down" else expected.T
            found = np.zeros(together.shape, int)
            found[i, j] = edges[f"rank_{way}_{name}"]
            assert np.array_equal(found, expected), (way, name)
            listed |= expected > 0
    assert np.array_equal(np.stack([i, j]), np.stack(np.nonzero(listed)))


@pytest.fixture
def related(make_store):
    """`related(...)`: codes of layers 0, 1 and 3, directions, and the store."""

    def make(tokens=400, widths=(40, 30, 50), **store_settings):
        rng = np.random.default_rng(7)
        codes = {
            layer: random_codes(tokens, width, seed=layer) for layer, width in zip((0, 1, 3), widths, strict=True)
        }
        if store_settings.get("value_dtype") == "float16":
            codes = {layer: dense.astype(np.float16).astype(np.float32) for layer, dense in codes.items()}
        directions = {layer: rng.normal(size=(dense.shape[1], 6)) for layer, dense in codes.items()}
        # A direction that is none, and one that is another's
        directions[1][5] = 0
        directions[1][8] = directions[1][7]
        return codes, directions, make_store(codes, **store_settings)

    return make


def all_tables(relations):
    tables = {(pair, rule): relations.edges(pair, rule) for pair in relations.pairs for rule in relations.rules}
    return tables | {layer: relations.features(int(layer)) for layer in relations.about["layers"]}


def assert_same(one, other):
    """Bit by bit."""
    one, other = all_tables(one), all_tables(other)
    assert one.keys() == other.keys()
    for key, table in one.items():
        assert list(table) == list(other[key])
        for name, column in table.items():
            assert column.dtype == other[key][name].dtype
            assert np.array_equal(column, other[key][name]), (key, name)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shards", [1, 3])
def test_postings_are_the_columns_of_the_codes(make_store, dtype, shards):
    codes = random_codes(300, 40, seed=1).astype(dtype).astype(np.float32)
    store = make_store({0: codes}, shards=shards, value_dtype=dtype)
    exact = codes.astype(np.float64)
    sums = feature_sums(store, 0)
    limits = 0.2 * exact.max(0)
    assert np.array_equal(sums.count, (exact > 0).sum(0))
    assert np.array_equal(sums.count_relative, (exact > limits).sum(0))
    assert np.allclose(sums.total, exact.sum(0), rtol=1e-14)
    assert np.allclose(sums.total_squares, (exact**2).sum(0), rtol=1e-14)
    assert np.array_equal(sums.max, exact.max(0))
    for rule, active in (("absolute", exact > 0), ("relative", exact > limits)):
        postings = transpose(store, 0, rule)
        for feature in range(40):
            own = slice(postings.indptr[feature], postings.indptr[feature + 1])
            assert np.array_equal(postings.token[own], np.nonzero(active[:, feature])[0])
            assert np.array_equal(postings.value[own], codes[active[:, feature], feature])
    some = transpose(store, 0, wanted=np.array([3, 7]))
    assert np.array_equal(np.nonzero(some.count)[0], [3, 7])


@pytest.mark.parametrize("rule", ["absolute", "relative"])
def test_triples_are_counted_as_a_dense_product_does(make_store, rule):
    up, down = random_codes(400, 12, seed=2), random_codes(400, 9, seed=3)
    store = make_store({0: up, 1: down}, shards=2)
    limit = 0.0 if rule == "absolute" else 0.2
    a, d = up > limit * up.max(0).astype(np.float64), down > limit * down.max(0).astype(np.float64)
    triples = np.random.default_rng(4).integers(0, [12, 12, 9], (200, 3))
    counts = triple_counts(transpose(store, 0, rule), transpose(store, 1, rule), triples)
    for (first, second, third), row in zip(triples, counts, strict=True):
        A, B, D = a[:, first], a[:, second], d[:, third]
        expected = [A, B, D, A & B, A & D, B & D, A & B & D]
        assert row.tolist() == [column.sum() for column in expected]
    assert triple_counts(transpose(store, 0), transpose(store, 1), np.empty((0, 3))).shape == (0, 7)
    with pytest.raises(ValueError, match="outside 12 upstream and 9"):
        triple_counts(transpose(store, 0), transpose(store, 1), np.array([[0, 1, 9]]))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("min_count", [1, 30])
def test_relations_equal_a_dense_reference(related, tmp_path, dtype, min_count):
    codes, directions, store = related(value_dtype=dtype, shards=3)
    relations = relate(store, tmp_path / "relations", directions=directions, top_k=TOP_K, min_count=min_count)
    assert relations.pairs == ((0, 1), (1, 3))
    for up, down in relations.pairs:
        for rule in ("absolute", "relative"):
            edges = relations.edges((up, down), rule)
            assert set(edges["upstream_layer"]) == {up} and set(edges["downstream_layer"]) == {down}
            check_against_dense(
                edges, codes[up], codes[down], rule, (directions[up], directions[down]), min_count=min_count
            )
    features, exact = relations.features(3), codes[3].astype(np.float64)
    assert np.array_equal(features["count"], (exact > 0).sum(0))
    assert np.array_equal(features["count_relative"], (exact > 0.2 * exact.max(0)).sum(0))
    assert np.allclose(features["density"], (exact > 0).mean(0))
    active = [column[column > 0].mean() if (column > 0).any() else 0 for column in exact.T]
    assert np.allclose(features["mean_active"], active)


def test_features_of_many_tokens_are_related_alike(related, tmp_path):
    """More features than a block, a batch and the ranges have, and rows longer than are fetched ahead."""
    codes, directions, store = related(tokens=700, widths=(330, 270, 40), shards=2, value_dtype="float16")
    relations = relate(store, tmp_path / "relations", pairs=[(0, 1), (0, 3)], directions=directions, top_k=TOP_K)
    for pair in ((0, 1), (0, 3)):
        for rule in ("absolute", "relative"):
            own = tuple(directions[layer] for layer in pair)
            check_against_dense(relations.edges(pair, rule), *(codes[layer] for layer in pair), rule, own)


def test_relations_by_hand(make_store, tmp_path):
    """Four tokens: A fires on the first two with 1 and 3, D on the first and third with 2 each, E on the second with 4."""
    up = np.array([[1], [3], [0], [0]], np.float32)
    down = np.array([[2, 0], [0, 4], [2, 0], [0, 0]], np.float32)
    relations = relate(make_store({0: up, 1: down}), tmp_path / "relations")
    edges = relations.edges((0, 1))
    assert edges["downstream"].tolist() == [0, 1] and edges["count_both"].tolist() == [1, 1]
    # A is 1 3 0 0, D is 2 0 2 0, E is 0 4 0 0: means 1, 1, 1; sums of squares about them 6, 4, 12
    assert edges["pearson"] == pytest.approx([(2 - 4) / 24**0.5, (12 - 4) / 72**0.5])
    assert edges["cosine"] == pytest.approx([2 / 80**0.5, 12 / (10 * 16) ** 0.5])
    assert edges["jaccard"] == pytest.approx([1 / 3, 1 / 2])
    assert edges["sufficiency"] == pytest.approx([1 / 2, 1 / 2])
    assert edges["necessity"] == pytest.approx([1 / 2, 1])
    # A and D are independent; of A and E: the joint entropy is that of (1/4, 1/4, 1/2)
    entropy_e = np.log(4) / 4 + np.log(4 / 3) * 3 / 4
    assert edges["mutual_information"] == pytest.approx([0, np.log(2) + entropy_e - 1.5 * np.log(2)], abs=1e-7)
    assert edges["rank_down_necessity"].tolist() == [2, 1] and edges["rank_down_sufficiency"].tolist() == [1, 2]
    assert edges["rank_down_pearson"].tolist() == [0, 1] and edges["rank_down_mutual_information"].tolist() == [0, 1]
    assert "decoder_cosine" not in edges and "rank_up_decoder_cosine" not in edges
    # By the relative rule, of a fifth of the largest activation, nothing changes; by half of it A's first goes
    assert relations.edges((0, 1), "relative")["count_both"].tolist() == [1, 1]
    half = relate(make_store({0: up, 1: down}, name="other"), tmp_path / "half", relative=0.5)
    assert half.edges((0, 1), "relative")["count_up"].tolist() == [1, 1]
    assert half.edges((0, 1), "relative")["count_both"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("both", "one", "other", "tokens"), [(3, 7, 5, 50), (0, 40, 30, 100), (1, 1, 1, 10**6), (49, 50, 50, 100)]
)
def test_mutual_information(both, one, other, tokens):
    from fractions import Fraction
    from math import log

    expected = 0.0
    for joint, p, q in (
        (both, one, other),
        (one - both, one, tokens - other),
        (other - both, tokens - one, other),
        (tokens - one - other + both, tokens - one, tokens - other),
    ):
        expected += joint / tokens * log(Fraction(joint * tokens, p * q)) if joint else 0
    assert mutual_information(both, one, other, tokens) == pytest.approx(expected, rel=1e-9)


@pytest.mark.distributed
def test_processes_and_shards_change_nothing(related, tmp_path):
    _, directions, store = related(value_dtype="float16")
    settings = dict(directions=directions, top_k=TOP_K)
    one = relate(store, tmp_path / "one", **settings)
    assert_same(one, relate(store, tmp_path / "two", processes=2, **settings))
    _, _, sharded = related(value_dtype="float16", shards=4, name="sharded")
    assert_same(one, relate(sharded, tmp_path / "three", processes=3, **settings))


def wait_for_the_end_of(pids, seconds=60):
    """Of processes that are not ours: gone, or left as zombies by whoever should have reaped them."""

    def runs(pid):
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    until = time.monotonic() + seconds
    while any(map(runs, pids)):
        assert time.monotonic() < until, "the killed run's processes go on"
        time.sleep(0.05)


@pytest.mark.distributed
def test_a_killed_run_is_gone_on_with(related, tmp_path):
    _, directions, store = related(shards=2)
    whole = relate(store, tmp_path / "whole", directions=directions, top_k=TOP_K)
    np.savez(tmp_path / "directions.npz", **{str(layer): value for layer, value in directions.items()})
    # Killed, all of it at once, in the middle of the second pair
    script = f"""
        import multiprocessing, os, signal
        import numpy as np
        from spiral_trl.sae import neighbours, relations
        from spiral_trl.sae.store import open_store

        def run(self, pair, progress, run=neighbours.Workers.run):
            if pair.layers == (1, 3):
                with open({str(tmp_path / "children")!r}, "w") as file:
                    print(*(child.pid for child in multiprocessing.active_children()), file=file)
                os.kill(os.getpid(), signal.SIGKILL)
            return run(self, pair, progress)

        if __name__ == "__main__":
            neighbours.Workers.run = run
            directions = {{int(layer): value for layer, value in np.load({str(tmp_path / "directions.npz")!r}).items()}}
            store = open_store({str(store.folder)!r})
            relations.relate(store, {str(tmp_path / "killed")!r}, directions=directions, top_k={TOP_K}, processes=2)
    """
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(script))
    assert subprocess.run([sys.executable, str(path)], timeout=120).returncode == -signal.SIGKILL
    children = [int(pid) for pid in (tmp_path / "children").read_text().split()]
    assert len(children) == 2
    wait_for_the_end_of(children)
    killed = open_relations(tmp_path / "killed")
    assert killed.pairs == ((0, 1),) and (tmp_path / "killed" / "partial" / "packed.npy").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*/00-01.parquet")}
    assert len(before) == 2
    again = relate(store, tmp_path / "killed", directions=directions, top_k=TOP_K, processes=2)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not (tmp_path / "killed" / "partial").exists()
    assert_same(whole, again)


def test_finished_pairs_are_kept_and_others_added(related, tmp_path, monkeypatch):
    _, _, store = related()
    first = relate(store, tmp_path / "relations", pairs=[(0, 1)])
    with pytest.raises(UsageError, match="has no layer pair 0-3; there are: 0-1"):
        first.edges((0, 3))
    with pytest.raises(UsageError, match="has layers 0, 1, not 3"):
        first.features(3)
    more = relate(store, tmp_path / "relations", pairs=[(0, 1), (0, 3)])
    assert more.pairs == ((0, 1), (0, 3)) and len(more.features(3)["count"]) == 50
    # Nothing is computed again
    monkeypatch.setattr(neighbours, "relate_pair", None)
    assert relate(store, tmp_path / "relations", pairs=[(0, 3)]).pairs == more.pairs


def test_other_settings_codes_and_directions_are_refused(related, tmp_path):
    _, directions, store = related()
    relate(store, tmp_path / "relations", directions=directions, pairs=[(0, 1)])
    for change, message in (
        (dict(top_k=8), "made with top_k 16, not 8"),
        (dict(min_count=5, relative=0.3), "made with relative 0.2, not 0.3; min_count 1, not 5"),
        (dict(rules=["absolute"]), r"made with rules \['absolute', 'relative'\], not \['absolute'\]"),
        (dict(directions=None), "made with directions"),
        (dict(directions={**directions, 1: directions[1] + 1}), "made with other directions of layer 1"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            relate(store, tmp_path / "relations", **{"directions": directions, "pairs": [(0, 1)], **change})
        assert "\n" not in str(error.value)
    _, _, other = related(tokens=408, name="other")
    with pytest.raises(UsageError, match="holds relations of other codes"):
        relate(other, tmp_path / "relations", directions=directions)


def test_bad_arguments_are_refused(related, make_store, tmp_path):
    _, directions, store = related()
    wrong = {**directions, 1: directions[1][:, :3]}
    fewer = {**directions, 1: directions[1][:3]}
    for arguments, message in (
        (dict(rules=["relativ"]), "not 'relativ'; did you mean 'relative'"),
        (dict(rules=[]), "at least one rule"),
        (dict(pairs=[(1, 0)]), "an earlier and a later of the layers 0, 1, 3, not 1-0"),
        (dict(pairs=[(0, 2)]), "not 0-2"),
        (dict(pairs=[]), "need a pair of layers"),
        (dict(top_k=0), "top_k must be 1 to 1000"),
        (dict(processes=0), "processes at least 1"),
        (dict(directions={0: directions[0]}), "but not for 1"),
        (dict(directions=wrong), r"have the shapes \(40, 6\) and \(30, 3\)"),
        (dict(directions=fewer), "40 and 3 directions .* codes of 40 and 30 features"),
    ):
        with pytest.raises(UsageError, match=message):
            relate(store, tmp_path / "relations", **arguments)
    assert not (tmp_path / "relations").exists()
    with pytest.raises(UsageError, match="codes of 1 tokens"):
        relate(make_store({0: np.ones((1, 3)), 1: np.ones((1, 3))}, name="short"), tmp_path / "relations")
    with pytest.raises(UsageError, match="no relations.json"):
        open_relations(tmp_path / "relations")
    (tmp_path / "relations").mkdir()
    (tmp_path / "relations" / "relations.json").write_text(json.dumps({"version": 0}))
    with pytest.raises(UsageError, match="another version"):
        open_relations(tmp_path / "relations")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("feature", 30, "a feature is outside the dictionary"),
        ("feature", 65535, "a feature is outside the dictionary"),
        ("value", np.nan, "not above 0, or not finite"),
        ("value", np.inf, "not above 0, or not finite"),
        ("value", -1, "not above 0, or not finite"),
        ("feature", 0, "do not ascend"),
        ("indptr", 10**9, "the rows overlap"),
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_corrupt_shard_is_refused(related, tmp_path, name, value, message, dtype):
    _, _, store = related(shards=2, value_dtype=dtype)
    path = store.folder / "shards" / "00001" / f"layer_01.{name}.npy"
    held = np.load(path)
    if name == "indptr":
        held[17] = value
    else:
        rows = store.shards[1].rows(1)
        # The last entry of a row of at least two
        held[rows.indptr[18] - 1] = value
        assert rows.indptr[18] - rows.indptr[17] >= 2
    np.save(path, held)
    with pytest.raises(UsageError, match=f"shards/00001 is corrupt: layer 1, row (17|16): .*{message}"):
        relate(open_store(store.folder), tmp_path / "relations", pairs=[(0, 1)])
    assert open_relations(tmp_path / "relations").pairs == ()
    # Another pair, of layers that are whole, is related
    assert relate(open_store(store.folder), tmp_path / "relations", pairs=[(0, 3)]).pairs == ((0, 3),)


def test_a_full_disk_keeps_what_was_finished(related, tmp_path, monkeypatch):
    from pyarrow import parquet

    _, _, store = related()
    whole = relate(store, tmp_path / "whole")

    def write(table, where, write=parquet.write_table, **settings):
        if "01-03" in str(where):
            where.write_bytes(b"PAR1")
            raise OSError(errno.ENOSPC, "No space left on device", str(where))
        write(table, where, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(parquet, "write_table", write)
        with pytest.raises(UsageError, match="No space left on device; the layer pairs that were finished are kept"):
            relate(store, tmp_path / "full")
    assert open_relations(tmp_path / "full").pairs == ((0, 1),)
    assert not list((tmp_path / "full").rglob("*partial*"))
    assert_same(whole, relate(store, tmp_path / "full"))


@pytest.mark.distributed
def test_a_killed_process_is_told_of(related, tmp_path, monkeypatch):
    _, _, store = related()

    def kill(*arguments, wait=neighbours.wait, **settings):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        return wait(*arguments, **settings)

    monkeypatch.setattr(neighbours, "wait", kill)
    with pytest.raises(UsageError, match="one of 2 processes was killed"):
        relate(store, tmp_path / "relations", processes=2)


def test_layers_without_any_activation(make_store, tmp_path):
    codes = {0: random_codes(50, 12, seed=0), 1: np.zeros((50, 4)), 2: random_codes(50, 12, seed=1)}
    relations = relate(
        make_store(codes), tmp_path / "relations", directions={i: np.ones((12 - 8 * (i == 1), 3)) for i in codes}
    )
    assert len(relations.edges((0, 1))["upstream"]) == len(relations.edges((1, 2))["upstream"]) == 0


def test_tables_are_read_by_datasets(related, tmp_path):
    _, directions, store = related()
    relations = relate(store, tmp_path / "relations", directions=directions)
    cache = str(tmp_path / "cache")
    path = str(tmp_path / "relations" / "relative" / "01-03.parquet")
    dataset = datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=cache)
    edges = relations.edges((1, 3), "relative")
    assert dataset.column_names == list(edges) and len(dataset) == len(edges["upstream"])
    assert dataset["downstream"][:5] == edges["downstream"][:5].tolist()
    ranks = [rank or 0 for rank in dataset["rank_up_necessity"]]
    assert ranks == edges["rank_up_necessity"].tolist() and None in dataset["rank_up_necessity"]
    # The folder as a whole, as the Hub's viewer takes it
    by_name = datasets.load_dataset(str(tmp_path / "relations"), "absolute", split="train", cache_dir=cache)
    assert len(by_name) == sum(len(relations.edges(pair)["upstream"]) for pair in relations.pairs)
    features = datasets.load_dataset(str(tmp_path / "relations"), "features", split="train", cache_dir=cache)
    assert len(features) == 40 + 30 + 50
