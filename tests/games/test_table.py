"""Tables of games other than Kuhn poker: what they hold, and which games have none."""

import numpy as np
import pytest
from toy_games import Pennies, TreeGame

from spiral_trl.games import tabulate
from spiral_trl.games.chance import choose_by_cdf
from spiral_trl.games.registry import make_game
from spiral_trl.games.table import CHANCE, DECISION, TERMINAL
from spiral_trl.records import Ending


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
        ("at_once", lambda: Pennies("at_once")),
        ("talks", lambda: TreeGame("talks", ("free", 0, ("end", (1, -1))))),
        (
            "talks_later",
            lambda: TreeGame("talks_later", ("turn", 0, {"a": ("end", (0, 0)), "b": ("free", 1, ("end", (1, -1)))})),
        ),
    ],
)
def test_games_with_turns_at_once_or_free_text_have_none(register_game, name, make):
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
