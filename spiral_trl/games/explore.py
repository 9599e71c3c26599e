"""Explores a small game through its own text interface: all its histories, or the positions that they come to.

Nothing here knows a rule. What it finds becomes the arrays of a [`~spiral_trl.games.table.GameTable`].
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import pyspiel

from ..errors import game_failed
from ..records import Ending, Turn
from .base import CopyableGame, Game
from .chance import Chance, uniforms
from .registry import make_game
from .solver_state import SolverState


DECISION, CHANCE, TERMINAL = 0, 1, 2

# Random games in which the prompts of a graph of positions are compared with the game's own
_TRIALS = 64

# Random walks that look whether a game is too large; evidence at which it is taken to be, or looking ends; most that
# one walk may find, in units of the largest table.
_WALKS = 64
_EVIDENCE = 1e6
_DOUBT = 1e-3
_MOST = 100.0


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


@contextmanager
def _code_of(name: str, moves: Sequence[Mapping[int, str]]) -> Iterator[None]:
    """Around calls of a game's own code.

    Raises:
        [`~spiral_trl.errors.PlayError`]: If it raises.
    """
    try:
        yield
    except Exception as error:
        told = ", ".join(f"player {seat}: {action}" for actions in moves for seat, action in actions.items())
        raise game_failed(f"{name}, while its positions were listed,", error, told or "none") from error


@dataclass(frozen=True, eq=False)
class _Path:
    """How a point of the game is come to: from a start, by scripted chance and the actions of each point on the way.
    `before` are the actions that led to the start."""

    start: Callable[[Chance], Game]
    script: tuple[int, ...] = ()
    played: tuple[Mapping[int, str], ...] = ()
    before: tuple[Mapping[int, str], ...] = ()

    @property
    def moves(self) -> tuple[Mapping[int, str], ...]:
        """All actions from the start of the game."""
        return (*self.before, *self.played)

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
            return _Path(game.copy, (), (actions,), self.moves)
        return _Path(self.start, self.script, (*self.played, actions))


def _fresh(name: str, chance: Chance) -> Game:
    game = make_game(name)
    game.reset(0, chance=chance)
    return game


@dataclass(eq=False)
class Node:
    """A point of the game. `children` by action at decision nodes, by outcome at chance nodes. `asked` seats are asked at
    the same time; each has a node, one below the other."""

    kind: int
    turn: Turn | None = None
    game: Game | None = None
    asked: int = 1
    probabilities: tuple[float, ...] = ()
    returns: tuple[float, ...] | None = None
    truncated: bool = False
    children: dict[str | int, Node] = field(default_factory=dict)


def _node(game: Game | _Branch, chosen: int = 0) -> Node | None:
    """Where the game stands, after `chosen` of the seats asked have chosen; `None` where no table can hold it."""
    if isinstance(game, _Branch):
        return Node(CHANCE, probabilities=game.probabilities)
    asked = game.turns()
    if not asked:
        return Node(TERMINAL, returns=game.returns(), truncated=game.ending is Ending.TRUNCATED)
    if asked[chosen].legal_actions is None:
        return None
    return Node(DECISION, asked[chosen], game, len(asked))


def reads(turn: Turn) -> tuple:
    """All that a policy can know of a turn."""
    messages = tuple((message["role"], message["content"]) for message in turn.messages)
    return (turn.player, messages, turn.legal_actions, turn.infoset)


def histories(name: str, max_nodes: int) -> list[Node] | None:
    """The tree of a game's histories, each node before its children and they before its next sibling."""
    if _has_no_table(name, max_nodes):
        return None
    root: Node | None = None
    count = 0
    # Breadth first, so that a game with too many nodes is given up early. A point that is asked several seats stays
    # `known` until all of them have chosen.
    queue: deque[tuple[_Path, Game | None, dict[int, str], Node | None, str | int]] = deque(
        [(_Path(partial(_fresh, name)), None, {}, None, -1)]
    )
    while queue:
        path, known, chosen, parent, column = queue.popleft()
        count += 1
        with _code_of(name, path.moves):
            game = path.follow() if known is None else known
            node = _node(game, len(chosen))
        if node is None or count + len(queue) > max_nodes:
            return None
        if parent is None:
            root = node
        else:
            parent.children[column] = node
        if node.kind == CHANCE:
            for outcome, probability in enumerate(node.probabilities):
                if probability > 0:
                    queue.append((replace(path, script=(*path.script, outcome)), None, {}, node, outcome))
        elif node.turn is not None and node.game is not None:
            for action in node.turn.legal_actions or ():
                now = {**chosen, node.turn.player: action}
                if len(now) < node.asked:
                    queue.append((path, node.game, now, node, action))
                else:
                    queue.append((path.after(node.game, now), None, {}, node, action))
    return None if root is None else _preorder(root)


