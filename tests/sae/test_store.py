"""The store of sparse codes: what is written is read, and what was cut short, spoilt or stopped is seen."""

import errno
import json
import resource
import shutil

import numpy as np
import pytest

from spiral_trl.errors import UsageError
from spiral_trl.sae import store as module
from spiral_trl.sae.store import (
    TOKEN,
    check_same_tokens,
    feature_dtype,
    groups_of,
    join_rows,
    open_store,
    rows_of,
    shard_bounds,
    take_rows,
    write_shard,
    write_store,
)


def sparse(tokens, features, seed=0, density=0.2):
    random = np.random.default_rng(seed)
    return np.where(
        random.random((tokens, features)) < density, random.exponential(size=(tokens, features)), 0
    ).astype(np.float32)


def dense(rows, features):
    full = np.zeros((rows.num_tokens, features), np.float32)
    for token in range(rows.num_tokens):
        for entry in range(rows.indptr[token], rows.indptr[token + 1]):
            full[token, rows.feature[entry]] = rows.value[entry]
    return full


@pytest.fixture
def codes():
    return {0: sparse(50, 20), 2: sparse(50, 30, seed=1)}


def test_what_is_written_is_read_whatever_the_shards(make_store, codes):
    for shards in (1, 3, 7):
        store = make_store(codes, shards=shards, name=f"in {shards}")
        assert store.layers == (0, 2) and store.num_tokens == 50
        assert [store.num_features(0), store.num_features(2)] == [20, 30]
        for layer, expected in codes.items():
            np.testing.assert_array_equal(dense(store.rows(layer), expected.shape[1]), expected)
        assert shard_bounds(store.shards)[-1] == 50 and len(store.shards) == shards
        np.testing.assert_array_equal(store.tokens["group"], np.arange(50) // 8)
        first = store.shards[0].rows(0)
        assert isinstance(first.value, np.memmap)


def test_rows_leave_out_what_is_not_above_zero():
    rows = rows_of(np.array([[0.0, 2.0, -1.0], [np.nan, 0.0, 0.0], [3.0, 0.0, 4.0]], dtype=np.float32), "float32")
    assert rows.indptr.tolist() == [0, 1, 1, 3]
    assert rows.feature.tolist() == [1, 0, 2]
    assert rows.value.tolist() == [2, 3, 4]


def test_half_precision_keeps_what_is_active_and_refuses_what_it_cannot_hold():
    rows = rows_of(np.array([[1e-12, 65504.0]], dtype=np.float32))
    assert rows.value.dtype == np.float16
    assert (rows.value > 0).all() and rows.value[1] == 65504
    with pytest.raises(UsageError, match=r"7e\+04 is above 65504.*value_dtype=float32"):
        rows_of(np.array([[7e4]], dtype=np.float32))
    assert rows_of(np.array([[7e4]], dtype=np.float32), "float32").value.tolist() == [7e4]


def test_features_take_as_few_bytes_as_hold_them():
    assert feature_dtype(1 << 16) == "uint16" and feature_dtype((1 << 16) + 1) == "uint32"
    wide = np.zeros((1, (1 << 16) + 1), np.float32)
    wide[0, -1] = 1
    assert rows_of(wide).feature.tolist() == [1 << 16]


def test_rows_are_joined_and_taken():
    whole = sparse(12, 9)
    joined = join_rows([rows_of(whole[:5], "float32"), rows_of(whole[5:5], "float32"), rows_of(whole[5:], "float32")])
    np.testing.assert_array_equal(dense(joined, 9), whole)
    for index in ([11, 0, 3, 3, 7], [], list(range(12))):
        np.testing.assert_array_equal(dense(take_rows(joined, np.array(index, dtype=int)), 9), whole[index])


def test_a_layer_that_is_not_there_is_refused(make_store, codes):
    with pytest.raises(UsageError, match="has layers 0, 2, not 1"):
        make_store(codes).rows(1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda shard: (shard / "shard.json").unlink(), "00001 is corrupt: there is no shard.json"),
        (lambda shard: [path.unlink() for path in shard.iterdir()], "00001 is corrupt: there is no shard.json"),
        (lambda shard: (shard / "shard.json").write_text("{"), "shard.json cannot be read"),
        (lambda shard: (shard / "shard.json").write_text('{"num_tokens": 3}'), "its shard.json cannot be read"),
        (lambda shard: (shard / "shard.json").write_text("[]"), "it holds no JSON object"),
        (lambda shard: cut(shard / "layer_02.value.npy"), "layer_02.value.npy cannot be read"),
        (lambda shard: cut(shard / "tokens.npy"), "tokens.npy cannot be read"),
        (lambda shard: (shard / "layer_00.feature.npy").write_bytes(b""), "layer_00.feature.npy cannot be read"),
        (lambda shard: (shard / "layer_00.indptr.npy").unlink(), "layer_00.indptr.npy cannot be read"),
        (lambda shard: np.save(shard / "layer_00.value.npy", np.ones(3)), "has 3 entries where"),
        (lambda shard: scale(shard / "layer_00.indptr.npy"), r"layer 0 counts \d+ entries, not"),
        (lambda shard: forget(shard / "shard.json", "2"), "layer 2 is missing"),
    ],
)
def test_a_spoilt_shard_is_named(make_store, codes, spoil, message):
    store = make_store(codes, shards=3)
    spoil(store.folder / "shards" / "00001")
    with pytest.raises(UsageError, match=message) as raised:
        open_store(store.folder)
    assert "00001" in str(raised.value) and "\n" not in str(raised.value)


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def scale(path):
    np.save(path, np.load(path) * 2)


