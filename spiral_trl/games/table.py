"""A finite game tabulated once through its own text interface, so that thousands of games can be stepped as arrays.

[`tabulate`] plays a game of the registry through `reset`, `turns`, `parse` and `step`, along every combination of
chance and legal actions, and records what it saw. Nothing here knows a rule: a tabulated game is the text game,
remembered, and [`~spiral_trl.rollout.play`] gives equal episodes either way (a test holds this).

Seats that are asked at the same time stand one below the other in the tree: each is asked what the game asks it, which
tells nothing of the others' choice. Values and best responses are those of the simultaneous game.

Nodes are numbered from the root, node 0. `kind[node]` says what a node is:

- `DECISION`: a seat is asked; `turn[node]` is the index into `turns` of what it is asked. Turns that read alike to a
  seat (same messages, legal actions and information set) share one index: a policy cannot tell them apart.
- `CHANCE`: a random choice; `cdf[node]` is the cumulative distribution over its children.
- `TERMINAL`: the game is over; `returns[node]` holds its totals.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from ..records import Ending, Turn
from .base import CopyableGame, Game
from .chance import Chance
from .registry import make_game


DECISION, CHANCE, TERMINAL = 0, 1, 2

# Random walks that look whether a game is too large; evidence at which it is taken to be, or looking ends; most that
# one walk may find, in units of the largest table.
_WALKS = 64
_EVIDENCE = 1e6
_DOUBT = 1e-3
_MOST = 100.0


@dataclass(frozen=True, eq=False)
class GameTable:
    """The whole tree of a small game. `N` nodes, `U` distinct turns, `A` actions, `P` players.

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
    simultaneous: bool = False

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


@dataclass(frozen=True, eq=False)
class _Path:
    """How a point of the game is come to: from a start, by scripted chance and the actions of each point on the way."""

    start: Callable[[Chance], Game]
    script: tuple[int, ...] = ()
    played: tuple[Mapping[int, str], ...] = ()

    def follow(self) -> Game | _Branch:
        """The game at its end, or the chance node it stopped at."""
        try:
            game = self.start(_ScriptedChance(self.script))
            for actions in self.played:
                game.step(actions)
        except _Branch as branch:
            return branch
        return game

    def after(self, game: Game, actions: Mapping[int, str]) -> _Path:
        """The path that goes on with `actions` from `game`, which stands at its end."""
        if isinstance(game, CopyableGame):
            return _Path(game.copy, (), (actions,))
        return _Path(self.start, self.script, (*self.played, actions))


def _fresh(name: str, chance: Chance) -> Game:
    game = make_game(name)
    game.reset(0, chance=chance)
    return game


@lru_cache(maxsize=32)
def tabulate(name: str, max_nodes: int = 30_000) -> GameTable | None:
    """The table of the game `name`, or `None` where it cannot have one.

    `None` is answered for games with free-text actions or with more than `max_nodes` nodes. A node is reached from the
    point before where the game can copy itself ([`~spiral_trl.games.base.CopyableGame`]), else by replaying the game
    from its start.
    """
    probe = make_game(name)
    if _has_no_table(name, max_nodes):
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
    simultaneous = False

    # (path, the game at its end once it is known, what seats asked there have chosen, turns before, parent, column)
    stack: list[tuple[_Path, Game | None, dict[int, str], int, int, int]] = [
        (_Path(partial(_fresh, name)), None, {}, 0, -1, -1)
    ]
    while stack:
        path, known, chosen, before, parent, column = stack.pop()
        node = len(kind)
        if node >= max_nodes:
            return None
        if parent >= 0:
            children[parent][column] = node
        game = path.follow() if known is None else known
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
                    further = replace(path, script=(*path.script, outcome))
                    stack.append((further, None, {}, before, node, outcome))
            continue
        asked = game.turns()
        chance.append(())
        if not asked:
            kind.append(TERMINAL)
            turn_of.append(-1)
            player_of.append(-1)
            returns.append(game.returns())
            truncated.append(game.ending is Ending.TRUNCATED)
            depth = max(depth, before)
            continue
        simultaneous |= len(asked) > 1
        turn = replace(asked[len(chosen)], episode=0, seed=0, index=0)
        if turn.legal_actions is None:
            return None
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
        for action in reversed(turn.legal_actions):
            actions.setdefault(action, len(actions))
            now = {**chosen, turn.player: action}
            if len(now) < len(asked):
                stack.append((path, game, now, before + 1, node, actions[action]))
            else:
                stack.append((path.after(game, now), None, {}, before + 1, node, actions[action]))

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
        simultaneous=simultaneous,
    )


def _has_no_table(name: str, max_nodes: int) -> bool:
    """Whether a few walks find free-text actions, or evidence that the game has more than `max_nodes` nodes.

    A random walk that multiplies the numbers of branches that it passes, and adds up these products, estimates the
    number of nodes without bias (Knuth, 1975). In a game of at most `max_nodes` nodes the mean of `nodes / max_nodes`
    is at most 1, so the product of `(1 + nodes / max_nodes) / 2` over walks ever exceeds `_EVIDENCE` in less than one
    of a million such games (Ville's inequality).
    """
    evidence = 1.0
    for seed in range(_WALKS):
        walk = _Walk(seed)
        game = _fresh(name, walk)
        while walk.nodes < _MOST * max_nodes and (asked := game.turns()):
            chosen = {}
            for turn in asked:
                if turn.legal_actions is None:
                    return True
                chosen[turn.player] = turn.legal_actions[walk.pick(len(turn.legal_actions))]
            game.step(chosen)
        evidence *= (1 + min(_MOST, walk.nodes / max_nodes)) / 2
        if not _DOUBT < evidence < _EVIDENCE:
            break
    return evidence >= _EVIDENCE


class _Walk:
    """A random walk down the tree: chance and players branch alike. `nodes` estimates how many nodes the tree has."""

    def __init__(self, seed: int):
        self._rng = random.Random(seed)
        self._branches = 1
        self.nodes = 1

    def pick(self, branches: int) -> int:
        self._branches *= branches
        self.nodes += self._branches
        return self._rng.randrange(branches)

    def choose(self, probabilities: Sequence[float]) -> int:
        possible = [outcome for outcome, probability in enumerate(probabilities) if probability > 0]
        return possible[self.pick(len(possible))]
