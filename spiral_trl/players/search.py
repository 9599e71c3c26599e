"""Players that search: exact minimax for small games, Monte Carlo tree search for larger ones.

Both play games of perfect information that attach a [`~spiral_trl.games.solver_state.SolverState`].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyspiel

from ..games.chance import REPLY, hash_bits
from ..games.solver_state import SolverState
from ..records import Reply, Turn
from .bots import PolicyPlayer


_MAX_POSITIONS = 50_000


class MinimaxPlayer(PolicyPlayer):
    """Plays uniformly among the moves of the best value, computed once for all positions of a game.

    It plays sequential two-player zero-sum OpenSpiel games of perfect information without chance that have at most
    50,000 positions, such as tic-tac-toe (5,478). Others are a `ValueError`. In a match it plays each part by itself.
    """

    name = "minimax"

    def check(self, turn: Turn) -> None:
        """Raises `ValueError` where this player cannot play the turn's game."""
        self._solution(turn)

    def action_values(self, turn: Turn) -> dict[str, float]:
        """The return of the seat that is asked, after each legal action and best play by both."""
        attached, values = self._solution(turn)
        sign = -1.0 if attached.state.current_player() else 1.0
        return {
            action: sign * values[_key(attached.state.child(number))] for action, number in attached.actions.items()
        }

    def action_probabilities(self, turn: Turn) -> dict[str, float]:
        """Equal probabilities for the moves of the best value, 0 for the others."""
        after = self.action_values(turn)
        best = max(after.values())
        count = sum(value == best for value in after.values())
        return {action: 1 / count if value == best else 0.0 for action, value in after.items()}

    def _solution(self, turn: Turn) -> tuple[SolverState, dict[tuple[int, str], float]]:
        attached = _attached(self.name, turn)
        solved = position_values(str(attached.state.get_game()))
        if isinstance(solved, str):
            raise ValueError(f"{self.name} cannot play {turn.game}: {solved}")
        return attached, solved


class MCTSPlayer:
    """Plays by OpenSpiel's Monte Carlo tree search with random rollouts (UCT; Kocsis and Szepesvari, 2006).

    It plays sequential OpenSpiel games of perfect information whose payoffs come at the end, chance included if its
    probabilities are known, such as Connect Four and Pig. Others are a `ValueError`. A reply depends on the position,
    the seed of the game and the index of the turn alone.

    Args:
        simulations (`int`, *optional*, defaults to `100`): Simulations for each move.
        uct_c (`float`, *optional*, defaults to `2.0`): Weight of exploration.
        rollouts (`int`, *optional*, defaults to `1`): Random games that evaluate each new position.
    """

    # Every reply is a search of its own
    speculative = False

    def __init__(self, simulations: int = 100, uct_c: float = 2.0, rollouts: int = 1):
        for name, value in (("simulations", simulations), ("rollouts", rollouts)):
            if value < 1:
                raise ValueError(f"{name} of mcts must be at least 1, not {value}")
        if not 0 <= uct_c < float("inf"):
            raise ValueError(f"uct_c of mcts must be a number from 0, not {uct_c}")
        self.simulations = simulations
        self.uct_c = uct_c
        self.rollouts = rollouts
        others = (f",uct_c={uct_c:g}" if uct_c != 2 else "") + (f",rollouts={rollouts}" if rollouts != 1 else "")
        self.name = f"mcts(simulations={simulations}{others})"

    def check(self, turn: Turn) -> None:
        """Raises `ValueError` where this player cannot play the turn's game."""
        reason = _not_searchable(str(_attached(self.name, turn).state.get_game()))
        if reason:
            raise ValueError(f"{self.name} cannot play {turn.game}: {reason}")

    def reply(self, turns: Sequence[Turn]) -> list[Reply]:
        """One reply for each turn, such as `[x to b2]`."""
        return [Reply(text=f"[{self._choose(turn, turn.seed, turn.index)}]") for turn in turns]

    def sample(
        self, turns: Sequence[Turn], which: np.ndarray, seeds: np.ndarray, index: np.ndarray
    ) -> tuple[list[Reply], np.ndarray]:
        """Replies for many games that stand at few distinct turns; see [`~spiral_trl.players.base.Player`]."""
        found: dict[tuple[int, str], int] = {}
        chosen = np.empty(len(which), dtype=np.int64)
        for game, (row, seed, at) in enumerate(zip(which.tolist(), seeds.tolist(), index.tolist(), strict=True)):
            action = self._choose(turns[row], seed, at)
            chosen[game] = found.setdefault((row, action), len(found))
        return [Reply(text=f"[{action}]") for _, action in found], chosen

    def _choose(self, turn: Turn, seed: int, index: int) -> str:
        number = self._bot(turn, seed, index).step(_attached(self.name, turn).state)
        return next(action for action, other in _attached(self.name, turn).actions.items() if other == number)

    def search(self, turn: Turn, seed: int, index: int) -> pyspiel.SearchNode:
        """The root of the search tree of a turn; what is played is its best child. After one simulation it has none.

        Args:
            turn ([`~spiral_trl.records.Turn`]): The turn; its own seed and index are ignored.
            seed (`int`): Seed of the game.
            index (`int`): How many turns of the game came before.
        """
        return self._bot(turn, seed, index).mcts_search(_attached(self.name, turn).state)

    def _bot(self, turn: Turn, seed: int, index: int) -> pyspiel.MCTSBot:
        self.check(turn)
        # Bots take seeds of 31 bits
        bits = int(hash_bits(seed, REPLY, index)) & (2**31 - 1)
        return pyspiel.MCTSBot(
            _attached(self.name, turn).state.get_game(),
            pyspiel.RandomRolloutEvaluator(self.rollouts, bits),
            self.uct_c,
            self.simulations,
            _MEMORY_MB,
            True,  # proven wins and losses are not simulated again
            bits,
            False,
        )