def forget(path, layer):
    said = json.loads(path.read_text())
    del said["entries"][layer]
    path.write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (None, "holds no codes: there is no store.json"),
        ('{"version": 99, "layers": {}}', r"written by another version \(99, here 1\)"),
        ("{}", "written by another version"),
        ('{"version": 1}', "its store.json names no layers"),
        ("nonsense", "store.json cannot be read"),
        ('{"version": 1, "layers": {"0": {"num_features": 3}}}', "holds no codes yet: no shard was finished"),
    ],
)
def test_what_is_no_store_is_refused(tmp_path, about, message):
    if about is not None:
        (tmp_path / "store.json").write_text(about)
    with pytest.raises(UsageError, match=message):
        open_store(tmp_path)


def test_a_shard_without_tokens_is_a_shard(make_store, codes):
    store = make_store(codes)
    nothing = {layer: rows_of(part[:0], "float32") for layer, part in codes.items()}
    write_shard(store.folder, 1, np.zeros(0, TOKEN), nothing)
    again = open_store(store.folder)
    assert [shard.num_tokens for shard in again.shards] == [50, 0]
    np.testing.assert_array_equal(dense(again.rows(0), 20), codes[0])
    assert len(again.tokens) == 50


@pytest.mark.parametrize("after", range(7))
def test_a_full_disk_leaves_nothing_of_the_shard_and_the_earlier_ones(make_store, codes, monkeypatch, after):
    store = make_store(codes, shards=2)
    writes = iter(range(100))

    def full(path, values):
        if next(writes) == after:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, values)

    save = module.save_array
    monkeypatch.setattr(module, "save_array", full)
    rows = {layer: rows_of(part, "float32") for layer, part in codes.items()}
    with pytest.raises(OSError, match="No space left"):
        write_shard(store.folder, 2, np.zeros(50, TOKEN), rows)
    assert sorted(path.name for path in (store.folder / "shards").iterdir()) == ["00000", "00001"]
    np.testing.assert_array_equal(dense(open_store(store.folder).rows(2), 30), codes[2])


@pytest.mark.parametrize("short", [1, 100, 5000])
def test_a_file_that_was_not_written_to_its_end_is_an_error(tmp_path, short):
    path, values = tmp_path / "values.npy", np.arange(2000)
    module.save_array(path, values)
    size = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - short, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            module.save_array(path, values)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    "values", [np.zeros(3, TOKEN), np.zeros(0, "<f2"), np.arange(6, dtype="uint16")[::2], np.arange(4)], ids=str
)
def test_arrays_are_written_as_numpy_does(tmp_path, values):
    module.save_array(tmp_path / "ours.npy", values)
    np.save(tmp_path / "numpy.npy", values)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


def test_json_is_written_whole_or_not_at_all(tmp_path):
    write_store(tmp_path, {"layers": {}})
    before = (tmp_path / "store.json").read_text()
    with pytest.raises(ValueError):
        write_store(tmp_path, {"layers": {}, "bad": float("nan")})
    assert (tmp_path / "store.json").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards", "store.json"]


def test_what_a_killed_writer_left_is_passed_over_and_written_again(make_store, codes):
    store = make_store(codes, shards=2)
    partial = store.folder / "shards" / "00002.partial"
    shutil.copytree(store.shards[0].folder, partial)
    assert len(open_store(store.folder).shards) == 2
    write_shard(store.folder, 2, np.zeros(50, TOKEN), {layer: rows_of(part) for layer, part in codes.items()})
    assert len(open_store(store.folder).shards) == 3 and not partial.exists()


def test_groups_are_numbered_without_gaps():
    tokens = np.zeros(5, TOKEN)
    tokens["group"] = [7, 7, 3, 9, 3]
    numbers, count = groups_of(tokens)
    assert numbers.tolist() == [1, 1, 0, 2, 0] and count == 3
    assert groups_of(tokens[:0])[1] == 0


def test_stores_of_other_tokens_are_told_apart(make_store, codes):
    one, same = make_store(codes, name="one"), make_store(codes, name="same", shards=4)
    check_same_tokens(one, same)
    for other in (
        make_store(codes, groups=np.arange(50), name="other"),
        make_store({layer: part[:49] for layer, part in codes.items()}, name="fewer"),
    ):
        with pytest.raises(UsageError, match="hold codes of different tokens"):
            check_same_tokens(one, other)


def test_the_version_stands_in_the_store(make_store, codes):
    assert json.loads((make_store(codes).folder / "store.json").read_text())["version"] == module.VERSION
