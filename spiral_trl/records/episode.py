"""One game: turns, replies, and how it ended."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import TypedDict


class Message(TypedDict):
    """One chat message, in the form that chat templates take."""

    role: str
    content: str


class Ending(str, Enum):
    """How a game ended. Kept apart from its returns, so that a truncation is never read as a draw."""

    TERMINAL = "terminal"  # by the rules
    ILLEGAL = "illegal"  # a reply was illegal or ambiguous, and the illegal-move policy ended the game
    TRUNCATED = "truncated"  # the turn limit was reached


ENDINGS: tuple[Ending, ...] = tuple(Ending)

_LONE_SURROGATES = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Parsed:
    """What a game read out of a reply: an action, or the reason why there is none."""

    action: str | None
    error: str | None = None


@dataclass(frozen=True)
class Turn:
    """What one seat is asked.

    Args:
        game (`str`): Name of the game with its parameters, such as `kuhn_poker(rounds=5)`.
        episode (`int`): Index of the game within the batch that is being played.
        seed (`int`): Seed of the game. Chance and sampled replies derive from it and from `index` alone.
        index (`int`): How many turns of this game came before this one.
        player (`int`): Seat that is asked, from 0.
        role (`str`): Name of the seat.
        messages (`tuple[Message, ...]`): This seat's chat, newest observation last: all that it may see.
        legal_actions (`tuple[str, ...]`, *optional*): `None` where actions are free text.
        infoset (`str`, *optional*): Key of the information set, where the game has one.
        state (`object`, *optional*): For solvers only: never rendered, compared or stored.
    """

    game: str
    episode: int
    seed: int
    index: int
    player: int
    role: str
    messages: tuple[Message, ...]
    legal_actions: tuple[str, ...] | None
    infoset: str | None = None
    state: object = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Reply:
    """What a player answered.

    Args:
        text (`str`): The reply as text. Where a model wrote it, it is untrusted. Lone surrogates, which no UTF-8 file can
            hold, become U+FFFD.
        action (`str`, *optional*): The action the game parsed from it; `None` if there was none.
        error (`str`, *optional*): Why no action could be parsed.
        prompt_ids, completion_ids (`tuple[int, ...]`, *optional*): Token ids; `None` for players that are no model.
        logprobs (`tuple[float, ...]`, *optional*): Log-probabilities of the sampled tokens, where the sampler has them.
        finish_reason (`str`): `"stop"` (the player ended its reply) or `"length"` (it was cut).
        policy_version (`int`, *optional*): Training step of the weights that wrote it.
    """

    text: str
    action: str | None = None
    error: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    completion_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    finish_reason: str = "stop"
    policy_version: int | None = None

    def __post_init__(self) -> None:
        if not self.text.isascii():
            object.__setattr__(self, "text", _LONE_SURROGATES.sub("\ufffd", self.text))


@dataclass(frozen=True)
class Step:
    """One turn and the reply to it."""

    turn: Turn
    reply: Reply


@dataclass(frozen=True)
class Episode:
    """One finished game.

    Args:
        game (`str`): Name of the game with its parameters.
        seed (`int`): Seed that deals it again.
        players (`tuple[str, ...]`): Who sat in each seat.
        roles (`tuple[str, ...]`): Name of each seat.
        steps (`tuple[Step, ...]`): All turns, in order.
        returns (`tuple[float, ...]`): Total of each seat, in the game's own units.
        ending (`Ending`): How it ended.
    """

    game: str
    seed: int
    players: tuple[str, ...]
    roles: tuple[str, ...]
    steps: tuple[Step, ...]
    returns: tuple[float, ...]
    ending: Ending
