import json
from math import exp, log

import numpy as np
import pytest

from spiral_trl.ratings import ELO, bradley_terry, unexplained


def simulate(rng, strength, seat, v, games, luck=0.0):
    """Games between random players, in pairs with seats swapped. `luck` (in log-odds) is a deal's, for the first seat."""
    first, second, score, pair = [], [], [], []
    for deal in range(games // 2):
        i, j = rng.choice(len(strength), 2, replace=False)
        bonus = luck * rng.normal()
        for a, b in ((i, j), (j, i)):
            d = strength[a] - strength[b] + seat + bonus
            weights = np.array([exp(d / 2), v, exp(-d / 2)])
            first.append(a)
            second.append(b)
            pair.append(deal)
            score.append([1, 0.5, 0][rng.choice(3, p=weights / weights.sum())])
    return first, second, score, pair


def repeat(*games):
    """Lists of first, second and score from (first, second, score, times)."""
    rows = [(a, b, s) for a, b, s, times in games for _ in range(times)]
    return tuple(list(column) for column in zip(*rows, strict=True))


def test_the_scale_is_that_of_elo():
    # 10 to 1 is 400 points, in a game without a seat's advantage
    first, second, score = repeat((1, 0, 1, 100), (1, 0, 0, 10), (0, 1, 1, 10), (0, 1, 0, 100))
    fitted = bradley_terry(first, second, score, 2, prior_sd=1e6)
    assert fitted.rating == pytest.approx([0, 400], abs=1e-3)
    assert fitted.seat.estimate == pytest.approx(0, abs=1e-6) and fitted.draw == 0
    assert fitted.games == 220 and not fitted.separated.any()
    assert fitted.log_likelihood == pytest.approx(200 * log(10 / 11) + 20 * log(1 / 11))


def test_closed_form_of_two_players_with_a_seat():
    # Player 0 wins 30 of 40 in the first seat, player 1 wins 24 of 40 there. Log-odds: d + s and -d + s.
    first, second, score = repeat((0, 1, 1, 30), (0, 1, 0, 10), (1, 0, 1, 24), (1, 0, 0, 16))
    fitted = bradley_terry(first, second, score, 2, anchor=1, prior_sd=1e7)
    one, two = log(30 / 10), log(24 / 16)
    assert fitted.rating == pytest.approx([ELO * (one - two) / 2, 0], abs=1e-4)
    assert fitted.rating[1] == 0.0
    assert fitted.seat.estimate == pytest.approx(ELO * (one + two) / 2, abs=1e-4)
    # Delta method: the log-odds have variances 1/30 + 1/10 and 1/24 + 1/16, a quarter of whose sum is that of d
    half = 1.959964 * ELO * np.sqrt((1 / 30 + 1 / 10 + 1 / 24 + 1 / 16) / 4)
    assert fitted.high[0] - fitted.rating[0] == pytest.approx(half, rel=1e-4)
    assert fitted.seat.estimate - fitted.seat.low == pytest.approx(half, rel=1e-4)
    assert (fitted.low[1], fitted.high[1]) == (0, 0)


def test_closed_form_with_draws():
    # A saturated model reproduces the frequencies: of 60, 32 won, 20 drawn, 8 lost, the same from both seats.
    games = [(0, 1, 1, 32), (0, 1, 0.5, 20), (0, 1, 0, 8), (1, 0, 0, 32), (1, 0, 0.5, 20), (1, 0, 1, 8)]
    fitted = bradley_terry(*repeat(*games), 2, anchor=1, prior_sd=1e7)
    assert fitted.rating[0] == pytest.approx(ELO * log(32 / 8), abs=1e-4)
    assert fitted.draw == pytest.approx(20 / np.sqrt(32 * 8), abs=1e-6)
    p = fitted.outcome_probabilities(np.array([0, 1]), np.array([1, 0]))
    assert p == pytest.approx(np.array([[32, 20, 8], [8, 20, 32]]) / 60, abs=1e-6)


def test_only_draws_leave_everything_at_zero_and_finite():
    fitted = bradley_terry([0, 1, 1, 2], [1, 0, 2, 1], [0.5] * 4, 3)
    assert fitted.rating == pytest.approx([0, 0, 0], abs=1e-9)
    assert np.isfinite(fitted.draw) and fitted.draw > 2


def test_simulated_strengths_seat_and_draws_are_recovered():
    strength = np.array([0.0, 0.8, -0.5, 1.5])
    games = simulate(np.random.default_rng(0), strength, seat=0.4, v=0.7, games=40_000)
    fitted = bradley_terry(*games[:3], 4)
    assert fitted.rating / ELO == pytest.approx(strength, abs=0.06)
    assert fitted.seat.estimate / ELO == pytest.approx(0.4, abs=0.04)
    assert fitted.draw == pytest.approx(0.7, abs=0.03)


def test_against_a_general_optimiser():
    from scipy.optimize import minimize

    first, second, score, _ = simulate(np.random.default_rng(1), [0, 1, 2], seat=-0.3, v=0.5, games=120)
    a, b, s = np.array(first), np.array(second), np.array(score)

    def loss(theta):
        d = theta[a] - theta[b] + theta[3]
        utilities = np.stack([d / 2, np.full_like(d, theta[4]), -d / 2], 1)
        chosen = utilities[np.arange(len(a)), np.round(2 - 2 * s).astype(int)]
        return np.logaddexp.reduce(utilities, axis=1).sum() - chosen.sum() + (theta**2).sum() / 2 * (ELO / 300) ** 2

    best = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-9}).x
    fitted = bradley_terry(first, second, score, 3, prior_sd=300)
    assert fitted.rating / ELO == pytest.approx(best[:3] - best[0], abs=1e-5)
    assert fitted.seat.estimate / ELO == pytest.approx(best[3], abs=1e-5)
    assert log(fitted.draw) == pytest.approx(best[4], abs=1e-5)


