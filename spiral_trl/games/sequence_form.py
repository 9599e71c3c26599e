r"""Best responses, values and equilibria of a tabulated game, in the sequence form (Koller, Megiddo and von Stengel,
1996).

Under perfect recall a seat stands at every node with one *sequence*: its own last (information set, action), or the
empty one. Weighting each end of the game by chance and by the other seats, and adding it to the sequence it ends on,
leaves a decision tree of the one seat alone: its information sets, ordered by how many own moves came before, each
hanging on one sequence. A best response is the maximum over actions from the deepest information set up.

Where a seat reads the same after different moves of its own (prompts of the newest position alone, games that forget on
purpose), its policy cannot tell them apart; a best response can, since it remembers what it saw and did: such a turn is
one information set for each past.

An illegal reply is an end of the game like any other: the offender gets its worst return, the others share the
negation of it.

Axes: `N` nodes, `P` seats, `U` turns and `A` actions of the table, `E` ends: terminal nodes, then every decision node
once for its illegal replies.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from .table import CHANCE, DECISION, TERMINAL, GameTable, tabulate


class ImperfectRecallError(ValueError):
    """A seat's turns do not tell what it did before, so that its best responses cannot be found turn by turn."""


def solvable_table(name: str) -> GameTable | None:
    """The table of the game `name`, where it has one of positions, or one in which every seat has perfect recall: what
    values and best responses are computed on."""
    table = tabulate(name)
    try:
        if table is not None and table.is_tree:
            sequence_form(table)
    except ImperfectRecallError:
        return None
    return table


