"""Leduc poker: two rounds of betting around a public card, the smallest poker game with a change of strength.

Rules, tree and payoffs are OpenSpiel's `leduc_poker` (Southey et al., 2005): two jacks, two queens and two kings; each
player antes one chip and gets one card; a raise is 2 chips in the first round and 4 in the second, at most two of them
a round; one public card between the rounds. Suits never matter, so that chance deals ranks, with their weights, and
the tree is that of `leduc_poker(suit_isomorphism=True)`: 288 information sets instead of 936. The words are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pyspiel

from ..names import Parameter
from .registry import format_name, parse_name, register
from .sequential import ROLES, action_request
from .worded import WordedGame


CARDS = ("J", "Q", "K")
_SPIEL = "leduc_poker(suit_isomorphism=True)"
_FOLD, _CALL = 0, 1
_RAISES = (2, 4)
_MOST_CHIPS = 1 + 2 * _RAISES[0] + 2 * _RAISES[1]
_PAST_TENSE = {"check": "checked", "call": "called", "raise": "raised", "fold": "folded"}


@lru_cache(maxsize=16)
def _setup(payoff: str, observation: str) -> tuple[str, tuple[str, str]]:
    """Canonical name, and rules, payoff and role as each seat reads them."""
    name = format_name("leduc_poker", {"payoff": payoff, "observation": observation})
    values = parse_name(name)[1]
    return name, (_introduction(0, values), _introduction(1, values))


def _introduction(player: int, values: Mapping[str, Any]) -> str:
    if values["payoff"] == "chips":
        payoff = "Your payoff is the number of chips you win, or minus the number you lose."
    else:
        payoff = "Your payoff is +1 if you win the pot, -1 if you lose it and 0 if it is split."
    return (
        f"You are {ROLES[player]} in one hand of Leduc poker, a zero-sum game of two players.\n"
        "Rules: The deck is J, J, Q, Q, K, K; J is the lowest card and K the highest. Each player antes 1 chip and is "
        "dealt one private card. There are two rounds of betting; player 0 acts first in both. While nobody has raised "
        "in a round, a player may check or raise; if both check, the round is over. Facing a raise, a player may fold "
        "and lose the pot, call and end the round, or raise again. A raise puts in as many chips as the other player "
        f"has, and {_RAISES[0]} more in round 1 or {_RAISES[1]} more in round 2; a round has at most two raises. "
        "After round 1 one of the other cards is shown as the public card. After round 2 there is a showdown: a player "
        "whose card equals the public card wins the pot, otherwise the higher card does, and equal cards split it. "
        f"Folded cards are never shown.\n{payoff}\n"
    )


class LeducPoker(WordedGame):
    """Leduc poker in words; a [`~spiral_trl.games.base.Game`].

    Args:
        payoff (`str`, *optional*, defaults to `"chips"`): `"chips"`: chips won or lost, -13 to 13. `"sign"`: -1, 0 or
            1 for losing, splitting and winning the pot.
        observation (`str`, *optional*, defaults to `"words"`): `"words"`: rules, payoff, role and all that the seat
            has seen, in one user message per turn. `"latest"`: the same, since all of it belongs to the newest hand.
            `"compact"`: one line, such as `player 0 card J first raise call public K second none`.
    """

    def __init__(self, payoff: str = "chips", observation: str = "words"):
        name, self._introductions = _setup(payoff, observation)
        self._chips = payoff == "chips"
        self._compact = observation == "compact"
        worst = -float(_MOST_CHIPS if self._chips else 1)
        super().__init__(name, _SPIEL, (worst, worst), solvable=self._chips)

    def _word(self, state: pyspiel.State, action: int) -> str:
        if action == _CALL:
            return "call" if _FOLD in state.legal_actions() else "check"
        return "fold" if action == _FOLD else "raise"

    def _cards(self, player: int) -> tuple[str, str | None]:
        """The seat's own card, and the public one once it is shown."""
        return CARDS[self._dealt[player]], CARDS[self._dealt[2]] if len(self._dealt) > 2 else None

    def _infoset(self, position: pyspiel.State, player: int) -> str:
        """`player|card|actions of round 1`, then `|public card|actions of round 2`."""
        card, public = self._cards(player)
        rounds = [" ".join(action for _, action in moves) for moves in self._rounds]
        return "|".join([str(player), card, rounds[0], *([] if public is None else [public, rounds[1]])])

    def _observation(self, position: pyspiel.State, player: int) -> str:
        card, public = self._cards(player)
        if self._compact:
            first, second = (" ".join(action for _, action in moves) or "none" for moves in [*self._rounds, []][:2])
            return f"player {player} card {card} first {first} public {public or 'none'} second {second}"
        told = [
            ", ".join(f"player {seat} {_PAST_TENSE[action]}" for seat, action in moves) or "none"
            for moves in self._rounds
        ]
        lines = [f"Your card is {card}. Moves of round 1: {told[0]}.\n"]
        if public is not None:
            lines.append(f"The public card is {public}. Moves of round 2: {told[1]}.\n")
        put_in = self._put_in()
        lines.append(f"Chips put in so far: {put_in[player]} by you, {put_in[1 - player]} by player {1 - player}.\n")
        legal = list(self._actions)
        actions = [f"[{action}]" for action in legal]
        return "".join(
            [
                self._introductions[player],
                *lines,
                action_request(f"{', '.join(actions[:-1])} or {actions[-1]}", legal[-1]),
            ]
        )

    def _put_in(self) -> list[int]:
        """Chips of each seat in the pot."""
        chips = [1, 1]
        for moves, size in zip(self._rounds, _RAISES, strict=False):
            for seat, action in moves:
                if action in ("call", "raise"):
                    chips[seat] = max(chips) + (size if action == "raise" else 0)
        return chips

    def _totals(self, end: pyspiel.State) -> list[float]:
        """Chips or sign, by `payoff`."""
        chips = super()._totals(end)
        return chips if self._chips else [(value > 0) - (value < 0) for value in chips]


register(
    "leduc_poker",
    LeducPoker,
    {
        "payoff": Parameter("chips", choices=("chips", "sign")),
        "observation": Parameter("words", choices=("words", "latest", "compact")),
    },
)
