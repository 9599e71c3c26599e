"""Best moves and what moves lose: against hand-worked games, enumeration, and published values of Pig."""

import json

import numpy as np
import pyspiel
import pytest
from toy_games import Script
from toy_players import Scripted

from spiral_trl.evaluation import move_quality
from spiral_trl.evaluation.move_quality import measure_moves, pig_win_probabilities
from spiral_trl.games import make_game, tabulate
from spiral_trl.games.position_graph import position_graph
from spiral_trl.players.bots import RandomPlayer
from spiral_trl.players.search import MinimaxPlayer
from spiral_trl.records import Ending, Episode, EpisodeBatch, dataset_to_episodes, episodes_to_dataset
from spiral_trl.rollout import play


def scripted(texts, game="tic_tac_toe", **kwargs):
    return play(game, [Scripted(*texts, speculative=False)] * 2, [5], tabulated=False, **kwargs)


def test_a_game_by_hand():
    # X: centre (draw), O: edge 1 (loses: X now wins with 0 or 2 ...), X: 0 (wins), O: 8 blocks, X: 6 makes two threats
    # (3 and 2), O: 3 blocks one, X: 2 wins
    batch = scripted("[4] [1] [0] [8] [6] [3] [2]".split())
    assert batch.outcomes.returns.tolist() == [[1, -1]]
    quality = measure_moves(batch, "tic_tac_toe")
    assert (quality.moves, quality.games, quality.illegal) == (7, 1, 0)
    assert quality.best_move_rate.estimate == pytest.approx(6 / 7)
    assert quality.value_lost_per_move.estimate == pytest.approx(1 / 7)
    first, second = quality.by_seat["player 0"], quality.by_seat["player 1"]
    assert (first.moves, first.best_move_rate.estimate, first.value_lost_per_move.estimate) == (4, 1, 0)
    assert (second.moves, second.best_move_rate.estimate) == (3, pytest.approx(2 / 3))
    assert second.value_lost_per_move.estimate == pytest.approx(1 / 3)
    # X does not finish, but takes 5 instead of 2: O takes 2, and the game is a draw
    batch = scripted("[4] [1] [0] [8] [6] [3] [5] [2] [7]".split())
    assert batch.outcomes.returns.tolist() == [[0, 0]]
    quality = measure_moves(batch, "tic_tac_toe")
    assert quality.by_seat["player 0"].value_lost_per_move.estimate == pytest.approx(1 / 5)
    assert quality.by_seat["player 1"].value_lost_per_move.estimate == pytest.approx(1 / 4)


@pytest.mark.parametrize("observation", ["words", "compact"])
def test_random_play_on_tic_tac_toe(observation):
    """The rates of uniform play from the graph of positions, weighted by how often each is reached."""
    graph = position_graph(tabulate("tic_tac_toe(observation=compact)"))
    worth = graph.action_values()
    legal = np.isfinite(worth)
    uniform = legal / legal.sum(1, keepdims=True)
    visits = graph.turn_visits(uniform)
    best = worth == worth.max(1, keepdims=True)
    rate = visits @ (uniform * best).sum(1) / visits.sum()
    lost = visits @ (uniform * np.where(legal, worth.max(1, keepdims=True) - worth, 0)).sum(1) / visits.sum()
    name = "tic_tac_toe" if observation == "words" else "tic_tac_toe(observation=compact)"
    quality = measure_moves(RandomPlayer(), name, games=600, seed=1)
    assert quality.game == name and quality.games == 600
    for interval, expected in ((quality.best_move_rate, rate), (quality.value_lost_per_move, lost)):
        half = (interval.high - interval.low) / 2
        assert abs(interval.estimate - expected) < 2 * half < 0.1
    assert quality.moves == sum(seat.moves for seat in quality.by_seat.values())
    json.dumps(quality.to_dict())


