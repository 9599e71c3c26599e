import json
import time
from dataclasses import replace

import numpy as np
import pytest

from spiral_trl.advantages import (
    LeaveOneOut,
    RawReturns,
    RoleConditionedAdvantage,
    SharedBaseline,
    make_advantage,
)
from spiral_trl.records import Outcomes


def outcomes(returns, roles=("first", "second"), game="g"):
    returns = np.array(returns, dtype=np.float64)
    zeros = np.zeros(len(returns), dtype=np.int64)
    return Outcomes(games=(game,), roles=(tuple(roles),), game=zeros, returns=returns, endings=zeros)


def zero_sum(values, **kwargs):
    return outcomes([[v, -v] for v in values], **kwargs)


def random_two_games(rng, size):
    """Games of two and of three seats, mixed."""
    game = rng.integers(0, 2, size)
    returns = rng.normal(size=(size, 3))
    returns[game == 0, 2] = np.nan
    return Outcomes(
        games=("two", "three"),
        roles=(("a", "b"), ("a", "b", "c")),
        game=game,
        returns=returns,
        endings=np.zeros(size, dtype=np.int64),
    )


def test_rae_golden_sequence():
    # Worked by hand with decay 1/2: the first seat's baselines read are 0, 1, 0, 1.
    advantage = RoleConditionedAdvantage(decay=0.5)
    result = advantage(zero_sum([2, -1, 2, 0]))
    assert result.tolist() == [[2, -2], [-2, 2], [2, -2], [-1, 1]]
    assert advantage.baselines == {("g", "first"): 0.5, ("g", "second"): -0.5}
    # The next batch goes on from there.
    assert advantage(zero_sum([1.5])).tolist() == [[1.0, -1.0]]


def test_constant_return_gives_a_geometric_sequence():
    advantage = RoleConditionedAdvantage(decay=0.95)
    result = np.concatenate([advantage(zero_sum([3.0] * 10)), advantage(zero_sum([3.0] * 10))])
    np.testing.assert_allclose(result[:, 0], 3.0 * 0.95 ** np.arange(20), rtol=1e-12)
    np.testing.assert_allclose(result[:, 1], -3.0 * 0.95 ** np.arange(20), rtol=1e-12)


def test_exchanging_the_roles_exchanges_the_advantages():
    returns = np.random.default_rng(0).normal(size=(50, 2))
    one = RoleConditionedAdvantage()(outcomes(returns))
    other = RoleConditionedAdvantage()(outcomes(returns[:, ::-1], roles=("second", "first")))
    assert np.array_equal(one, other[:, ::-1])
    # A baseline belongs to the role's name, not to the seat.
    moved = RoleConditionedAdvantage(0.5)
    moved(outcomes([[4, -2]]))
    assert moved(outcomes([[0, 0]], roles=("second", "first"))).tolist() == [[1, -2]]


def test_printed_order_of_the_paper_is_the_same_up_to_the_decay():
    returns = np.random.default_rng(1).normal(size=300)
    decay, baseline, printed = 0.95, 0.0, []
    for value in returns:
        baseline = decay * baseline + (1 - decay) * value
        printed.append(value - baseline)
    ours = RoleConditionedAdvantage(decay)(zero_sum(returns))[:, 0]
    np.testing.assert_allclose(printed, decay * ours, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["rae", "shared", "leave_one_out", "none"])
def test_restored_in_the_middle_equals_uninterrupted(name):
    rng = np.random.default_rng(2)
    batches = [random_two_games(rng, size) for size in (7, 30, 1, 64)]
    straight = make_advantage(name, 0.95)
    expected = [straight(batch) for batch in batches]
    first = make_advantage(name, 0.95)
    actual = [first(batch) for batch in batches[:2]]
    second = make_advantage(name, 0.95)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    actual += [second(batch) for batch in batches[2:]]
    for left, right in zip(expected, actual, strict=True):
        assert left.tobytes() == right.tobytes()
    assert straight.baselines == second.baselines
    assert straight.state_dict() == second.state_dict()


