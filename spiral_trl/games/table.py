"""A finite game tabulated once through its own text interface, so that thousands of games can be stepped as arrays.

[`tabulate`] plays a game of the registry through `reset`, `turns`, `parse` and `step`, along every combination of
chance and legal actions, and records what it saw. Nothing here knows a rule: a tabulated game is the text game,
remembered, and [`~spiral_trl.rollout.play`] gives equal episodes either way (a test holds this).

A node is a history, and the table a tree. Where a game has perfect information and no chance, and its prompts depend
on the position alone, a node is a position, which many histories may come to: tic-tac-toe has 549,946 histories and
5,478 positions. Boards that mirror each other stay apart, since a model may treat them differently.

Seats that are asked at the same time stand one below the other in the tree: each is asked what the game asks it, which
tells nothing of the others' choice. Values and best responses are those of the simultaneous game.

Nodes are numbered from the root, node 0. `kind[node]` says what a node is:

- `DECISION`: a seat is asked; `turn[node]` is the index into `turns` of what it is asked. Turns that read alike to a
  seat (same messages, legal actions and information set) share one index: a policy cannot tell them apart.
- `CHANCE`: a random choice; `cdf[node]` is the cumulative distribution over its children.
- `TERMINAL`: the game is over; `returns[node]` holds its totals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ..records import Turn
from .base import Game
from .explore import CHANCE, DECISION, TERMINAL, Node, histories, positions, reads
from .registry import make_game


__all__ = ["CHANCE", "DECISION", "TERMINAL", "GameTable", "tabulate"]


@dataclass(frozen=True, eq=False)
class GameTable:
    """The whole of a small game. `N` nodes, `U` distinct turns, `A` actions, `P` players.

    Args:
        name (`str`): Canonical name of the game.
        num_players (`int`): Number of seats.
        roles (`tuple[str, ...]`): Name of each seat.
        worst_returns (`tuple[float, ...]`): What each seat forfeits by an illegal reply.
        actions (`tuple[str, ...]`): Every action of the game; a column of `child` each.
        turns (`tuple[Turn, ...]`): `U` distinct turns (episode, seed and index are 0 and mean nothing).
        games (`tuple[Game, ...]`): `U` games, each standing at its turn: `games[u].parse` reads replies to `turns[u]`.
        kind (`np.ndarray`): `[N]` one of `DECISION`, `CHANCE`, `TERMINAL`.
        turn (`np.ndarray`): `[N]` index into `turns` at decision nodes, else -1.
        player (`np.ndarray`): `[N]` seat asked at decision nodes, else -1.
        child (`np.ndarray`): `[N, max(A, outcomes)]` next node: by action at decision nodes, by outcome at chance
            nodes; -1 where there is none.
        cdf (`np.ndarray`): `[N, outcomes]` cumulative chance probabilities at chance nodes; rows of zero elsewhere.
        returns (`np.ndarray`): `[N, P]` totals at terminal nodes, NaN elsewhere.
        truncated (`np.ndarray`): `[N]` whether a terminal node ends by the game's own turn limit.
        depth (`int`): Most turns a game can have.
        is_tree (`bool`): Whether nodes are histories. Otherwise they are positions in the order of their ply, each
            decision with a turn of its own.
        simultaneous (`bool`): Whether seats are asked at the same time anywhere. Such games are played as text.
    """

    name: str
    num_players: int
    roles: tuple[str, ...]
    worst_returns: tuple[float, ...]
    actions: tuple[str, ...]
    turns: tuple[Turn, ...]
    games: tuple[Game, ...]
    kind: np.ndarray
    turn: np.ndarray
    player: np.ndarray
    child: np.ndarray
    cdf: np.ndarray
    returns: np.ndarray
    truncated: np.ndarray
    depth: int
    is_tree: bool = True
    simultaneous: bool = False

    def chance_probabilities(self, node: int) -> np.ndarray:
        """`[outcomes]` probabilities at a chance node."""
        return np.diff(self.cdf[node], prepend=0.0)


@lru_cache(maxsize=32)
def tabulate(name: str, max_nodes: int = 30_000) -> GameTable | None:
    """The table of the game `name`, or `None` where it cannot have one: a game with free-text actions, or with more than
    `max_nodes` nodes.

    A node is reached from the point before where the game can copy itself
    ([`~spiral_trl.games.base.CopyableGame`]), else by replaying the game from its start.

    Raises:
        [`~spiral_trl.errors.PlayError`]: If the game's code raises.
    """
    found = positions(name, max_nodes)
    if found is not None:
        return _assemble(make_game(name), found, is_tree=False)
    nodes = histories(name, max_nodes)
    return None if nodes is None else _assemble(make_game(name), nodes, is_tree=True)


def _assemble(probe: Game, nodes: Sequence[Node], is_tree: bool) -> GameTable:
    """The arrays of `nodes`, in their order."""
    number = {id(node): i for i, node in enumerate(nodes)}
    turns: dict[tuple, int] = {}
    distinct: list[Turn] = []
    standing: list[Game] = []
    actions: dict[str, int] = {}
    turn_of = np.full(len(nodes), -1, dtype=np.int64)
    player_of = np.full(len(nodes), -1, dtype=np.int64)
    totals = np.full((len(nodes), probe.num_players), np.nan)
    plies = np.zeros(len(nodes), dtype=np.int64)
    for i, node in enumerate(nodes):
        plies[[number[id(child)] for child in node.children.values()]] = plies[i] + (node.kind == DECISION)
        if node.returns is not None:
            totals[i] = node.returns
        if node.turn is None or node.game is None:
            continue
        key = reads(node.turn)
        if key not in turns:
            turns[key] = len(distinct)
            distinct.append(replace(node.turn, episode=0, seed=0, index=0))
            standing.append(node.game)
        turn_of[i], player_of[i] = turns[key], node.turn.player
        for action in reversed(node.turn.legal_actions or ()):
            actions.setdefault(action, len(actions))
    outcomes = max(len(node.probabilities) for node in nodes)
    child = np.full((len(nodes), max(len(actions), outcomes)), -1, dtype=np.int64)
    cdf = np.zeros((len(nodes), max(1, outcomes)))
    for i, node in enumerate(nodes):
        for column, target in node.children.items():
            child[i, actions[column] if isinstance(column, str) else column] = number[id(target)]
        if node.kind == CHANCE:
            # Past its outcomes a row stays at its own total, which rounding may keep from 1
            cdf[i] = np.cumsum(node.probabilities)[-1]
            cdf[i, : len(node.probabilities)] = np.cumsum(node.probabilities)
    return GameTable(
        name=probe.name,
        num_players=probe.num_players,
        roles=probe.roles,
        worst_returns=probe.worst_returns,
        actions=tuple(actions),
        turns=tuple(distinct),
        games=tuple(standing),
        kind=np.array([node.kind for node in nodes]),
        turn=turn_of,
        player=player_of,
        child=child,
        cdf=cdf,
        returns=totals,
        truncated=np.array([node.truncated for node in nodes]),
        depth=int(plies.max()),
        is_tree=is_tree,
        simultaneous=any(node.asked > 1 for node in nodes),
    )
