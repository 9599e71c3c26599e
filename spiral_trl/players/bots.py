"""Players that are no language model: uniformly random, and equilibrium play.

Each is a policy: a probability for every legal action of a turn. What it plays is drawn from the game's seed and the
turn's index alone, so that a game is the same whichever others are played beside it.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import pyspiel

from ..games import sequence_form
from ..games.base import ActionSampler
from ..games.chance import REPLY, uniforms
from ..games.solver_state import SolverState
from ..games.table import tabulate
from ..records import Reply, Turn


logger = logging.getLogger(__name__)

# Positions of the draws that a game's own sampler gets
_SAMPLER_DRAWS = np.arange(8)


class PolicyPlayer(ABC):
    """A player that a distribution over legal actions defines. Replies are the bare action, such as `[bet]`.

    Subclasses give `name` and `action_probabilities`.
    """

    name: str
    speculative = True

    @abstractmethod
    def action_probabilities(self, turn: Turn) -> dict[str, float]:
        """Probability of each legal action, in the order of `turn.legal_actions`."""

    def reply(self, turns: Sequence[Turn]) -> list[Reply]:
        """One reply for each turn."""
        seeds = np.array([turn.seed for turn in turns], dtype=np.int64)
        index = np.array([turn.index for turn in turns], dtype=np.int64)
        replies, which = self.sample(turns, np.arange(len(turns)), seeds, index)
        return [replies[i] for i in which]

    def sample(
        self, turns: Sequence[Turn], which: np.ndarray, seeds: np.ndarray, index: np.ndarray
    ) -> tuple[list[Reply], np.ndarray]:
        """Replies for many games that stand at few distinct turns; see [`~spiral_trl.players.base.Player`]."""
        policies = [self.action_probabilities(turn) for turn in turns]
        width = max((len(policy) for policy in policies), default=0)
        # (U, A): infinity past a turn's last outcome but one, so that a draw never counts it.
        inner = np.full((len(turns), width), np.inf)
        total = np.zeros(len(turns))
        for row, policy in enumerate(policies):
            cdf = _cumulative(tuple(policy.values()))
            inner[row, : len(cdf) - 1] = cdf[:-1]
            total[row] = cdf[-1]
        draws = uniforms(seeds, REPLY, index, 0) * total[which]  # (B,)
        action = (inner[which] <= draws[:, None]).sum(1)  # (B,)
        used, chosen = np.unique(which * width + action, return_inverse=True)
        replies = []
        for code in used.tolist():
            row, column = divmod(code, width)
            replies.append(Reply(text=f"[{list(policies[row])[column]}]"))
        return replies, chosen


@lru_cache(maxsize=4096)
def _cumulative(probabilities: tuple[float, ...]) -> np.ndarray:
    """Cumulative sums. Remembered: few distributions occur over and over, above all uniform ones."""
    return np.cumsum(probabilities)


class RandomPlayer(PolicyPlayer):
    """Plays every legal action with equal probability.

    In games with free-text actions it plays what the turn's [`~spiral_trl.games.base.ActionSampler`] draws, which need
    not be uniform.
    """

    name = "random"

    def action_probabilities(self, turn: Turn) -> dict[str, float]:
        """Equal probabilities. Games with free-text actions have no list to choose from: `ValueError`."""
        if not turn.legal_actions:
            raise ValueError(f"{self.name} cannot play {turn.game}: its actions are free text")
        return dict.fromkeys(turn.legal_actions, 1 / len(turn.legal_actions))

    def sample(
        self, turns: Sequence[Turn], which: np.ndarray, seeds: np.ndarray, index: np.ndarray
    ) -> tuple[list[Reply], np.ndarray]:
        """Replies for many games that stand at few distinct turns; see [`~spiral_trl.players.base.Player`]."""
        samplers = {
            row: turn.state
            for row, turn in enumerate(turns)
            if turn.legal_actions is None and isinstance(turn.state, ActionSampler)
        }
        if not samplers:
            return super().sample(turns, which, seeds, index)
        chosen = np.empty(len(which), dtype=np.int64)
        free = np.isin(which, list(samplers))
        listed = [row for row in range(len(turns)) if row not in samplers]
        replies, chosen[~free] = super().sample(
            [turns[row] for row in listed], np.searchsorted(listed, which[~free]), seeds[~free], index[~free]
        )
        known: dict[tuple[int, str], int] = {}
        for game in np.flatnonzero(free).tolist():
            row = int(which[game])
            action = samplers[row].sample_action(uniforms(seeds[game], REPLY, index[game], _SAMPLER_DRAWS).tolist())
            if (row, action) not in known:
                known[row, action] = len(replies)
                replies.append(Reply(text=f"[{action}]"))
            chosen[game] = known[row, action]
        return replies, chosen


class CFRPlayer(PolicyPlayer):
    """Plays an equilibrium of a two-player zero-sum game: the average policy of CFR+ (Tammelin, 2014), solved once
    per game.

    1. Where the game's turns carry a [`~spiral_trl.games.solver_state.SolverState`] of the whole game, OpenSpiel solves
       it: see [`solve`] for the games it can.
    2. Elsewhere the game's own table is solved, where it has one in which every seat has perfect recall: see
       [`~spiral_trl.games.sequence_form.solve`]. So `kuhn_poker(rules=spiral)`, `kuhn_poker(cards=5)` and whole matches
       of two hands are played.
    3. Of a longer match whose turns carry the state of one hand, it plays each hand by the equilibrium of a single
       hand, and logs so. That is an equilibrium of the match where hands add up (`payoff=chips`); where only the sign
       of the total counts it need not be one.

    Any other game is a `ValueError` that says why.
    """

    name = "cfr"

    def __init__(self) -> None:
        self._announced: set[str] = set()

    def check(self, turn: Turn) -> None:
        """Raises `ValueError` where this player cannot play the turn's game."""
        self._solution(turn)

    def action_probabilities(self, turn: Turn) -> dict[str, float]:
        """Equilibrium probability of each legal action."""
        probabilities, part = self._solution(turn)
        if part is not None and turn.game not in self._announced:
            self._announced.add(turn.game)
            logger.warning("%s plays each %s of %s by the equilibrium of one", self.name, part, turn.game)
        return probabilities

    def _solution(self, turn: Turn) -> tuple[dict[str, float], str | None]:
        """Probability of each legal action, and of what part of the game they are an equilibrium, if not of the
        whole."""
        attached = turn.state if isinstance(turn.state, SolverState) else None
        try:
            if turn.legal_actions is None:
                raise ValueError("its actions are free text")
            if attached is None:
                return dict(solve_table(turn.game)[_table_key(turn)]), None
            if attached.part is not None:
                try:
                    return dict(solve_table(turn.game)[_table_key(turn)]), None
                except ValueError:
                    pass  # the part alone is solved
            policy, _ = solve(str(attached.state.get_game()))
        except ValueError as error:
            raise ValueError(f"{self.name} cannot play {turn.game}: {error}") from None
        probabilities = policy.action_probabilities(attached.state)
        return {action: float(probabilities[number]) for action, number in attached.actions.items()}, attached.part


