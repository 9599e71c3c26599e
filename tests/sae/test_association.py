"""Effects against textbook formulas, the test's size and power under clustering, the control, and the bootstrap."""

import numpy as np
import pytest
from scipy.sparse import csc_array
from scipy.stats import pearsonr

from spiral_trl.sae.association import (
    Design,
    direction,
    effects,
    purity,
    resampled_effects,
    score_test,
    shuffled,
)
from spiral_trl.sae.game_variables import Variable


def categorical(values, levels=("a", "b", "c")):
    return Variable("x", np.array(values, dtype=float), levels)


def number(values):
    return Variable("x", np.array(values, dtype=float))


def test_the_correlation_ratio_by_hand():
    """Groups {1, 3}, {5, 7}, {9}: means 2, 6, 9 around 5; between 2*9 + 2*1 + 16 = 36, in all 40."""
    design = Design.of(categorical([0, 0, 1, 1, 2]), np.arange(5))
    codes = csc_array(np.array([[1.0, 3, 5, 7, 9], [2, 2, 2, 2, 2], [0, 0, 0, 0, 4]]).T)
    assert effects(design, codes) == pytest.approx([0.9, 0.0, 1.0])
    assert direction(design, codes).tolist() == [0, 0, 0]


def test_a_number_is_measured_by_pearsons_correlation():
    random = np.random.default_rng(0)
    x = random.normal(size=50)
    codes = np.maximum(random.normal(size=(50, 4)) - 0.5 * x[:, None], 0)
    design = Design.of(number(x), np.arange(50))
    r = np.array([pearsonr(x, column).statistic for column in codes.T])
    assert effects(design, csc_array(codes)) == pytest.approx(r**2)
    assert direction(design, csc_array(codes)).tolist() == np.sign(r).tolist()


def test_steps_where_it_is_not_defined_do_not_count():
    design = Design.of(categorical([0, np.nan, 1, np.nan, 1]), np.array([3, 3, 5, 8, 9]))
    assert design.rows.tolist() == [0, 2, 4]
    assert design.game.tolist() == [0, 1, 2]
    assert design.levels.tolist() == [0, 1]
    assert design.varies
    assert not Design.of(categorical([1, np.nan, 1]), np.arange(3)).varies


def clustered(random, games=60, steps=4, features=400):
    """Activations that are equal within a game, but for noise, and know nothing of the variable, which hardly changes
    within a game either."""
    group = np.repeat(np.arange(games), steps)
    codes = np.maximum(
        random.normal(size=(games, features))[group] + 0.1 * random.normal(size=(len(group), features)), 0
    )
    values = random.integers(3, size=games)[group]
    return group, codes, values


def test_the_test_is_not_misled_by_steps_of_one_game():
    random = np.random.default_rng(1)
    rates, naive = [], []
    for _ in range(5):
        group, codes, values = clustered(random)
        p = score_test(Design.of(categorical(values), group), csc_array(codes))
        rates.append((p <= 0.05).mean())
        naive.append(
            (score_test(Design.of(categorical(values), np.arange(len(group))), csc_array(codes)) <= 0.05).mean()
        )
    # 2,000 features: the standard error of 5% is 0.5%; the best of three levels times three is below 5%
    assert 0.005 < np.mean(rates) < 0.06
    assert np.mean(naive) > 0.3, "with every step for itself the same data would give false discoveries"


def test_what_depends_on_the_variable_is_found():
    random = np.random.default_rng(2)
    group, codes, values = clustered(random, games=100)
    codes[:, 0] += 2.0 * (values == 1)
    codes[:, 1] += 2.0 * values
    design = Design.of(categorical(values), group)
    p = score_test(design, csc_array(codes))
    assert (p[:2] < 1e-6).all() and np.median(p[2:]) > 0.2
    assert (score_test(Design.of(number(values), group), csc_array(codes))[1] < 1e-6).all()


def test_few_games_never_give_a_small_p():
    """A feature that fires in five games, always with the same value, and constant ones."""
    group = np.arange(200)
    values = np.tile([0.0, 1.0], 100)
    codes = np.zeros((200, 3))
    codes[[1, 3, 5, 7, 9], 0] = [1, 2, 3, 4, 5]
    codes[:, 2] = 1.0
    p = score_test(Design.of(categorical(values, ("a", "b")), group), csc_array(codes))
    assert 0.01 < p[0] < 0.1
    assert p[1:].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("fired", "shares"), [(12, [0.33, 0.33, 0.34]), (20, [0.7, 0.28, 0.02]), (40, [0.9, 0.1])])
def test_rare_features_and_rare_levels_give_no_false_discoveries(fired, shares):
    """Small p must be as rare as they say, also far below 5%."""
    random = np.random.default_rng(5)
    games = 500
    values = random.choice(len(shares), size=games, p=shares)
    codes = np.zeros((games, 20_000))
    for column in codes.T:
        column[random.choice(games, fired, replace=False)] = random.exponential(size=fired) + 0.5
    p = score_test(Design.of(categorical(values), np.arange(games)), csc_array(codes))
    assert (p <= 1e-2).mean() <= 1.5e-2
    assert (p <= 1e-3).mean() <= 3e-3
    assert (p <= 1e-5).sum() <= 2


def test_purity_by_hand():
    design = Design.of(categorical([0, 0, 0, 1, 1, 2]), np.arange(6))
    codes = csc_array(np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 5, 0, 0], [0, 0, 1, 1, 1, 1], [0] * 6], dtype=float).T)
    level, precision, recall = purity(design, codes)
    assert level[:3].tolist() == [0, 1, 1]
    assert precision == pytest.approx([1, 1, 0.5, 0])
    assert recall == pytest.approx([1, 0.5, 1, 0])


def test_the_control_keeps_games_together_and_forgets_which():
    random = np.random.default_rng(3)
    group = np.repeat(np.arange(50), random.integers(1, 5, 50))
    values = group * 10.0
    dealt = shuffled(values, group, random)
    assert all(len(set(dealt[group == game])) == 1 for game in range(50)), "what is constant in a game stays so"
    assert sorted(set(dealt)) == sorted(set(values)), "each game's values go to one game"
    # A value that every game begins with comes at any step of a game
    first = (np.diff(group, prepend=-1) != 0).astype(float)
    means = np.mean([shuffled(first, group, random)[first == 1].mean() for _ in range(200)])
    sizes = np.bincount(group)
    assert means == pytest.approx((1 / sizes).mean(), abs=0.03)


def test_resampled_effects_are_those_of_the_games_drawn():
    random = np.random.default_rng(4)
    group = np.repeat(np.arange(20), 3)
    codes = np.maximum(random.normal(size=(60, 5)), 0)
    weights = random.multinomial(20, np.full(20, 1 / 20), size=3).astype(float)
    for variable in (categorical(random.integers(3, size=60)), number(random.normal(size=60))):
        design = Design.of(variable, group)
        assert resampled_effects(design, codes, np.ones((1, 20)))[0] == pytest.approx(
            effects(design, csc_array(codes))
        )
        for drawn, effect in zip(weights, resampled_effects(design, codes, weights), strict=True):
            rows = np.concatenate(
                [np.flatnonzero(group == game) for game in range(20) for _ in range(int(drawn[game]))]
            )
            again = Design.of(Variable("x", variable.values[rows], variable.levels), np.arange(len(rows)))
            assert effect == pytest.approx(effects(again, csc_array(codes[rows])))
