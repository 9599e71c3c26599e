"""What is said where a game or a player fails midway."""

from __future__ import annotations

from collections.abc import Sequence

from .. import errors
from ..errors import PlayError
from ..records import Step


_SHOWN_CHARS = 60
_SHOWN_MOVES = 60


def moves_so_far(steps: Sequence[Step]) -> str:
    """The actions of a game, such as `player 0: check, player 1: bet`. Free text, which a model may have written, is
    quoted and cut."""
    moves = []
    for step in steps:
        action = step.reply.action
        if action is None:
            shown = "(illegal)"
        elif step.turn.legal_actions is None:
            shown = repr(action if len(action) <= _SHOWN_CHARS else action[:_SHOWN_CHARS] + "...")
        else:
            shown = action
        moves.append(f"{step.turn.role}: {shown}")
    if len(moves) > _SHOWN_MOVES:
        moves = [f"... {len(moves) - _SHOWN_MOVES} moves, then", *moves[-_SHOWN_MOVES:]]
    return ", ".join(moves) or "none"


def game_failed(game: str, seed: int, steps: Sequence[Step], error: Exception | str) -> PlayError:
    """The error for a game whose code raised, or that asks nobody though it is not over."""
    return errors.game_failed(f"{game} with seed {seed}", error, moves_so_far(steps))


def player_failed(player: str, asked: int, game: str, seed: int, steps: Sequence[Step], error: Exception) -> PlayError:
    """The error for a player that cannot answer."""
    turns = f"{asked} turns, the first in" if asked > 1 else "a turn of"
    message = (
        f"{player} could not answer {turns} {game} with seed {seed}: {error}; moves so far: {moves_so_far(steps)}"
    )
    return PlayError(" ".join(message.split()))
