"""Differences between samples of games: exact where that can be counted out, calibrated where it cannot, and found."""

import itertools

import numpy as np
import pytest
from game_worlds import World, sums_of
from scipy.stats import norm

from spiral_trl.errors import UsageError
from spiral_trl.sae.discoveries import (
    STATISTICS,
    benjamini_hochberg,
    clustered_difference,
    ratio_interval_by_game,
    sampled_tail,
    tail_bound,
)
from spiral_trl.sae.game_sums import correlations, game_sums


RATE = 0.05


def counted_out(d):
    """The probability over all signs, one by one."""
    sums = np.array(list(itertools.product([-1, 1], repeat=len(d)))) @ d
    return np.mean(np.abs(sums) >= abs(d.sum()) - 1e-9)


def differences_of(kind, count, random):
    d = {
        "equal": lambda: np.ones(count),
        "few values": lambda: random.integers(1, 4, count).astype(float),
        "heavy tail": lambda: random.lognormal(0, 1.5, count),
        "one game": lambda: np.append(np.ones(count - 1), 30.0),
    }[kind]()
    d[: int(random.integers(0, 3))] *= -1
    return d


@pytest.mark.parametrize("kind", ["equal", "few values", "heavy tail", "one game"])
@pytest.mark.parametrize("count", [5, 10, 15])
def test_sampled_probability_is_that_of_all_signs(kind, count):
    random = np.random.default_rng(count)
    tosses = random.random((20000, count), dtype=np.float32)
    for _ in range(4):
        d = differences_of(kind, count, random)
        exact = counted_out(d)
        assert sampled_tail(d, tosses) == pytest.approx(exact, rel=0.1)
        assert sampled_tail(-d, tosses) == sampled_tail(d, tosses)
        assert exact <= tail_bound(d.sum() / np.sqrt((d**2).sum())) + 1e-12


def test_sampled_probability_far_out():
    # Heads of a fair coin: 75 or more of 100, and 25 or fewer
    from scipy.stats import binom

    d = np.append(np.ones(75), -np.ones(25))
    tosses = np.random.default_rng(0).random((4000, 100), dtype=np.float32)
    exact = 2 * binom.sf(74, 100, 0.5)
    assert exact < 1e-6
    assert sampled_tail(d, tosses) == pytest.approx(exact, rel=0.1)
    assert tail_bound(5.0) > exact


def test_the_bound_is_reached():
    # Two equal games, which agree: one half; the normal distribution says 0.157
    assert tail_bound(np.sqrt(2.0)) == pytest.approx(0.5)
    assert counted_out(np.ones(2)) == 0.5


def test_benjamini_hochberg_by_hand():
    p = np.array([[0.01, 0.04, np.nan], [0.03, 0.005, 0.5]])
    # Ordered 0.005, 0.01, 0.03, 0.04, 0.5, times 5/1 ... 5/5, and never above a later one
    expected = np.array([[0.025, 0.05, np.nan], [0.05, 0.025, 0.5]])
    np.testing.assert_allclose(benjamini_hochberg(p), expected)
    assert np.isnan(benjamini_hochberg(np.full(3, np.nan))).all()


def test_sums_of_games_over_shards(make_store):
    random = np.random.default_rng(0)
    dense = random.random((90, 7)) * (random.random((90, 7)) < 0.3)
    # Games of uneven length, over the ends of shards, one of them in two places
    groups = np.repeat([4, 2, 9, 4, 11], [20, 7, 33, 10, 20])
    store = make_store({0: dense}, groups=groups, shards=4)
    sums = game_sums(store, 0)
    assert sums.games.tolist() == [2, 4, 9, 11]
    assert sums.tokens.tolist() == [7, 30, 33, 20]
    for row, game in enumerate(sums.games):
        np.testing.assert_allclose(sums.totals.toarray()[row], dense[groups == game].sum(0), rtol=1e-6)
        np.testing.assert_allclose(sums.counts.toarray()[row], (dense[groups == game] > 0).sum(0))
    with pytest.raises(UsageError, match="no token of a reply"):
        game_sums(store, 0, replies_only=True)


