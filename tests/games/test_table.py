"""Tables of games other than Kuhn poker: what they hold, and which games have none."""

import time

import numpy as np
import pytest
from toy_games import Pennies, TreeGame

from spiral_trl.games import tabulate
from spiral_trl.games.base import CopyableGame
from spiral_trl.games.chance import choose_by_cdf, derive_seeds
from spiral_trl.games.openspiel import OpenSpielGame
from spiral_trl.games.registry import make_game
from spiral_trl.games.table import CHANCE, DECISION, TERMINAL
from spiral_trl.players.bots import RandomPlayer
from spiral_trl.records import Ending
from spiral_trl.rollout import play


# Two coins of unlike faces and weights; seat 0 sees neither, seat 1 what seat 0 did
TREE = (
    "chance",
    [
        (0.25, ("turn", 0, {"up": ("end", (1, -1)), "down": ("turn", 1, {"up": ("end", (2, -2))})})),
        (0.0, ("end", (9, -9))),
        (
            0.75,
            (
                "turn",
                0,
                {
                    "up": ("chance", [(0.5, ("end", (3, -3))), (0.5, ("end", (0, 0), Ending.TRUNCATED))]),
                    "down": ("turn", 1, {"up": ("end", (4, -4)), "left": ("end", (5, -5))}),
                },
            ),
        ),
    ],
)


@pytest.fixture
def table(register_game):
    return tabulate(register_game("two_coins", lambda: TreeGame("two_coins", TREE)))


def walk(table, node, tree):
    """Holds a node of the table against a node of the tree; yields the nodes below it and itself."""
    yield node
    children = {column: int(child) for column, child in enumerate(table.child[node]) if child >= 0}
    if tree[0] == "end":
        assert table.kind[node] == TERMINAL and not children
        assert tuple(table.returns[node]) == tree[1]
        assert table.truncated[node] == (len(tree) > 2)
        below = []
    elif tree[0] == "chance":
        assert table.kind[node] == CHANCE
        weights = [weight for weight, _ in tree[1]]
        assert sorted(children) == [outcome for outcome, weight in enumerate(weights) if weight]
        width = table.cdf.shape[1]
        assert table.chance_probabilities(node).tolist() == weights + [0.0] * (width - len(weights))
        below = [(child, tree[1][outcome][1]) for outcome, child in children.items()]
    else:
        assert table.kind[node] == DECISION and table.player[node] == tree[1]
        turn = table.turns[table.turn[node]]
        assert turn.player == tree[1] and turn.legal_actions == tuple(tree[2])
        assert {table.actions[column] for column in children} == set(tree[2])
        below = [(child, tree[2][table.actions[column]]) for column, child in children.items()]
    if tree[0] != "turn":
        assert table.turn[node] == table.player[node] == -1
    if tree[0] != "end":
        assert np.isnan(table.returns[node]).all() and not table.truncated[node]
    if tree[0] != "chance":
        assert not table.cdf[node].any()
    for child, subtree in below:
        yield from walk(table, child, subtree)


def test_a_table_is_the_games_tree(table):
    nodes = list(walk(table, 0, TREE))
    assert sorted(nodes) == list(range(len(table.kind))) and len(nodes) == 12
    assert table.depth == 2
    assert set(table.actions) == {"up", "down", "left"}
    assert (table.name, table.num_players, table.roles) == ("two_coins", 2, ("seat 0", "seat 1"))
    assert table.worst_returns == (-1.0, -1.0)


def test_turns_that_read_alike_are_one(table):
    # Seat 0 cannot tell the coins apart; seat 1 can, by its legal actions
    asked = [(turn.player, turn.legal_actions) for turn in table.turns]
    assert sorted(asked) == [(0, ("up", "down")), (1, ("up",)), (1, ("up", "left"))]
    nodes = np.flatnonzero(table.kind == DECISION)
    assert sorted(np.bincount(table.turn[nodes])) == [1, 1, 2]
    assert all((turn.episode, turn.seed, turn.index) == (0, 0, 0) for turn in table.turns)


