"""The pool's members, pay-offs and matchmaking, without a model."""

import json

import numpy as np
import pytest

from spiral_trl.players.pool import LEARNER, Member, PoolSpec, PoolState, is_pool


def filled(size=4, **spec):
    """A pool with `size` members and no games."""
    spec = PoolSpec(size=size, **spec)
    state = PoolState()
    for number in range(size):
        state.add(number * spec.every, number * 10, spec)
    return state, spec


def test_names():
    assert PoolSpec.parse("pool") == PoolSpec.parse("pool()") == PoolSpec("uniform", 16, 25, 2.0)
    assert PoolSpec.parse("pool(every=5, matchmaking=pfsp, size=3, power=1.5)") == PoolSpec("pfsp", 3, 5, 1.5)
    assert is_pool("pool(size=3)") and is_pool(" pool ") and not is_pool("pools") and not is_pool("self")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pool(matchmaking=psfp)", "unknown value of matchmaking in pool 'psfp'.*did you mean 'pfsp'"),
        ("pool(sise=3)", "unknown parameter of pool 'sise'.*did you mean 'size'"),
        ("pool(size=0)", "size of pool must be from 1"),
        ("pool(every=1.5)", "every of pool must be a whole number"),
        ("pol", "'pol' is no pool"),
    ],
)
def test_bad_names_are_refused_in_one_line(name, message):
    with pytest.raises(ValueError, match=message) as raised:
        PoolSpec.parse(name)
    assert "\n" not in str(raised.value)


def test_snapshots_are_due_at_the_start_and_then_every_so_many_generations():
    spec, state, taken = PoolSpec(every=3), PoolState(), []
    for generation in range(8):
        for _ in range(2):  # a generation that is played again, after a resume, takes none again
            if state.is_due(generation, spec):
                state.add(generation, 2 * generation, spec)
                taken.append(generation)
    assert taken == [0, 3, 6]
    assert state.members == [Member(0, 0, 0), Member(1, 3, 6), Member(2, 6, 12)]
    # A run that goes on with a pool it did not have starts one at once
    assert PoolState().is_due(7, spec)


def test_the_oldest_leaves_with_its_games():
    spec, state = PoolSpec(size=2, every=1), PoolState()
    assert state.add(0, 0, spec) == (Member(0, 0, 0), [])
    state.record({(LEARNER, 0): (3, 1, 0)}, spec)
    assert state.add(1, 1, spec) == (Member(1, 1, 1), [])
    state.record({(LEARNER, 0): (1, 0, 0), (1, LEARNER): (0, 0, 2)}, spec)
    assert state.add(2, 2, spec) == (Member(2, 2, 2), [Member(0, 0, 0)])
    assert state.numbers == [1, 2]
    assert state.payoffs == {(1, 2): (0, 0, 2)}
    assert state.recent == [{(1, LEARNER): (0, 0, 2)}]
    assert state.score(0) == (0.5, 0) and state.score(1) == (1.0, 2)


def test_a_snapshot_takes_over_what_the_policy_did_recently():
    state, spec = filled(2, every=2)
    state.record({(LEARNER, 0): (4, 0, 0)}, spec)
    state.record({(LEARNER, 0): (1, 1, 0), (0, LEARNER): (2, 0, 1)}, spec)
    state.record({(LEARNER, 1): (0, 2, 2)}, spec)
    # Recent are the last two generations
    assert state.score(0) == ((1 + 0.5 + 1) / 5, 5) and state.score(1) == (1 / 4, 4)
    member, _ = state.add(4, 4, PoolSpec(size=3, every=2))
    assert state.payoffs == {(2, 0): (1, 1, 0), (0, 2): (2, 0, 1), (2, 1): (0, 2, 2)}
    games, score = state.matrix()  # rows 0, 1, 2 and the policy
    assert games.tolist() == [[0, 0, 5, 5], [0, 0, 4, 4], [5, 4, 0, 0], [5, 4, 0, 0]]
    np.testing.assert_allclose(
        score,
        [[np.nan, np.nan, 0.5, 0.5], [np.nan, np.nan, 0.75, 0.75], [0.5, 0.25, np.nan, np.nan]]
        + [[0.5, 0.25, np.nan, np.nan]],
    )
    assert state.score(member.number) == (0.5, 0)


def test_uniform_and_newest():
    state, spec = filled(4)
    assert state.weights(spec).tolist() == [0.25] * 4
    assert state.weights(PoolSpec(matchmaking="newest")).tolist() == [0, 0, 0, 1]
    assert state.draw(PoolSpec(matchmaking="newest"), 3, 0.9) == [3, 3, 3]
    assert state.draw(spec, 4, 0.5) == [0, 1, 2, 3]
    assert state.draw(spec, 2, 0.0) == [0, 2] and state.draw(spec, 2, 0.99) == [1, 3]