def test_correlations_over_other_shards(make_store):
    random = np.random.default_rng(1)
    before = random.random((60, 5)) * (random.random((60, 5)) < 0.5)
    after = before * 2
    after[:, 1] = random.random(60)
    after[:, 2] = 0
    after[:, 3] = 1.5
    one = make_store({0: before}, shards=2, name="one")
    other = make_store({0: after}, shards=3, name="other")
    found = correlations(one, other, 0)
    assert found[[0, 4]] == pytest.approx([1, 1])
    assert found[1] == pytest.approx(np.corrcoef(before[:, 1], after[:, 1])[0, 1], abs=1e-6)
    assert np.isnan(found[[2, 3]]).all()
    with pytest.raises(UsageError, match="different tokens"):
        correlations(one, make_store({0: before[:50]}, name="fewer"), 0)


def test_statistics_of_pairs_by_hand():
    # Two features, three games each, read by both models; tokens 10, 20, 10
    tokens = [10, 20, 10]
    before = sums_of(tokens, [[1, 0], [2, 4], [0, 0]], np.array([[2.0, 0], [3, 4], [0, 0]]))
    after = sums_of(tokens, [[4, 0], [4, 4], [2, 1]], np.array([[4.0, 0], [12, 4], [2, 5]]))
    found = clustered_difference(before, after, paired=True, min_games=1)
    assert found.games.tolist() == [[2, 1], [3, 2]]
    np.testing.assert_allclose(found.density, [[3 / 40, 4 / 40], [10 / 40, 5 / 40]])
    np.testing.assert_allclose(found.activation, [[5 / 3, 1], [18 / 10, 9 / 5]])
    np.testing.assert_allclose(found.z["density"], [7 / np.sqrt(9 + 4 + 4), 1])
    # Of the first feature, 13 of 80 tokens are active
    d = np.log(np.array([0.4, 0.2, 0.2]) + 13 / 80) - np.log(np.array([0.1, 0.1, 0]) + 13 / 80)
    assert found.z["log_density"][0] == pytest.approx(d.sum() / np.sqrt((d**2).sum()))
    d = np.log([4.0, 2.0])
    assert found.z["density_where_active"][0] == pytest.approx(d.sum() / np.sqrt((d**2).sum()))
    d = np.log([0.5, 2.0])
    assert found.z["activation"][0] == pytest.approx(d.sum(), abs=1e-12)
    # In the only game where both have the second feature it is the same
    assert found.z["density_where_active"][1] == found.z["activation"][1] == 0
    # Three games that all rose: two of eight signs; so far in, the bound is said, which is no less
    assert 2 / 8 <= found.p["density"][0] == tail_bound(found.z["density"][0]) < 0.3
    assert found.combined[0] == 1
    assert found.rose.tolist() == [1, 1]


