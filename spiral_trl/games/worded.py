"""OpenSpiel's sequential games of two players in words of our own: rules, chance and payoffs are OpenSpiel's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache

import pyspiel

from ..records import Ending, Message, Parsed, Turn
from .chance import Chance, SeededChance
from .parsing import parse_action
from .solver_state import SolverState


ROLES = ("player 0", "player 1")


@lru_cache(maxsize=64)
def _load(game: str) -> pyspiel.Game:
    return pyspiel.load_game(game)


class WordedGame(ABC):
    """A [`~spiral_trl.games.base.Game`] that follows an OpenSpiel game. Subclasses give the words.

    Each chance node of OpenSpiel is one choice among the outcomes that are possible there.

    Args:
        name (`str`): Canonical name.
        spiel (`str`): The OpenSpiel game, with its parameters.
        worst_returns (`tuple[float, float]`): The lowest return of each seat.
        solvable (`bool`, *optional*, defaults to `True`): Whether OpenSpiel's payoffs are those played, so that turns
            carry a [`~spiral_trl.games.solver_state.SolverState`].
    """

    num_players = 2
    roles: tuple[str, ...] = ROLES

    def __init__(self, name: str, spiel: str, worst_returns: tuple[float, float], solvable: bool = True):
        self.name = name
        self.worst_returns: tuple[float, ...] = worst_returns
        self.ending: Ending | None = None
        self._spiel = _load(spiel)
        self._solvable = solvable
        self._seed = 0
        self._index = 0
        self._chance: Chance = SeededChance(0)
        self._state: pyspiel.State | None = None
        self._dealt: list[int] = []  # outcomes of chance
        self._rounds: list[list[tuple[int, str]]] = [[]]  # (seat, action), apart where chance came between
        self._actions: dict[str, int] = {}

    @abstractmethod
    def _word(self, state: pyspiel.State, action: int) -> str:
        """What we call OpenSpiel's `action` at `state`."""

    @abstractmethod
    def _infoset(self, player: int) -> str:
        """Key of the information set of the seat that is asked."""

    @abstractmethod
    def _observation(self, player: int, legal: tuple[str, ...]) -> str:
        """What the seat that is asked reads."""

    def reset(self, seed: int, chance: Chance | None = None) -> None:
        """Deals."""
        self._seed = seed
        self._index = 0
        self._chance = SeededChance(seed) if chance is None else chance
        self.ending = None
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
        self._state = state
        if state.is_terminal():
            self.ending = Ending.TERMINAL
            self._actions = {}
        else:
            self._actions = {self._word(state, action): action for action in state.legal_actions()}

    def _asked(self) -> tuple[pyspiel.State, int]:
        """Where the game stands and the seat that moves."""
        if self._state is None or self.ending is not None:
            raise ValueError(
                f"{self.name}: nobody is asked; {'the game is over' if self.ending else 'reset it first'}"
            )
        return self._state, self._state.current_player()

    def turns(self) -> Sequence[Turn]:
        """The seat to move, or nobody once the game is over."""
        if self.ending is not None:
            return ()
        state, player = self._asked()
        legal = tuple(self._actions)
        message: Message = {"role": "user", "content": self._observation(player, legal)}
        return (
            Turn(
                game=self.name,
                episode=0,
                seed=self._seed,
                index=self._index,
                player=player,
                role=ROLES[player],
                messages=(message,),
                legal_actions=legal,
                infoset=self._infoset(player),
                # A step makes a new state and a new dictionary of actions, so both may be handed out
                state=SolverState(state, self._actions) if self._solvable else None,
            ),
        )

    def parse(self, player: int, text: str) -> Parsed:
        """The action that `text` names for the seat that is asked."""
        _, asked = self._asked()
        if player != asked:
            raise ValueError(f"{self.name}: player {asked} is asked, not player {player}")
        return parse_action(self._readable(text), tuple(self._actions))

    def _readable(self, text: str) -> str:
        """`text` with other spellings of actions put into ours."""
        return text

    def step(self, actions: Mapping[int, str]) -> None:
        """Plays the action of the seat that is asked."""
        state, player = self._asked()
        if list(actions) != [player] or actions[player] not in self._actions:
            raise ValueError(
                f"{self.name}: player {player} may play {' or '.join(self._actions)}, not {dict(actions)}"
            )
        self._index += 1
        self._rounds[-1].append((player, actions[player]))
        self._go_on(state.child(self._actions[actions[player]]))

    def returns(self) -> tuple[float, ...]:
        """OpenSpiel's returns."""
        if self._state is None or self.ending is None:
            raise ValueError(f"{self.name}: the game is not over")
        return tuple(float(value) for value in self._state.returns())


def action_request(listed: str, example: str) -> str:
    """The last line of a prompt: what may be chosen and how to write it."""
    return (
        f"It is your turn. Choose {listed}. End your reply with exactly one action in square brackets, "
        f"for example [{example}]; \\boxed{{{example}}} is accepted too."
    )
