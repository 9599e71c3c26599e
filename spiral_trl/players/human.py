"""A person at the terminal as a player."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..errors import PlayerError
from ..games.base import ActionSampler
from ..games.parsing import parse_action
from ..records import Message, Reply, Turn


# Controls, text direction and joiners, surrogates, private use, line separators
_REMOVED = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


class PersonLeft(PlayerError):
    """The person ended the game: by `quit`, the end of input, or Ctrl-C."""


def printable(text: str) -> str:
    """`text` without the characters that a terminal acts on or does not show, such as escape sequences.

    Line ends and tabs stay. What other players wrote is untrusted, and a terminal obeys what is printed.
    """
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in _REMOVED)


class HumanPlayer:
    """Prints each turn and reads the reply.

    An action may be typed bare (`bet`) or in brackets (`[bet]`). Where a turn lists its legal actions, a reply that
    names none of them is asked for again, with the reason. Where a game has actions and does not list them
    ([`~spiral_trl.games.base.ActionSampler`]), a bare line is put into a box, as the action; other free text is passed
    on as it is. `quit`, the end of input and Ctrl-C raise [`PersonLeft`].

    Args:
        read (`Callable`, *optional*, defaults to `input`): Given a prompt, answers a line.
        write (`Callable`, *optional*, defaults to `print`): Shows a text.
    """

    name = "human"
    # A person answers only what has to be answered
    speculative = False

    def __init__(self, read: Callable[[str], str] = input, write: Callable[[str], object] = print):
        self._read = read
        self._write = write
        self._shown: dict[tuple[str, int, int], tuple[Message, ...]] = {}

    def reply(self, turns: Sequence[Turn]) -> list[Reply]:
        """One reply for each turn, asked for one after the other.

        Raises:
            [`PersonLeft`]: If the person ends the game.
        """
        return [self._ask(turn) for turn in turns]

    def sample(
        self, turns: Sequence[Turn], which: np.ndarray, seeds: np.ndarray, index: np.ndarray
    ) -> tuple[list[Reply], np.ndarray]:
        """A reply for each game; see [`~spiral_trl.players.base.Player`]."""
        asked = [
            replace(turns[row], seed=seed, index=at)
            for row, seed, at in zip(which.tolist(), seeds.tolist(), index.tolist(), strict=True)
        ]
        return self.reply(asked), np.arange(len(which))

    def _ask(self, turn: Turn) -> Reply:
        self._write(f"\n{self._news(turn)}")
        while True:
            try:
                line = self._read(f"{printable(turn.role)}> ").strip()
            except (EOFError, KeyboardInterrupt):
                self._write("")
                raise PersonLeft("the person left the game") from None
            if line.lower() == "quit":
                raise PersonLeft("the person left the game")
            if not line:
                continue
            bare = "[" not in line and "\\boxed" not in line
            if turn.legal_actions is None:
                return Reply(text=f"\\boxed{{{line}}}" if bare and isinstance(turn.state, ActionSampler) else line)
            text = f"[{line}]" if bare else line
            parsed = parse_action(text, turn.legal_actions)
            if parsed.action is not None:
                return Reply(text=f"[{parsed.action}]")
            self._write(f"{printable(parsed.error or '')}. Type `quit` to leave.")

    def _news(self, turn: Turn) -> str:
        """What this seat has not been shown yet of its chat, but always the newest message."""
        game = (turn.game, turn.seed, turn.player)
        before, chat = self._shown.get(game, ()), turn.messages
        known = 0
        while known < min(len(before), len(chat) - 1) and before[known] == chat[known]:
            known += 1
        self._shown[game] = chat
        return "\n\n".join(printable(message["content"]) for message in chat[known:] if message["role"] != "assistant")