def test_pfsp_meets_those_who_beat_the_policy():
    state, spec = filled(4, matchmaking="pfsp", power=2.0)
    # Scores 1/2, 1, 0 and none, which counts as 1/2: weights 1/4, 0, 1, 1/4
    state.record({(LEARNER, 0): (1, 0, 1), (LEARNER, 1): (5, 0, 0), (2, LEARNER): (3, 0, 0)}, spec)
    np.testing.assert_allclose(state.weights(spec), np.array([0.25, 0, 1, 0.25]) / 1.5)
    assert state.weights(PoolSpec(matchmaking="pfsp", power=0.0)).tolist() == [0.25] * 4
    drawn = [state.draw(spec, 4, (u + 0.5) / 1000) for u in range(1000)]
    share = np.bincount(np.ravel(drawn), minlength=4) / 4000
    np.testing.assert_allclose(share, np.array([0.25, 0, 1, 0.25]) / 1.5, atol=1e-3)
    # Within one draw of four no member is more than one off its share
    assert all(2 <= d.count(2) <= 3 for d in drawn)


def test_where_all_are_beaten_all_are_met():
    state, spec = filled(3, matchmaking="pfsp")
    state.record({(LEARNER, number): (9, 0, 0) for number in range(3)}, spec)
    np.testing.assert_allclose(state.weights(spec), 1 / 3)


def test_ratings_are_those_of_the_odds():
    # 10 to 1 for the policy against member 0, from both seats, are 400 points; 1 to 10 against member 1 put it at 800
    state, spec = filled(2)
    state.record(
        {
            (LEARNER, 0): (1000, 0, 100),
            (0, LEARNER): (100, 0, 1000),
            (LEARNER, 1): (100, 0, 1000),
            (1, LEARNER): (1000, 0, 100),
        },
        spec,
    )
    ratings = state.ratings()
    assert ratings[0] == 0
    assert ratings[LEARNER] == pytest.approx(400, abs=5) and ratings[1] == pytest.approx(800, abs=10)


def test_without_games_all_are_rated_alike():
    state, _ = filled(3)
    assert set(state.ratings().values()) == {0.0}


def test_ratings_go_on_where_the_first_has_left():
    spec, state = PoolSpec(size=2, every=1), PoolState()
    state.add(0, 0, spec)
    state.record({(LEARNER, 0): (200, 0, 100), (0, LEARNER): (100, 0, 200)}, spec)
    state.add(1, 1, spec)
    state.record({(LEARNER, 1): (200, 0, 100), (1, LEARNER): (100, 0, 200)}, spec)
    before = state.ratings()
    state.add(2, 2, spec)
    after = state.ratings()
    gap = 400 * np.log10(2)
    assert before[1] == pytest.approx(gap, abs=2)
    assert after[1] == pytest.approx(before[1], abs=0.1) and after[2] == pytest.approx(2 * gap, abs=4)


def test_the_nearest_in_rating():
    state, spec = filled(6, matchmaking="rating")
    # Each member a little better than the one before; the policy level with the fourth
    for number, wins in enumerate((90, 80, 70, 50, 30, 10)):
        state.record({(LEARNER, number): (wins, 0, 100 - wins), (number, LEARNER): (100 - wins, 0, wins)}, spec)
    assert state.weights(spec).tolist() == [0, 0.25, 0.25, 0.25, 0.25, 0]
    few, spec = filled(2, matchmaking="rating")
    assert few.weights(spec).tolist() == [0.5, 0.5]


def test_an_empty_pool_says_so():
    with pytest.raises(ValueError, match="no member yet"):
        PoolState().weights(PoolSpec())


def test_the_state_survives_json():
    spec, state = PoolSpec(size=3, every=2), PoolState()
    rng = np.random.default_rng(0)
    for generation in range(9):
        if state.is_due(generation, spec):
            state.add(generation, 3 * generation, spec)
        results = {}
        for number in state.draw(spec, 2, rng.random()):
            results[LEARNER, number] = tuple(rng.integers(0, 5, 3).tolist())
            results[number, LEARNER] = tuple(rng.integers(0, 5, 3).tolist())
        state.record(results, spec)
    again = PoolState.from_dict(json.loads(json.dumps(state.to_dict())))
    assert again == state
    assert again.ratings() == state.ratings() and again.oldest_rating != 0
