"""Players that are no language model: uniformly random, and equilibrium play computed by OpenSpiel.

Each is a policy: a probability for every legal action of a turn. What it plays is drawn from the game's seed and the
turn's index alone, so that a game is the same whichever others are played beside it.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyspiel

from ..games.chance import REPLY, uniforms
from ..games.solver_state import SolverState
from ..records import Reply, Turn


logger = logging.getLogger(__name__)


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
    """Plays every legal action with equal probability."""

    name = "random"

    def action_probabilities(self, turn: Turn) -> dict[str, float]:
        """Equal probabilities. Games with free-text actions have no list to choose from: `ValueError`."""
        if not turn.legal_actions:
            raise ValueError(f"{self.name} cannot play {turn.game}: its actions are free text")
        return dict.fromkeys(turn.legal_actions, 1 / len(turn.legal_actions))


class CFRPlayer(PolicyPlayer):
    """Plays an equilibrium: the average policy of OpenSpiel's CFR+ (Tammelin, 2014), solved once per game.

    It plays games that attach a [`~spiral_trl.games.solver_state.SolverState`] of a sequential two-player zero-sum
    OpenSpiel game with explicit chance and at most 100,000 histories. Others are a `ValueError`, such as
    `kuhn_poker(rules=spiral)`, where OpenSpiel's rules are not those played, and games of perfect information without
    chance, which minimax plays.

    Of a match it plays each hand by the equilibrium of a single hand, and logs so. That is an equilibrium of the
    match where hands add up (`payoff=chips`); where only the sign of the total counts it need not be one.
    """

    name = "cfr"

    def __init__(self) -> None:
        self._announced: set[str] = set()

    def action_probabilities(self, turn: Turn) -> dict[str, float]:
        """Equilibrium probability of each legal action."""
        attached = turn.state
        if not isinstance(attached, SolverState):
            raise ValueError(f"{self.name} cannot play {turn.game}: no OpenSpiel game has its rules and payoffs")
        if attached.part is not None and turn.game not in self._announced:
            self._announced.add(turn.game)
            logger.warning("%s plays each %s of %s by the equilibrium of one", self.name, attached.part, turn.game)
        try:
            policy, _ = solve(str(attached.state.get_game()))
        except ValueError as error:
            raise ValueError(f"{self.name} cannot play {turn.game}: {error}") from None
        probabilities = policy.action_probabilities(attached.state)
        return {action: float(probabilities[number]) for action, number in attached.actions.items()}


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
        raise ValueError(f"{game} is not a sequential two-player zero-sum game with explicit chance")
    if (
        kind.information == pyspiel.GameType.Information.PERFECT_INFORMATION
        and kind.chance_mode == pyspiel.GameType.ChanceMode.DETERMINISTIC
    ):
        # CFR learns nothing where it does not go: at a position it would play by how the game came there
        raise ValueError(f"{game} is a game of perfect information without chance; use minimax or mcts")
    histories = _count_histories(loaded)
    if histories > _MAX_HISTORIES:
        raise ValueError(f"{game} has more than {_MAX_HISTORIES:,} histories")
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
