"""A finite game tabulated once through its own text interface, so that thousands of games can be stepped as arrays.

[`tabulate`] plays a game of the registry through `reset`, `turns`, `parse` and `step`, along every combination of
chance and legal actions, and records what it saw. Nothing here knows a rule: a tabulated game is the text game,
remembered, and [`~spiral_trl.rollout.play`] gives equal episodes either way (a test holds this).

A node is a history, and the table a tree. Where a game has perfect information and no chance, and its prompts depend
on the position alone, a node is a position, which many histories may come to: tic-tac-toe has 549,946 histories and
5,478 positions. Boards that mirror each other stay apart, since a model may treat them differently.

Nodes are numbered from the root, node 0. `kind[node]` says what a node is:

- `DECISION`: one seat is asked; `turn[node]` is the index into `turns` of what it is asked. Turns that read alike to a
  seat (same messages, legal actions and information set) share one index: a policy cannot tell them apart.
- `CHANCE`: a random choice; `cdf[node]` is the cumulative distribution over its children.
- `TERMINAL`: the game is over; `returns[node]` holds its totals.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import pyspiel

from ..records import Ending, Turn
from .base import Game
from .chance import uniforms
from .registry import make_game
from .solver_state import SolverState


DECISION, CHANCE, TERMINAL = 0, 1, 2

# Random games in which the prompts of a graph of positions are compared with the game's own
_TRIALS = 64


@dataclass(frozen=True, eq=False)
class GameTable:
    """The whole of a small sequential game. `N` nodes, `U` distinct turns, `A` actions, `P` players.

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


@lru_cache(maxsize=32)
def tabulate(name: str, max_nodes: int = 20_000) -> GameTable | None:
    """The table of the game `name`, or `None` where it cannot have one.

    `None` is answered for games with simultaneous turns, with free-text actions, or with more than `max_nodes` nodes.
    Every node is reached by replaying the game from its start, so no game has to know how to copy itself.
    """
    positions = _positions(name, max_nodes)
    if positions is not None:
        return _assemble(make_game(name), positions, is_tree=False)
    root = _histories(name, max_nodes)
    return None if root is None else _assemble(make_game(name), _preorder(root), is_tree=True)


@dataclass(eq=False)
class _Node:
    """A node while the game is explored. `children` by action at decision nodes, by outcome at chance nodes."""

    kind: int
    turn: Turn | None = None
    game: Game | None = None
    probabilities: tuple[float, ...] = ()
    returns: tuple[float, ...] | None = None
    truncated: bool = False
    children: dict[str | int, _Node] = field(default_factory=dict)


def _node(game: Game | _Branch) -> _Node | None:
    """Where the game stands; `None` where no table can hold it."""
    if isinstance(game, _Branch):
        return _Node(CHANCE, probabilities=game.probabilities)
    asked = game.turns()
    if not asked:
        return _Node(TERMINAL, returns=game.returns(), truncated=game.ending is Ending.TRUNCATED)
    if len(asked) > 1 or asked[0].legal_actions is None:
        return None
    return _Node(DECISION, asked[0], game)


def _reads(turn: Turn) -> tuple:
    """All that a policy can know of a turn."""
    messages = tuple((message["role"], message["content"]) for message in turn.messages)
    return (turn.player, messages, turn.legal_actions, turn.infoset)


def _histories(name: str, max_nodes: int) -> _Node | None:
    """The tree of a game's histories."""
    root: _Node | None = None
    count = 0
    # Breadth first, so that a game with too many nodes is given up after short replays
    queue: deque[tuple[tuple[int, ...], tuple[tuple[int, str], ...], _Node | None, str | int]] = deque(
        [((), (), None, -1)]
    )
    while queue:
        script, played, parent, column = queue.popleft()
        count += 1
        node = _node(_replay(name, script, played))
        if node is None or count + len(queue) > max_nodes:
            return None
        if parent is None:
            root = node
        else:
            parent.children[column] = node
        if node.kind == CHANCE:
            for outcome, probability in enumerate(node.probabilities):
                if probability > 0:
                    queue.append(((*script, outcome), played, node, outcome))
        elif node.turn is not None:
            for action in node.turn.legal_actions or ():
                queue.append((script, (*played, (node.turn.player, action)), node, action))
    return root


def _preorder(root: _Node) -> list[_Node]:
    """A tree's nodes, each before its children and they before its next sibling."""
    nodes, stack = [], [root]
    while stack:
        node = stack.pop()
        nodes.append(node)
        stack.extend(reversed(node.children.values()))
    return nodes


