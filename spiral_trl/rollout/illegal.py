"""What an illegal or ambiguous reply does."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import did_you_mean
from ..games.base import ActionSampler
from ..games.chance import ILLEGAL, uniforms
from ..records import Message, Turn


@dataclass(frozen=True)
class IllegalMoves:
    """What an illegal or ambiguous reply does.

    Args:
        policy (`str`): One of
            - `forfeit`: the game ends; the offender gets its worst return by the rules, the others share its negation,
              so that breaking the rules is never better than losing by them;
            - `spiral`: the game ends with -1.5 for the offender and +0.5 for the opponent (the SPIRAL release; not
              zero-sum, two players only);
            - `retry`: the seat is told so and asked again, `retries` times; then `forfeit`;
            - `random_legal`: a uniformly random legal action is played instead (for evaluation).
        retries (`int`): For `retry`.
    """

    policy: str
    retries: int = 0

    @classmethod
    def parse(cls, name: str) -> IllegalMoves:
        """From `forfeit`, `spiral`, `retry(k)` or `random_legal`.

        Raises:
            `ValueError`: For any other name.
        """
        match = re.fullmatch(r"retry\((\d+)\)", name.replace(" ", ""))
        if match and int(match[1]) >= 1:
            return cls("retry", int(match[1]))
        if name in ("forfeit", "spiral", "random_legal"):
            return cls(name)
        raise ValueError(
            f"Unknown illegal-move policy {name!r}. Choose forfeit, spiral, retry(k) with k >= 1, or random_legal"
            f"{did_you_mean(name, ('forfeit', 'spiral', 'retry(1)', 'random_legal'))}"
        )

    def returns(self, offenders: int | Collection[int], worst_returns: Sequence[float]) -> tuple[float, ...]:
        """Totals of a game that `offenders` ended by illegal replies: one seat, or several that were asked at once.

        Every offender gets its worst return, and the others share the negation of their sum equally. Where all seats
        erred, nobody is there to gain: each gets its worst return less the mean of all of them, which is 0 in a
        symmetric game. All but `spiral` are zero-sum.
        """
        num_players = len(worst_returns)
        guilty = (offenders,) if isinstance(offenders, int) else tuple(offenders)
        if self.policy == "spiral":
            if num_players != 2:
                raise ValueError(f"The illegal-move policy spiral is for two players, not {num_players}.")
            return tuple(-1.5 if player in guilty else 0.5 for player in range(num_players))
        lost = sum(worst_returns[player] for player in guilty)
        if len(guilty) == num_players:
            return tuple(worst - lost / num_players for worst in worst_returns)
        others = -lost / (num_players - len(guilty))
        return tuple(worst_returns[player] if player in guilty else others for player in range(num_players))


def random_legal(turn: Turn) -> str | None:
    """A random legal action that derives from the seed and the turn: uniform, or what a game with free-text actions
    draws. `None` where the game cannot draw one."""
    if turn.legal_actions is None and isinstance(turn.state, ActionSampler):
        return turn.state.sample_action(uniforms(turn.seed, ILLEGAL, turn.index, np.arange(8)).tolist())
    if not turn.legal_actions:
        return None
    choice = int(uniforms(turn.seed, ILLEGAL, turn.index) * len(turn.legal_actions))
    return turn.legal_actions[choice]


def complaint(turn: Turn) -> str:
    """What a seat is told after an illegal reply. Never holds the reply's own text."""
    legal = turn.legal_actions
    names = f" Legal actions: {', '.join(f'[{action}]' for action in legal)}." if legal else ""
    return f"Your last reply was no legal action.{names} Reply again."


def told(messages: tuple[Message, ...], complaint: str | None) -> tuple[Message, ...]:
    """The chat with a complaint at its end: in the newest observation, as many chat templates refuse two messages of
    the user in a row."""
    if complaint is None:
        return messages
    if messages and messages[-1]["role"] == "user":
        newest = Message(role="user", content=f"{messages[-1]['content'].rstrip()}\n\n{complaint}")
        return (*messages[:-1], newest)
    return (*messages, Message(role="user", content=complaint))
