"""The protocol of a game: rules as text, no model and no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from ..records import Ending, Parsed, Turn
from .chance import Chance


@runtime_checkable
class Game(Protocol):
    """One game, used once: make it, reset it, play it to its end.

    The game never calls a model, so that [`~spiral_trl.rollout.play`] can gather the turns of all live games, ask each
    player once, and step.

    Attributes:
        name (`str`): Name with parameters, in canonical form: what the registry parses back into an equal game.
        num_players (`int`): Number of seats.
        roles (`tuple[str, ...]`): Name of each seat.
        worst_returns (`tuple[float, ...]`): The lowest return each seat can end with by the rules: what a seat
            forfeits by an illegal reply.
        ending ([`~spiral_trl.records.Ending`], *optional*): `None` while the game goes on.
    """

    name: str
    num_players: int
    roles: tuple[str, ...]
    worst_returns: tuple[float, ...]
    ending: Ending | None

    def reset(self, seed: int, chance: Chance | None = None) -> None:
        """Deals. All randomness of the game comes from `chance`, by default `SeededChance(seed)`."""
        ...

    def turns(self) -> Sequence[Turn]:
        """Who is asked now: nobody (the game is over), one seat (sequential), or several (simultaneous).

        `Turn.episode` is 0 here; the rollout sets it.
        """
        ...

    def parse(self, player: int, text: str) -> Parsed:
        """The legal action that `text` names, or why it names none. Changes nothing."""
        ...

    def step(self, actions: Mapping[int, str]) -> None:
        """Plays parsed actions, one for each seat that was asked."""
        ...

    def returns(self) -> tuple[float, ...]:
        """Total of each seat, in the game's own units. Defined once the game is over."""
        ...


@runtime_checkable
class CopyableGame(Game, Protocol):
    """A game that can be continued in several ways from one point, so that its tree need not be replayed."""

    def copy(self, chance: Chance) -> Game:
        """An independent game at the same point, whose further chance is drawn from `chance`."""
        ...


@runtime_checkable
class ActionSampler(Protocol):
    """What a game with free-text actions attaches as `Turn.state`, so that the random player can play it.

    Attributes:
        example_actions (`tuple[str, ...]`): Some actions that are legal now, as parsed.
    """

    example_actions: tuple[str, ...]

    def sample_action(self, draws: Sequence[float]) -> str:
        """A random legal action, as parsed, from 8 uniform numbers in [0, 1)."""
        ...
