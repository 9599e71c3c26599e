"""Liar's dice: bids on hidden dice, higher and higher, until one is called a lie.

Rules, tree and payoffs are OpenSpiel's `liars_dice` for two players, with its bidding rule `reset-face`: each player
rolls `numdice` dice that the other does not see. Player 0 bids first. A bid such as `3 x 5` says that at least three of
all dice show a 5, where the highest face is wild and counts as any face. A bid must say more dice of any face, or
equally many of a higher face. Whoever is asked after a bid may call it a lie instead: then the dice are shown, and
whoever was wrong loses. The words are ours.
"""

from __future__ import annotations

import re
from functools import lru_cache

import pyspiel

from ..names import Parameter
from .registry import format_name, register
from .sequential import ROLES, action_request
from .worded import WordedGame


_SPELLED_BID = re.compile(r"(\d)\s*[x×*]\s*(\d)", re.IGNORECASE | re.ASCII)


@lru_cache(maxsize=64)
def _setup(numdice: int, dice_sides: int, observation: str) -> tuple[str, tuple[str, str], tuple[str, ...]]:
    """Canonical name, rules as each seat reads them, and our word for each of OpenSpiel's actions."""
    name = format_name("liars_dice", {"numdice": numdice, "dice_sides": dice_sides, "observation": observation})
    bids = [f"{count} x {face}" for count in range(1, 2 * numdice + 1) for face in range(1, dice_sides + 1)]
    return name, (_rules(0, numdice, dice_sides), _rules(1, numdice, dice_sides)), (*bids, "liar")


def _rules(player: int, numdice: int, dice_sides: int) -> str:
    rolls = "1 die" if numdice == 1 else f"{numdice} dice"
    return (
        f"You are {ROLES[player]} in one round of liar's dice, a zero-sum game of two players.\n"
        f"Rules: Each player rolls {rolls} with faces 1 to {dice_sides}, which the other player does not see. Player 0 "
        f"bids first. A bid such as 2 x 1 says that at least 2 of the {2 * numdice} dice show a 1. Face {dice_sides} is "
        "wild: it counts as any face. Each bid must be higher than the one before: more dice of any face, or equally "
        "many dice of a higher face. Instead of bidding, a player may call the last bid a lie, with liar. Then all "
        "dice are shown: if the bid is true, whoever made it wins, otherwise whoever called it a lie wins.\n"
        "Your payoff is +1 if you win and -1 if you lose.\n"
    )


class LiarsDice(WordedGame):
    """Liar's dice in words; a [`~spiral_trl.games.base.Game`].

    Replies may spell a bid as `[3 x 5]`, `[3x5]`, `[3*5]` or with a multiplication sign.

    Args:
        numdice (`int`, *optional*, defaults to `1`): Dice of each player, 1 to 10. The paper holds out 5.
        dice_sides (`int`, *optional*, defaults to `6`): Faces of a die, 2 to 20; the highest one is wild.
        observation (`str`, *optional*, defaults to `"words"`): `"words"`: rules, payoff, role, own dice and all bids,
            in one user message per turn. `"latest"`: the same, since every bid says something about the hidden dice.
            `"compact"`: one line, such as `player 1 dice 2 6 bids 1 x 5 2 x 2`.
    """

    def __init__(self, numdice: int = 1, dice_sides: int = 6, observation: str = "words"):
        name, self._introductions, self._words = _setup(numdice, dice_sides, observation)
        self._numdice = numdice
        self._compact = observation == "compact"
        super().__init__(name, f"liars_dice(numdice={numdice},dice_sides={dice_sides})", (-1.0, -1.0))

    def _word(self, state: pyspiel.State, action: int) -> str:
        return self._words[action]

    def _dice(self, player: int) -> str:
        rolled = self._dealt[player * self._numdice : (player + 1) * self._numdice]
        return " ".join(str(face + 1) for face in sorted(rolled))

    def _infoset(self, position: pyspiel.State, player: int) -> str:
        """`player|own dice, sorted|all bids`."""
        bids = ", ".join(bid for _, bid in self._rounds[0])
        return f"{player}|{self._dice(player)}|{bids}"

    def _observation(self, position: pyspiel.State, player: int) -> str:
        made = self._rounds[0]
        if self._compact:
            return f"player {player} dice {self._dice(player)} bids {' '.join(bid for _, bid in made) or 'none'}"
        legal = list(self._actions)
        bids = [action for action in legal if action != "liar"]
        choices = []
        if bids:
            choices.append(f"a bid from [{bids[0]}] to [{bids[-1]}]" if len(bids) > 1 else f"the bid [{bids[0]}]")
        if made:
            choices.append("[liar]")
        told = ", ".join(f"player {seat} bid {bid}" for seat, bid in made) or "none"
        return (
            f"{self._introductions[player]}"
            f"Your {'die shows' if self._numdice == 1 else 'dice show'} {self._dice(player)}. Bids so far: {told}.\n"
            f"{action_request(' or '.join(choices), legal[0])}"
        )

    def _readable(self, text: str) -> str:
        return _SPELLED_BID.sub(r"\1 x \2", text)


register(
    "liars_dice",
    LiarsDice,
    {
        "numdice": Parameter(1, int, low=1, high=10),
        "dice_sides": Parameter(6, int, low=2, high=20),
        "observation": Parameter("words", choices=("words", "latest", "compact")),
    },
)
