"""Graphs of positions: which games have one, what it holds, and values against trees and known figures."""

from dataclasses import replace

import numpy as np
import pytest

from spiral_trl.games import make_game, tabulate
from spiral_trl.games.position_graph import position_graph
from spiral_trl.games.sequence_form import sequence_form
from spiral_trl.games.solver_state import SolverState
from spiral_trl.games.table import DECISION, TERMINAL
from spiral_trl.games.tic_tac_toe import TicTacToe
from spiral_trl.records import Message


LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))


def all_boards():
    """Every board that can come up, with the moves that are left (none once the game is over)."""
    boards, stack = {}, ["." * 9]
    while stack:
        board = stack.pop()
        if board in boards:
            continue
        over = any(board[a] != "." and board[a] == board[b] == board[c] for a, b, c in LINES)
        moves = [] if over else [i for i, mark in enumerate(board) if mark == "."]
        boards[board] = moves
        mark = "XO"[board.count("X") - board.count("O")]
        stack += [board[:i] + mark + board[i + 1 :] for i in moves]
    return boards


@pytest.mark.parametrize("observation", ["latest", "compact"])
def test_tic_tac_toe(observation):
    table = tabulate(f"tic_tac_toe(observation={observation})")
    boards = all_boards()
    assert len(boards) == len(table.kind) == 5478
    assert len(table.turns) == sum(bool(moves) for moves in boards.values()) == 4520
    assert not table.is_tree and table.depth == 9
    for turn in table.turns:
        board = turn.infoset[2:].replace("/", "")
        assert [int(action) for action in turn.legal_actions] == boards[board]
        assert turn.player == board.count("X") - board.count("O")
    for node in np.flatnonzero(table.kind == DECISION):
        turn = table.turns[table.turn[node]]
        board = turn.infoset[2:].replace("/", "")
        for action in turn.legal_actions:
            child = int(table.child[node, table.actions.index(action)])
            after = board[: int(action)] + "XO"[turn.player] + board[int(action) + 1 :]
            if boards[after]:
                assert table.turns[table.turn[child]].infoset[2:].replace("/", "") == after
            else:
                won = any("." != after[a] == after[b] == after[c] for a, b, c in LINES)
                sign = (1 if turn.player == 0 else -1) if won else 0
                assert table.returns[child].tolist() == [sign, -sign]
    assert (table.child >= 0).sum() == sum(map(len, boards.values()))
    for turn, game in zip(table.turns, table.games, strict=True):
        assert game.turns()[0].messages == turn.messages


def test_prompts_that_tell_the_history_make_no_graph():
    assert tabulate("tic_tac_toe") is None
    assert tabulate("connect_four(rows=3,columns=3,line=3)").is_tree
    assert tabulate("kuhn_poker").is_tree


def test_too_many_positions_make_no_graph():
    assert tabulate("connect_four(observation=latest)") is None
    assert tabulate("tic_tac_toe(observation=latest)", max_nodes=5478) is not None
    assert tabulate("tic_tac_toe(observation=latest)", max_nodes=5477) is None


class Told(TicTacToe):
    """Tic-tac-toe by position, with what `change` makes of each turn."""

    change = staticmethod(lambda turn, moves: turn)

    def __init__(self, name):
        super().__init__(observation="compact")
        self.name = name

    def turns(self):
        return tuple(self.change(replace(turn, game=self.name), self._moves) for turn in super().turns())


def says(turn, content):
    return replace(turn, messages=(Message(role="user", content=content),))


def hides_whose_marks(turn, moves):
    return says(replace(turn, infoset=None), turn.messages[0]["content"].replace("X", "O"))


def counts_late(turn, moves):
    """Tells the first move once the board is nearly full: one position, several prompts."""
    return says(turn, f"{turn.messages[0]['content']} {moves[0]}") if len(moves) == 8 else turn


def has_no_state(turn, moves):
    return replace(turn, state=None)


def is_a_part(turn, moves):
    return replace(turn, state=SolverState(turn.state.state, turn.state.actions, part="board"))


@pytest.mark.parametrize("change", [hides_whose_marks, counts_late, has_no_state, is_a_part])
def test_prompts_that_do_not_show_the_position_make_no_graph(register_game, change):
    name = f"told_{change.__name__}"
    kind = type("Changed", (Told,), {"change": staticmethod(change)})
    register_game(name, lambda: kind(name))
    assert tabulate(name) is None


def test_unchanged_prompts_make_one(register_game):
    register_game("told", lambda: Told("told"))
    assert len(tabulate("told").kind) == 5478


def test_a_return_that_depends_on_the_history_makes_no_graph(register_game):
    class Favours(Told):
        """Whoever loses gets nothing if the first move was the centre: the board does not tell."""

        def returns(self):
            return (0.0, 0.0) if self._moves[0] == "4" else super().returns()

    register_game("favours", lambda: Favours("favours"))
    assert tabulate("favours") is None


def test_chance_makes_no_graph():
    table = tabulate("pig(target=2,horizon=3,observation=latest)")
    assert table.is_tree


# ------------------------------------------------------------------------------------------------------------- values


def uniform(graph):
    legal = np.zeros((len(graph.table.turns), len(graph.table.actions)))
    for row, turn in enumerate(graph.table.turns):
        legal[row, [graph.table.actions.index(action) for action in turn.legal_actions]] = 1
    return legal / legal.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def graph():
    return position_graph(tabulate("tic_tac_toe(observation=compact)"))