# Bound of a search tree, which has at most simulations x legal moves nodes of about 100 bytes
_MEMORY_MB = 1000


def _attached(player: str, turn: Turn) -> SolverState:
    if not isinstance(turn.state, SolverState):
        raise ValueError(f"{player} cannot play {turn.game}: no OpenSpiel game has its rules and payoffs")
    return turn.state


@lru_cache(maxsize=64)
def _not_searchable(game: str) -> str | None:
    """Why tree search cannot play an OpenSpiel game, or `None` where it can."""
    kind = pyspiel.load_game(game).get_type()
    if kind.dynamics != pyspiel.GameType.Dynamics.SEQUENTIAL:
        return "its players move at once"
    if kind.information != pyspiel.GameType.Information.PERFECT_INFORMATION:
        return "it has hidden information, which tree search would look at; use cfr where it is small enough"
    if kind.chance_mode == pyspiel.GameType.ChanceMode.SAMPLED_STOCHASTIC:
        return "the probabilities of its chance are not known"
    if kind.reward_model != pyspiel.GameType.RewardModel.TERMINAL:
        return "it pays before its end"
    return None


def _key(state: pyspiel.State) -> tuple[int, str]:
    return state.current_player(), str(state)


@lru_cache(maxsize=8)
def position_values(game: str) -> dict[tuple[int, str], float] | str:
    """The value for player 0 of every position of an OpenSpiel game under best play, or why there is none.

    Positions are told apart by the seat that moves and by their text, so that move orders which lead to the same
    board are one position. Where such move orders leave different moves or payoffs, as repetition rules do, or where
    a position can recur, the game is refused.

    Args:
        game (`str`): The OpenSpiel game as a string, such as `tic_tac_toe()`.
    """
    loaded = pyspiel.load_game(game)
    kind = loaded.get_type()
    if (
        loaded.num_players() != 2
        or kind.utility != pyspiel.GameType.Utility.ZERO_SUM
        or kind.dynamics != pyspiel.GameType.Dynamics.SEQUENTIAL
    ):
        return "it is not a sequential two-player zero-sum game"
    if kind.information != pyspiel.GameType.Information.PERFECT_INFORMATION:
        return "it has hidden information; use cfr where it is small enough"
    if kind.chance_mode != pyspiel.GameType.ChanceMode.DETERMINISTIC:
        return "it has chance, which minimax does not average over; use mcts"

    values: dict[tuple[int, str], float] = {}
    # What was found where a position was met first: its legal moves, or its payoffs at the end
    seen: dict[tuple[int, str], tuple] = {}

    def meet(state: pyspiel.State) -> tuple[tuple[int, str], bool, bool]:
        """The key of a position, whether it is new, and whether it was met in the same form before."""
        key = _key(state)
        end = state.is_terminal()
        found = (end, *(state.returns() if end else state.legal_actions()))
        if key in seen:
            return key, False, seen[key] == found
        seen[key] = found
        if end:
            values[key] = float(state.returns()[0])
        return key, True, True

    root = loaded.new_initial_state()
    # Each entry: a position, its key, the moves not followed yet, and the values that the others led to
    path = [(root, meet(root)[0], list(root.legal_actions()), list[float]())]
    while path:
        state, key, moves, after = path[-1]
        if not moves:
            if not after:
                return "it has a position without moves that is not its end"
            values[key] = min(after) if state.current_player() else max(after)
            path.pop()
            if path:
                path[-1][3].append(values[key])
            continue
        child = state.child(moves.pop())
        child_key, new, alike = meet(child)
        if not alike:
            return "the same board allows different moves by how it was reached; use mcts"
        if child_key in values:
            after.append(values[child_key])
        elif not new:
            return "its positions can recur; use mcts"
        elif len(seen) > _MAX_POSITIONS:
            return f"it has more than {_MAX_POSITIONS:,} positions; use mcts"
        else:
            path.append((child, child_key, list(child.legal_actions()), []))
    return values
