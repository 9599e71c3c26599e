"""Games that ask one seat at a time: how a turn is made and misuse is answered, the same in all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from ..records import Ending, Message, Parsed, Turn
from .chance import Chance, SeededChance
from .parsing import how_to_reply, parse_action


ROLES = ("player 0", "player 1")
Position = TypeVar("Position")


class SequentialGame(ABC, Generic[Position]):
    """A [`~spiral_trl.games.base.Game`] that asks one seat at a time. Subclasses give rules and words.

    They keep in `_position` where the game stands. What a turn holds of it must not change later, so they replace it
    rather than change it.

    Args:
        name (`str`): Canonical name.
    """

    num_players: int = 2
    roles: tuple[str, ...] = ROLES
    worst_returns: tuple[float, ...] = (-1.0, -1.0)

    def __init__(self, name: str):
        self.name = name
        self.ending: Ending | None = None
        self._seed = 0
        self._index = 0
        self._chance: Chance = SeededChance(0)
        self._position: Position | None = None
        self._returns: tuple[float, ...] = ()

    @abstractmethod
    def _deal(self) -> None:
        """Starts anew, with `_chance`."""

    @abstractmethod
    def _mover(self, position: Position) -> int:
        """The seat that is asked."""

    @abstractmethod
    def _legal(self, position: Position) -> Collection[str] | None:
        """Its legal actions in order, or `None` where they are free text; then `parse` and `_play` tell them."""

    @abstractmethod
    def _observation(self, position: Position, player: int) -> str:
        """What it reads."""

    @abstractmethod
    def _infoset(self, position: Position, player: int) -> str | None:
        """Key of its information set."""

    @abstractmethod
    def _attached(self, position: Position, player: int) -> object:
        """What solvers, search and the random player need to know: `Turn.state`."""

    @abstractmethod
    def _play(self, position: Position, player: int, action: str) -> None:
        """Goes on by a legal action; free text that is none raises `ValueError`."""

    def _end(self, returns: Iterable[float], ending: Ending = Ending.TERMINAL) -> None:
        """The game is over."""
        self._returns = tuple(map(float, returns))
        self.ending = ending

    def reset(self, seed: int, chance: Chance | None = None) -> None:
        """Deals."""
        self._seed = seed
        self._index = 0
        self._chance = SeededChance(seed) if chance is None else chance
        self.ending = None
        self._deal()

    def _standing(self) -> Position:
        """Where the game stands, if somebody is asked."""
        if self._position is None or self.ending is not None:
            raise ValueError(
                f"{self.name}: nobody is asked; {'the game is over' if self.ending else 'reset it first'}"
            )
        return self._position

    def turns(self) -> Sequence[Turn]:
        """The seat to move, or nobody once the game is over."""
        if self.ending is not None:
            return ()
        position = self._standing()
        player, legal = self._mover(position), self._legal(position)
        return (
            Turn(
                game=self.name,
                episode=0,
                seed=self._seed,
                index=self._index,
                player=player,
                role=self.roles[player],
                messages=self._messages(position, player),
                legal_actions=None if legal is None else tuple(legal),
                infoset=self._infoset(position, player),
                state=self._attached(position, player),
            ),
        )

    def _messages(self, position: Position, player: int) -> tuple[Message, ...]:
        return (Message(role="user", content=self._observation(position, player)),)

    def parse(self, player: int, text: str) -> Parsed:
        """The action that `text` names for the seat that is asked."""
        position = self._standing()
        asked = self._mover(position)
        if player != asked:
            raise ValueError(f"{self.name}: player {asked} is asked, not player {player}")
        return self._read(position, text)

    def _read(self, position: Position, text: str) -> Parsed:
        legal = self._legal(position)
        assert legal is not None, "games of free text read replies themselves"
        return parse_action(text, tuple(legal))

    def step(self, actions: Mapping[int, str]) -> None:
        """Plays the action of the seat that is asked."""
        position = self._standing()
        player, legal = self._mover(position), self._legal(position)
        if list(actions) != [player] or (legal is not None and actions[player] not in legal):
            allowed = "is asked" if legal is None else f"may play {' or '.join(legal)}"
            raise ValueError(f"{self.name}: player {player} {allowed}, not {dict(actions)}")
        self._play(position, player, actions[player])
        self._index += 1

    def returns(self) -> tuple[float, ...]:
        """Total of each seat, once the game is over."""
        if self.ending is None:
            raise ValueError(f"{self.name}: the game is not over")
        return self._returns


def action_request(listed: str, example: str) -> str:
    """The last line of a prompt: what may be chosen, and how to write it."""
    return f"It is your turn. Choose {listed}. {how_to_reply(example)}"