def test_replies_are_read_by_a_game_at_that_turn(table):
    for turn, game in zip(table.turns, table.games, strict=True):
        for word in ("up", "down", "left"):
            parsed = game.parse(turn.player, f"[{word}]")
            assert parsed.action == (word if word in turn.legal_actions else None)


def test_chance_falls_as_it_does_in_the_game(register_game):
    """Also where the weights add up to 1 only almost, beside a node of more outcomes."""
    few = [1 / 6] * 6
    assert np.cumsum(few)[-1] < 1
    end = ("end", (1, -1))
    tree = ("chance", [(1 / 7, ("chance", [(weight, end) for weight in few]))] + [(1 / 7, end)] * 6)
    table = tabulate(register_game("almost_one", lambda: TreeGame("almost_one", tree)))
    (inner,) = [node for node in np.flatnonzero(table.kind == CHANCE) if node]
    cumulative = np.cumsum(few)
    draws = [0.0, *cumulative, *np.nextafter(cumulative, 0), *np.nextafter(cumulative, 1), np.nextafter(1, 0), 0.4]
    for draw in (float(draw) for draw in draws if draw < 1):
        outcome = int((table.cdf[inner, :-1] <= draw * table.cdf[inner, -1]).sum())
        assert outcome == choose_by_cdf(cumulative, draw) <= 5
        assert table.child[inner, outcome] >= 0


def test_a_game_without_chance_or_turns(register_game):
    only = tabulate(register_game("only_an_end", lambda: TreeGame("only_an_end", ("end", (3, -3)))))
    assert only.kind.tolist() == [TERMINAL] and only.depth == 0 and only.turns == () and only.actions == ()
    assert only.returns.tolist() == [[3, -3]] and only.child.shape[0] == 1


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("talks", lambda: TreeGame("talks", ("free", 0, ("end", (1, -1))))),
        (
            "talks_later",
            lambda: TreeGame("talks_later", ("turn", 0, {"a": ("end", (0, 0)), "b": ("free", 1, ("end", (1, -1)))})),
        ),
    ],
)
def test_games_with_free_text_have_none(register_game, name, make):
    assert tabulate(register_game(name, make)) is None


def test_the_number_of_nodes_is_bounded(register_game):
    tree = ("end", (1, -1))
    for _ in range(4):
        tree = ("turn", 0, {"a": tree, "b": tree})
    register_game("wide", lambda: TreeGame("wide", tree))
    assert len(tabulate("wide", max_nodes=31).kind) == 31
    assert tabulate("wide", max_nodes=30) is None


def test_a_tree_that_is_wide_near_its_root_is_refused_without_playing_its_long_lines(register_game):
    """Depth first, the 5,000 nodes that are too many would be replayed in lines of hundreds of turns."""
    line = ("end", (1, -1))
    for _ in range(300):
        line = ("turn", 0, {"a": line, "b": line})
    steps = 0

    class Counting(TreeGame):
        def step(self, actions):
            nonlocal steps
            steps += 1
            super().step(actions)

    register_game("long_lines", lambda: Counting("long_lines", ("chance", [(1 / 30, line)] * 30)))
    assert tabulate("long_lines", max_nodes=5_000) is None
    assert 0 < steps < 5_000 * 8


def test_a_table_is_remembered_and_made_of_fresh_games():
    assert tabulate("kuhn_poker") is tabulate("kuhn_poker")
    table = tabulate("kuhn_poker()")
    assert table.name == "kuhn_poker" == make_game("kuhn_poker").name
    assert all(game.ending is None for game in table.games)


# --------------------------------------------------------------------------------------------------- asked at the same time


