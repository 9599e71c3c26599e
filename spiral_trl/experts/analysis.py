r"""What a solver knows of a position: what each action is worth, and how play is likely to go on.

An [`Analysis`] is worked out by one of three solvers:

- the equilibrium of a small game of imperfect information ([`EquilibriumAnalyst`]): counterfactual action values. With
  `\pi_{-i}(h)` the probability that chance and the other seats bring play to the history `h` of an information set `I`,
  the value of `a` is `\sum_{h \in I} \pi_{-i}(h)\, u_i(ha) / \sum_{h \in I} \pi_{-i}(h)`, where `u_i(ha)` is the mean
  return of seat `i` from there on when everybody follows the equilibrium (Zinkevich et al., 2007, equation 5,
  conditional on the information set);
- minimax, where nothing is hidden: the value of each action under best play, and the line of play;
- Monte Carlo tree search: the share of visits and the mean value of each action, and the line most visited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from ..games.registry import parse_name
from ..games.sequence_form import SequenceForm, sequence_form, solvable_table
from ..games.solver_state import SolverState
from ..games.table import CHANCE, DECISION, GameTable
from ..players.bots import PolicyPlayer
from ..records import Turn


# Probability with which the other seats are taken to play any action: it gives beliefs to information sets that the
# equilibrium never reaches, and moves values elsewhere by no more than it.
TREMBLE = 1e-6
MAX_LINE = 6


@dataclass(frozen=True)
class Move:
    """One move of a likely continuation: `mover` is `"me"`, `"opponent"` or `"chance"` (whose `action` is empty)."""

    mover: str
    action: str


@dataclass(frozen=True)
class Analysis:
    """What a solver knows of a turn, for the seat that is asked, and what follows the action it plays.

    Args:
        kind (`str`): `"equilibrium"`, `"minimax"` or `"search"`.
        actions (`tuple[str, ...]`): Legal actions.
        probabilities (`tuple[float, ...]`): With which the expert plays each.
        values (`tuple[float, ...]`): Expected return of each, in the game's units; NaN where the search never tried it.
        action (`str`): The action that is played.
        line (`tuple[Move, ...]`, *optional*): The likely continuation after it: nothing where it ends the game, `None`
            where it is not known.
        ends (`bool`): Whether the game is over at the end of the line.
        visits (`tuple[float, ...]`): Share of the search's visits of each action; empty for other kinds.
        forced (`float`, *optional*): The return of a won game, where values are those of best play.
        scope (`str`): What was analysed: `"game"`, or the part of a match, such as `"hand"`.
    """

    kind: str
    actions: tuple[str, ...]
    probabilities: tuple[float, ...]
    values: tuple[float, ...]
    action: str
    line: tuple[Move, ...] | None
    ends: bool
    visits: tuple[float, ...] = ()
    forced: float | None = None
    scope: str = "game"

    def __post_init__(self) -> None:
        sizes = {len(self.actions), len(self.probabilities), len(self.values)}
        if len(sizes) != 1 or (self.visits and len(self.visits) != len(self.actions)):
            raise ValueError(f"an analysis needs one figure for each of its actions {self.actions}")
        if self.action not in self.actions:
            raise ValueError(f"{self.action!r} is no action of this turn; there are {', '.join(self.actions)}")
        if not self.probabilities[self.index]:
            raise ValueError(f"the expert never plays {self.action!r} here, so there is no reason for it")

    @property
    def index(self) -> int:
        """Place of the action that is played."""
        return self.actions.index(self.action)


@runtime_checkable
class Analyst(Protocol):
    """Works out an [`Analysis`] of a turn and the action that an expert plays there; `ValueError` where it cannot."""

    def analyse(self, turn: Turn, action: str) -> Analysis: ...


class EquilibriumAnalyst:
    """Counterfactual action values of games small enough for a table, where every seat follows `player`.

    A part of a match, such as one of several hands, is analysed as the game by itself.

    Args:
        player ([`~spiral_trl.players.bots.PolicyPlayer`]): The equilibrium player.
    """

    def __init__(self, player: PolicyPlayer):
        self.player = player
        self._solved: dict[str, _Solved] = {}

    def analyse(self, turn: Turn, action: str) -> Analysis:
        """The analysis of one turn.

        Raises:
            `ValueError`: If neither the game nor the part of it that the turn belongs to has a table.
        """
        if turn.game not in self._solved:
            self._solved[turn.game] = _solve(turn, self.player)
        return self._solved[turn.game].analyse(turn, action)


def _known(turn: Turn) -> tuple:
    """What a seat knows at a turn of its game."""
    messages = tuple((message["role"], message["content"]) for message in turn.messages)
    return turn.player, messages if turn.infoset is None else turn.infoset, turn.legal_actions


def _known_of_part(turn: Turn) -> tuple:
    """What a seat knows at a turn of the part it belongs to, such as a hand, whatever came before."""
    if not isinstance(turn.state, SolverState):
        raise ValueError(f"{turn.game} has no table (too large, simultaneous or free text), and no part that has one")
    state = turn.state.state
    return state.current_player(), state.information_state_string()


def _solve(turn: Turn, player: PolicyPlayer) -> _Solved:
    """The table that holds the turn's position, with values: that of its game, or else of the part it belongs to."""
    table = solvable_table(turn.game)
    if table is not None and table.is_tree:
        return _Solved(table, player, _known, "game")
    key = _known_of_part(turn)
    assert isinstance(turn.state, SolverState)
    # By convention the game without parameters is one part; that it is the one that was solved is compared below
    name = parse_name(turn.game)[0]
    table = None if turn.state.part is None else solvable_table(name)
    if table is None or not table.is_tree:
        raise ValueError(
            f"{turn.game} has no table (too large, simultaneous or free text), so its values are not known"
        )
    solved = _Solved(table, player, _known_of_part, turn.state.part or "game")
    of_table = table.turns[0].state
    same = isinstance(of_table, SolverState) and str(of_table.state.get_game()) == str(turn.state.state.get_game())
    if not same or key not in solved.turn_of:
        raise ValueError(f"a {turn.state.part} of {turn.game} is not {name}, so its values are not known")
    return solved


