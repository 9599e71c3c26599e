"""Games to read: which ones to show, and how untrusted text is made safe to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..records import ENDINGS, Episode
from .formatting import visible
from .redact import redact


ENDING_WORDS = {
    "terminal": "ended by the rules",
    "illegal": "ended by an illegal reply",
    "truncated": "cut at the turn limit",
}


def choose_episodes(episodes: Sequence[Episode], limit: int = 12) -> list[Episode]:
    """At most `limit` episodes in their order, so that every ending that occurs is among them.

    Endings take turns, each giving its first episodes first.
    """
    by_ending = [[i for i, episode in enumerate(episodes) if episode.ending is ending] for ending in ENDINGS]
    rounds = range(max((len(indices) for indices in by_ending), default=0))
    taken = [indices[turn] for turn in rounds for indices in by_ending if turn < len(indices)]
    return [episodes[i] for i in sorted(taken[:limit])]


def safe(text: str) -> str:
    """Text of a model or a game without paths and tokens, and with nothing in it that cannot be seen."""
    return visible(redact(text, names=()))


def replay(episode: Episode) -> dict[str, Any]:
    """One game for the page's template: plain texts only, still unescaped."""
    seats = [
        {
            "role": safe(role),
            "player": safe(redact(player)),
            "return": f"{value:+.4g}".replace("-", "\N{MINUS SIGN}"),
        }
        for role, player, value in zip(episode.roles, episode.players, episode.returns, strict=True)
    ]
    turns = []
    for step in episode.steps:
        turn, reply = step.turn, step.reply
        turns.append(
            {
                "role": safe(turn.role),
                "player": turn.player,
                "infoset": None if turn.infoset is None else safe(turn.infoset),
                "messages": [(safe(message["role"]), safe(message["content"])) for message in turn.messages],
                "legal": None if turn.legal_actions is None else [safe(action) for action in turn.legal_actions],
                "reply": safe(reply.text),
                "action": None if reply.action is None else safe(reply.action),
                "error": None if reply.error is None else safe(reply.error),
                "cut": reply.finish_reason == "length",
                "version": reply.policy_version,
            }
        )
    return {
        "game": safe(episode.game),
        "seed": episode.seed,
        "ending": episode.ending.value,
        "ending_words": ENDING_WORDS[episode.ending.value],
        "seats": seats,
        "turns": turns,
    }
