"""What the adapter of TextArena knows about single games: moves to try, and repairs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Seen(NamedTuple):
    """One message to a seat: who sent it (-1: the game), its text, and TextArena's name of its type."""

    sender: int
    text: str
    kind: str


_BRACKETS = re.compile(r"\[([^\[\]\n]{1,60})\]")
_DIRECTIONS = ("up", "down", "left", "right")

# Games in which whatever is no direction is a move that kills, instead of one that is refused
ONLY = {"Snake": (*_DIRECTIONS, *"wasd"), "Surround": (*_DIRECTIONS, *"wasd")}


def _columns(env: Any, seen: Sequence[Seen]) -> list[str]:
    return [f"col {column}" for column, top in enumerate(env.state.game_state["board"][0]) if top == "."]


def _bids(env: Any, seen: Sequence[Seen]) -> list[str]:
    state = env.state.game_state
    quantity, face = state["current_bid"]["quantity"], state["current_bid"]["face_value"]
    bids = [
        f"Bid: {n}, {f}"
        for n in range(max(1, quantity), quantity + 3)
        for f in range(max(1, face), 7)
        if (n, f) != (quantity, face)
    ]
    # Calling as often as bidding, or nobody would
    return bids + ["Call"] * len(bids) if quantity else bids


def _statements(env: Any, seen: Sequence[Seen]) -> list[str]:
    if env.state.turn == env.max_turns - 1:
        return ["Fact 1", "Fact 2"]
    return ["Fact 1 is correct.", "Fact 2 is correct.", "Which one do you believe?"]


def _trades(env: Any, seen: Sequence[Seen]) -> list[str]:
    names = env.resource_names
    offers = [f"Offer: {n} {give} -> {n} {ask}" for n in (1, 2, 3) for give in names for ask in names if give != ask]
    return offers + ["Accept"] * 30 + ["Deny"] * 30 if env.state.game_state["current_offer"] else offers


def _listed_moves(env: Any, seen: Sequence[Seen]) -> list[str]:
    return _BRACKETS.findall(_newest_board(seen).partition("Available Moves:")[2])


def _bracketed(env: Any, seen: Sequence[Seen]) -> list[str]:
    """What the game has named in brackets: examples of moves, lists of legal ones."""
    return list(dict.fromkeys(found for message in seen for found in _BRACKETS.findall(message.text)))


_CANDIDATES: dict[str, Callable[[Any, Sequence[Seen]], list[str]]] = {
    "ConnectFour": _columns,
    "LiarsDice": _bids,
    "PigDice": lambda env, seen: ["roll", "hold"],
    "SimpleNegotiation": _trades,
    "Snake": lambda env, seen: list(_DIRECTIONS),
    "Stratego": _listed_moves,
    "Surround": lambda env, seen: list(_DIRECTIONS),
    "TruthAndDeception": _statements,
}


def candidates(kind: str, env: Any, seen: Sequence[Seen]) -> list[str]:
    """Moves that may be legal for the seat that is asked, with repetitions where one is to be more likely.

    For games that have no rule here: whatever stands in brackets in what the seat has read.

    Args:
        kind (`str`): TextArena's name of the environment, such as `Snake`.
        env: The environment.
        seen (`Sequence[Seen]`): What the seat has read.
    """
    return _CANDIDATES.get(kind, _bracketed)(env, seen)


def _newest_board(seen: Sequence[Seen]) -> str:
    return next((message.text for message in reversed(seen) if message.kind == "GAME_BOARD"), "")


def may_read(kind: str, env: Any, player: int, message: Seen) -> bool:
    """Whether a message is for a seat that TextArena sends it to.

    Stratego sends the board as the seat to move sees it, with its own pieces, to both seats.
    """
    return kind != "Stratego" or message.kind != "GAME_BOARD" or player == env.state.current_player_id


def repair(kind: str, env: Any, seen: Sequence[Seen]) -> None:
    """Sets right what TextArena leaves wrong after a step.

    In Stratego a bomb that a miner has defused stays in the list of its owner's pieces, where looking for a winner
    later fails on it; and a player 1 that cannot move is not seen to have lost.

    Args:
        kind (`str`): TextArena's name of the environment.
        env: The environment, which is changed.
        seen (`Sequence[Seen]`): What the seat that is asked has read.
    """
    if kind != "Stratego" or env.state.done:
        return
    for player, pieces in env.player_pieces.items():
        pieces[:] = [
            (row, column)
            for row, cells in enumerate(env.board)
            for column, cell in enumerate(cells)
            if isinstance(cell, dict) and cell["player"] == player
        ]
    if not _listed_moves(env, seen):
        loser = env.state.current_player_id
        env.state.set_winner(player_id=1 - loser, reason=f"Player {loser} has no move left.")