@dataclass(frozen=True, eq=False)
class _Seat:
    """The decision tree of one seat. Sequence 0 is the empty one; those of an information set are neighbours.

    Args:
        first (`np.ndarray`): `[I + 1]` first sequence of each information set, and the number of all sequences.
        parent (`np.ndarray`): `[I]` the sequence that each information set hangs on.
        infoset (`np.ndarray`): `[sequences]` the information set of each sequence; -1 for the empty one.
        levels (`tuple[tuple[int, int], ...]`): Ranges of information sets with equally many own moves before.
        end_sequence (`np.ndarray`): `[E]` the seat's sequence at each end.
        turn, action, sequence (`np.ndarray`): `[M]` each legal action of each of the seat's turns, and its sequence.
    """

    first: np.ndarray
    parent: np.ndarray
    infoset: np.ndarray
    levels: tuple[tuple[int, int], ...]
    end_sequence: np.ndarray
    turn: np.ndarray
    action: np.ndarray
    sequence: np.ndarray

    def best_value(self, ends: np.ndarray) -> float:
        """Value of a best response, where `ends` (`[sequences]`) is what ends on each sequence."""
        gain = ends.copy()
        for low, high in reversed(self.levels):
            span = slice(self.first[low], self.first[high])
            best = np.maximum.reduceat(gain[span], self.first[low:high] - self.first[low])
            np.add.at(gain, self.parent[low:high], best)
        return float(gain[0])

    def action_values(self, ends: np.ndarray, strategy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Counterfactual values of the sequences and `[I]` of the information sets, where the seat itself goes on
        with `strategy` (`[sequences]`)."""
        gain = ends.copy()
        value = np.zeros(len(self.parent))
        for low, high in reversed(self.levels):
            span = slice(self.first[low], self.first[high])
            value[low:high] = np.add.reduceat(gain[span] * strategy[span], self.first[low:high] - self.first[low])
            np.add.at(gain, self.parent[low:high], value[low:high])
        return gain, value

    def realisation(self, strategy: np.ndarray) -> np.ndarray:
        """`[sequences]` probability that the seat itself plays each sequence."""
        plan = np.ones(len(self.infoset))
        for low, high in self.levels:
            span = slice(self.first[low], self.first[high])
            plan[span] = plan[self.parent[self.infoset[span]]] * strategy[span]
        return plan

    def normalised(self, weights: np.ndarray) -> np.ndarray:
        """`[sequences]` strategy in proportion to `weights`; uniform at information sets without any."""
        sizes = np.diff(self.first)
        totals = np.repeat(np.add.reduceat(weights[1:], self.first[:-1] - 1), sizes)
        strategy = np.ones(len(weights))
        strategy[1:] = np.where(
            totals > 0, weights[1:] / np.where(totals > 0, totals, 1.0), 1 / np.repeat(sizes, sizes)
        )
        return strategy


@dataclass(frozen=True, eq=False)
class SequenceForm:
    """A table prepared for evaluating policies; see [`sequence_form`].

    Args:
        table ([`~spiral_trl.games.table.GameTable`]): The game.
        seats (`tuple[_Seat, ...]`): The decision tree of each seat.
        parent, child, actor (`np.ndarray`): `[N - 1]` edges of the tree from the root down; `actor` is a seat, or `P`
            for chance.
        layers (`tuple[tuple[int, int], ...]`): Ranges of edges of equal depth.
        chance (`np.ndarray`): `[N - 1]` probability of a chance edge, 1 elsewhere.
        decision (`np.ndarray`): Edges that are not chance, with their `edge_turn` and `edge_action`.
        end_node (`np.ndarray`): `[E]` node of each end.
        end_turn (`np.ndarray`): `[E]` turn of an illegal end; -1 at terminal nodes.
        end_seat (`np.ndarray`): `[E]` the offender at an illegal end; -1 at terminal nodes.
        end_returns (`np.ndarray`): `[E, P]` totals.
        remembered (`bool`): Whether every turn tells its seat's own past, so that a policy of the seat is one of its
            decision tree.
    """

    table: GameTable
    seats: tuple[_Seat, ...]
    parent: np.ndarray
    child: np.ndarray
    actor: np.ndarray
    layers: tuple[tuple[int, int], ...]
    chance: np.ndarray
    decision: np.ndarray
    edge_turn: np.ndarray
    edge_action: np.ndarray
    end_node: np.ndarray
    end_turn: np.ndarray
    end_seat: np.ndarray
    end_returns: np.ndarray
    remembered: bool

    def reach(self, probabilities: np.ndarray) -> np.ndarray:
        """`[P + 1, N]` what each seat, and chance in the last row, contributes to the probability of each node.

        `probabilities` (`[U, A]`) are those of every seat's legal actions.
        """
        weight = self.chance.copy()
        weight[self.decision] = probabilities[self.edge_turn, self.edge_action]
        reach = np.ones((self.table.num_players + 1, len(self.table.kind)))
        for low, high in self.layers:
            child = self.child[low:high]
            reach[:, child] = reach[:, self.parent[low:high]]
            reach[self.actor[low:high], child] *= weight[low:high]
        return reach

    def ends(self, seat: int, reach: np.ndarray, illegal: np.ndarray) -> np.ndarray:
        """`[sequences of the seat]` what ends on each of its sequences, weighted by chance and the other seats.

        `illegal` (`[E]`) is 1 at terminal nodes and the probability of an illegal reply elsewhere. The seat's own
        illegal replies are left out: it has none when it responds best.
        """
        others = np.delete(reach[:, self.end_node], seat, axis=0).prod(0)
        weights = others * illegal * self.end_returns[:, seat] * (self.end_seat != seat)
        tree = self.seats[seat]
        return np.bincount(tree.end_sequence, weights, minlength=len(tree.infoset))

    def end_illegal(self, illegal: np.ndarray) -> np.ndarray:
        """`[E]` factor of each end from the illegal mass `[U]` of the turns."""
        return np.where(self.end_turn < 0, 1.0, illegal[self.end_turn])

    def turn_visits(self, probabilities: np.ndarray) -> np.ndarray:
        """`[U]` how often each turn is reached in a game between seats that all follow `probabilities` (`[U, A]`)."""
        asked = self.end_node[self.end_turn >= 0]
        visits = np.zeros(len(self.table.turns))
        np.add.at(visits, self.table.turn[asked], self.reach(probabilities)[:, asked].prod(0))
        return visits

    def evaluate(self, probabilities: np.ndarray, illegal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`[P]` value of the policy for each seat, and `[P]` of a best response of that seat alone.

        `probabilities` (`[U, A]`) and `illegal` (`[U]`) together sum to 1 at each turn. Best responders play legally.
        """
        reach = self.reach(probabilities)
        factor = self.end_illegal(illegal)
        value = (reach[:, self.end_node].prod(0) * factor) @ self.end_returns
        best = [seat.best_value(self.ends(p, reach, factor)) for p, seat in enumerate(self.seats)]
        return value, np.array(best)


@lru_cache(maxsize=32)
def sequence_form(table: GameTable) -> SequenceForm:
    """Prepares `table`, once.

    Turns with equal `infoset` keys are one information set; a turn without a key is one by itself. A turn that reads
    the same after different moves of the seat's own is an information set for each of these pasts.

    Raises:
        [`ImperfectRecallError`]: If different turns of an information set lack perfect recall.
        `ValueError`: If an information set does not have the same actions everywhere, or the nodes of `table` are
            positions.
    """
    if not table.is_tree:
        raise ValueError(f"The nodes of {table.name} are positions, not histories: use position_graph.")
    num_nodes, num_players = len(table.kind), table.num_players
    keys = [(turn.player, ("turn", u) if turn.infoset is None else turn.infoset) for u, turn in enumerate(table.turns)]
    alone = Counter(keys)
    remembered = True
    # Each seat's last (information set, action) at each node; infosets are listed with their parent sequence
    last: list[list[tuple | None]] = [[None] * num_players for _ in range(num_nodes)]
    hangs_on: dict[tuple, tuple | None] = {}
    own_moves: dict[tuple, int] = {}
    actions: dict[tuple, tuple[int, ...]] = {}
    depth = np.zeros(num_nodes, dtype=np.int64)
    edges: list[tuple[int, int, int, int, int, float]] = []  # depth, parent, child, actor, column, chance
    for node in range(num_nodes):  # parents are numbered before their children
        if table.kind[node] == TERMINAL:
            continue
        columns = np.flatnonzero(table.child[node] >= 0)
        seat = num_players
        if table.kind[node] == DECISION:
            seat = int(table.player[node])
            key = keys[table.turn[node]]
            legal = tuple(int(column) for column in columns)
            if alone[key] == 1 and hangs_on.get(key, last[node][seat]) != last[node][seat]:
                remembered, key = False, (*key, last[node][seat])
            if key not in hangs_on:
                hangs_on[key], actions[key] = last[node][seat], legal
                before = last[node][seat]
                own_moves[key] = 0 if before is None else own_moves[before[0]] + 1
            if hangs_on[key] != last[node][seat]:
                raise ImperfectRecallError(
                    f"{table.name} lacks perfect recall: the information set {key[1]!r} of seat {seat} is reached by "
                    "different own moves, so its best responses cannot be found turn by turn."
                )
            if actions[key] != legal:
                raise ValueError(f"{table.name}: the information set {key[1]!r} has different actions in places.")
        chances = table.chance_probabilities(node) if table.kind[node] == CHANCE else None
        for column in columns:
            child = int(table.child[node, column])
            depth[child] = depth[node] + 1
            last[child] = list(last[node])
            if seat < num_players:
                last[child][seat] = (key, int(column))
            edges.append(
                (int(depth[child]), node, child, seat, int(column), 1.0 if chances is None else float(chances[column]))
            )
    edges.sort(key=lambda edge: edge[0])
    layer, parent, child_of, actor, column_of = (np.array([e[i] for e in edges], dtype=np.int64) for i in range(5))
    decision = np.flatnonzero(actor < num_players)

    terminal = np.flatnonzero(table.kind == TERMINAL)
    asked = np.flatnonzero(table.kind == DECISION)
    forfeits = np.empty((num_players, num_players))
    for offender in range(num_players):
        forfeits[offender] = -table.worst_returns[offender] / max(1, num_players - 1)
        forfeits[offender, offender] = table.worst_returns[offender]
    end_node = np.concatenate([terminal, asked])
    nobody = np.full(len(terminal), -1)
    return SequenceForm(
        table=table,
        seats=tuple(
            _seat(seat, table, keys, hangs_on, own_moves, actions, [last[node][seat] for node in end_node])
            for seat in range(num_players)
        ),
        parent=parent,
        child=child_of,
        actor=actor,
        layers=_ranges(layer),
        chance=np.array([edge[5] for edge in edges]),
        decision=decision,
        edge_turn=table.turn[parent[decision]],
        edge_action=column_of[decision],
        end_node=end_node,
        end_turn=np.concatenate([nobody, table.turn[asked]]),
        end_seat=np.concatenate([nobody, table.player[asked]]),
        end_returns=np.concatenate([table.returns[terminal], forfeits[table.player[asked]]]),
        remembered=remembered,
    )


def _seat(
    seat: int,
    table: GameTable,
    keys: list[tuple],
    hangs_on: dict[tuple, tuple | None],
    own_moves: dict[tuple, int],
    actions: dict[tuple, tuple[int, ...]],
    end_last: list[tuple | None],
) -> _Seat:
    infosets = sorted((key for key in hangs_on if key[0] == seat), key=lambda key: own_moves[key])
    number: dict[tuple | None, int] = {None: 0}
    first, owner = [1], [-1]
    for i, key in enumerate(infosets):
        for column in actions[key]:
            number[key, column] = len(owner)
            owner.append(i)
        first.append(len(owner))
    moves = [
        (u, column, number[key, column]) for u, key in enumerate(keys) if key[0] == seat for column in actions[key]
    ]
    turn, action, sequence = np.array(moves, dtype=np.int64).reshape(-1, 3).T
    return _Seat(
        first=np.array(first, dtype=np.int64),
        parent=np.array([number[hangs_on[key]] for key in infosets], dtype=np.int64),
        infoset=np.array(owner, dtype=np.int64),
        levels=_ranges(np.array([own_moves[key] for key in infosets], dtype=np.int64)),
        end_sequence=np.array([number[sequence] for sequence in end_last], dtype=np.int64),
        turn=turn,
        action=action,
        sequence=sequence,
    )


def _ranges(sorted_labels: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Start and end of each run of equal labels."""
    if not len(sorted_labels):
        return ()
    cuts = [0, *(np.flatnonzero(np.diff(sorted_labels)) + 1).tolist(), len(sorted_labels)]
    return tuple(pairwise(cuts))


def solve(table: GameTable, tolerance: float = 1e-4, max_iterations: int = 5_000) -> np.ndarray:
    """`[U, A]` an equilibrium of a two-player zero-sum game, by CFR+ (Tammelin, 2014).

    Regret matching+ with alternating updates and linearly weighted averages, until the exploitability of the average
    is at most `tolerance` times the range of the returns.

    Args:
        table ([`~spiral_trl.games.table.GameTable`]): The game.
        tolerance (`float`, *optional*, defaults to `1e-4`): Exploitability allowed, relative to the returns' range.
        max_iterations (`int`, *optional*, defaults to `5_000`): When to give up.

    Raises:
        `ValueError`: If the game is not zero-sum between two players, a turn does not tell its seat's own past, or
            `max_iterations` do not suffice.
    """
    form = sequence_form(table)
    if not form.remembered:
        raise ValueError(f"{table.name} does not tell its players what they did before, as CFR+ needs.")
    if table.num_players != 2 or np.abs(form.end_returns.sum(1)).max() > 1e-9:
        raise ValueError(f"{table.name} is no zero-sum game of two players, for which alone CFR+ is an equilibrium.")
    aim = tolerance * float(np.ptp(form.end_returns))
    no_illegal = np.zeros(len(table.turns))
    factor = form.end_illegal(no_illegal)
    regret = [np.zeros(len(seat.infoset)) for seat in form.seats]
    total = [np.zeros(len(seat.infoset)) for seat in form.seats]
    current = _as_table(form, [seat.normalised(weights) for seat, weights in zip(form.seats, regret, strict=True)])
    for iteration in range(1, max_iterations + 1):
        for p, seat in enumerate(form.seats):
            strategy = seat.normalised(regret[p])
            total[p] += iteration * seat.realisation(strategy)
            gain, value = seat.action_values(form.ends(p, form.reach(current), factor), strategy)
            regret[p][1:] = np.maximum(regret[p][1:] + gain[1:] - value[seat.infoset[1:]], 0.0)
            current[seat.turn, seat.action] = seat.normalised(regret[p])[seat.sequence]
        if iteration % 25 == 0:
            average = _as_table(form, [seat.normalised(t) for seat, t in zip(form.seats, total, strict=True)])
            value, best = form.evaluate(average, no_illegal)
            if (best - value).sum() / 2 <= aim:
                return average
    raise ValueError(f"CFR+ did not solve {table.name} to {aim:g} in {max_iterations} iterations.")


def _as_table(form: SequenceForm, strategies: list[np.ndarray]) -> np.ndarray:
    """`[U, A]` from each seat's strategy by sequence."""
    probabilities = np.zeros((len(form.table.turns), len(form.table.actions)))
    for seat, strategy in zip(form.seats, strategies, strict=True):
        probabilities[seat.turn, seat.action] = strategy[seat.sequence]
    return probabilities
