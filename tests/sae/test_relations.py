"""Sums, postings and relations of codes, against dense float64 references."""

import numpy as np
import pytest

from spiral_trl.sae.kernels import feature_sums, transpose, triple_counts


def random_codes(tokens, features, seed, density=0.2, dtype=np.float32):
    """Codes with features of very different frequency; the first never fires, the second always with one value."""
    rng = np.random.default_rng(seed)
    chance = np.clip(rng.lognormal(np.log(density), 1.0, features), 0, 0.9)
    codes = np.where(rng.random((tokens, features)) < chance, rng.exponential(2.0, (tokens, features)), 0)
    codes[:, 0], codes[:, 1] = 0, 0.1
    return codes.astype(np.float16).astype(dtype) if dtype == np.float16 else codes.astype(dtype)


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