def test_seats_asked_at_once_stand_one_below_the_other(register_game):
    table = tabulate(register_game("twice", lambda: Pennies("twice", rounds=2)))
    assert table.simultaneous and not tabulate("kuhn_poker").simultaneous
    # Two rounds: 1 + 2 decisions and 4 ends of a round, after each of which a second round
    assert len(table.kind) == 1 + 2 + 4 * (1 + 2 + 4) and table.depth == 4
    root, second = table.turns[table.turn[0]], table.child[0][table.child[0] >= 0]
    assert root.player == 0 and (table.player[second] == 1).all()
    # Whatever the first seat chose, the second one is asked the same: it cannot tell.
    assert len(set(table.turn[second].tolist())) == 1
    # Player 0's turn, player 1's turn, and after each of four first rounds once more
    assert len(table.turns) == 2 + 2 * 4
    ends = table.returns[table.kind == TERMINAL]
    assert sorted(ends[:, 0].tolist()) == [-2.0] * 4 + [0.0] * 8 + [2.0] * 4


def test_simultaneous_games_are_played_as_text(register_game):
    name = register_game("played_as_text", lambda: Pennies("played_as_text"))
    with pytest.raises(ValueError, match="cannot be played as a table: .*simultaneous"):
        play(name, [RandomPlayer()] * 2, [0], tabulated=True)
    episodes = play(name, [RandomPlayer()] * 2, range(40)).episodes()
    assert all(len(episode.steps) == 2 and episode.ending is Ending.TERMINAL for episode in episodes)
    assert {episode.returns for episode in episodes} == {(1.0, -1.0), (-1.0, 1.0)}


# ------------------------------------------------------------------------------------------------------ OpenSpiel's games


@pytest.mark.parametrize(
    "name",
    [
        "openspiel:leduc_poker",
        "openspiel:kuhn_poker(players=3)",
        "openspiel:dark_hex(board_size=2)",
        "openspiel:liars_dice(dice_sides=3)",
        "openspiel:nim(pile_sizes=1;2;3)",
    ],
)
def test_table_and_text_give_equal_episodes(name):
    players = [RandomPlayer()] * make_game(name).num_players
    seeds = derive_seeds(0, np.arange(80))
    table, text = (play(name, players, seeds, tabulated=tabulated).episodes() for tabulated in (True, False))
    assert table == text
    assert len({episode.returns for episode in table}) > 1


@pytest.mark.parametrize("name", ["openspiel:kuhn_poker", "openspiel:goofspiel(num_cards=3)"])
def test_copies_and_replays_give_the_same_table(monkeypatch, name):
    copied = tabulate(name)
    monkeypatch.delattr(OpenSpielGame, "copy")
    assert not isinstance(make_game(name), CopyableGame)
    replayed = tabulate.__wrapped__(name)
    assert copied.turns == replayed.turns and copied.actions == replayed.actions
    for column in ("kind", "turn", "player", "child", "cdf", "returns", "truncated"):
        np.testing.assert_array_equal(getattr(copied, column), getattr(replayed, column))


def test_leduc_poker_is_tabulated_in_a_few_seconds():
    start = time.process_time()
    table = tabulate.__wrapped__("openspiel:leduc_poker")
    assert time.process_time() - start < 5  # 0.3 s on a quiet machine
    assert (len(table.kind), len(table.turns)) == (9457, 936)


@pytest.mark.parametrize("name", ["tic_tac_toe", "chess", "shogi", "goofspiel", "tiny_bridge_4p", "yacht"])
def test_large_games_are_found_out_quickly(name):
    """By a few random walks: 30,000 nodes of tic-tac-toe take 2 s to visit."""
    start = time.process_time()
    assert tabulate.__wrapped__(f"openspiel:{name}") is None
    assert time.process_time() - start < 1


def test_walks_never_refuse_a_game_that_fits(register_game):
    """A tree with one long way down among short ones, which most walks miss and some overrate."""
    tree = ("end", (1, -1))
    for _ in range(12):
        tree = ("turn", 0, {"on": tree, **{f"stop {i}": ("end", (0, 0)) for i in range(9)}})
    register_game("lopsided", lambda: TreeGame("lopsided", tree))
    assert len(tabulate("lopsided", max_nodes=121).kind) == 12 * 10 + 1
    assert tabulate("lopsided", max_nodes=120) is None