@pytest.mark.parametrize("name", ["rae", "shared", "leave_one_out", "none"])
def test_games_of_a_batch_are_independent(name):
    mixed = random_two_games(np.random.default_rng(3), 40)
    result = make_advantage(name, 0.9)(mixed)
    assert np.array_equal(np.isnan(result), np.isnan(mixed.returns))
    for index, (game, roles) in enumerate(zip(mixed.games, mixed.roles, strict=True)):
        rows = mixed.game == index
        alone = make_advantage(name, 0.9)(outcomes(mixed.returns[rows, : len(roles)], roles=roles, game=game))
        assert np.array_equal(result[rows, : len(roles)], alone)


def test_seats_with_one_role_name_read_before_either_updates():
    advantage = RoleConditionedAdvantage(0.5)
    result = advantage(outcomes([[2, -4], [0, 0]], roles=("player", "player")))
    # After the first game: 0 -> 1 (return 2) -> -1.5 (return -4).
    assert result.tolist() == [[2, -4], [1.5, 1.5]]


def test_shared_golden_sequence():
    advantage = SharedBaseline(decay=0.5)
    # After the first game: 0 -> 1 -> -0.5; after the second: -0.5 -> -0.75 -> 0.125.
    assert advantage(zero_sum([2, -1, 0])).tolist() == [[2, -2], [-0.5, 1.5], [-0.125, -0.125]]
    assert list(advantage.baselines) == [("g", "all")]


def test_raw_returns_are_a_copy():
    batch = zero_sum([1, -2])
    result = RawReturns()(batch)
    assert np.array_equal(result, batch.returns)
    result[0, 0] = 9
    assert batch.returns[0, 0] == 1
    assert RawReturns().baselines == {}


def test_leave_one_out_golden():
    # Other games' means of the first seat: (2+6)/2, (1+6)/2, (1+2)/2.
    assert LeaveOneOut()(zero_sum([1, 2, 6])).tolist() == [[-3, 3], [-1.5, 1.5], [4.5, -4.5]]
    assert LeaveOneOut()(zero_sum([5])).tolist() == [[5, -5]]
    # One role name for both seats: the whole game is left out, so its baseline is (0 + 2) / 2 and (3 + 1) / 2.
    assert LeaveOneOut()(outcomes([[3, 1], [0, 2]], roles=("p", "p"))).tolist() == [[2, 0], [-2, 0]]


def test_empty_batch_changes_nothing():
    for name in ("rae", "shared", "leave_one_out", "none"):
        advantage = make_advantage(name)
        assert advantage(outcomes(np.zeros((0, 2)))).shape == (0, 2)
        assert advantage.baselines == {}


@pytest.mark.parametrize("decay", [1.0, -0.1, 1.5, float("nan"), "0.95", None, True])
def test_decay_outside_the_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        RoleConditionedAdvantage(decay=decay)


def test_unknown_name_tells_the_nearest():
    with pytest.raises(ValueError, match=r"'leave_one_uot'.*rae, none, shared, leave_one_out.*'leave_one_out'\."):
        make_advantage("leave_one_uot")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"name": "shared", "decay": 0.95, "baselines": {}}, "belongs to the advantage 'shared'"),
        ({"name": "rae", "decay": 0.9, "baselines": {}}, "decay 0.9"),
        ({"name": "rae", "decay": 0.95}, "has the entries"),
        ({"name": "rae", "decay": 0.95, "baselines": {}, "more": 1}, "has the entries"),
        ([], "has the entries .* not list"),
        ({"name": "rae", "decay": 0.95, "baselines": {"g": {"first": float("nan")}}}, "not a finite number"),
        ({"name": "rae", "decay": 0.95, "baselines": {"g": {"first": None}}}, "not a finite number"),
    ],
)
def test_incompatible_states_are_refused_and_change_nothing(state, message):
    advantage = RoleConditionedAdvantage(0.95)
    advantage(zero_sum([1.0]))
    before = advantage.state_dict()
    with pytest.raises(ValueError, match=message):
        advantage.load_state_dict(state)
    assert advantage.state_dict() == before
    with pytest.raises(ValueError):
        RawReturns().load_state_dict(before)