def _positions(name: str, max_nodes: int) -> list[_Node] | None:
    """A game's positions by ply, or `None` where its prompts do not depend on the position alone.

    Whether two histories came to one position is OpenSpiel's word for it: the same board, the same seat to move. The
    prompts have to agree with it at every move of the graph: the same prompt at the same position, different ones at
    different positions. Then random games compare the game's own prompts and returns with the graph's, on histories
    along which the graph was not built.
    """
    root = _node(_replay(name, (), ()))
    if root is None or not _may_have_positions(root, max_nodes):
        return None
    nodes = [root]
    layer: list[tuple[_Node, tuple[tuple[int, str], ...]]] = [(root, ())]
    texts: dict[tuple, tuple[str, int]] = {}
    earlier: set[tuple[str, int]] = set()
    while layer:
        following: dict[tuple[str, int], tuple[_Node, tuple[tuple[int, str], ...]]] = {}
        for node, played in layer:
            assert node.turn is not None
            solver, player = node.turn.state, node.turn.player
            assert isinstance(solver, SolverState)
            for action in node.turn.legal_actions or ():
                history = (*played, (player, action))
                after = solver.state.child(solver.actions[action])
                position = (str(after), after.current_player())
                child = _node(_replay(name, (), history))
                if child is None or position in earlier or not _stands_at(child, after):
                    return None
                if child.turn is not None and texts.setdefault(_reads(child.turn), position) != position:
                    return None
                known = following.setdefault(position, (child, history))[0]
                if not _alike(known, child):
                    return None
                node.children[action] = known
        earlier.update(following)
        nodes += [node for node, _ in following.values()]
        if len(nodes) > max_nodes:
            return None
        layer = [(node, history) for node, history in following.values() if node.kind == DECISION]
    return nodes if all(_plays_as_built(name, root, trial) for trial in range(_TRIALS)) else None


def _may_have_positions(root: _Node, max_nodes: int) -> bool:
    """Whether OpenSpiel knows the game as one of perfect information, without chance, with few positions."""
    solver = root.turn.state if root.turn is not None else None
    if not isinstance(solver, SolverState) or solver.part is not None:
        return False
    kind = solver.state.get_game().get_type()
    if (
        kind.information != pyspiel.GameType.Information.PERFECT_INFORMATION
        or kind.chance_mode != pyspiel.GameType.ChanceMode.DETERMINISTIC
        or kind.dynamics != pyspiel.GameType.Dynamics.SEQUENTIAL
    ):
        return False
    # Counted by OpenSpiel before a game is replayed for every move
    seen: set[tuple[str, int]] = set()
    layer = [solver.state]
    while layer and len(seen) <= max_nodes:
        following: dict[tuple[str, int], pyspiel.State] = {}
        for state in layer:
            for action in state.legal_actions():
                after = state.child(action)
                following.setdefault((str(after), after.current_player()), after)
            if len(following) > max_nodes:
                return False
        if not seen.isdisjoint(following):
            return False  # positions come back, so plies do not order them
        seen.update(following)
        layer = [state for state in following.values() if not state.is_terminal()]
    return len(seen) <= max_nodes


def _stands_at(node: _Node, state: pyspiel.State) -> bool:
    """Whether the game stands where OpenSpiel's game does."""
    if node.turn is None:
        return bool(state.is_terminal())
    return (
        isinstance(node.turn.state, SolverState)
        and node.turn.player == state.current_player()
        and str(node.turn.state.state) == str(state)
    )


def _alike(one: _Node, other: _Node) -> bool:
    if one.turn is None or other.turn is None:
        return (one.turn, one.returns, one.truncated) == (other.turn, other.returns, other.truncated)
    return _reads(one.turn) == _reads(other.turn)


def _plays_as_built(name: str, root: _Node, trial: int) -> bool:
    """Whether a random game reads at every turn what the graph holds, and ends as it does."""
    game = make_game(name)
    game.reset(trial)
    node, index = root, 0
    while (here := _node(game)) is not None and _alike(node, here):
        if here.turn is None:
            return True
        legal = here.turn.legal_actions or ()
        action = legal[int(uniforms(trial, index) * len(legal))]
        game.step({here.turn.player: action})
        node, index = node.children[action], index + 1
    return False


def _assemble(probe: Game, nodes: Sequence[_Node], is_tree: bool) -> GameTable:
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
        key = _reads(node.turn)
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
    )
