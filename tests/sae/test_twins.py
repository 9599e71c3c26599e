"""Duplicates within a layer against dense references, entropies of tokens, and design effects."""

import numpy as np
import pytest

from spiral_trl.sae.kernels import feature_sums
from spiral_trl.sae.labels import token_entropies
from spiral_trl.sae.sampling import design_effects
from spiral_trl.sae.twins import twins


def codes_with_twins(seed):
    """40 features, of which ten are noisy copies of the first ten; the last never fires."""
    rng = np.random.default_rng(seed)
    codes = np.where(rng.random((2000, 40)) < rng.uniform(0.02, 0.3, 40), rng.uniform(0.5, 1.5, (2000, 40)), 0)
    codes[:, 10:20] = codes[:, :10] * 2 * (rng.random((2000, 10)) > np.linspace(0, 0.2, 10))
    codes[:, 39] = 0
    return codes.astype(np.float32)


@pytest.mark.parametrize("measure", ["pearson", "cosine", "jaccard"])
@pytest.mark.parametrize("shards", [1, 3])
def test_twins_are_those_of_a_dense_reference(make_store, measure, shards):
    codes = codes_with_twins(0)
    store = make_store({0: codes}, shards=shards)
    exact, active = codes[:, :39].astype(np.float64), codes[:, :39] > 0
    if measure == "pearson":
        values = np.corrcoef(exact.T)
    elif measure == "cosine":
        norm = np.sqrt((exact**2).sum(0))
        values = exact.T @ exact / np.outer(norm, norm)
    else:
        both = active.T.astype(float) @ active
        values = both / (active.sum(0)[:, None] + active.sum(0) - both)
    one, other = np.nonzero(np.triu(values >= 0.93, 1))
    pairs, found = twins(store, 0, feature_sums(store, 0), measure, 0.93)
    assert 3 <= len(one) < 10
    assert pairs.tolist() == np.stack([one, other], axis=1).tolist()
    assert found == pytest.approx(values[one, other], abs=1e-6)


def test_the_relative_rule_counts_for_jaccard_alone(make_store):
    codes = np.zeros((400, 2), np.float32)
    codes[:100] = 1
    # Weak firings of the second alone
    codes[100:200, 1] = 0.1
    store = make_store({0: codes})
    sums = feature_sums(store, 0)
    assert len(twins(store, 0, sums, "jaccard", 0.9, "absolute")[0]) == 0
    assert twins(store, 0, sums, "jaccard", 0.9, "relative")[1].tolist() == [1.0]
    pearson = np.corrcoef(codes.T)[0, 1]
    assert twins(store, 0, sums, "pearson", 0.9, "relative")[1] == pytest.approx([pearson])


def test_entropies_are_those_of_the_tokens(make_store):
    codes = np.zeros((170, 4), np.float32)
    # The fixture's token ids are the positions modulo 17
    codes[:17, 0] = 1
    codes[::17, 1] = 1
    codes[[0, 17, 34, 1], 2] = 1
    store = make_store({0: codes}, shards=3)
    found = token_entropies(store, 0, feature_sums(store, 0))
    expected = [np.log(17), 0, -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)), 0]
    assert found == pytest.approx(expected, abs=1e-12)


def test_firings_in_clusters_have_a_design_effect(make_store):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), 10)
    codes = np.zeros((2000, 4), np.float32)
    # All ten tokens of a group or none: the variance is that of a tenth as many tokens
    codes[:, 0] = (rng.random(200) < 0.3)[groups]
    codes[:, 1] = rng.random(2000) < 0.3
    codes[:, 2] = 1
    store = make_store({0: codes}, groups=groups)
    effects = design_effects(store, 0)
    p = codes[:, 0].mean()
    per_group = codes[:, 0].reshape(200, 10).sum(1)
    assert effects[0] == pytest.approx(200 * per_group.var(ddof=1) / (2000 * p * (1 - p)))
    assert effects[0] == pytest.approx(10, rel=0.02)
    assert effects[1] < 1.5
    assert effects[2:].tolist() == [1, 1]