def test_the_order_of_games_and_players_does_not_matter():
    games = np.array(simulate(np.random.default_rng(2), [0, 0.5, 1.0], seat=0.2, v=0.3, games=200)).T
    names = ("first", "second", "score", "pair")

    def fit(rows, relabel=(0, 1, 2), **more):
        table = dict(zip(names, rows.T, strict=True))
        one, two = (np.array(relabel)[table[name].astype(int)] for name in ("first", "second"))
        return bradley_terry(one, two, table["score"], 3, pair=table["pair"], **more)

    plain = fit(games)
    shuffled = fit(np.random.default_rng(3).permutation(games))
    assert shuffled.rating == pytest.approx(plain.rating, abs=1e-6)
    relabelled = fit(games, relabel=(2, 0, 1), anchor=2)
    assert relabelled.rating[[2, 0, 1]] == pytest.approx(plain.rating, abs=1e-6)
    # Differences do not depend on the anchor, although there is a prior
    moved = fit(games, anchor=1)
    assert moved.rating[1] == 0.0
    assert moved.rating - moved.rating[0] == pytest.approx(plain.rating, abs=1e-6)
    assert moved.seat.estimate == pytest.approx(plain.seat.estimate, abs=1e-6)


def test_who_wins_every_game_has_a_finite_rating_and_an_open_interval():
    first, second, score = repeat(
        (0, 1, 1, 20), (1, 0, 0, 20), (1, 2, 1, 12), (1, 2, 0, 8), (2, 1, 1, 12), (2, 1, 0, 8)
    )
    pair = np.repeat(np.arange(20), 4)
    fitted = bradley_terry(first, second, score, 3, pair=pair, anchor=1, replicates=200)
    assert list(fitted.separated) == [True, False, False]
    assert 300 < fitted.rating[0] < 3000
    # 40 of 40: a log-odds below log 39 - 2 is not credible, one far above is
    assert 0 < fitted.low[0] < fitted.rating[0] - 100 and fitted.high[0] > fitted.rating[0] + 300
    assert np.isfinite(fitted.high).all()
    # More of the same moves the bound up
    more = bradley_terry(first * 10, second * 10, score * 10, 3, anchor=1)
    assert more.rating[0] > fitted.rating[0] + 200


def test_players_who_never_met_are_not_compared_by_the_games():
    first, second, score = repeat((0, 1, 1, 6), (0, 1, 0, 4), (2, 3, 1, 6), (2, 3, 0, 4))
    fitted = bradley_terry(first, second, score, 4, replicates=50)
    # Both pairs only played with seats fixed, so that seat and strength cannot be told apart either
    assert list(fitted.separated) == [False, True, True, True]
    swapped = repeat((1, 0, 1, 5), (1, 0, 0, 5), (3, 2, 1, 5), (3, 2, 0, 5))
    fitted = bradley_terry(first + swapped[0], second + swapped[1], score + swapped[2], 4, replicates=50)
    assert list(fitted.separated) == [False, False, True, True]
    assert fitted.high[2] - fitted.low[2] > 2000  # the prior alone


def test_a_seat_that_always_wins_says_nothing_of_the_players():
    fitted = bradley_terry(*repeat((0, 1, 1, 50), (1, 0, 1, 50)), 2, replicates=50)
    assert fitted.rating == pytest.approx([0, 0], abs=1e-6)
    assert fitted.seat.estimate > 400 and fitted.separated[1]
    assert fitted.low[1] < -200 and fitted.high[1] > 200


