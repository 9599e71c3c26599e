"""The learned best response: below the truth where that is known, and clearly above nothing."""

import json

import numpy as np
import pytest
from toy_players import FOLDER, Always

from spiral_trl.evaluation.best_response import BestResponsePlayer, train_best_response
from spiral_trl.evaluation.exploitability import exploitability_lower_bound, measure_exploitability
from spiral_trl.evaluation.policy import bot_policy
from spiral_trl.games import tabulate
from spiral_trl.games.sequence_form import sequence_form
from spiral_trl.players.bots import CFRPlayer, RandomPlayer
from spiral_trl.records import Ending, Episode, Reply, Step, Turn
from spiral_trl.rollout import play


def value_against(table, player, responder):
    """What the responder wins on average over the seats, exactly."""
    form, nothing = sequence_form(table), np.zeros(len(table.turns))
    theirs, ours = bot_policy(player, table).probabilities, bot_policy(responder, table).probabilities
    seats = np.array([turn.player for turn in table.turns])
    return np.mean(
        [form.evaluate(np.where((seats == seat)[:, None], ours, theirs), nothing)[0][seat] for seat in range(2)]
    )


def test_kuhn_against_random_play_finds_the_best_response():
    table = tabulate("kuhn_poker")
    responder = train_best_response(RandomPlayer(), "kuhn_poker", 4000, seed=1)
    assert responder.episodes == 4000 and not responder.exploring
    # The truth: half of NashConv 11/12
    assert value_against(table, RandomPlayer(), responder) == pytest.approx(11 / 24, abs=1e-9)
    bound = exploitability_lower_bound(
        RandomPlayer(), "kuhn_poker", [], pairs=2000, seed=1, best_response_episodes=4000
    )
    assert bound.exploiters == ("best_response", "best_response")
    assert bound.lower_bound.low < 11 / 24 < bound.lower_bound.high
    assert (bound.method, bound.best_response_episodes, bound.pairs) == ("lower bound", 4000, 2000)
    assert json.loads(json.dumps(bound.to_dict()))["best_response_episodes"] == 4000


def test_leduc_against_random_play_is_a_bound():
    truth = 4.747222 / 2
    table = tabulate("openspiel:leduc_poker")
    few, more = (
        value_against(table, RandomPlayer(), train_best_response(RandomPlayer(), "openspiel:leduc_poker", episodes))
        for episodes in (600, 6000)
    )
    assert 0 < few < more < truth
    assert more > 1.2
    bound = exploitability_lower_bound(
        RandomPlayer(), "openspiel:leduc_poker", [RandomPlayer()], pairs=2000, seed=3, best_response_episodes=6000
    )
    assert bound.exploiters == ("best_response", "best_response")
    assert 1 < bound.lower_bound.low < bound.lower_bound.high < truth


def test_nobody_gains_against_an_equilibrium():
    responder = train_best_response(CFRPlayer(), "kuhn_poker", 2000)
    assert value_against(tabulate("kuhn_poker"), CFRPlayer(), responder) <= 1e-3


def test_it_learns_where_there_is_no_table():
    """A match of three hands, and two that are asked at once."""
    name = "kuhn_poker(rounds=3,payoff=chips)"
    assert tabulate(name) is None
    bound = measure_exploitability(FOLDER, name, pairs=100, best_response_episodes=1500)
    assert bound.exploiters == ("best_response", "best_response")
    # Who bets wins a chip of the folder in every hand.
    assert bound.lower_bound.estimate > 2.5
    rock = Always("[Rock]", "rock")
    bound = exploitability_lower_bound(rock, "openspiel:matrix_rps", [], pairs=10, best_response_episodes=100)
    assert bound.lower_bound.estimate == 1


def test_illegal_replies_count_as_the_game_counts_them():
    bound = exploitability_lower_bound(Always("no"), "kuhn_poker", [], pairs=20, best_response_episodes=40)
    assert bound.lower_bound.estimate == 2 and bound.illegal_rate == 1


def step(player, infoset, action):
    turn = Turn("g", 0, 0, 0, player, str(player), (), ("a", "b"), infoset)
    return Step(turn, Reply(f"[{action}]", action))