def test_statistics_of_own_games_have_no_length_in_them():
    # As dense in long games as in short ones
    tokens_before, tokens_after = np.array([10, 30, 20, 40]), np.array([40, 80, 120, 80])
    before = sums_of(tokens_before, tokens_before[:, None] // 5)
    after = sums_of(tokens_after, tokens_after[:, None] // 5)
    found = clustered_difference(before, after, paired=False, min_games=1)
    assert found.z["density"].tolist() == [0] and found.p["density"].tolist() == [1]
    assert found.length.tolist() == [25, 80]
    assert found.counted == ("density", "activation")


def discoveries(worlds, games, seed, factor=None, paired=False):
    """Over all layers; and for each whether it is one."""
    found = []
    for layer, world in enumerate(worlds):
        before = world.games(games, 2 * seed)
        after = world.games(games, 2 * seed + 1, 1.0 if factor is None or layer else factor)
        found.append(clustered_difference(before, after, paired=paired, seed=seed))
    q = benjamini_hochberg(np.concatenate([one.combined for one in found]))
    return found, np.nan_to_num(q, nan=1) <= RATE


def test_control_finds_nothing():
    found = []
    for seed in range(20):
        worlds = [World(800, 10 * seed + layer) for layer in range(2)]
        tests, beyond = discoveries(worlds, 200, seed)
        assert sum(one.tested.sum() for one in tests) > 700
        found.append(beyond.sum())
    assert np.count_nonzero(found) <= 3


@pytest.mark.parametrize("seed", range(3))
def test_doubled_density_is_found(seed):
    worlds = [World(1000, 10 * seed + layer) for layer in range(2)]
    frequent = np.flatnonzero((worlds[0].games(300, 2 * seed).counts > 0).sum(0) >= 100)
    planted = np.random.default_rng(seed).choice(frequent, 20, replace=False)
    factor = np.ones(1000)
    factor[planted] = 2
    found, beyond = discoveries(worlds, 300, seed, factor)
    assert beyond[planted].mean() >= 0.9
    assert beyond.sum() - beyond[planted].sum() <= 4
    assert (found[0].rose[planted[beyond[planted]]] == 1).all()


def test_doubled_density_is_found_on_the_same_texts():
    """Each feature flickers; twenty of them fire twice as often, with the activations they had."""
    random = np.random.default_rng(0)
    world = World(1000, 5)
    tokens, texts = world.counts(300, 5)
    before, after = (random.binomial(np.minimum(texts, tokens[:, None]), 0.8) for _ in range(2))
    planted = random.choice(np.flatnonzero((before > 0).sum(0) >= 100), 20, replace=False)
    for part, is_found in ((after, False), (after.copy(), True)):
        if is_found:
            part[:, planted] = np.minimum(2 * part[:, planted], tokens[:, None])
        found = clustered_difference(sums_of(tokens, before), sums_of(tokens, part), paired=True)
        beyond = benjamini_hochberg(found.combined) <= RATE
        assert beyond[planted].mean() >= 0.9 if is_found else beyond.sum() == 0
        assert beyond.sum() - beyond[planted].sum() <= 2


def test_changed_activation_is_found():
    world = World(300, 1)
    before = world.games(200, 1)
    planted = np.flatnonzero((before.counts > 0).sum(0) >= 100)[:10]
    strength = np.ones(300)
    strength[planted] = 1.5
    found = clustered_difference(before, world.games(200, 2, strength=strength), paired=False)
    beyond = benjamini_hochberg(found.combined) <= RATE
    assert beyond[planted].all() and len(planted) == 10 and beyond.sum() <= 11
    assert (found.p["activation"] * len(STATISTICS) == found.combined)[planted].all()
    assert (found.rose[planted] == 1).all()


def test_rare_features_are_calibrated_far_out():
    """Of 40 games on either side few have the feature, and those may have many tokens of it."""
    small, by_token, tests = [], [], 0
    for seed in range(60):
        world = World(1000, seed)
        sums = [world.games(40, 2 * seed + side) for side in (0, 1)]
        found = clustered_difference(*sums, paired=False, min_games=5, seed=seed)
        rare = found.tested & (found.games.sum(0) < 30)
        tests += rare.sum()
        small.append(np.min([found.p[name][rare] for name in STATISTICS], axis=0) * len(STATISTICS))
        tokens = np.array([one.tokens.sum() for one in sums])
        counts = np.stack([one.counts.sum(0) for one in sums])[:, rare]
        pooled = counts.sum(0) / tokens.sum()
        z = (counts[1] / tokens[1] - counts[0] / tokens[0]) / np.sqrt(pooled * (1 - pooled) * (1 / tokens).sum())
        by_token.append(2 * norm.sf(np.abs(z)))
    small, by_token = np.concatenate(small), np.concatenate(by_token)
    assert tests > 8000
    for level in (1e-2, 1e-3, 1e-4):
        # Three deviations above what independent tests would show
        most = level * tests + 3 * np.sqrt(level * tests) + 1
        assert (small <= level).sum() <= most
        # Were every token one of its own
        assert (by_token <= level).sum() > 10 * most


def test_duplicates_and_features_that_say_nothing():
    world = World(100, 3)
    random = np.random.default_rng(0)
    tokens, counts = world.counts(120, 0)
    strengths = 0.1 * np.ones_like(counts)
    counts[:, 1], strengths[:, 1] = counts[:, 0], strengths[:, 0]
    counts[:, 2] = 0
    counts[:, 3] = tokens
    counts[:, 4] = np.where(np.arange(120) < 9, 1, 0)
    changed = counts.copy()
    changed[:, [0, 1]] = np.minimum(3 * counts[:, [0, 1]] + 1, tokens[:, None])
    # As many more tokens as there were, each with the same activation: a sum that rounds differently
    changed[:, 5] = np.minimum(counts[:, 5] + random.integers(0, 2, 120), tokens)
    found = clustered_difference(
        sums_of(tokens, counts, counts * strengths), sums_of(tokens, changed, changed * strengths), paired=True
    )
    q = benjamini_hochberg(found.combined)
    assert q[0] == q[1] <= RATE and found.combined[0] == found.combined[1]
    assert not found.tested[[2, 4]].any() and np.isnan(q[[2, 4]]).all()
    assert found.combined[3] == 1
    assert found.p["activation"][5] == 1
    assert np.isnan(found.activation[:, 2]).all() and found.density[:, 2].tolist() == [0, 0]


def test_one_wild_game_is_no_discovery():
    tokens = np.full(200, 1000)
    before, after = np.ones((200, 1), int), np.ones((200, 1), int)
    after[7] = 900
    found = clustered_difference(sums_of(tokens, before), sums_of(tokens, after), paired=True)
    assert found.density[1] > 5 * found.density[0]
    assert found.p["density"][0] == 1


def test_longer_games_are_no_discovery():
    """Every token as before, three times as many of them."""
    found_by = []
    for seed in range(5):
        random = np.random.default_rng(seed)
        rate = np.exp(random.normal(np.log(0.003), 1.5, 500)).clip(0, 0.3)
        sums = []
        for length in (100, 300):
            tokens = random.poisson(length, 200) + 1
            sums.append(sums_of(tokens, random.binomial(tokens[:, None], rate)))
        found = clustered_difference(*sums, paired=False)
        assert found.counted == ("density", "activation")
        # What length alone moves is told, and would have been called a discovery
        assert np.nanmin(found.p["log_density"]) < 1e-6
        found_by.append((benjamini_hochberg(found.combined) <= RATE).sum())
    assert np.count_nonzero(found_by) <= 2


def test_ratio_intervals():
    random = np.random.default_rng(0)
    world = World(200, 0)
    before = world.games(400, 1)
    doubled = sums_of(before.tokens, before.counts.toarray() * 2)
    # Frequent enough, and not so frequent that rates cannot be doubled
    active = np.flatnonzero(((before.counts > 0).sum(0) > 50) & (world.rate < 0.03))
    exact = ratio_interval_by_game(before, doubled, active, paired=True)
    np.testing.assert_allclose(exact, 2)
    after = world.games(400, 2, factor=2.0)
    low, high = ratio_interval_by_game(before, after, active, paired=False)
    inside = (low <= 2) & (high >= 2)
    assert inside.mean() > 0.8 and (high - low).max() < 10 and (low < high).all()
    never = sums_of(before.tokens, random.integers(0, 1, (400, 1)))
    once = sums_of(before.tokens, np.ones((400, 1)))
    assert np.isnan(ratio_interval_by_game(never, once, np.array([0]), paired=False)).all()


def test_bad_input():
    sums = sums_of([5, 6, 7], np.ones((3, 4)))
    with pytest.raises(UsageError, match="4 and 5 features"):
        clustered_difference(sums, sums_of([5, 6, 7], np.ones((3, 5))), paired=True)
    with pytest.raises(UsageError, match="same texts"):
        clustered_difference(sums, sums_of([5, 6, 8], np.ones((3, 4))), paired=True)
    with pytest.raises(UsageError, match="at least 2 games on either side, not 1"):
        clustered_difference(sums, sums_of([5], np.ones((1, 4))), paired=False)
