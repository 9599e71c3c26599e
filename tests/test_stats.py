import json
import math

import numpy as np
import pytest

from spiral_trl.stats import Interval, bootstrap_interval, mean_interval, ratio_interval, wilson_interval


def test_mean_interval_against_a_table_of_student_t():
    # Mean 3, standard deviation sqrt(2.5), n = 5; t(4) has the two-sided 95% quantile 2.776445.
    interval = mean_interval([1, 2, 3, 4, 5])
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert interval.estimate == 3
    assert interval.low == pytest.approx(3 - half, abs=1e-5)
    assert interval.high == pytest.approx(3 + half, abs=1e-5)


def test_mean_interval_of_one_value_is_unbounded_and_json():
    interval = mean_interval([2.0])
    assert (interval.estimate, interval.low, interval.high) == (2.0, -math.inf, math.inf)
    assert json.loads(json.dumps(interval.to_dict(), allow_nan=False)) == {"estimate": 2.0, "low": None, "high": None}


def test_mean_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.normal(1.0, 2.0, 8), confidence=0.8) for _ in range(2000)]
    covered = np.mean([interval.low <= 1.0 <= interval.high for interval in intervals])
    assert 0.77 < covered < 0.83


def test_wilson_interval_known_values():
    # 10 of 20: centre 0.5, half width 1.96 * sqrt(.25/20 + 1.96^2/1600) / (1 + 1.96^2/20) = 0.20070.
    interval = wilson_interval(10, 20)
    assert interval == Interval(0.5, pytest.approx(0.29930, abs=1e-4), pytest.approx(0.70070, abs=1e-4))
    # No success: the upper end is z^2 / (n + z^2).
    none = wilson_interval(0, 10)
    assert none.low == 0 and none.high == pytest.approx(3.841459 / 13.841459, abs=1e-6)
    every = wilson_interval(10, 10)
    assert every.high == 1 and every.low == pytest.approx(1 - none.high)


@pytest.mark.parametrize(("games", "points"), [(16, 22), (128, 8.5), (512, 4.3)])
def test_wilson_half_widths_at_one_half(games, points):
    interval = wilson_interval(games // 2, games)
    assert 50 * (interval.high - interval.low) == pytest.approx(points, abs=0.3)


def test_bootstrap_interval_agrees_with_t_on_many_values_and_repeats():
    values = np.random.default_rng(1).normal(size=400)
    t = mean_interval(values)
    bootstrap = bootstrap_interval(values, seed=3)
    assert bootstrap.estimate == pytest.approx(t.estimate)
    assert bootstrap.low == pytest.approx(t.low, abs=0.02) and bootstrap.high == pytest.approx(t.high, abs=0.02)
    assert bootstrap == bootstrap_interval(values, seed=3)
    assert bootstrap != bootstrap_interval(values, seed=4)


def test_bootstrap_interval_of_another_statistic():
    assert bootstrap_interval([1, 1, 1, 9], seed=0, statistic=np.median).estimate == 1.0
    assert bootstrap_interval([4.0, 4.0], seed=0) == Interval(4.0, 4.0, 4.0)


@pytest.mark.parametrize("values", [[], [[1.0]], [float("nan")], [1.0, float("inf")]])
def test_values_without_a_mean_are_refused(values):
    with pytest.raises(ValueError, match="at least one finite value"):
        mean_interval(values)
    with pytest.raises(ValueError, match="at least one finite value"):
        bootstrap_interval(values, seed=0)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="3 of 2"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="0 of 0"):
        wilson_interval(0, 0)
    with pytest.raises(ValueError, match="95"):
        mean_interval([1.0], confidence=95)
    with pytest.raises(ValueError, match="replicates"):
        bootstrap_interval([1.0], seed=0, replicates=0)


def test_ratio_interval_by_hand():
    # R = 6/12; residuals y - R x: 0, 1, -0.5, -0.5, over the mean of x, 3; t(3) has the 95% quantile 3.182446.
    interval = ratio_interval([1, 3, 0, 2], [2, 4, 1, 5])
    half = 3.182446 * math.sqrt((1 + 0.25 + 0.25) / 9 / 3 / 4)
    assert interval.estimate == 0.5
    assert (interval.low, interval.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


def test_ratio_interval_with_equal_denominators_is_that_of_the_mean():
    ratio, mean = ratio_interval([1, 3, 0, 2], [4] * 4), mean_interval([0.25, 0.75, 0, 0.5])
    assert (ratio.estimate, ratio.low, ratio.high) == pytest.approx((mean.estimate, mean.low, mean.high))


def test_ratio_interval_covers_where_moves_of_a_game_go_together():
    """Each game has its own rate of good moves, so an interval over moves would be far too narrow."""
    rng = np.random.default_rng(1)
    covered, narrow = [], []
    for _ in range(1000):
        moves = rng.integers(2, 10, 60)
        good = rng.binomial(moves, rng.beta(0.5, 0.5, 60))
        interval = ratio_interval(good, moves)
        covered.append(interval.low <= 0.5 <= interval.high)
        wilson = wilson_interval(int(good.sum()), int(moves.sum()))
        narrow.append(wilson.low <= 0.5 <= wilson.high)
    assert 0.92 < np.mean(covered) < 0.97
    assert np.mean(narrow) < 0.8


@pytest.mark.parametrize(("y", "x"), [([1], [1, 2]), ([1, 2], [0, 0]), ([1, 2], [-1, 2]), ([], [])])
def test_ratio_interval_refuses_what_has_no_ratio(y, x):
    with pytest.raises(ValueError):
        ratio_interval(y, x)
