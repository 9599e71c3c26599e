"""Simple negotiation: two players with private values trade resources; whoever's inventory gains more value wins.

The game of SPIRAL (arXiv 2506.24119), with an offer grammar of its own: any quantities of any resources on either
side, written as in `[Offer: 3 Sheep, 2 Ore -> 5 Brick, 2 Sheep]`; see
[`~spiral_trl.games.negotiation_offers.Notation`]. The environment that SPIRAL released knows a few randomly drawn
offers instead and calls nearly every real one illegal.

| `resources` | quantities | value of a unit |
|---|---|---|
| 2 (the release's) | 10 Wood and 10 Gold each | Wood 5, Gold 15 to player 0; Wood 15, Gold 5 to player 1 |
| 5 (the paper's) | 5 to 25 each of Wheat, Wood, Sheep, Brick, Ore | within 20% of 5, 10, 15, 25, 40, and from 5 to 40 |
| 8 (harder) | also 5 to 25 each of Cloth, Iron, Glass | also within 20% of 20, 30, 35, and at most 40 |

All quantities and values are drawn independently and uniformly, and each player knows its own alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from ..names import Parameter
from ..records import Parsed
from .negotiation_offers import TALK_CHARS, Move, Notation, Offer, OfferSampler, lacking
from .parsing import how_to_reply
from .registry import format_name, parse_name, register
from .sequential import ROLES, SequentialGame


# Lowest and highest value of a unit: 20% about 5, 10, 15, 25, 40, 20, 30, 35, and no less than 5 nor more than 40.
_VALUES = {
    "Wheat": (5, 6),
    "Wood": (8, 12),
    "Sheep": (12, 18),
    "Brick": (20, 30),
    "Ore": (32, 40),
    "Cloth": (16, 24),
    "Iron": (24, 36),
    "Glass": (28, 40),
}
_QUANTITIES = (5, 25)


class _Holding(NamedTuple):
    """What one player starts with: the value of a unit and the quantity of each resource."""

    values: tuple[int, ...]
    quantities: tuple[int, ...]

    def worth(self, quantities: Sequence[int]) -> int:
        return sum(value * n for value, n in zip(self.values, quantities, strict=True))


class _Position(NamedTuple):
    """Where a game stands: what the players started with, what they own now, and the offer that is open."""

    holdings: tuple[_Holding, _Holding]
    owned: tuple[tuple[int, ...], tuple[int, ...]]
    offer: Offer | None

    def gain(self, player: int) -> int:
        holding = self.holdings[player]
        return holding.worth(self.owned[player]) - holding.worth(holding.quantities)


_RELEASED = (_Holding((5, 15), (10, 10)), _Holding((15, 5), (10, 10)))


@dataclass(frozen=True)
class _Setup:
    """What all games of one name share."""

    name: str
    notation: Notation
    max_turns: int
    scale: int | None  # divides the difference of gains; `None`: its sign is paid
    observation: str
    talk: bool
    introductions: tuple[str, str]


@lru_cache(maxsize=256)
def _setup(resources: int, max_turns: int, payoff: str, observation: str, talk: str) -> _Setup:
    given = {
        "resources": resources,
        "max_turns": max_turns,
        "payoff": payoff,
        "observation": observation,
        "talk": talk,
    }
    name = format_name("simple_negotiation", given)
    values = parse_name(name)[1]
    names = ("Wood", "Gold") if values["resources"] == 2 else tuple(_VALUES)[: values["resources"]]
    scale = most_difference(values["resources"]) if values["payoff"] == "difference" else None
    return _Setup(
        name=name,
        notation=Notation(names, values["observation"] == "compact"),
        max_turns=values["max_turns"],
        scale=scale,
        observation=values["observation"],
        talk=values["talk"] == "shown",
        introductions=(_introduction(0, names, scale, values), _introduction(1, names, scale, values)),
    )


def most_difference(resources: int) -> int:
    r"""The largest difference of gains that any deal of `resources` resources admits; `payoff=difference` divides by it.

    A trade that moves $$n_r$$ units of resource $$r$$ to player 0 changes the difference of gains by
    $$\sum_r (v_{0r} + v_{1r}) n_r$$, and no more units can move than a player owns: at most 10 or 25. That gives 400
    for 2 resources, 5,300 for 5 and 10,300 for 8.
    """
    if resources == 2:
        return sum(10 * (one + other) for one, other in zip(_RELEASED[0].values, _RELEASED[1].values, strict=True))
    return sum(2 * high * _QUANTITIES[1] for _, high in list(_VALUES.values())[:resources])


def _introduction(player: int, names: tuple[str, ...], scale: int | None, values: Mapping[str, Any]) -> str:
    """Rules, payoff and role, as each seat reads them."""
    if scale is None:
        payoff = (
            "Your payoff is +1 if the value of your inventory has grown by more than the other player's has to them, "
            "-1 if by less, 0 if by equally much."
        )
    else:
        payoff = (
            "Your payoff is the growth of your inventory's value to you, less the growth of the other player's to "
            f"them, divided by {scale}."
        )
    talk = (
        f"The other player also reads what you say beside your action, up to {TALK_CHARS} characters; it binds nobody."
        if values["talk"] == "shown"
        else "The other player reads nothing of your reply but the action."
    )
    most = values["max_turns"]
    turns = "1 turn in all" if most == 1 else f"{most} turns in all"
    return (
        f"You are {ROLES[player]} in a negotiation, a zero-sum game of two players.\n"
        f"Rules: There are {len(names)} resources: {', '.join(names)}. How much of each a player owns, and what a unit "
        f"is worth to it, only that player knows. The players take turns, player 0 first, {turns}. On its turn a player "
        "may offer a trade or pass. If it was made an offer, it accepts it, denies it, or makes another offer, which "
        "denies it too. An accepted trade is carried out at once. An offer that nobody has accepted by the end is void. "
        "You can offer only what you own, and accept only if you own what is asked for. "
        f"{talk}\n{payoff}\n"
    )


class SimpleNegotiation(SequentialGame[_Position]):
    """Trading in words; a [`~spiral_trl.games.base.Game`] with free-text actions.

    Chance draws player 0's quantities, resource by resource, then its values, then player 1's; nothing for 2 resources.

    Actions are `Offer: GIVEN -> ASKED FOR`, `Accept`, `Deny` and `Pass`. `Accept` and `Deny` are legal while the other
    player's offer is open, `Pass` while none is, and an offer always: while one is open it denies it. What is asked
    for need not be owned by the other player, whose inventory is unknown: that is checked where the offer is accepted,
    and accepting without owning it is illegal. A reply that names no action is illegal, so a turn of talk alone is
    `[Pass]` with words around it.

    Args:
        resources (`int`, *optional*, defaults to `5`): 2, 5 or 8; see the module.
        max_turns (`int`, *optional*, defaults to `10`): Turns of both players together, 1 to 100. Trades may be made to
            the end.
        payoff (`str`, *optional*, defaults to `"sign"`): `"sign"`: 1 for the player whose inventory gained more
            value, -1 for the other, 0 for both where they gained equally. `"difference"`: the difference of the
            gains divided by [`most_difference`], which lies in [-1, 1].
        observation (`str`, *optional*, defaults to `"words"`): `"words"`: rules, payoff, role, all turns so far and the
            position, in one user message. `"latest"`: the same without the turns so far. `"compact"`: one line, such
            as `player 1 left 9 wood 10 at 15 gold 10 at 5 gain 0 offer 2 wood -> 1 gold`, for small models; what
            stands behind `offer` is what the other player gives and asks for.
        talk (`str`, *optional*, defaults to `"hidden"`): `"hidden"`: players read each other's actions alone.
            `"shown"`: also what a reply says after its reasoning outside of its action, up to 200 characters, as
            untrusted text that can be no action. Models that reason without `<think>` would show that.
    """

    def __init__(
        self,
        resources: int = 5,
        max_turns: int = 10,
        payoff: str = "sign",
        observation: str = "words",
        talk: str = "hidden",
    ):
        self._setup = _setup(resources, max_turns, payoff, observation, talk)
        super().__init__(self._setup.name)
        self._moves: list[Move] = []

    def _deal(self) -> None:
        self._moves = []
        holdings = self._holdings()
        self._position = _Position(holdings, (holdings[0].quantities, holdings[1].quantities), None)

    def _holdings(self) -> tuple[_Holding, _Holding]:
        names = self._setup.notation.resources
        if len(names) == 2:
            return _RELEASED

        def draw(low: int, high: int) -> int:
            count = high - low + 1
            return low + self._chance.choose((1 / count,) * count)

        def holding() -> _Holding:
            quantities = tuple(draw(*_QUANTITIES) for _ in names)
            return _Holding(tuple(draw(*_VALUES[name]) for name in names), quantities)

        return (holding(), holding())

    def _mover(self, position: _Position) -> int:
        return len(self._moves) % 2

    def _legal(self, position: _Position) -> None:
        return None

    def _attached(self, position: _Position, player: int) -> OfferSampler:
        return OfferSampler(self._setup.notation, position.owned[player], position.offer)

    def _infoset(self, position: _Position, player: int) -> str:
        """`player|quantities|values|moves`."""
        own = position.holdings[player]
        numbers = "|".join(" ".join(map(str, part)) for part in (own.quantities, own.values))
        return f"{player}|{numbers}|{' / '.join(self._setup.notation.write(move) for move in self._moves)}"

    def _observation(self, position: _Position, player: int) -> str:
        setup, own, owned = self._setup, position.holdings[player], position.owned[player]
        names, side = setup.notation.resources, setup.notation.side
        if setup.observation == "compact":
            have = " ".join(
                f"{name.lower()} {n} at {value}" for name, n, value in zip(names, owned, own.values, strict=True)
            )
            standing = f"{side(position.offer.give)} -> {side(position.offer.ask)}" if position.offer else "none"
            left = setup.max_turns - len(self._moves)
            heard = f' said "{self._moves[-1].talk}"' if self._moves and self._moves[-1].talk else ""
            return f"player {player} left {left} {have} gain {position.gain(player)} offer {standing}{heard}"

        parts = [setup.introductions[player]]
        if setup.observation == "words" and self._moves:
            parts += [f"Turn {i + 1}: {self._told(i, player)}\n" for i in range(len(self._moves))]
        elif self._moves:
            parts.append(f"The turn before: {self._told(len(self._moves) - 1, player)}\n")
        have = ", ".join(f"{n} {name} (worth {v} each)" for name, n, v in zip(names, owned, own.values, strict=True))
        parts.append(
            f"You own {have}. To you that is worth {own.worth(owned)} in all, {position.gain(player):+d} since the "
            f"start.\nThis is turn {len(self._moves) + 1} of {setup.max_turns}, and it is yours. "
        )
        given = f"2 {names[-1]}, 1 {names[0]}" if len(names) > 2 else f"2 {names[0]}"
        example = f"[Offer: {given} -> 3 {names[1]}]"
        if position.offer is None:
            choices, instance = "[Pass], or offer a trade", "Pass"
        else:
            parts.append(
                f"Player {1 - player} offers you {side(position.offer.give)} and asks you for {side(position.offer.ask)}. "
            )
            if lacking(position.offer.ask, owned):
                parts.append("You do not own what is asked for. ")
                choices, instance = "[Deny], or make another offer", "Deny"
            else:
                choices, instance = "[Accept] or [Deny], or make another offer", "Accept"
        parts.append(
            f"Choose {choices}: what you give, an arrow, what you ask for, such as {example}; write 'nothing' for an "
            f"empty side. {how_to_reply(instance)}"
        )
        return "".join(parts)

    def _told(self, index: int, reader: int) -> str:
        """One past turn as `reader` reads it."""
        move, mover = self._moves[index], index % 2
        who = "you" if mover == reader else f"player {mover}"
        if move.offer is not None:
            side = self._setup.notation.side
            done = f"{who} offered {side(move.offer.give)} and asked for {side(move.offer.ask)}"
        else:
            done = f"{who} {dict(Accept='accepted', Deny='denied', Pass='passed')[move.verb]}"
        return f'{done}, saying "{move.talk}".' if move.talk else f"{done}."

    def _objection(self, move: Move) -> str | None:
        """Why the seat that is asked may not make a move now."""
        position = self._standing()
        names, owned = self._setup.notation.resources, position.owned[self._mover(position)]

        def short(needed: tuple[int, ...]) -> str | None:
            missing = [f"{owned[i]} {names[i]}" for i in lacking(needed, owned)]
            return f"you own only {', '.join(missing)}" if missing else None

        if move.offer is not None:
            return short(move.offer.give)
        if (move.verb == "Pass") != (position.offer is None):
            return f"[{move.verb}] is not legal here; {_hint(position)}"
        return short(position.offer.ask) if move.verb == "Accept" and position.offer is not None else None

    def _read(self, position: _Position, text: str) -> Parsed:
        return self._setup.notation.parse(text, self._objection, self._setup.talk, _hint(position))

    def _play(self, position: _Position, player: int, action: str) -> None:
        """Makes the move; the game ends after the last turn."""
        move = self._setup.notation.read(action)
        objection = self._objection(move)
        if objection is not None:
            raise ValueError(f"{self.name}: {action!r} is not legal: {objection}")
        owned = position.owned
        if move.verb == "Accept" and position.offer is not None:
            # The offer was made by the other player on the turn before, so it still owns what it gives
            net = [give - ask for give, ask in zip(position.offer.give, position.offer.ask, strict=True)]
            mine = tuple(n + change for n, change in zip(owned[player], net, strict=True))
            theirs = tuple(n - change for n, change in zip(owned[1 - player], net, strict=True))
            owned = (mine, theirs) if player == 0 else (theirs, mine)
        self._position = position = _Position(position.holdings, owned, move.offer)
        self._moves.append(move)
        if len(self._moves) == self._setup.max_turns:
            self._end(self._totals(position))

    def _totals(self, position: _Position) -> tuple[float, float]:
        """Sign or scaled difference of the gains, by `payoff`."""
        difference = position.gain(0) - position.gain(1)
        if self._setup.scale is None:
            value = float((difference > 0) - (difference < 0))
        else:
            value = difference / self._setup.scale
        return (value, 0.0 - value)


def _hint(position: _Position) -> str:
    answers = "[Pass]" if position.offer is None else "[Accept], [Deny]"
    return f"legal: {answers} or [Offer: ... -> ...]"


def _check(values: Mapping[str, Any]) -> None:
    if values["resources"] not in (2, 5, 8):
        raise ValueError(f"resources of simple_negotiation must be 2, 5 or 8, not {values['resources']}")


register(
    "simple_negotiation",
    SimpleNegotiation,
    {
        "resources": Parameter(5, int, low=2, high=8),
        "max_turns": Parameter(10, int, low=1, high=100),
        "payoff": Parameter("sign", choices=("sign", "difference")),
        "observation": Parameter("words", choices=("words", "latest", "compact")),
        "talk": Parameter("hidden", choices=("hidden", "shown")),
    },
    _check,
)
