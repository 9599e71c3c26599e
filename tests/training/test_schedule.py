"""Shares of games and opponents, balanced seats, and what they may depend on."""

from collections import Counter

import numpy as np
import pytest

from spiral_trl.training.schedule import Schedule, deal, deal_games, members_uniform


@pytest.mark.parametrize("weights", [None, [1.0, 1.0, 1.0], [0.3, 0.3, 0.3]])
def test_equal_games_are_dealt_in_turn(weights):
    assert deal_games(8, weights, 3).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_games_are_dealt_in_proportion_and_mixed():
    # By hand, shares 1/2, 1/4, 1/4: what each is behind before a deal is (.5, .25, .25), (0, .5, .5), (.5, -.25, .75),
    # (1, 0, 0), and then as from the start
    assert deal_games(8, [2, 1, 1], 3).tolist() == [0, 1, 2, 0] * 2
    assert deal_games(5, [1, 4], 2).tolist() == [1, 1, 0, 1, 1]
    for weights in ([0.7, 0.2, 0.1], [5, 3, 2], [1, 2, 3]):
        for n in (10, 40, 60):
            counts = np.bincount(deal_games(n, weights, 3), minlength=3)
            share = n * np.array(weights) / sum(weights)
            assert np.abs(counts - share).max() < 1
            # At no point is a game far from its share
            so_far = np.cumsum(deal_games(n, weights, 3)[:, None] == np.arange(3), axis=0)
            assert np.abs(so_far - np.arange(1, n + 1)[:, None] * np.array(weights) / sum(weights)).max() < 1


def dealt(generation=0, seed=0, games=120, kinds=(2, 2), weights=(2, 1, 1), own=0, pool=2, draws=3):
    game = deal_games(games, None, len(kinds))
    return deal(seed, generation, game, kinds, weights, own=own, pool=pool, draws=draws)


def test_every_opponent_gets_its_share_in_every_game():
    schedule = dealt()
    for kind in (0, 1):
        assert Counter(schedule.opponent[schedule.game == kind].tolist()) == {0: 30, 1: 15, 2: 15}
    # Mixed: neither first nor last come all games of one opponent
    assert len(set(schedule.opponent[:12].tolist())) == len(set(schedule.opponent[-12:].tolist())) == 3


def test_shares_too_small_for_one_generation_are_met_over_many():
    counts = np.zeros(2)
    for generation in range(400):
        opponent = dealt(generation, games=8, kinds=(2,), weights=(0.95, 0.05), pool=None).opponent
        found = np.bincount(opponent, minlength=2)
        assert found[1] in (0, 1)
        counts += found
    assert counts[1] / counts.sum() == pytest.approx(0.05, abs=0.006)


def test_the_learner_has_all_seats_in_self_play_and_each_as_often_against_others():
    schedule = dealt()
    assert (schedule.seat[schedule.opponent == 0] == -1).all()
    for kind in (0, 1):
        for opponent in (1, 2):
            seats = schedule.seat[(schedule.game == kind) & (schedule.opponent == opponent)]
            assert sorted(Counter(seats.tolist()).values()) == [7, 8]
    # The seat that has one more changes with the generation
    more = [Counter(s.seat[(s.game == 0) & (s.opponent == 1)].tolist())[0] for s in map(dealt, range(4))]
    assert sorted(more) == [7, 7, 8, 8]


def test_drawn_members_are_met_as_often_and_from_every_seat():
    schedule = dealt(games=96, kinds=(2,), weights=(1, 1), own=0, pool=1, draws=4)
    met = schedule.opponent == 1
    assert (schedule.draw[~met] == -1).all()
    assert Counter(zip(schedule.draw[met].tolist(), schedule.seat[met].tolist(), strict=True)) == {
        (d, s): 6 for d in range(4) for s in range(2)
    }


def test_three_seats():
    schedule = dealt(games=90, kinds=(3,), weights=(1, 2), pool=None)
    seats = schedule.seat[schedule.opponent == 1]
    assert Counter(seats.tolist()) == {0: 20, 1: 20, 2: 20}
    learner = schedule.learner([3])
    assert learner[schedule.opponent == 0].all()
    assert (learner[schedule.opponent == 1].sum(1) == 1).all()


def test_seats_of_the_learner_by_game_and_player():
    schedule = Schedule(
        game=np.array([0, 1, 0, 1]),
        opponent=np.zeros(4),
        seat=np.array([-1, -1, 1, 2]),
        draw=np.full(4, -1),
    )
    assert schedule.learner([2, 3]).tolist() == [
        [True, True, False],
        [True, True, True],
        [False, True, False],
        [False, False, True],
    ]


def test_a_schedule_is_of_its_seed_and_generation():
    one, again = dealt(3, seed=1), dealt(3, seed=1)
    for name in ("game", "opponent", "seat", "draw"):
        assert np.array_equal(getattr(one, name), getattr(again, name))
    assert not np.array_equal(one.opponent, dealt(4, seed=1).opponent)
    assert not np.array_equal(one.opponent, dealt(3, seed=2).opponent)
    numbers = [members_uniform(seed, generation) for seed in range(30) for generation in range(30)]
    assert len(set(numbers)) == 900 and 0.45 < np.mean(numbers) < 0.55


def test_self_play_alone_has_nothing_to_draw():
    schedule = dealt(weights=(1.0,), pool=None)
    assert (schedule.opponent == 0).all() and (schedule.seat == -1).all() and (schedule.draw == -1).all()
