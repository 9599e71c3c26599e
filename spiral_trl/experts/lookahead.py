"""What search knows of a position where nothing is hidden: minimax values, visits of a tree, and the line of play."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyspiel

from ..games.base import Game
from ..games.registry import make_game
from ..games.solver_state import SolverState
from ..players.search import MCTSPlayer, MinimaxPlayer
from ..records import Turn
from .analysis import MAX_LINE, Analysis, Move


class MinimaxAnalyst:
    """The value of every action under best play, and the line of play.

    Args:
        player ([`~spiral_trl.players.search.MinimaxPlayer`]): The solver.
    """

    def __init__(self, player: MinimaxPlayer):
        self.player = player
        # Positions recur, whatever the moves that led to them
        self._lines: dict[tuple[str, int, str, str], tuple[tuple[Move, ...] | None, bool]] = {}

    def analyse(self, turn: Turn, action: str) -> Analysis:
        """The analysis of one turn; `ValueError` where the player cannot play its game."""
        values = self.player.action_values(turn)
        probabilities = self.player.action_probabilities(turn)
        attached = turn.state
        assert isinstance(attached, SolverState)
        key = (turn.game, turn.player, str(attached.state), action)
        if key not in self._lines:
            self._lines[key] = _follow(turn, action, self._best)
        line, ends = self._lines[key]
        return Analysis(
            kind="minimax",
            actions=tuple(values),
            probabilities=tuple(probabilities.values()),
            values=tuple(values.values()),
            action=action,
            line=line,
            ends=ends,
            forced=float(attached.state.get_game().max_utility()),
            scope=attached.part or "game",
        )

    def _best(self, turn: Turn) -> str:
        values = self.player.action_values(turn)
        return max(values, key=lambda action: values[action])


class SearchAnalyst:
    """Visits and mean values of a Monte Carlo tree search, and the line most visited.

    A search is one of a game's seed and the turn's index: `analyse` takes them from the turn.

    Args:
        player ([`~spiral_trl.players.search.MCTSPlayer`]): The searcher.
    """

    def __init__(self, player: MCTSPlayer):
        self.player = player

    def analyse(self, turn: Turn, action: str | None = None) -> Analysis:
        """The analysis of one turn; `action`, if given, must be the one the search plays."""
        root = self.player.search(turn, turn.seed, turn.index)
        attached = turn.state
        assert isinstance(attached, SolverState)
        names = {number: name for name, number in attached.actions.items()}
        children = {names[child.action]: child for child in root.children}
        chosen = names[root.best_child().action]
        visits = sum(child.explore_count for child in root.children)
        seat = attached.state.current_player()
        line, ends = self._line(turn, chosen, children[chosen])
        return Analysis(
            kind="search",
            actions=tuple(attached.actions),
            probabilities=tuple(float(name == chosen) for name in attached.actions),
            values=tuple(_mean(children.get(name), seat) for name in attached.actions),
            action=chosen if action is None else action,
            line=line,
            ends=ends,
            visits=tuple(
                children[name].explore_count / visits if name in children and visits else 0.0
                for name in attached.actions
            ),
            scope=attached.part or "game",
        )

    def _line(self, turn: Turn, chosen: str, child: pyspiel.SearchNode) -> tuple[tuple[Move, ...] | None, bool]:
        node = child

        def most_visited(after: Turn) -> str | None:
            nonlocal node
            if not node.children or not isinstance(after.state, SolverState):
                return None
            node = node.best_child()
            return next((name for name, number in after.state.actions.items() if number == node.action), None)

        return _follow(turn, chosen, most_visited)


def _mean(node: pyspiel.SearchNode | None, seat: int) -> float:
    """Mean return of the seat below a node, or the proven one; NaN where the search never went."""
    if node is None:
        return math.nan
    if node.outcome:
        return float(node.outcome[seat])
    return node.total_reward / node.explore_count if node.explore_count else math.nan


def _follow(turn: Turn, action: str, choose: Callable[[Turn], str | None]) -> tuple[tuple[Move, ...] | None, bool]:
    """The moves that `choose` makes after an action, and whether they end the game.

    The game is dealt again and its moves repeated, as only the game knows the words of later turns. Where that is not
    possible, because chance moved or the turn is of a part of a match, the line is not known.
    """
    game = _repeated(turn)
    if game is None:
        return None, False
    game.step({turn.player: action})
    moves: list[Move] = []
    while game.ending is None and len(moves) < MAX_LINE:
        (after,) = game.turns()
        following = choose(after)
        if following is None:
            break
        moves.append(Move("me" if after.player == turn.player else "opponent", following))
        game.step({after.player: following})
    if not moves and game.ending is None:
        return None, False
    return tuple(moves), game.ending is not None


def _repeated(turn: Turn) -> Game | None:
    """A game that stands at `turn`, or `None`."""
    attached = turn.state
    if not isinstance(attached, SolverState) or attached.part is not None:
        return None
    if attached.state.get_game().get_type().chance_mode != pyspiel.GameType.ChanceMode.DETERMINISTIC:
        return None
    game = make_game(turn.game)
    game.reset(turn.seed)
    for number in attached.state.history():
        (before,) = game.turns()
        if not isinstance(before.state, SolverState):
            return None
        names = [name for name, other in before.state.actions.items() if other == number]
        if not names:
            return None
        game.step({before.player: names[0]})
    return game
