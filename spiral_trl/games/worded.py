"""OpenSpiel's sequential games of two players in words of our own: rules, chance and payoffs are OpenSpiel's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import lru_cache

import pyspiel

from ..records import Parsed
from .sequential import SequentialGame
from .solver_state import SolverState


@lru_cache(maxsize=64)
def _load(game: str) -> pyspiel.Game:
    return pyspiel.load_game(game)


class WordedGame(SequentialGame[pyspiel.State]):
    """A sequential game that follows one of OpenSpiel. Subclasses give the words.

    Each chance node of OpenSpiel is one choice among the outcomes that are possible there.

    Args:
        name (`str`): Canonical name.
        spiel (`str`): The OpenSpiel game, with its parameters.
        worst_returns (`tuple[float, float]`): The lowest return of each seat.
        solvable (`bool`, *optional*, defaults to `True`): Whether OpenSpiel's payoffs are those played, so that turns
            carry a [`~spiral_trl.games.solver_state.SolverState`].
    """

    def __init__(self, name: str, spiel: str, worst_returns: tuple[float, float], solvable: bool = True):
        super().__init__(name)
        self.worst_returns = worst_returns
        self._spiel = _load(spiel)
        self._solvable = solvable
        self._dealt: list[int] = []  # outcomes of chance
        self._rounds: list[list[tuple[int, str]]] = [[]]  # (seat, action), apart where chance came between
        self._actions: Mapping[str, int] = {}

    @abstractmethod
    def _word(self, state: pyspiel.State, action: int) -> str:
        """What we call OpenSpiel's `action` at `state`."""

    def _deal(self) -> None:
        self._dealt = []
        self._rounds = [[]]
        self._go_on(self._spiel.new_initial_state())

    def _go_on(self, state: pyspiel.State) -> None:
        """Lets chance move until a seat is asked or the game is over."""
        if state.is_chance_node() and self._rounds[-1]:
            self._rounds.append([])
        while state.is_chance_node():
            outcomes = state.chance_outcomes()
            outcome = outcomes[self._chance.choose([probability for _, probability in outcomes])][0]
            self._dealt.append(outcome)
            state = state.child(outcome)
        if state.is_terminal():
            self._end(self._totals(state))
        else:
            self._position = state
            self._actions = {self._word(state, action): action for action in state.legal_actions()}

    def _mover(self, position: pyspiel.State) -> int:
        return int(position.current_player())

    def _legal(self, position: pyspiel.State) -> Mapping[str, int]:
        return self._actions

    def _attached(self, position: pyspiel.State, player: int) -> SolverState | None:
        # A step makes a new state and a new dictionary of actions, so both may be handed out
        return SolverState(position, self._actions) if self._solvable else None

    def _read(self, position: pyspiel.State, text: str) -> Parsed:
        return super()._read(position, self._readable(text))

    def _readable(self, text: str) -> str:
        """`text` with other spellings of actions put into ours."""
        return text

    def _play(self, position: pyspiel.State, player: int, action: str) -> None:
        self._rounds[-1].append((player, action))
        self._go_on(position.child(self._actions[action]))

    def _totals(self, end: pyspiel.State) -> list[float]:
        """What each seat gets: OpenSpiel's returns."""
        return list(end.returns())
