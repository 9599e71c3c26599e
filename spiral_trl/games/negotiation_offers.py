r"""The language of trade: offers such as `[Offer: 3 Sheep, 2 Ore -> 5 Brick]`, the answers to them, and talk.

An action is spelled in one of two notations. In words: `Offer: 3 Sheep, 2 Ore -> 5 Brick`, `Accept`, `Deny`, `Pass`. In
compact form, whose parts stand between spaces: `offer: 3 sheep + 2 ore -> 5 brick`, `accept`, `deny`, `pass`. Both are
read alike; a notation only decides how an action is written. Where players hear each other, what was said follows
the action in double quotes: `Deny "Too little wood."`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import did_you_mean
from ..records import Parsed
from .parsing import ambiguous, outside_of_actions, quoted, stated, unwrapped


NOTHING = "nothing"
VERBS = ("Accept", "Deny", "Pass")
TALK_CHARS = 200

# An offer of all resources in long words is shorter; a longer bracket is a note.
_MOST_CHARS = 400
_LARGEST_QUANTITY_DIGITS = 6
_OFFER = re.compile(r"(?:counter[- ]?)?offer\b\s*:?(.*)", re.IGNORECASE | re.DOTALL)
_ARROW = re.compile(r"[-=]+>|→|⇒|\\(?:long)?rightarrow|\\to\b")
_LATEX_TEXT = re.compile(r"\\(?:text|math|mbox)[a-z]*\s*\{([^{}]*)\}")
_SEPARATOR = re.compile(r"[,+&;]|\band\b", re.IGNORECASE)
_ITEM = re.compile(r"([0-9]+)\s*(?:x\s+|(?:units?\s+)?of\s+)?([A-Za-z]+)", re.IGNORECASE | re.ASCII)
_TALK = re.compile(r'\s*"([^"]*)"$')
_NEUTRAL = str.maketrans({"[": "(", "]": ")", "{": "(", "}": ")", "<": "(", ">": ")", "\\": "/", '"': "'"})


@dataclass(frozen=True)
class Offer:
    """A trade that is proposed.

    Args:
        give (`tuple[int, ...]`): How many of each resource the offerer gives.
        ask (`tuple[int, ...]`): How many of each it asks for.
    """

    give: tuple[int, ...]
    ask: tuple[int, ...]


@dataclass(frozen=True)
class Move:
    """What a player does on its turn: an offer, or one of [`VERBS`]; and what it says beside it, where that is heard."""

    verb: str
    offer: Offer | None = None
    talk: str = ""


@dataclass(frozen=True)
class Notation:
    """How actions are written.

    Args:
        resources (`tuple[str, ...]`): Names of the resources, such as `Wood`.
        compact (`bool`): Whether actions are written in compact form.
    """

    resources: tuple[str, ...]
    compact: bool = False

    def write(self, move: Move) -> str:
        """The one spelling of an action."""
        text = move.verb
        if move.offer is not None:
            text = f"Offer: {self.side(move.offer.give)} -> {self.side(move.offer.ask)}"
        text = text.lower() if self.compact else text
        return f'{text} "{move.talk}"' if move.talk else text

    def side(self, quantities: Sequence[int]) -> str:
        """One side of an offer, such as `3 Sheep, 2 Ore`."""
        parts = [f"{n} {name}" for n, name in zip(quantities, self.resources, strict=True) if n]
        text = (" + " if self.compact else ", ").join(parts) or NOTHING
        return text.lower() if self.compact else text

    def read(self, action: str) -> Move:
        """The move that [`write`] spelled so, or any action without its brackets.

        Raises:
            `ValueError`: If it is none.
        """
        talk = _TALK.search(action)
        found = self._reading(action[: talk.start()] if talk else action)
        if not isinstance(found, Move):
            raise ValueError(found or f"{quoted(action)} is no action")
        return Move(found.verb, found.offer, talk[1]) if talk else found

    def parse(self, text: str, objection: Callable[[Move], str | None], talk: bool, hint: str) -> Parsed:
        r"""The one legal action that a reply names, or why there is none.

        What stands in the last `\boxed{...}`, or without one in square brackets, is read, after the reasoning. Two
        different offers are ambiguous, whether the player can afford them or not, and so are an offer and an answer to
        one; but `[Deny]` beside an offer says the same as the offer alone. Brackets that hold no action, or an answer
        that cannot be given now, are notes and are ignored beside an action.

        Args:
            text (`str`): The reply. Untrusted.
            objection (`Callable`): Why a move is not legal now, or `None` where it is.
            talk (`bool`): Whether the action carries what the reply says outside of its brackets.
            hint (`str`): What may be done now, for errors.
        """
        said = stated(text)
        if said.error is not None:
            return Parsed(None, said.error)
        if not said.contents:
            return Parsed(None, f"the reply names no action in brackets; {hint}")
        moves: dict[Move, str | None] = {}
        reason = None
        for content in said.contents:
            found = self._reading(content)
            if isinstance(found, Move):
                moves.setdefault(found, objection(found))
            else:
                reason = found or reason
        named = [move for move, why_not in moves.items() if why_not is None or move.offer is not None]
        if any(move.offer is not None for move in named):
            named = [move for move in named if move.verb != "Deny"]
        if len(named) > 1:
            return Parsed(None, ambiguous([self.write(move) for move in named]).replace(" legal ", " "))
        if not named:
            last = list(moves.values())[-1] if moves else reason
            return Parsed(None, last or f"{quoted(said.contents[-1])} is no action; {hint}")
        (move,) = named
        if moves[move] is not None:
            return Parsed(None, moves[move])
        spoken = neutral(outside_of_actions(text)) if talk else ""
        return Parsed(self.write(Move(move.verb, move.offer, spoken)))

    def _reading(self, content: str) -> Move | str | None:
        """The move that the content of a box or of brackets names, why it is a broken one, or `None` for a note."""
        if len(content) > _MOST_CHARS:
            return None
        for inner in unwrapped(_LATEX_TEXT.sub(r"\1", content)):
            for verb in VERBS:
                if inner.rstrip(".!").casefold() == verb.casefold():
                    return Move(verb)
            if (found := _OFFER.fullmatch(inner)) is not None:
                return self._offer(found[1])
        return None

    def _offer(self, terms: str) -> Move | str:
        sides = _ARROW.split(terms)
        if len(sides) != 2:
            return f"{quoted(terms.strip())} is no offer: it must read 'given -> asked for'"
        quantities = []
        for side in sides:
            amounts = self._side(side)
            if isinstance(amounts, str):
                return amounts
            quantities.append(amounts)
        give, ask = quantities
        if not any(give) and not any(ask):
            return "an offer must move something"
        return Move("Offer", Offer(give, ask))

    def _side(self, side: str) -> tuple[int, ...] | str:
        side = " ".join(side.split()).strip(" .")
        amounts = [0] * len(self.resources)
        if side.casefold() == NOTHING:
            return tuple(amounts)
        # "3 Sheep, and 2 Ore" leaves an empty item between its two separators
        items = [item.strip() for item in _SEPARATOR.split(side)]
        for item in [item for item in items if item] or [""]:
            found = _ITEM.fullmatch(item)
            if found is None:
                return f"{quoted(item)} is no quantity of a resource, such as '3 {self.resources[0]}', or '{NOTHING}'"
            number, name = found[1].lstrip("0"), found[2]
            index = self._resource(name)
            if index is None:
                near = did_you_mean(name.title(), self.resources)
                return f"{quoted(name)} is no resource; there are {', '.join(self.resources)}{near}"
            if not number:
                return f"quantities must be positive: {quoted(item)}"
            if len(number) > _LARGEST_QUANTITY_DIGITS:
                return f"{quoted(item)} is more than anybody owns"
            amounts[index] += int(number)
        return tuple(amounts)

    def _resource(self, name: str) -> int | None:
        """Index of a resource, in the singular or the plural, in any case."""
        for index, resource in enumerate(self.resources):
            if name.casefold() in (resource.casefold(), f"{resource.casefold()}s", f"{resource.casefold()}es"):
                return index
        return None


def neutral(talk: str) -> str:
    """Talk as the other player reads it: one line of at most [`TALK_CHARS`] characters, which can be no move, no tag
    of a chat template and no end of a quotation."""
    shown = "".join(c if c.isprintable() else " " for c in talk[: 20 * TALK_CHARS]).translate(_NEUTRAL)
    return " ".join(shown.split())[:TALK_CHARS].strip()


@dataclass(frozen=True, eq=False)
class OfferSampler:
    """Random legal moves; an [`~spiral_trl.games.base.ActionSampler`].

    Facing an offer it accepts with probability 1/3 where it can, and otherwise denies or counters with equal
    probability; facing none it passes once in eight turns. An offer gives one or two resources that it owns and asks
    for one or two others, up to ten of each.

    Args:
        notation ([`Notation`]): How actions are written.
        owned (`tuple[int, ...]`): How many of each resource the player owns.
        open_offer ([`Offer`], *optional*): What the other player has proposed.
    """

    notation: Notation
    owned: tuple[int, ...]
    open_offer: Offer | None

    @property
    def affordable(self) -> bool:
        """Whether there is an open offer and the player owns what it asks for."""
        return self.open_offer is not None and not lacking(self.open_offer.ask, self.owned)

    @property
    def example_actions(self) -> tuple[str, ...]:
        """The answers that are legal now, and an offer of one unit where one can be made."""
        answers = ("Pass",) if self.open_offer is None else ("Accept", "Deny") if self.affordable else ("Deny",)
        moves = [Move(verb) for verb in answers]
        if any(self.owned):
            moves.append(self._offer((0.0,) * 8))
        return tuple(self.notation.write(move) for move in moves)

    def sample_action(self, draws: Sequence[float]) -> str:
        """A random legal action, as parsed, from 8 uniform numbers in [0, 1)."""
        if self.open_offer is None:
            verb = "Pass" if draws[0] < 1 / 8 else "Offer"
        elif self.affordable:
            verb = ("Accept", "Deny", "Offer")[int(3 * draws[0])]
        else:
            verb = ("Deny", "Offer")[int(2 * draws[0])]
        if verb == "Offer" and not any(self.owned):
            verb = "Pass" if self.open_offer is None else "Deny"
        return self.notation.write(self._offer(draws) if verb == "Offer" else Move(verb))

    def _offer(self, draws: Sequence[float]) -> Move:
        kinds = range(len(self.owned))
        give, ask = [0] * len(self.owned), [0] * len(self.owned)
        mine = [kind for kind in kinds if self.owned[kind]]
        given = [mine.pop(int(draws[2] * len(mine)))]
        # One draw decides how many resources stand on each side; the last kind is left to be asked for.
        if int(4 * draws[1]) in (1, 3) and mine and len(self.owned) > 2:
            given.append(mine.pop(int(draws[3] * len(mine))))
        others = [kind for kind in kinds if kind not in given]
        asked = [others.pop(int(draws[4] * len(others)))]
        if int(4 * draws[1]) in (2, 3) and others:
            asked.append(others.pop(int(draws[5] * len(others))))
        for kind in given:
            give[kind] = 1 + int(_spread(draws[6], kind) * min(10, self.owned[kind]))
        for kind in asked:
            ask[kind] = 1 + int(_spread(draws[7], kind) * 10)
        return Move("Offer", Offer(tuple(give), tuple(ask)))


def _spread(draw: float, kind: int) -> float:
    """Different quantities for different resources from one draw."""
    return (draw + 0.382 * kind) % 1.0


def lacking(needed: Sequence[int], owned: Sequence[int]) -> tuple[int, ...]:
    """Indices of the resources of which less is owned than is needed."""
    return tuple(i for i, (need, have) in enumerate(zip(needed, owned, strict=True)) if need > have)