def test_the_uniform_policy_is_best_in_58_percent_of_the_positions():
    values = move_quality._solver("tic_tac_toe(observation=latest)")
    rates = []
    for turn in tabulate("tic_tac_toe(observation=latest)").turns:
        worth = list(values(turn).values())
        rates.append(worth.count(max(worth)) / len(worth))
    assert len(rates) == 4520 and np.mean(rates) == pytest.approx(0.580, abs=5e-4)


def test_perfect_players_lose_nothing():
    quality = measure_moves(MinimaxPlayer(), "connect_four(rows=3,columns=4,line=3)", games=20)
    assert (quality.best_move_rate.estimate, quality.value_lost_per_move.estimate) == (1, 0)


def test_one_player_of_two():
    batch = play("tic_tac_toe", [MinimaxPlayer(), RandomPlayer()], range(40))
    both = EpisodeBatch.from_episodes(
        [*batch.episodes(), *play("tic_tac_toe", [RandomPlayer(), MinimaxPlayer()], range(40)).episodes()]
    )
    minimax = measure_moves(both, "tic_tac_toe", only="minimax")
    assert minimax.best_move_rate.estimate == 1 and set(minimax.by_seat) == {"player 0", "player 1"}
    random = measure_moves(both, "tic_tac_toe", only="random")
    assert random.best_move_rate.estimate < 0.8
    everyone = measure_moves(both, "tic_tac_toe")
    assert minimax.moves + random.moves == everyone.moves == len(both.turn_sample)
    with pytest.raises(ValueError, match="no move of mcts in tic_tac_toe"):
        measure_moves(both, "tic_tac_toe", only="mcts")


def test_stored_games_are_measured_alike():
    batch = play("pig(target=20)", [RandomPlayer()] * 2, range(10), max_turns=500)
    stored = dataset_to_episodes(episodes_to_dataset(batch.episodes()))
    assert measure_moves(stored, "pig(target=20)") == measure_moves(batch, "pig(target=20)")


# ------------------------------------------------------------------------------------------------------ illegal replies


def test_an_illegal_reply_loses_what_it_forfeits():
    quality = measure_moves(scripted(["[9]"]), "tic_tac_toe")
    assert (quality.moves, quality.illegal) == (1, 1)
    assert (quality.best_move_rate.estimate, quality.value_lost_per_move.estimate) == (0, 1)
    # From a won position more is lost, and by the release's policy half a point more
    won = ["[4]", "[1]", "[9]"]
    assert measure_moves(scripted(won), "tic_tac_toe").by_seat["player 0"].value_lost_per_move.estimate == 1
    spiral = measure_moves(scripted(won, illegal="spiral"), "tic_tac_toe")
    assert spiral.by_seat["player 0"].value_lost_per_move.estimate == pytest.approx((0 + 1 + 1.5) / 2)


def test_a_retried_reply_is_no_move():
    batch = scripted(["[4]", "[4]", "none", "[1]", "[0]", "[8]", "[6]", "[3]", "[2]"], illegal="retry(2)")
    assert batch.outcomes.returns.tolist() == [[1, -1]]
    quality = measure_moves(batch, "tic_tac_toe")
    assert (quality.moves, quality.illegal) == (7, 2)
    assert quality.best_move_rate.estimate == pytest.approx(6 / 7)


def test_a_random_move_instead_is_no_move_of_the_player():
    batch = scripted(["[4]", "none", *["[no]"] * 7], illegal="random_legal")
    quality = measure_moves(batch, "tic_tac_toe")
    assert quality.moves == 1 and quality.illegal == len(batch.turn_sample) - 1


def test_a_truncated_game_counts_its_moves():
    quality = measure_moves(scripted(["[4]", "[1]", "[0]"], max_turns=3), "tic_tac_toe")
    assert quality.moves == 3


# -------------------------------------------------------------------------------------------------------------- solvers


