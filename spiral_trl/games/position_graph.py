"""Values and best responses on a graph of positions: what [`~spiral_trl.games.sequence_form`] is for trees.

Where nodes are positions of a game of perfect information (see [`~spiral_trl.games.table`]), a best response needs no
memory: what it is worth at a position depends on the position alone, however the game came there. So values are
computed once for each position from the last ply up, all positions of a ply together. Tic-tac-toe takes milliseconds,
where its tree of 549,946 histories takes a hundred times as long.

An illegal reply is an end of the game: the offender gets its worst return, the others share the negation of it.

Axes: `N` positions, `P` seats, `U` turns and `A` actions of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .table import DECISION, TERMINAL, GameTable


@dataclass(frozen=True, eq=False)
class PositionGraph:
    """A table of positions prepared for evaluating policies; see [`position_graph`].

    Args:
        table ([`~spiral_trl.games.table.GameTable`]): The game.
        plies (`tuple[np.ndarray, ...]`): Positions of each ply at which a seat is asked.
        legal (`np.ndarray`): `[N, A]` which actions are legal; none at the end of the game.
        child (`np.ndarray`): `[N, A]` the next position; 0 where an action is not legal.
        forfeits (`np.ndarray`): `[P, P]` returns by offender.
    """

    table: GameTable
    plies: tuple[np.ndarray, ...]
    legal: np.ndarray
    child: np.ndarray
    forfeits: np.ndarray

    def evaluate(self, probabilities: np.ndarray, illegal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`[P]` value of the policy for each seat, and `[P]` of a best response of that seat alone.

        `probabilities` (`[U, A]`) and `illegal` (`[U]`) together sum to 1 at each turn. Best responders play legally.
        """
        value, best = self._ends(), self._ends()  # (N, P)
        for at in reversed(self.plies):
            turn, seat, child = self.table.turn[at], self.table.player[at], self.child[at]
            weight = probabilities[turn][:, None]  # (n, 1, A)
            forfeit = illegal[turn, None] * self.forfeits[seat]  # (n, P)
            value[at] = (weight @ value[child])[:, 0] + forfeit
            after = best[child]  # (n, A, P)
            best[at] = (weight @ after)[:, 0] + forfeit
            own = np.take_along_axis(after, seat[:, None, None], axis=2)[..., 0]
            best[at, seat] = np.where(self.legal[at], own, -np.inf).max(1)
        return value[0], best[0]

    def turn_visits(self, probabilities: np.ndarray) -> np.ndarray:
        """`[U]` how often each turn is reached in a game between seats that all follow `probabilities` (`[U, A]`)."""
        reached = np.zeros(len(self.table.kind))
        reached[0] = 1.0
        for at in self.plies:
            np.add.at(reached, self.child[at], reached[at, None] * probabilities[self.table.turn[at]])
        visits = np.zeros(len(self.table.turns))
        for at in self.plies:
            visits[self.table.turn[at]] = reached[at]
        return visits

    def perfect_play(self) -> np.ndarray:
        """`[N, P]` returns from each position where every seat plays best for itself from there on.

        Where seats of a game of three or more are indifferent, they take the first of their best actions.
        """
        value = self._ends()
        for at in reversed(self.plies):
            best = self._own(at, value).argmax(1)
            value[at] = value[self.child[at, best]]
        return value

    def action_values(self) -> np.ndarray:
        """`[U, A]` what each action is worth to the seat that is asked, if every seat plays best after it; minus
        infinity where it is not legal."""
        value = self.perfect_play()
        worth = np.full((len(self.table.turns), len(self.table.actions)), -np.inf)
        for at in self.plies:
            worth[self.table.turn[at]] = self._own(at, value)
        return worth

    def _own(self, at: np.ndarray, value: np.ndarray) -> np.ndarray:
        """`[n, A]` value of each action at positions `at` for the seat that is asked there."""
        own = np.take_along_axis(value[self.child[at]], self.table.player[at, None, None], axis=2)[..., 0]
        return np.where(self.legal[at], own, -np.inf)

    def _ends(self) -> np.ndarray:
        """`[N, P]` returns where the game is over, 0 elsewhere."""
        return np.where(self.table.kind[:, None] == TERMINAL, self.table.returns, 0.0)


@lru_cache(maxsize=32)
def position_graph(table: GameTable) -> PositionGraph:
    """Prepares `table`, once.

    Raises:
        `ValueError`: If the nodes of `table` are histories.
    """
    if table.is_tree:
        raise ValueError(f"The nodes of {table.name} are histories, not positions: use sequence_form.")
    child = table.child[:, : len(table.actions)]
    plies = []
    layer = np.array([0])
    while len(layer):
        layer = layer[table.kind[layer] == DECISION]
        plies.append(layer)
        layer = np.unique(child[layer])
        layer = layer[layer >= 0]
    num_players = table.num_players
    forfeits = np.empty((num_players, num_players))
    for offender in range(num_players):
        forfeits[offender] = -table.worst_returns[offender] / max(1, num_players - 1)
        forfeits[offender, offender] = table.worst_returns[offender]
    return PositionGraph(table, tuple(plies), child >= 0, np.maximum(child, 0), forfeits)
