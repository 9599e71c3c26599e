"""Players by name, as the command line and configurations give them."""

from __future__ import annotations

from collections.abc import Callable

from ..names import unknown
from .base import Player
from .bots import CFRPlayer, RandomPlayer


_PLAYERS: dict[str, Callable[[], Player]] = {"random": RandomPlayer, "cfr": CFRPlayer}


def player_names() -> list[str]:
    """Names that [`make_player`] knows, sorted."""
    return sorted(_PLAYERS)


def make_player(name: str) -> Player:
    """A new player, such as `random` or `cfr`."""
    if name.strip() not in _PLAYERS:
        raise unknown("player", name, player_names())
    return _PLAYERS[name.strip()]()
