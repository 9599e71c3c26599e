"""Known values, measured through the text of OpenSpiel's games: what a seat reads carries all that play needs."""

import numpy as np
import pyspiel
import pytest
from policies import random_policy

from spiral_trl.evaluation.exploitability import (
    Exploitability,
    equilibrium_floor,
    exploitability,
    measure_exploitability,
)
from spiral_trl.games import tabulate
from spiral_trl.games.sequence_form import solve
from spiral_trl.players.bots import CFRPlayer, RandomPlayer


SEQUENTIAL = [
    "kuhn_poker",
    "kuhn_poker(players=3)",
    "leduc_poker",
    "liars_dice(dice_sides=3)",
    "liars_dice(dice_sides=4)",
    "dark_hex(board_size=2)",
]
# The order of points is fixed, so that the turn-based game of the library has no more chance than the text game
SIMULTANEOUS = [
    "matrix_mp",
    "matrix_brps",
    "blotto(coins=4)",
    "goofspiel(num_cards=3,points_order=descending)",
    "goofspiel(num_cards=4,points_order=descending)",
    "goofspiel(num_cards=4,points_order=ascending,returns_type=point_difference)",
    "goofspiel(num_cards=3,points_order=descending,imp_info=true)",
]


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_uniform_play_against_openspiel(name):
    game = pyspiel.load_game(name)
    expected = pyspiel.nash_conv(game, pyspiel.UniformRandomPolicy(game))
    result = measure_exploitability(RandomPlayer(), f"openspiel:{name}")
    assert isinstance(result, Exploitability) and (result.method, result.unit) == ("exact", "points")
    assert expected > 0.5 and result.nash_conv == pytest.approx(expected, abs=1e-9)
    if game.num_players() == 2:
        assert result.exploitability == pytest.approx(
            pyspiel.exploitability(game, pyspiel.UniformRandomPolicy(game)), abs=1e-9
        )


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_random_policies_against_openspiel(name):
    table = tabulate(f"openspiel:{name}")
    policy = random_policy(table, np.random.default_rng(0))
    tabular = {}
    for u, turn in enumerate(table.turns):
        key = turn.state.state.information_state_string(turn.player)
        assert key not in tabular
        tabular[key] = [(i, policy.probabilities[u, table.actions.index(a)]) for a, i in turn.state.actions.items()]
    expected = pyspiel.nash_conv(pyspiel.load_game(name), pyspiel.TabularPolicy(tabular))
    assert exploitability(table, policy).nash_conv == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", SIMULTANEOUS)
def test_uniform_play_of_simultaneous_games_against_openspiel(name):
    game = pyspiel.convert_to_turn_based(pyspiel.load_game(name))
    expected = pyspiel.nash_conv(game, pyspiel.UniformRandomPolicy(game))
    table = tabulate(f"openspiel:{name}")
    result = measure_exploitability(RandomPlayer(), f"openspiel:{name}")
    assert table.simultaneous and result.method == "exact"
    assert result.nash_conv == pytest.approx(expected, abs=1e-9)


def test_a_random_policy_of_a_simultaneous_game_against_openspiel():
    """Goofspiel with three cards, where the library's turn-based game forgets nothing that matters."""
    name = "goofspiel(num_cards=3,points_order=descending)"
    table = tabulate(f"openspiel:{name}")
    policy = random_policy(table, np.random.default_rng(1))
    game = pyspiel.convert_to_turn_based(pyspiel.load_game(name))
    tabular = {}

    def follow(node, state):
        if state.is_terminal():
            assert tuple(table.returns[node]) == tuple(state.returns())
            return
        turn = int(table.turn[node])
        key = state.information_state_string()
        rows = []
        for action in state.legal_actions():
            column = table.actions.index(f"Bid: {action + 1}")
            rows.append((action, policy.probabilities[turn, column]))
            follow(table.child[node, column], state.child(action))
        assert tabular.setdefault(key, rows) == rows
        assert table.turns[turn].player == state.current_player()

    follow(0, game.new_initial_state())
    expected = pyspiel.nash_conv(game, pyspiel.TabularPolicy(tabular))
    result = exploitability(table, policy)
    assert result.nash_conv == pytest.approx(expected, abs=1e-9) and expected > 0.1


def test_the_equilibrium_of_a_simultaneous_game():
    """Biased rock-paper-scissors: (1, 10, 5) / 16 makes every reply worth 0 where the wins are 25, 5 and 50."""
    table = tabulate("openspiel:matrix_brps")
    for row, mix in enumerate(solve(table)):
        by_word = dict(zip(table.actions, mix, strict=True))
        rock, paper, scissors = by_word["Rock"], by_word["Paper"], by_word["Scissors"]
        assert (rock, paper, scissors) == pytest.approx((1 / 16, 10 / 16, 5 / 16), abs=2e-3), row
        assert (25 * paper - 50 * scissors, 5 * scissors - 25 * rock) == pytest.approx((0, 0), abs=0.1)


def test_the_equilibrium_player_plays_simultaneous_games():
    # A simultaneous game is solved from its table: a third each
    assert measure_exploitability(CFRPlayer(), "openspiel:matrix_rps").exploitability < 1e-3


@pytest.mark.parametrize(
    ("forgets", "remembers", "solvable"),
    [
        ("nim(pile_sizes=1;2;3,observation=latest)", "nim(pile_sizes=1;2;3)", False),
        # Its turns keep the keys of its information sets
        ("leduc_poker(observation=latest)", "leduc_poker", True),
        ("liars_dice_ir(dice_sides=3,recall_length=1)", "liars_dice(dice_sides=3)", False),
    ],
)
def test_a_best_response_remembers_what_the_prompt_forgets(forgets, remembers, solvable):
    """The uniform policy is the same whether or not it is told its past, and so is the best response to it."""
    table, full = tabulate(f"openspiel:{forgets}"), tabulate(f"openspiel:{remembers}")
    assert len(table.kind) == len(full.kind)
    expected = measure_exploitability(RandomPlayer(), f"openspiel:{remembers}").nash_conv
    result = measure_exploitability(RandomPlayer(), f"openspiel:{forgets}")
    assert result.nash_conv == pytest.approx(expected, abs=1e-9)
    assert (len({(turn.player, turn.infoset) for turn in table.turns}) == len(full.turns)) is solvable
    if not solvable:
        with pytest.raises(ValueError, match="does not tell its players what they did before"):
            solve(table)
        assert equilibrium_floor(table, 8) is None