def _table_key(turn: Turn) -> tuple:
    """What a seat knows at `turn`, and who it is."""
    if turn.infoset is not None:
        return turn.player, turn.infoset
    return turn.player, tuple((message["role"], message["content"]) for message in turn.messages), turn.legal_actions


@lru_cache(maxsize=32)
def _solve_table(game: str) -> Mapping[tuple, Mapping[str, float]] | str:
    """[`solve_table`], or why it cannot: a reason is remembered as well as a solution."""
    table = tabulate(game)
    if table is None:
        return (
            "no OpenSpiel game has its rules and payoffs, and it has no table to solve (too large, free text, or "
            "several seats asked at once)"
        )
    try:
        policy = sequence_form.solve(table)
    except ValueError as error:
        return str(error).rstrip(".")
    columns = {action: column for column, action in enumerate(table.actions)}
    return {
        _table_key(turn): {action: float(policy[u, columns[action]]) for action in turn.legal_actions or ()}
        for u, turn in enumerate(table.turns)
    }


def solve_table(game: str) -> Mapping[tuple, Mapping[str, float]]:
    """An equilibrium of the table of a game: the probability of each legal action, by seat and information set.

    Its exploitability is at most 1e-4 of the range of the returns.

    Raises:
        `ValueError`: If the game has no table, a seat lacks perfect recall, or it is no two-player zero-sum game.
    """
    solution = _solve_table(game)
    if isinstance(solution, str):
        raise ValueError(solution)
    return solution


_MAX_HISTORIES = 100_000
_TARGET = 1e-4
_WORK = 4_000_000


@lru_cache(maxsize=8)
def solve(game: str) -> tuple[pyspiel.Policy, float]:
    """An equilibrium policy of an OpenSpiel game and its exploitability in the game's units (NashConv / 2).

    CFR+ runs until the exploitability is 1e-4, or until iterations x histories reach four million, whichever is
    first: 0.03 s for Kuhn poker, some seconds for Leduc poker. The amount of work, not of time, is bounded, so that
    the answer is the same on every machine.

    Args:
        game (`str`): The OpenSpiel game as a string, such as `kuhn_poker()`.
    """
    loaded = pyspiel.load_game(game)
    kind = loaded.get_type()
    if (
        loaded.num_players() != 2
        or kind.utility != pyspiel.GameType.Utility.ZERO_SUM
        or kind.dynamics != pyspiel.GameType.Dynamics.SEQUENTIAL
        or kind.chance_mode == pyspiel.GameType.ChanceMode.SAMPLED_STOCHASTIC
    ):
        raise ValueError("it is not a sequential two-player zero-sum game with explicit chance")
    if (
        kind.information == pyspiel.GameType.Information.PERFECT_INFORMATION
        and kind.chance_mode == pyspiel.GameType.ChanceMode.DETERMINISTIC
    ):
        # CFR learns nothing where it does not go: at a position it would play by how the game came there
        raise ValueError("it is a game of perfect information without chance; use minimax or mcts")
    histories = _count_histories(loaded)
    if histories > _MAX_HISTORIES:
        raise ValueError(f"it has more than {_MAX_HISTORIES:,} histories")
    solver = pyspiel.CFRPlusSolver(loaded)
    iterations = 0
    block = 50
    while True:
        for _ in range(block):
            solver.evaluate_and_update_policy()
        iterations += block
        policy = solver.tabular_average_policy()
        exploitability = float(pyspiel.exploitability(loaded, policy))
        if exploitability <= _TARGET or iterations * histories >= _WORK:
            return policy, exploitability
        block = iterations


def _count_histories(game: pyspiel.Game) -> int:
    """Histories of the game, counted until they are too many."""
    count = 0
    stack = [game.new_initial_state()]
    while stack and count <= _MAX_HISTORIES:
        state = stack.pop()
        count += 1
        if not state.is_terminal():
            stack.extend(state.child(action) for action in state.legal_actions())
    return count