def test_pig_is_worth_what_neller_and_presser_found():
    win = pig_win_probabilities(100)
    assert win[0, 0, 0] == pytest.approx(0.5306, abs=5e-5)
    # At 0 to 0 the optimal player rolls at 20 and holds at 21
    values = move_quality._solver("pig")
    for total, best in ((20, "roll"), (21, "hold")):
        worth = values(pig_turn("pig", [6] * (total // 6 - 1) + ([3, 5] if total == 20 else [4, 5])))
        assert max(worth, key=worth.get) == best


def pig_turn(name, faces):
    game = make_game(name)
    game.reset(0, chance=Script([face - 1 for face in faces]))
    for _ in faces:
        game.step({game.turns()[0].player: "roll"})
    return game.turns()[0]


def test_pig_to_two_by_hand():
    # Any roll but 1 reaches 2: P = 5/6 + (1 - P)/6, so P = 6/7
    assert pig_win_probabilities(2)[0, 0, 0] == pytest.approx(6 / 7, abs=1e-12)
    worth = move_quality._solver("pig(target=2)")(pig_turn("pig(target=2)", []))
    assert worth == pytest.approx({"roll": 2 * 6 / 7 - 1, "hold": 1 - 2 * 6 / 7})
    quality = measure_moves(RandomPlayer(), "pig(target=2)", games=200)
    # A held turn without a roll gives away 10/7; a forced hold nothing
    assert quality.value_lost_per_move.estimate == pytest.approx((1 - quality.best_move_rate.estimate) * 10 / 7)


def test_pig_in_openspiel_is_won_as_often_by_the_optimal_player():
    """Two optimal players through OpenSpiel's own dice; the first one wins 0.5306 of the games to 100, here to 12."""
    win = pig_win_probabilities(12)
    game, rng, won, games = pyspiel.load_game("pig(winscore=12)"), np.random.default_rng(0), 0, 3000
    for _ in range(games):
        state, scores, total = game.new_initial_state(), [0, 0], 0
        while not state.is_terminal():
            player = state.current_player()
            own, other = scores[player], scores[1 - player]
            after = [1.0 if own + total + face >= 12 else win[total + face, own, other] for face in range(2, 7)]
            roll = (1 - win[0, other, own] + sum(after)) / 6
            hold = 1.0 if own + total >= 12 else 1 - win[0, other, own + total]
            if roll > hold:
                state.apply_action(0)
                face = int(rng.integers(6)) + 1
                state.apply_action(face - 1)
                total = 0 if face == 1 else total + face
            else:
                state.apply_action(1)
                scores[player] += total
                total = 0
        won += state.returns()[0] > 0
    # Three standard errors
    assert won / games == pytest.approx(win[0, 0, 0], abs=3 * 0.5 / np.sqrt(games))


@pytest.mark.parametrize(
    ("game", "message"),
    [
        ("kuhn_poker", "kuhn_poker has no known best moves: it has hidden information.$"),
        ("kuhn_poker(rules=spiral)", "no OpenSpiel game has its rules and payoffs"),
        ("kuhn_poker(rounds=3)", "no OpenSpiel game has its rules and payoffs"),
        ("connect_four", "more than 50,000 positions.$"),
        ("pig(players=3)", "two players, one die of six sides and at most 100 points"),
        ("pig(target=101)", "at most 100 points"),
        ("tic_tac_to", "did you mean 'tic_tac_toe'"),
    ],
)
def test_games_without_best_moves_are_refused_with_the_reason(game, message):
    with pytest.raises(ValueError, match=message):
        measure_moves(RandomPlayer(), game)


def test_other_games_and_wrong_episodes():
    batch = play("kuhn_poker", [RandomPlayer()] * 2, range(3))
    with pytest.raises(ValueError, match="no move of any player in tic_tac_toe to measure"):
        measure_moves(batch, "tic_tac_toe")
    (episode,) = scripted("[4] [1] [0] [8] [6] [3] [2]".split()).episodes()
    wrong = Episode(**{**vars(episode), "steps": (episode.steps[0], *episode.steps[2:])})
    with pytest.raises(ValueError, match="does not follow the game's rules at turn 2"):
        measure_moves([wrong], "tic_tac_toe")
    assert episode.ending is Ending.TERMINAL
    with pytest.raises(ValueError, match="at least 1"):
        measure_moves(RandomPlayer(), "tic_tac_toe", games=0)