@pytest.mark.parametrize("name", ["rae", "shared", "leave_one_out", "none"])
def test_returns_that_are_not_finite_are_refused(name):
    with pytest.raises(ValueError, match="'g'.*2 seats"):
        make_advantage(name)(outcomes([[1.0, np.nan]]))


def test_a_large_batch_is_quick():
    batch = zero_sum(np.random.default_rng(4).choice([-2.0, -1.0, 1.0, 2.0], 2048))
    advantage = RoleConditionedAdvantage()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        advantage(batch)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.01  # about 1 ms on a quiet machine


# ------------------------------------------------------------------------------------------- the learner's seats alone


def of_learner(returns, learner, **kwargs):
    return replace(outcomes(returns, **kwargs), learner=np.array(learner, dtype=bool))


BOTH, FIRST, SECOND, NEITHER = [True, True], [True, False], [False, True], [False, False]


def test_opponents_returns_reach_no_baseline():
    # By hand with decay 1/2. First seat: reads 0, then 2 -> 1, not seen, then reads 1; second: reads 0, -2 -> -1,
    # reads -1, 4 -> 1.5, not seen.
    advantage = RoleConditionedAdvantage(decay=0.5)
    result = advantage(of_learner([[2, -2], [-4, 4], [3, -3]], [BOTH, SECOND, FIRST]))
    np.testing.assert_array_equal(result, [[2, -2], [np.nan, 5], [2, np.nan]])
    assert advantage.baselines == {("g", "first"): 2.0, ("g", "second"): 1.5}


def test_a_role_the_learner_never_had_has_no_baseline():
    advantage = RoleConditionedAdvantage()
    advantage(of_learner([[1, -1], [2, -2]], [FIRST, FIRST]))
    assert set(advantage.baselines) == {("g", "first")}


def test_a_shared_baseline_takes_the_learners_seats_in_order():
    # Reads 0 and takes 2, then -2: (0 + 2)/2 = 1, (1 - 2)/2 = -1/2; reads -1/2 and takes 4: 1.75; reads that
    advantage = SharedBaseline(decay=0.5)
    result = advantage(of_learner([[2, -2], [-4, 4], [3, -3]], [BOTH, SECOND, FIRST]))
    np.testing.assert_array_equal(result, [[2, -2], [np.nan, 4.5], [1.25, np.nan]])
    assert advantage.baselines == {("g", "all"): (1.75 + 3) / 2}


def test_seats_of_one_role_that_are_not_all_the_learners():
    # Two seats share a role; in the second game the learner has one of them
    advantage = RoleConditionedAdvantage(decay=0.5)
    result = advantage(of_learner([[4, 2], [6, -6], [0, 0]], [BOTH, SECOND, BOTH], roles=("same", "same")))
    # 0; takes 4 -> 2, 2 -> 2; reads 2; takes -6 -> -2; reads -2
    np.testing.assert_array_equal(result, [[4, 2], [np.nan, -8], [2, 2]])


def test_the_rest_of_the_batch_is_the_learners():
    result = LeaveOneOut()(of_learner([[3, -3], [5, -5], [-9, 9], [1, -1]], [BOTH, FIRST, SECOND, FIRST]))
    # First seat 3, 5, 1: means of the others 3, 2, 4. Second seat -3, 9
    np.testing.assert_array_equal(result, [[0, -12], [3, np.nan], [np.nan, 12], [-3, np.nan]])
    alone = LeaveOneOut()(of_learner([[3, -3], [5, -5]], [FIRST, SECOND]))
    np.testing.assert_array_equal(alone, [[3, np.nan], [np.nan, -5]])


def test_raw_returns_are_the_learners():
    np.testing.assert_array_equal(
        RawReturns()(of_learner([[1, -1], [2, -2]], [FIRST, NEITHER])), [[1, np.nan], [np.nan] * 2]
    )


@pytest.mark.parametrize("name", ["rae", "shared", "leave_one_out", "none"])
def test_all_seats_are_the_default(name):
    batch = random_two_games(np.random.default_rng(5), 40)
    assert (batch.learner == ~np.isnan(batch.returns)).all()
    told = replace(batch, learner=~np.isnan(batch.returns))
    np.testing.assert_array_equal(make_advantage(name)(batch), make_advantage(name)(told))
