"""A finite game tabulated once through its own text interface, so that thousands of games can be stepped as arrays.

[`tabulate`] plays a game of the registry through `reset`, `turns`, `parse` and `step`, along every combination of
chance and legal actions, and records what it saw. Nothing here knows a rule: a tabulated game is the text game,
remembered, and [`~spiral_trl.rollout.play`] gives equal episodes either way (a test holds this).

Nodes are numbered from the root, node 0. `kind[node]` says what a node is:

- `DECISION`: one seat is asked; `turn[node]` is the index into `turns` of what it is asked. Turns that read alike to a
  seat (same messages, legal actions and information set) share one index: a policy cannot tell them apart.
- `CHANCE`: a random choice; `cdf[node]` is the cumulative distribution over its children.
- `TERMINAL`: the game is over; `returns[node]` holds its totals.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ..records import Ending, Turn
from .base import Game
from .registry import make_game


DECISION, CHANCE, TERMINAL = 0, 1, 2


@dataclass(frozen=True, eq=False)
class GameTable:
    """The whole tree of a small sequential game. `N` nodes, `U` distinct turns, `A` actions, `P` players.

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

    def chance_probabilities(self, node: int) -> np.ndarray:
        """`[outcomes]` probabilities at a chance node."""
        return np.diff(self.cdf[node], prepend=0.0)


class _Branch(Exception):
    """Raised by [`_ScriptedChance`] where the script ends: the game stands at a chance node."""

    def __init__(self, probabilities: Sequence[float]):
        self.probabilities = tuple(float(p) for p in probabilities)


class _ScriptedChance:
    """Chance that follows a script of outcomes and stops the game where the script ends."""

    def __init__(self, script: Sequence[int]):
        self.script = list(script)
        self.count = 0

    def choose(self, probabilities: Sequence[float]) -> int:
        if self.count == len(self.script):
            raise _Branch(probabilities)
        self.count += 1
        return self.script[self.count - 1]


def _replay(name: str, script: Sequence[int], actions: Sequence[tuple[int, str]]) -> Game | _Branch:
    """The game after `actions` under scripted chance, or the chance node it stopped at."""
    game = make_game(name)
    try:
        game.reset(0, chance=_ScriptedChance(script))
        for player, action in actions:
            game.step({player: action})
    except _Branch as branch:
        return branch
    return game


# Nodes near the root that are counted before a table is begun
_COUNTED_AHEAD = 4_000


def _surely_larger(name: str, max_nodes: int) -> bool:
    """Whether the nodes near the root alone show that there are more than `max_nodes`.

    [`tabulate`] goes depth first. In a game of long lines it would replay thousands of them before it gives up.
    """
    queue: deque[tuple[tuple[int, ...], tuple[tuple[int, str], ...]]] = deque([((), ())])
    found = 1
    for _ in range(_COUNTED_AHEAD):
        if not queue or found > max_nodes:
            break
        script, played = queue.popleft()
        game = _replay(name, script, played)
        if isinstance(game, _Branch):
            below = [((*script, i), played) for i, p in enumerate(game.probabilities) if p > 0]
        else:
            asked = game.turns()
            below = [
                (script, (*played, (turn.player, action)))
                for turn in (asked if len(asked) == 1 else ())
                for action in turn.legal_actions or ()
            ]
        found += len(below)
        queue.extend(below)
    return found > max_nodes


@lru_cache(maxsize=32)
def tabulate(name: str, max_nodes: int = 20_000) -> GameTable | None:
    """The table of the game `name`, or `None` where it cannot have one.

    `None` is answered for games with simultaneous turns, with free-text actions, or with more than `max_nodes` nodes.
    Every node is reached by replaying the game from its start, so no game has to know how to copy itself.
    """
    probe = make_game(name)
    if _surely_larger(name, max_nodes):
        return None
    turns: dict[tuple, int] = {}
    distinct: list[Turn] = []
    standing: list[Game] = []
    actions: dict[str, int] = {}
    kind: list[int] = []
    turn_of: list[int] = []
    player_of: list[int] = []
    children: list[dict[int, int]] = []
    chance: list[tuple[float, ...]] = []
    returns: list[tuple[float, ...] | None] = []
    truncated: list[bool] = []
    depth = 0

    # (chance script, actions, parent, column in the parent)
    stack: list[tuple[tuple[int, ...], tuple[tuple[int, str], ...], int, int]] = [((), (), -1, -1)]
    while stack:
        script, played, parent, column = stack.pop()
        node = len(kind)
        if node >= max_nodes:
            return None
        if parent >= 0:
            children[parent][column] = node
        game = _replay(name, script, played)
        children.append({})
        if isinstance(game, _Branch):
            kind.append(CHANCE)
            turn_of.append(-1)
            player_of.append(-1)
            chance.append(game.probabilities)
            returns.append(None)
            truncated.append(False)
            for outcome in reversed(range(len(game.probabilities))):
                if game.probabilities[outcome] > 0:
                    stack.append(((*script, outcome), played, node, outcome))
            continue
        asked = game.turns()
        chance.append(())
        if not asked:
            kind.append(TERMINAL)
            turn_of.append(-1)
            player_of.append(-1)
            returns.append(game.returns())
            truncated.append(game.ending is Ending.TRUNCATED)
            depth = max(depth, len(played))
            continue
        if len(asked) > 1 or asked[0].legal_actions is None:
            return None
        turn = replace(asked[0], episode=0, seed=0, index=0)
        messages = tuple((message["role"], message["content"]) for message in turn.messages)
        key = (turn.player, messages, turn.legal_actions, turn.infoset)
        if key not in turns:
            turns[key] = len(distinct)
            distinct.append(turn)
            standing.append(game)
        kind.append(DECISION)
        turn_of.append(turns[key])
        player_of.append(turn.player)
        returns.append(None)
        truncated.append(False)
        for action in reversed(turn.legal_actions or ()):
            actions.setdefault(action, len(actions))
            stack.append((script, (*played, (turn.player, action)), node, actions[action]))

    size = len(kind)
    width = max([len(actions), *(len(row) for row in chance)])
    child = np.full((size, width), -1, dtype=np.int64)
    cdf = np.zeros((size, max([1, *(len(row) for row in chance)])))
    totals = np.full((size, probe.num_players), np.nan)
    for node in range(size):
        for column, target in children[node].items():
            child[node, column] = target
        if chance[node]:
            # Past its outcomes a row stays at its own total, which rounding may keep from 1
            cdf[node] = np.cumsum(chance[node])[-1]
            cdf[node, : len(chance[node])] = np.cumsum(chance[node])
        row = returns[node]
        if row is not None:
            totals[node] = row
    return GameTable(
        name=probe.name,
        num_players=probe.num_players,
        roles=probe.roles,
        worst_returns=probe.worst_returns,
        actions=tuple(actions),
        turns=tuple(distinct),
        games=tuple(standing),
        kind=np.array(kind),
        turn=np.array(turn_of),
        player=np.array(player_of),
        child=child,
        cdf=cdf,
        returns=totals,
        truncated=np.array(truncated),
        depth=depth,
    )