def learn(responder, *moves, result):
    steps = tuple(step(0, infoset, action) for infoset, action in moves)
    other = step(1, "theirs", "a")
    responder.learn(Episode("g", 0, (), (), (*steps, other), (result, -result), Ending.TERMINAL), 0)


def test_values_by_hand():
    responder = BestResponsePlayer()
    first = step(0, "start", "a").turn
    assert responder.action_probabilities(first) == {"a": 0.5, "b": 0.5}
    learn(responder, ("start", "a"), ("later", "a"), result=-2.0)
    learn(responder, ("start", "b"), result=-1.0)
    assert responder.action_probabilities(first) == {"a": 0.0, "b": 1.0}
    # b at "later" wins 3, so "later" is worth 3 on both visits: (3 + 3) / 2 for a at the start
    learn(responder, ("start", "a"), ("later", "b"), result=3.0)
    assert responder._seen["0|start"]["a"].mean == 3.0
    assert responder.action_probabilities(first) == {"a": 1.0, "b": 0.0}
    # Another information set after a, worth -6: (2 * 3 - 6) / 3
    learn(responder, ("start", "a"), ("elsewhere", "a"), result=-6.0)
    assert responder._seen["0|start"]["a"].mean == 0.0
    # The mean of b at "later" falls to (3 - 5) / 2 = -1: (3 * -1 - 6) / 4, and b is best
    learn(responder, ("start", "a"), ("later", "b"), result=-5.0)
    assert responder._seen["0|start"]["a"].mean == -9 / 4
    assert responder.action_probabilities(first) == {"a": 0.0, "b": 1.0}
    responder.exploring = True
    # 20 / (20 + 5 visits) of the moves are uniform
    assert responder.action_probabilities(first) == pytest.approx({"a": 0.4, "b": 0.6})
    assert responder.episodes == 5 and "1|theirs" not in responder._seen


def test_the_same_seed_learns_the_same():
    one, same, other = (train_best_response(RandomPlayer(), "kuhn_poker", 300, seed=seed) for seed in (4, 4, 5))
    assert one._seen == same._seen != other._seen


def test_the_player_is_asked_in_batches():
    class Counting(RandomPlayer):
        calls = 0

        def reply(self, turns):
            self.calls += 1
            return super().reply(turns)

    player = Counting()
    train_best_response(player, "openspiel:connect_four(rows=4,columns=4)", 300)
    # Two seats, one batch each, at most eight of its turns in a game
    assert 0 < player.calls <= 16


def test_it_can_only_play_listed_actions(register_game):
    from toy_games import TreeGame

    name = register_game("chat", lambda: TreeGame("chat", ("free", 0, ("end", (1, -1)))))
    with pytest.raises(ValueError, match="best_response cannot play chat: its actions are free text"):
        train_best_response(RandomPlayer(), name, 10)
    with pytest.raises(ValueError, match="two players"):
        train_best_response(RandomPlayer(), "openspiel:kuhn_poker(players=3)", 10)
    with pytest.raises(ValueError, match="at least 2 games"):
        train_best_response(RandomPlayer(), "kuhn_poker", 1)


def test_training_deals_are_not_measured_on():
    """A responder that knew the deals would win more on them: seeds of the two never meet."""
    seen = []

    class Watching(RandomPlayer):
        def sample(self, turns, which, seeds, index):
            seen.append(set(np.asarray(seeds).tolist()))
            return super().sample(turns, which, seeds, index)

    train_best_response(Watching(), "kuhn_poker", 200, seed=0)
    training = set().union(*seen)
    seen.clear()
    exploitability_lower_bound(Watching(), "kuhn_poker", [RandomPlayer()], pairs=100, seed=0)
    assert len(training) == 200 and not training & set().union(*seen)


def test_unknown_information_sets_are_played_at_random():
    responder = BestResponsePlayer()
    returns = play("kuhn_poker", [responder, responder], range(400)).outcomes.returns
    random = play("kuhn_poker", [RandomPlayer(), RandomPlayer()], range(400)).outcomes.returns
    np.testing.assert_array_equal(returns, random)
