"""One player measured: the same figures as its parts give, and what is said where there are none."""

import json

import pytest
from toy_players import Always

from spiral_trl.errors import PlayerError
from spiral_trl.evaluation.exploitability import measure_exploitability
from spiral_trl.evaluation.match import match_seed, play_match
from spiral_trl.evaluation.move_quality import measure_moves
from spiral_trl.evaluation.one_player import measure_player
from spiral_trl.players.bots import CFRPlayer, RandomPlayer
from spiral_trl.players.search import MinimaxPlayer


KUHN = "kuhn_poker(observation=compact)"
CALLER = Always({"check": "[check]", "call": "[call]"}, "caller")


class Paid(Always):
    """Answers for a price, and fails where `fails` says so."""

    speculative = False
    fails = False

    def _answer(self, turn):
        if self.fails:
            raise PlayerError("no answer")
        return super()._answer(turn)


def test_measures_are_those_of_their_parts():
    measures = measure_player(RandomPlayer(), [KUHN, "kuhn_poker(rounds=2)"], [CALLER, CFRPlayer()], pairs=30, seed=3)
    kuhn = measures.games[0]
    assert [match.opponent for match in kuhn.matches] == ["caller", "cfr"]
    for match, opponent in zip(kuhn.matches, (CALLER, CFRPlayer()), strict=True):
        assert match == play_match(KUHN, RandomPlayer(), opponent, pairs=30, seed=match.seed)
    assert kuhn.illegal_rate == 0
    # Uniform play in Kuhn poker: NashConv 11/12
    assert kuhn.exploitability.exploitability == pytest.approx(11 / 24)
    assert kuhn.exploitability == measure_exploitability(RandomPlayer(), KUHN)
    json.dumps(measures.to_dict(), allow_nan=False)


def test_who_cannot_play_is_left_out_of_the_measures():
    measures = measure_player(MinimaxPlayer(), [KUHN, "tic_tac_toe"], [CFRPlayer(), RandomPlayer()], pairs=4)
    (game,) = measures.games
    assert game.game == "tic_tac_toe" and [match.opponent for match in game.matches] == ["random"]
    assert [(entry.player, entry.game) for entry in measures.left_out] == [("minimax", KUHN), ("cfr", "tic_tac_toe")]
    with pytest.raises(ValueError, match="minimax cannot play"):
        measure_player(MinimaxPlayer(), [KUHN], [RandomPlayer()], pairs=4)
    with pytest.raises(ValueError, match="at least 2 deals"):
        measure_player(CFRPlayer(), [KUHN], [RandomPlayer()], pairs=1)


def test_without_opponents_or_exploitability_nothing_is_made_up():
    (game,) = measure_player(RandomPlayer(), [KUHN], [], pairs=4, exploitability=False).games
    assert game.matches == () and game.illegal_rate is None
    assert game.exploitability is None and game.no_exploitability == "not asked for"


def test_paid_players_are_sampled_only_where_it_is_said_how_often():
    paid = Paid({"check": "[check]", "call": "[call]"}, "paid")
    (game,) = measure_player(paid, [KUHN], [RandomPlayer()], pairs=4).games
    assert game.exploitability is None and "how many" in game.no_exploitability
    (game,) = measure_player(paid, [KUHN], [], pairs=4, samples=2).games
    assert game.exploitability.method == "sampled" and game.exploitability.samples == 2


def test_a_player_that_fails_leaves_a_note():
    paid = Paid("[check]", "paid")
    paid.fails = True
    measures = measure_player(paid, [KUHN], [RandomPlayer()], pairs=4, samples=2)
    assert measures.games[0].matches == () and measures.games[0].exploitability is None
    assert [note.partition(":")[0] for note in measures.notes] == [
        KUHN,
        "paid stopped answering and is not asked again",
        KUHN,
    ]


def test_moves_are_measured_where_best_ones_are_known():
    kuhn, board = measure_player(RandomPlayer(), [KUHN, "tic_tac_toe"], [], pairs=20, exploitability=False).games
    assert kuhn.moves is None
    assert board.moves == measure_moves(RandomPlayer(), "tic_tac_toe", games=20, seed=match_seed("tic_tac_toe", 0))
    (perfect,) = measure_player(MinimaxPlayer(), ["tic_tac_toe"], [], pairs=5, exploitability=False).games
    assert perfect.moves.best_move_rate.estimate == 1 and perfect.moves.value_lost_per_move.estimate == 0
    json.dumps(perfect.to_dict(), allow_nan=False)
    (off,) = measure_player(RandomPlayer(), ["tic_tac_toe"], [], pairs=5, exploitability=False, moves=False).games
    assert off.moves is None
    paid = Paid("[0]", "paid")
    (game,) = measure_player(paid, ["tic_tac_toe"], [], pairs=5).games
    assert game.moves is None
