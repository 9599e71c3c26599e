"""Reasons of minimax and of tree search, where nothing is hidden."""

import math
from dataclasses import replace

import numpy as np
import pytest

from spiral_trl.experts.collect import ExpertSettings, make_decisions, resolve, seat_players
from spiral_trl.experts.lookahead import MinimaxAnalyst, SearchAnalyst
from spiral_trl.experts.player import ExpertPlayer
from spiral_trl.experts.words import VARIANTS, rationale
from spiral_trl.games import make_game
from spiral_trl.players.search import MCTSPlayer, MinimaxPlayer
from spiral_trl.rollout import play


def at(moves, game="tic_tac_toe"):
    """The turn after `moves`."""
    played = make_game(game)
    played.reset(0)
    for move in moves:
        (turn,) = played.turns()
        played.step({turn.player: str(move)})
    return played.turns()[0]


# X took 0 and 1, O took 3 and 4, X moves: 2 wins at once, and only 5 stops O's row
def test_minimax_sees_the_win_and_the_loss():
    analysis = MinimaxAnalyst(MinimaxPlayer()).analyse(at([0, 3, 1, 4]), "2")
    values = dict(zip(analysis.actions, analysis.values, strict=True))
    assert values == {"2": 1.0, "5": values["5"], "6": -1.0, "7": -1.0, "8": -1.0}
    assert analysis.probabilities == (1.0, 0.0, 0.0, 0.0, 0.0)
    assert (analysis.line, analysis.ends, analysis.forced) == ((), True, 1.0)
    text = rationale(analysis, 0)
    assert "2: a win" in text and "6: a loss" in text and "2 ends the game." in text and "the one best move" in text


def test_the_line_is_played_out_in_words():
    # After a corner only the centre draws
    turn = at([0])
    analysis = MinimaxAnalyst(MinimaxPlayer()).analyse(turn, "4")
    values = dict(zip(analysis.actions, analysis.values, strict=True))
    assert values == {name: 0.0 if name == "4" else -1.0 for name in turn.legal_actions}
    assert len(analysis.line) == 6 and not analysis.ends
    assert [move.mover for move in analysis.line] == ["opponent", "me"] * 3
    game = make_game("tic_tac_toe")
    game.reset(0)
    for i, action in enumerate(["0", "4", *(move.action for move in analysis.line)]):
        game.step({i % 2: action})  # every move of it is legal
    (after,) = game.turns()
    assert max(MinimaxPlayer().action_values(after).values()) == 0.0  # and nobody has erred


def test_values_do_not_depend_on_the_order_of_moves():
    analyst = MinimaxAnalyst(MinimaxPlayer())
    one, other = at([0, 4, 8, 2]), at([8, 2, 0, 4])
    assert one.infoset != other.infoset
    assert analyst.analyse(one, "6") == analyst.analyse(other, "6")
    assert len(analyst._lines) == 1


def test_a_search_tells_visits_and_means_of_its_own_tree():
    player = MCTSPlayer(simulations=200)
    turn = replace(at([3, 3, 3], "connect_four"), seed=11)
    analysis = SearchAnalyst(player).analyse(turn)
    assert sum(analysis.visits) == pytest.approx(1.0) and len(analysis.visits) == 7
    assert player.reply([turn])[0].text == f"[{analysis.action}]"
    assert analysis.visits[analysis.index] == max(analysis.visits)
    assert all(-1 <= value <= 1 for value in analysis.values if not math.isnan(value))
    root = player.search(turn, turn.seed, turn.index)
    child = next(c for c in root.children if str(c.action) == analysis.action)
    assert analysis.values[analysis.index] == pytest.approx(child.total_reward / child.explore_count)
    assert analysis.line and all(move.action in map(str, range(7)) for move in analysis.line)
    text = rationale(analysis, 0)
    assert f"{analysis.action}: {analysis.values[analysis.index]:+.2f} on average, with" in text
    # The line most visited need not be best play
    assert not any("best play" in rationale(analysis, variant) for variant in range(VARIANTS))


def test_a_search_knows_a_win_in_one():
    # X has three in column 0
    analysis = SearchAnalyst(MCTSPlayer(simulations=300)).analyse(at([0, 1, 0, 1, 0, 1], "connect_four"))
    assert analysis.action == "0" and analysis.values[0] == 1.0 and analysis.line == () and analysis.ends


def test_where_chance_moves_the_line_is_not_known():
    game = make_game("pig(target=10)")
    game.reset(3)
    analysis = SearchAnalyst(MCTSPlayer(simulations=50)).analyse(game.turns()[0])
    assert analysis.line is None and analysis.actions == ("roll", "hold")
    assert rationale(analysis, 0).count("\n") == 3


@pytest.mark.parametrize("player", [MinimaxPlayer(), MCTSPlayer(simulations=30)])
def test_play_with_reasons_is_play_without(player):
    expert = ExpertPlayer(player, rationale=True, think=True)
    with_reasons = play("tic_tac_toe", [expert, expert], np.arange(6)).episodes()
    without = play("tic_tac_toe", [player, player], np.arange(6)).episodes()
    for one, other in zip(with_reasons, without, strict=True):
        assert [step.reply.action for step in one.steps] == [step.reply.action for step in other.steps]
        assert all(step.reply.error is None and "<think>" in step.reply.text for step in one.steps)


def test_minimax_never_loses_to_a_random_opponent():
    settings = ExpertSettings(("tic_tac_toe(observation=compact)",), decisions=500, opponent="random", expert="m")
    dataset = make_decisions(settings, seat_players(settings, {"m": MinimaxPlayer()}))
    assert min(dataset["reward"]) == 0.0 and max(dataset["reward"]) == 1.0
    assert set(dataset["player"]) == {0, 1}


def test_solvers_of_games():
    assert resolve("solver", "tic_tac_toe") == "minimax"
    assert resolve("solver", "connect_four") == "mcts"
    assert resolve("solver", "leduc_poker(observation=compact)") == "cfr"
    with pytest.raises(ValueError, match="no solver plays simple_negotiation"):
        resolve("solver", "simple_negotiation")