def _preorder(root: Node) -> list[Node]:
    """A tree's nodes, each before its children and they before its next sibling."""
    nodes, stack = [], [root]
    while stack:
        node = stack.pop()
        nodes.append(node)
        stack.extend(reversed(node.children.values()))
    return nodes


def positions(name: str, max_nodes: int) -> list[Node] | None:
    """A game's positions by ply, or `None` where its prompts do not depend on the position alone.

    Whether two histories came to one position is OpenSpiel's word for it: the same board, the same seat to move. The
    prompts have to agree with it at every move of the graph: the same prompt at the same position, different ones at
    different positions. Then random games compare the game's own prompts and returns with the graph's, on histories
    along which the graph was not built.
    """
    start = _Path(partial(_fresh, name))
    with _code_of(name, ()):
        root = _node(start.follow())
    if root is None or not _may_have_positions(root, max_nodes):
        return None
    nodes = [root]
    layer = [(root, start)]
    texts: dict[tuple, tuple[str, int]] = {}
    earlier: set[tuple[str, int]] = set()
    while layer:
        following: dict[tuple[str, int], tuple[Node, _Path]] = {}
        for node, path in layer:
            assert node.turn is not None and node.game is not None
            solver, player = node.turn.state, node.turn.player
            assert isinstance(solver, SolverState)
            for action in node.turn.legal_actions or ():
                further = path.after(node.game, {player: action})
                after = solver.state.child(solver.actions[action])
                position = (str(after), after.current_player())
                with _code_of(name, further.moves):
                    child = _node(further.follow())
                if child is None or position in earlier or not _stands_at(child, after):
                    return None
                if child.turn is not None and texts.setdefault(reads(child.turn), position) != position:
                    return None
                known = following.setdefault(position, (child, further))[0]
                if not _alike(known, child):
                    return None
                node.children[action] = known
        earlier.update(following)
        nodes += [node for node, _ in following.values()]
        if len(nodes) > max_nodes:
            return None
        layer = [(node, path) for node, path in following.values() if node.kind == DECISION]
    return nodes if all(_plays_as_built(name, root, trial) for trial in range(_TRIALS)) else None


def _may_have_positions(root: Node, max_nodes: int) -> bool:
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


def _stands_at(node: Node, state: pyspiel.State) -> bool:
    """Whether the game stands where OpenSpiel's game does."""
    if node.turn is None:
        return bool(state.is_terminal())
    return (
        isinstance(node.turn.state, SolverState)
        and node.turn.player == state.current_player()
        and str(node.turn.state.state) == str(state)
    )


def _alike(one: Node, other: Node) -> bool:
    if one.turn is None or other.turn is None:
        return (one.turn, one.returns, one.truncated) == (other.turn, other.returns, other.truncated)
    return reads(one.turn) == reads(other.turn)


def _plays_as_built(name: str, root: Node, trial: int) -> bool:
    """Whether a random game reads at every turn what the graph holds, and ends as it does."""
    game = make_game(name)
    moves: list[Mapping[int, str]] = []
    node = root
    with _code_of(name, moves):
        game.reset(trial)
        while (here := _node(game)) is not None and _alike(node, here):
            if here.turn is None:
                return True
            legal = here.turn.legal_actions or ()
            action = legal[int(uniforms(trial, len(moves)) * len(legal))]
            moves.append({here.turn.player: action})
            game.step(moves[-1])
            node = node.children[action]
    return False


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
        moves: list[Mapping[int, str]] = []
        with _code_of(name, moves):
            game = _fresh(name, walk)
            while walk.nodes < _MOST * max_nodes and (asked := game.turns()):
                chosen = {}
                for turn in asked:
                    if turn.legal_actions is None:
                        return True
                    chosen[turn.player] = turn.legal_actions[walk.pick(len(turn.legal_actions))]
                moves.append(chosen)
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
