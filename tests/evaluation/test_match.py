import json

import numpy as np
import pytest
from toy_players import BETTOR, CALLER, FOLDER, Always

from spiral_trl.evaluation.match import count_illegal, play_match
from spiral_trl.games.chance import derive_seeds
from spiral_trl.players.bots import CFRPlayer, RandomPlayer
from spiral_trl.rollout import play


KUHN = "kuhn_poker(observation=compact)"


def test_whoever_always_folds_loses_a_chip_a_game():
    result = play_match(KUHN, BETTOR, FOLDER, pairs=30, seed=1)
    assert (result.game, result.player, result.opponent, result.pairs, result.seed) == (
        KUHN,
        "bettor",
        "folder",
        30,
        1,
    )
    assert [(seat.seat, seat.role, seat.games) for seat in result.seats] == [(0, "player 0", 30), (1, "player 1", 30)]
    for seat in result.seats:
        assert seat.win_rate.estimate == 1 and seat.win_rate.low == pytest.approx(30 / (30 + 1.959964**2), abs=1e-6)
        assert (seat.draw_rate, seat.loss_rate, seat.truncated_rate, seat.illegal_rate) == (0, 0, 0, 0)
        assert (seat.mean_return.estimate, seat.mean_return.low, seat.mean_return.high) == (1, 1, 1)
    assert result.win_rate.estimate == 1 and result.win_rate.low == pytest.approx(30 / (30 + 1.959964**2), abs=1e-6)
    assert result.mean_return.estimate == 1
    other = play_match(KUHN, FOLDER, BETTOR, pairs=30, seed=1)
    assert other.win_rate.estimate == 0 and other.mean_return.estimate == -1 and other.seats[0].loss_rate == 1


def test_pairing_removes_the_luck_of_the_deal():
    # Both play alike, so a deal's two games cancel: each seat's return varies, the pair's does not.
    result = play_match(KUHN, BETTOR, Always(BETTOR.text, "twin"), pairs=60, seed=2)
    assert result.mean_return.estimate == 0 and result.mean_return.high == result.mean_return.low == 0
    assert all(seat.mean_return.high - seat.mean_return.low > 0.5 for seat in result.seats)
    assert result.seats[0].mean_return.estimate == -result.seats[1].mean_return.estimate
    # Each pair has one win.
    assert result.win_rate.estimate == 0.5


def test_results_by_seat_against_the_games_themselves():
    seeds = derive_seeds(7, np.arange(50))
    result = play_match(KUHN, RandomPlayer(), CALLER, pairs=50, seed=7)
    first = play(KUHN, [RandomPlayer(), CALLER], seeds).outcomes.returns[:, 0]
    second = play(KUHN, [CALLER, RandomPlayer()], seeds).outcomes.returns[:, 1]
    assert result.seats[0].mean_return.estimate == pytest.approx(first.mean())
    assert result.seats[1].mean_return.estimate == pytest.approx(second.mean())
    assert result.seats[1].win_rate.estimate == pytest.approx((second > 0).mean())
    pair = (first + second) / 2
    assert result.mean_return.estimate == pytest.approx(pair.mean())
    half = 2.009575 * pair.std(ddof=1) / np.sqrt(50)  # t with 49 degrees of freedom
    assert result.mean_return.high - result.mean_return.estimate == pytest.approx(half, rel=1e-5)
    assert result == play_match(KUHN, RandomPlayer(), CALLER, pairs=50, seed=7)
    assert result != play_match(KUHN, RandomPlayer(), CALLER, pairs=50, seed=8)


def test_illegal_replies_of_the_player_alone_are_counted():
    result = play_match(KUHN, Always("nothing"), CALLER, pairs=10, seed=0)
    assert result.illegal_rate == 1 and result.mean_return.estimate == -2
    assert play_match(KUHN, CALLER, Always("nothing"), pairs=10, seed=0).illegal_rate == 0
    # Opening with a check is legal; [check] facing a bet is not.
    checker = Always("[check]", "checker")
    result = play_match(KUHN, checker, BETTOR, pairs=10, seed=0)
    assert [seat.illegal_rate for seat in result.seats] == [0.5, 1.0]
    assert result.illegal_rate == pytest.approx(20 / 30)
    batch = play(KUHN, [checker, BETTOR], [1, 2, 3])
    assert count_illegal(batch, 0) == (3, 6) and count_illegal(batch, 1) == (0, 3)


def test_the_illegal_move_policy_is_that_of_play():
    result = play_match(KUHN, Always("nothing"), CALLER, pairs=10, seed=0, illegal="spiral")
    assert result.mean_return.estimate == -1.5


def test_truncated_games_are_neither_won_drawn_nor_lost():
    result = play_match(KUHN, CALLER, CALLER, pairs=10, seed=0, max_turns=1)
    for seat in result.seats:
        assert (seat.win_rate.estimate, seat.draw_rate, seat.loss_rate, seat.truncated_rate) == (0, 0, 0, 1)


def test_draws_are_counted():
    # Every hand is checked down for one chip: an even number of hands can balance.
    result = play_match("kuhn_poker(rounds=4)", CALLER, CALLER, pairs=100, seed=3)
    batch = play("kuhn_poker(rounds=4)", [CALLER, CALLER], derive_seeds(3, np.arange(100)))
    drawn = (batch.outcomes.returns[:, 0] == 0).mean()
    assert drawn > 0.1
    for seat in result.seats:
        assert seat.draw_rate == pytest.approx(drawn)
        assert seat.win_rate.estimate + seat.draw_rate + seat.loss_rate == pytest.approx(1)


def test_equilibrium_play_does_not_lose_over_both_seats():
    result = play_match(KUHN, CFRPlayer(), RandomPlayer(), pairs=2000, seed=0)
    assert result.mean_return.low > 0
    assert result.seats[0].win_rate.low < result.seats[0].win_rate.estimate < result.seats[0].win_rate.high


def test_one_pair_and_json():
    result = play_match(KUHN, RandomPlayer(), CALLER, pairs=1, seed=0)
    loaded = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert loaded["mean_return"]["low"] is None and len(loaded["seats"]) == 2
    assert loaded["seats"][1]["role"] == "player 1"


def test_bad_matches_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        play_match(KUHN, CALLER, CALLER, pairs=0, seed=0)
    with pytest.raises(ValueError, match="unknown game 'poker'"):
        play_match("poker", CALLER, CALLER, pairs=1, seed=0)