class _Solved:
    """A table with the values of every action under one policy. `U` turns, `A` actions, `N` nodes."""

    def __init__(self, table: GameTable, player: PolicyPlayer, key: Callable[[Turn], tuple], scope: str):
        self.table = table
        self.key = key
        self.scope = scope
        self.turn_of = {key(turn): u for u, turn in enumerate(table.turns)}
        self.policy = np.zeros((len(table.turns), len(table.actions)))
        legal = np.zeros_like(self.policy, dtype=bool)
        for u, turn in enumerate(table.turns):
            for action, probability in player.action_probabilities(turn).items():
                column = table.actions.index(action)
                self.policy[u, column], legal[u, column] = probability, True
        form = sequence_form(table)
        trembling = (1 - TREMBLE) * self.policy + TREMBLE * legal / legal.sum(1, keepdims=True)
        self.reach = form.reach(trembling)
        self.values = _action_values(form, self.policy, self.reach)
        self._analyses: dict[tuple[int, str], Analysis] = {}

    def analyse(self, turn: Turn, action: str) -> Analysis:
        u = self.turn_of[self.key(turn)]
        if (u, action) not in self._analyses:
            self._analyses[u, action] = self._analyse(u, action)
        return self._analyses[u, action]

    def _analyse(self, u: int, action: str) -> Analysis:
        actions = self.table.turns[u].legal_actions or ()
        columns = [self.table.actions.index(action) for action in actions]
        line, ends = self._line(u, self.table.actions.index(action))
        return Analysis(
            kind="equilibrium",
            actions=actions,
            probabilities=tuple(self.policy[u, columns].tolist()),
            values=tuple(self.values[u, columns].tolist()),
            action=action,
            line=line,
            ends=ends,
            scope=self.scope,
        )

    def _line(self, u: int, column: int) -> tuple[tuple[Move, ...], bool]:
        """The likeliest continuation after an action, given what the seat believes, and whether it ends the game."""
        table, seat = self.table, self.table.turns[u].player
        nodes = np.flatnonzero(table.turn == u)
        weight = np.delete(self.reach[:, nodes], seat, axis=0).prod(0)
        nodes = table.child[nodes, column]
        moves: list[Move] = []
        while len(moves) < MAX_LINE:
            chance = table.kind[nodes] == CHANCE
            if weight[chance].sum() > weight.sum() / 2:
                drawn = [
                    (int(table.child[node, outcome]), w * p)
                    for node, w in zip(nodes[chance], weight[chance], strict=True)
                    for outcome, p in enumerate(table.chance_probabilities(node))
                    if table.child[node, outcome] >= 0
                ]
                nodes, weight = np.array([node for node, _ in drawn]), np.array([p for _, p in drawn])
                moves.append(Move("chance", ""))
                continue
            going = table.kind[nodes] == DECISION
            if weight[going].sum() <= weight.sum() / 2:
                return tuple(moves), True
            nodes, weight = nodes[going], weight[going]
            shares: dict[tuple[int, int], float] = {}
            for node, w in zip(nodes, weight, strict=True):
                for option in np.flatnonzero(table.child[node] >= 0).tolist():
                    key = (int(table.player[node]), option)
                    shares[key] = shares.get(key, 0.0) + w * self.policy[table.turn[node], option]
            mover, action = max(shares, key=lambda key: shares[key])
            here = (table.player[nodes] == mover) & (table.child[nodes, action] >= 0)
            nodes, weight = nodes[here], weight[here]
            weight = weight * np.maximum(self.policy[table.turn[nodes], action], TREMBLE)
            nodes = table.child[nodes, action]
            moves.append(Move("me" if mover == seat else "opponent", table.actions[action]))
        return tuple(moves), bool((table.kind[nodes] != DECISION).all() and (table.kind[nodes] != CHANCE).all())


def _action_values(form: SequenceForm, policy: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """`[U, A]` value of each action where all go on with `policy` (`[U, A]`), weighing histories by `reach`."""
    table = form.table
    values = np.full(policy.shape, np.nan)
    factor = form.end_illegal(np.zeros(len(table.turns)))
    decisions = np.flatnonzero(table.kind == DECISION)
    for seat, tree in enumerate(form.seats):
        strategy = np.ones(len(tree.infoset))
        strategy[tree.sequence] = policy[tree.turn, tree.action]
        gain, _ = tree.action_values(form.ends(seat, reach, factor), strategy)
        infoset_of_turn = dict(zip(tree.turn.tolist(), tree.infoset[tree.sequence].tolist(), strict=True))
        mine = decisions[table.player[decisions] == seat]
        infosets = [infoset_of_turn[u] for u in table.turn[mine].tolist()]
        belief = np.bincount(
            infosets, np.delete(reach[:, mine], seat, axis=0).prod(0), minlength=len(tree.parent)
        )  # (I,)
        values[tree.turn, tree.action] = gain[tree.sequence] / belief[tree.infoset[tree.sequence]]
    return values