def test_the_uniform_policy_on_tic_tac_toe(graph):
    value, best = graph.evaluate(uniform(graph), np.zeros(4520))
    assert (best - value).sum() == pytest.approx(1.919659, abs=1e-6)
    # 212,256 games of random play: the first player wins 58.49% and the second 28.81% (a known enumeration)
    assert value == pytest.approx([0.2968, -0.2968], abs=1e-4)
    # A game lasts as many turns as its visits add up to: 7.6262 for random play
    assert graph.turn_visits(uniform(graph)).sum() == pytest.approx(sum_of_lengths(), abs=1e-9)


def sum_of_lengths():
    """Mean length of a random game, by the probability that it is not over after each ply."""
    boards = all_boards()
    level, mean = {"." * 9: 1.0}, 0.0
    while level:
        mean += sum(level.values())
        after = {}
        for board, p in level.items():
            for i in boards[board]:
                child = board[:i] + "XO"[board.count("X") - board.count("O")] + board[i + 1 :]
                if boards[child]:
                    after[child] = after.get(child, 0.0) + p / len(boards[board])
        level = after
    return mean


def test_perfect_play_is_a_draw_and_cannot_be_exploited(graph):
    assert graph.perfect_play()[0].tolist() == [0, 0]
    worth = graph.action_values()
    best = worth == worth.max(1, keepdims=True)
    value, response = graph.evaluate(best / best.sum(1, keepdims=True), np.zeros(4520))
    assert value == pytest.approx([0, 0], abs=1e-12) and response == pytest.approx([0, 0], abs=1e-12)
    # The uniform policy plays best in 58.0% of the positions
    legal = np.isfinite(worth).sum(1)
    assert (best.sum(1) / legal).mean() == pytest.approx(0.580, abs=5e-4)


def negamax(board, boards, memo):
    """Value for the seat to move, by plain recursion."""
    if board not in memo:
        if not boards[board]:
            memo[board] = -1 if any("." != board[a] == board[b] == board[c] for a, b, c in LINES) else 0
        else:
            mark = "XO"[board.count("X") - board.count("O")]
            memo[board] = max(-negamax(board[:i] + mark + board[i + 1 :], boards, memo) for i in boards[board])
    return memo[board]


def test_action_values_are_those_of_negamax(graph):
    boards, memo = all_boards(), {}
    worth = graph.action_values()
    for turn, row in zip(graph.table.turns, worth, strict=True):
        board = turn.infoset[2:].replace("/", "")
        for column, action in enumerate(graph.table.actions):
            if action in turn.legal_actions:
                child = board[: int(action)] + "XO"[turn.player] + board[int(action) + 1 :]
                assert row[column] == -negamax(child, boards, memo)
            else:
                assert row[column] == -np.inf


@pytest.mark.parametrize("illegal_mass", [0.0, 0.3, 1.0])
def test_a_graph_and_the_tree_of_the_same_game_agree(illegal_mass):
    """A policy by position, on the histories of the game: values, best responses, visits."""
    tree = tabulate("connect_four(rows=3,columns=3,line=3)")
    table = tabulate("connect_four(rows=3,columns=3,line=3,observation=latest)")
    assert tree.is_tree and not table.is_tree and len(table.kind) < len(tree.kind)
    graph, form = position_graph(table), sequence_form(tree)
    rng = np.random.default_rng(0)
    weights = uniform(graph) * rng.gamma(0.5, size=(len(table.turns), 3))
    illegal = illegal_mass * rng.random(len(table.turns)) if illegal_mass < 1 else np.ones(len(table.turns))
    policy = weights / weights.sum(1, keepdims=True) * (1 - illegal)[:, None]
    # Columns of both tables, and the position of each history
    columns = [table.actions.index(action) for action in tree.actions]
    position = {(turn.player, str(turn.state.state)): row for row, turn in enumerate(table.turns)}
    of = np.array([position[turn.player, str(turn.state.state)] for turn in tree.turns])
    value, best = graph.evaluate(policy, illegal)
    tree_value, tree_best = form.evaluate(policy[of][:, columns], illegal[of])
    assert value == pytest.approx(tree_value, abs=1e-12)
    assert best == pytest.approx(tree_best, abs=1e-12)
    visits = np.bincount(of, form.turn_visits(policy[of][:, columns]), minlength=len(table.turns))
    assert graph.turn_visits(policy) == pytest.approx(visits, abs=1e-12)


def test_always_illegal_forfeits_at_once(graph):
    value, best = graph.evaluate(np.zeros((4520, 9)), np.ones(4520))
    assert value.tolist() == [-1, 1] and best.tolist() == [1, 1]


def test_trees_and_graphs_are_not_mistaken_for_each_other(graph):
    with pytest.raises(ValueError, match="are positions, not histories"):
        sequence_form(graph.table)
    with pytest.raises(ValueError, match="are histories, not positions"):
        position_graph(tabulate("kuhn_poker"))


def test_the_table_of_positions_is_numbered_by_ply(graph):
    table = graph.table
    ply = np.zeros(len(table.kind), dtype=int)
    for node in range(len(table.kind)):
        children = table.child[node][table.child[node] >= 0]
        assert (children > node).all()
        ply[children] = ply[node] + 1
    assert (np.diff(ply) >= 0).all() and ply.max() == 9
    assert {int(kind) for kind in table.kind} == {DECISION, TERMINAL}
    marks = [9 - len(table.turns[turn].legal_actions) for turn in table.turn[table.kind == DECISION]]
    assert ply[table.kind == DECISION].tolist() == marks


def test_a_graph_holds_no_game_of_its_own():
    """Replies to a turn are read by a game that stands there, and reading changes nothing."""
    table = tabulate("tic_tac_toe(observation=compact)")
    before = table.games[100].turns()
    assert table.games[100].parse(table.turns[100].player, f"[{table.turns[100].legal_actions[0]}]").error is None
    assert table.games[100].turns() == before
    assert make_game("tic_tac_toe(observation=compact)") is not table.games[0]