def test_intervals_cover_as_often_as_they_say():
    # A deal's luck makes the games of a pair dependent, so that games resampled one by one would be too wide apart.
    strength, luck = np.array([0.0, 0.6, -0.4]), 2.0
    rng = np.random.default_rng(4)
    truth = bradley_terry(*simulate(rng, strength, 0.2, 0.5, 60_000, luck)[:3], 3)
    covered, by_pair, by_game = [], [], []
    for repeat_seed in range(80):
        first, second, score, pair = simulate(rng, strength, 0.2, 0.5, 240, luck)
        fitted = bradley_terry(first, second, score, 3, pair=pair, replicates=200, seed=repeat_seed)
        covered.append([(fitted.low[k] <= truth.rating[k] <= fitted.high[k]) for k in (1, 2)])
        by_pair.append(fitted.high[1] - fitted.low[1])
        alone = bradley_terry(first, second, score, 3, replicates=200, seed=repeat_seed)
        by_game.append(alone.high[1] - alone.low[1])
    assert 0.89 < np.mean(covered) < 0.985
    assert np.mean(by_pair) < 0.95 * np.mean(by_game)


def test_resampling_repeats_and_json_is_plain():
    games = simulate(np.random.default_rng(5), [0, 1], seat=0, v=0.2, games=60)
    one = bradley_terry(*games[:3], 2, pair=games[3], replicates=100, seed=7)
    two = bradley_terry(*games[:3], 2, pair=games[3], replicates=100, seed=7)
    other = bradley_terry(*games[:3], 2, pair=games[3], replicates=100, seed=8)
    assert (one.low == two.low).all() and (one.high == two.high).all() and one.low[1] != other.low[1]
    loaded = json.loads(json.dumps(one.to_dict(["weak", "strong"]), allow_nan=False))
    assert [row["player"] for row in loaded["players"]] == ["strong", "weak"]
    assert loaded["anchor"] == "weak" and loaded["players"][1]["rating"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": []}, "at least one game"),
        ({"first": [0, 1, 0]}, r"shapes \(3,\), \(2,\)"),
        ({"first": [0, 2]}, "`first` has to hold players from 0 to 1"),
        ({"second": [1.0, 0.0]}, "`second` has to hold players"),
        ({"score": [1, 0.25]}, "not 0.25"),
        ({"num_players": 1}, "at least 2 players, not 1"),
        ({"anchor": 2}, "from 0 to 1, not 2"),
        ({"prior_sd": 0}, "`prior_sd`"),
        ({"replicates": -1}, "`replicates`"),
        ({"confidence": 95}, "`confidence`"),
        ({"pair": [0]}, "1 entries for 2 games"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    arguments = {"first": [0, 1], "second": [1, 0], "score": [1, 0], "num_players": 2, **change}
    with pytest.raises(ValueError, match=message):
        bradley_terry(**arguments)


def test_rock_paper_scissors_is_all_cyclic():
    parts = unexplained([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    assert parts.share == pytest.approx(1)
    assert parts.rating == pytest.approx([0, 0, 0]) and parts.cyclic[0, 2] == pytest.approx(1)


def test_rating_differences_are_all_explained():
    f = np.array([2.0, -1.0, 0.5, 3.0])
    parts = unexplained(f[:, None] - f)
    assert parts.share == pytest.approx(0, abs=1e-12)
    assert parts.rating == pytest.approx(f - f.mean())
    assert unexplained(np.zeros((3, 3))).share == 0
    assert unexplained([[0, 0.3], [-0.3, 0]]).share == pytest.approx(0, abs=1e-12)


def test_a_mixture_is_split_by_squared_norm():
    # Differences of (1, 0, -1): squared norm 12. Twice rock, paper, scissors: 24. Hodge: they are orthogonal.
    f = np.array([1.0, 0.0, -1.0])
    cycle = 2 * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    parts = unexplained(f[:, None] - f + cycle)
    assert parts.share == pytest.approx(24 / 36)
    assert parts.cyclic == pytest.approx(cycle) and parts.transitive == pytest.approx(f[:, None] - f)


def test_pairs_that_did_not_play_are_left_out():
    f = np.array([1.0, 0.0, -2.0])
    matrix = f[:, None] - f
    matrix[0, 2] = matrix[2, 0] = np.nan
    parts = unexplained(matrix)
    assert parts.rating == pytest.approx(f - f.mean()) and parts.share == pytest.approx(0, abs=1e-12)
    assert np.isnan(parts.cyclic[0, 2]) and parts.transitive[0, 2] == pytest.approx(3)


@pytest.mark.parametrize("matrix", [[], [[0, 1]], [[0, 1], [1, 0]], [[1]], [[0, np.nan], [1, 0]], [[0, np.inf]] * 2])
def test_matrices_that_are_no_payoffs_are_refused(matrix):
    with pytest.raises(ValueError, match="pay-off matrix"):
        unexplained(matrix)


def test_ratings_do_not_depend_on_whether_intervals_are_asked_for():
    games = simulate(np.random.default_rng(3), [0.0, 1.0, 0.5], 0.3, 0.4, 200)
    whole = bradley_terry(*games[:3], 3)
    bare = bradley_terry(*games[:3], 3, intervals=False, replicates=50)
    assert np.array_equal(bare.rating, whole.rating) and bare.seat.estimate == whole.seat.estimate
    assert np.isnan(bare.low).all() and np.isnan(bare.seat.high) and not bare.separated.any()
