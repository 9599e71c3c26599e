"""Kuhn poker: the smallest poker game in which bluffing pays, as one hand or as a match of many.

Rules, tree and payoffs are OpenSpiel's `kuhn_poker` (Kuhn, 1950): three cards J, Q, K; each player antes one chip and
gets one card; one bet of one chip may be made and called. OpenSpiel's player 0 is whoever opens the hand. The words
are ours.

`cards=5` is the paper's harder variant: ranks below J join the deck, down to 2, everything else stays. OpenSpiel has no
such game.

`rules=spiral` plays by the environment that SPIRAL (arXiv 2506.24119) released instead, which departs from the rules
that it states to the players. Beside the right rules:

| | canonical | spiral |
|---|---|---|
| a bet, a call | moves one chip | moves no chip: the pot stays 2 |
| a hand is worth | 1 chip, 2 after a call | 1 chip, whoever folds and whatever was bet |
| a match goes to | whoever won more chips | whoever won its last hand |
| hand 1 is opened by | player 0 | player 1 |

Calling is free there, so that never folding is optimal, a bluff costs nothing, and a hand's value is 0 instead of
-1/18 chips for the player who opens it. Its players are told what that environment tells them: that bets and calls
move a chip and that most chips win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import permutations
from typing import Any, NamedTuple

import pyspiel

from ..names import Parameter
from .registry import format_name, parse_name, register
from .sequential import ROLES, SequentialGame, action_request
from .solver_state import SolverState


RANKS = ("2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")
_PAST_TENSE = {"check": "checked", "bet": "bet", "call": "called", "fold": "folded"}


@dataclass(frozen=True, eq=False)
class _Node:
    """A point of one hand, seen from its opener (mover 0) and the other player (mover 1)."""

    history: tuple[str, ...]
    mover: int
    actions: Mapping[str, int]  # none at the end
    chips: int  # won by the opener, at the end of the hand
    state: pyspiel.State | None  # OpenSpiel's, which has three cards only
    children: dict[str, _Node] = field(default_factory=dict)


@lru_cache(maxsize=len(RANKS))
def _deals(cards: int) -> dict[tuple[int, int], _Node]:
    """The tree of one hand: the first decision after each deal (opener's card, other card) from a deck of `cards`."""

    def grow(deal: tuple[int, int], history: tuple[str, ...], state: pyspiel.State | None) -> _Node:
        if history in (("check", "check"), ("check", "bet", "fold"), ("bet", "fold")) or history[-1:] == ("call",):
            if history[-1] == "fold":
                chips = 1 if len(history) == 2 else -1
            else:
                chips = (2 if history[-1] == "call" else 1) * (1 if deal[0] > deal[1] else -1)
            return _Node(history, -1, {}, chips, state)
        words = ("fold", "call") if "bet" in history else ("check", "bet")
        actions = {word: action for action, word in enumerate(words)}
        node = _Node(history, len(history) % 2, actions, 0, state)
        for word, action in actions.items():
            node.children[word] = grow(deal, (*history, word), None if state is None else state.child(action))
        return node

    roots = {}
    for deal in permutations(range(cards), 2):
        state = None
        if cards == 3:
            state = pyspiel.load_game("kuhn_poker").new_initial_state()
            for card in deal:
                state.apply_action(card)
        roots[deal] = grow(deal, (), state)
    return roots


class _Hand(NamedTuple):
    """A finished hand."""

    opener: int
    cards: tuple[str, str]  # by seat
    history: tuple[str, ...]
    chips: int  # won by player 0

    def shown_to(self, player: int) -> str:
        """The other player's card, if it was shown down."""
        return "?" if self.history[-1] == "fold" else self.cards[1 - player]


@dataclass(frozen=True)
class _Setup:
    """What all games of one name share."""

    name: str
    rounds: int
    deck: tuple[str, ...]  # from the lowest card up
    spiral: bool
    chips: bool
    observation: str
    seat_bonus: float
    worst_returns: tuple[float, float]
    introductions: tuple[str, str]


@lru_cache(maxsize=256)
def _setup(rounds: int, rules: str, payoff: str | None, observation: str, seat_bonus: float, cards: int) -> _Setup:
    given = {
        "rounds": rounds,
        "rules": rules,
        "payoff": payoff,
        "observation": observation,
        "seat_bonus": seat_bonus,
        "cards": cards,
    }
    name = format_name("kuhn_poker", given)
    values = parse_name(name)[1]
    spiral, chips = values["rules"] == "spiral", values["payoff"] == "chips"
    worst = (1 if spiral else 2) * rounds if chips else 1
    return _Setup(
        name=name,
        rounds=rounds,
        deck=RANKS[-cards:],
        spiral=spiral,
        chips=chips,
        observation=observation,
        seat_bonus=values["seat_bonus"],
        worst_returns=(float(values["seat_bonus"] - worst), float(-values["seat_bonus"] - worst)),
        introductions=(_introduction(0, values), _introduction(1, values)),
    )


def _introduction(player: int, values: Mapping[str, Any]) -> str:
    """Rules, payoff and role, as each seat reads them."""
    deck = RANKS[-values["cards"] :]
    rounds, bonus, opener = values["rounds"], values["seat_bonus"], int(values["rules"] == "spiral")
    game = "one hand" if rounds == 1 else f"a match of {rounds} hands"
    opens = f"Player {opener} acts first"
    if rounds > 1:
        opens += f" in hand 1, player {1 - opener} in hand 2, and so on in turn. Each hand is dealt afresh"
    if values["payoff"] == "chips":
        total = "" if rounds == 1 else " over all hands"
        payoff = f"Your payoff is the number of chips you win{total}, or minus the number you lose."
        if bonus:
            giver, taker = (1, 0) if bonus > 0 else (0, 1)
            payoff += (
                f" At the end player {giver} also pays {_chips(abs(bonus))} to player {taker}, whatever was played."
            )
    elif rounds == 1:
        payoff = "Your payoff is +1 if you win the pot and -1 if you do not."
    else:
        payoff = "Your payoff is +1 if you have won more chips after the last hand, -1 if fewer, 0 if equally many."
    return (
        f"You are {ROLES[player]} in {game} of Kuhn poker, a zero-sum game of two players.\n"
        f"Rules: The deck is {', '.join(deck)}; {deck[0]} is the lowest card and {deck[-1]} the highest. Each player antes 1 chip and is dealt "
        f"one private card. {opens}. While nobody has bet, a player may check or bet 1 chip; if both check, there is "
        "a showdown. Facing a bet, a player may fold and lose the pot, or call with 1 chip, and there is a showdown. "
        f"The higher card wins the pot at a showdown; folded cards are never shown.\n{payoff}\n"
    )


def _chips(number: float) -> str:
    return f"{number:g} chip" if number == 1 else f"{number:g} chips"


def _told(opener: int, history: Sequence[str]) -> str:
    return ", ".join(f"player {(opener + i) % 2} {_PAST_TENSE[action]}" for i, action in enumerate(history))


class KuhnPoker(SequentialGame[_Node]):
    """Kuhn poker in words; a [`~spiral_trl.games.base.Game`]. Each hand is two choices of chance: the opener's card, then
    the other's among those left.

    Args:
        rounds (`int`, *optional*, defaults to `1`): Hands in the match, 1 to 100. Player 0 opens hand 1, player 1 hand
            2, and so on; the seats keep their roles.
        rules (`str`, *optional*, defaults to `"canonical"`): `"canonical"` or `"spiral"`; see the module.
        payoff (`str`, *optional*): `"chips"`: all chips won or lost (one canonical hand: -2, -1, 1 or 2). `"sign"`: -1
            or 1 for the loser and winner of the match, 0 for a draw; under `rules="spiral"` the winner is whoever won
            the last hand. Defaults to `"chips"` for one canonical hand and to `"sign"`, the paper's, otherwise.
        observation (`str`, *optional*, defaults to `"words"`): `"words"`: rules, payoff, role and all that the seat
            has seen, in one user message per turn. `"latest"`: the same without finished hands; only the chips won so
            far remain of them. In a match that is less than the seat has seen, so that turns have no `infoset` there.
            `"compact"`: that message is one line, such as `player 0 card J history none` or
            `player 0 card K history check bet`, for small models; one hand only.
        seat_bonus (`float`, *optional*, defaults to `0`): Chips that player 1 pays player 0 at the end, -100 to 100.
            Changes no best reply; it gives the seats unequal values, as real games do. With `payoff="chips"` only.
        cards (`int`, *optional*, defaults to `3`): Size of the deck, 3 to 12. K is the highest card, and lower ranks
            fill it: 9, 10, J, Q, K for the 5 of the paper's harder variant.
    """

    def __init__(
        self,
        rounds: int = 1,
        rules: str = "canonical",
        payoff: str | None = None,
        observation: str = "words",
        seat_bonus: float = 0,
        cards: int = 3,
    ):
        self._setup = _setup(rounds, rules, payoff, observation, seat_bonus, cards)
        super().__init__(self._setup.name)
        self.worst_returns = self._setup.worst_returns
        self._finished: list[_Hand] = []
        self._cards = ("", "")
        self._opener = 0

    def _deal(self) -> None:
        self._finished = []
        self._deal_hand()

    def _deal_hand(self) -> None:
        ranks = self._setup.deck
        left = list(range(len(ranks)))
        first = left.pop(self._chance.choose((1 / len(left),) * len(left)))
        second = left.pop(self._chance.choose((1 / len(left),) * len(left)))
        self._opener = (len(self._finished) + self._setup.spiral) % 2
        cards = (ranks[first], ranks[second])
        self._cards = (cards[1], cards[0]) if self._opener else cards
        self._position = _deals(len(ranks))[first, second]

    def _mover(self, position: _Node) -> int:
        return (position.mover + self._opener) % 2

    def _legal(self, position: _Node) -> Mapping[str, int]:
        return position.actions

    def _attached(self, position: _Node, player: int) -> SolverState | None:
        setup = self._setup
        # OpenSpiel solves for chips. One hand played for its sign, or by the released rules, is another game.
        if position.state is None or setup.spiral or not (setup.chips or setup.rounds > 1):
            return None
        return SolverState(position.state, position.actions, "hand" if setup.rounds > 1 else None)

    def _infoset(self, position: _Node, player: int) -> str | None:
        """`player|card|history`; in a match one `card|history|other card or ?` for each finished hand comes before.

        `None` where the prompt leaves out finished hands and so does not tell it.
        """
        if self._setup.observation == "latest" and self._setup.rounds > 1:
            return None
        seen = [f"{hand.cards[player]}|{' '.join(hand.history)}|{hand.shown_to(player)}" for hand in self._finished]
        seen.append(f"{self._cards[player]}|{' '.join(position.history)}")
        return f"{player}|{' / '.join(seen)}"

    def _observation(self, position: _Node, player: int) -> str:
        card = self._cards[player]
        if self._setup.observation == "compact":
            return f"player {player} card {card} history {' '.join(position.history) or 'none'}"
        parts = [self._setup.introductions[player]]
        if self._finished:
            if self._setup.observation == "words":
                parts += [self._hand_in_words(number, hand, player) for number, hand in enumerate(self._finished, 1)]
            total = sum(hand.chips for hand in self._finished)
            parts.append(f"Chips so far: player 0 {total:+d}, player 1 {-total:+d}.\n")
        where = "" if self._setup.rounds == 1 else f"Hand {len(self._finished) + 1}: "
        listed = [f"[{action}]" for action in position.actions]
        parts.append(
            f"{where}Your card is {card}. Moves so far: {_told(self._opener, position.history) or 'none'}.\n"
            f"{action_request(' or '.join(listed), list(position.actions)[-1])}"
        )
        return "".join(parts)

    def _hand_in_words(self, number: int, hand: _Hand, player: int) -> str:
        winner = int(hand.chips < 0)
        other = 1 - player
        shown = hand.shown_to(player)
        end = "" if shown == "?" else f"; player {other} showed {shown}"
        return (
            f"Hand {number}: your card was {hand.cards[player]}; {_told(hand.opener, hand.history)}{end}; "
            f"player {winner} won {_chips(abs(hand.chips))}.\n"
        )

    def _play(self, position: _Node, player: int, action: str) -> None:
        """Deals the next hand or ends the match after a hand's last action."""
        self._position = node = position.children[action]
        if node.actions:
            return
        chips = -node.chips if self._opener else node.chips
        if self._setup.spiral:
            chips = 1 if chips > 0 else -1
        self._finished.append(_Hand(self._opener, self._cards, node.history, chips))
        if len(self._finished) == self._setup.rounds:
            self._end(self._totals())
        else:
            self._deal_hand()

    def _totals(self) -> tuple[float, float]:
        """Chips or sign, by `payoff`."""
        total = sum(hand.chips for hand in self._finished)
        if self._setup.chips:
            value = float(total + self._setup.seat_bonus)
        else:
            decisive = self._finished[-1].chips if self._setup.spiral else total
            value = float((decisive > 0) - (decisive < 0))
        return (value, 0.0 - value)


def _default_payoff(values: Mapping[str, Any]) -> str:
    return "chips" if values["rounds"] == 1 and values["rules"] == "canonical" else "sign"


def _check(values: Mapping[str, Any]) -> None:
    if values["observation"] == "compact" and values["rounds"] > 1:
        raise ValueError(f"kuhn_poker: observation=compact is for one hand; rounds is {values['rounds']}")
    if values["seat_bonus"] and values["payoff"] != "chips":
        raise ValueError("kuhn_poker: seat_bonus is in chips and needs payoff=chips")


register(
    "kuhn_poker",
    KuhnPoker,
    {
        "rounds": Parameter(1, int, low=1, high=100),
        "rules": Parameter("canonical", choices=("canonical", "spiral")),
        "payoff": Parameter(_default_payoff, choices=("chips", "sign")),
        "observation": Parameter("words", choices=("words", "latest", "compact")),
        "seat_bonus": Parameter(0, float, low=-100, high=100),
        "cards": Parameter(3, int, low=3, high=len(RANKS)),
    },
    _check,
)
