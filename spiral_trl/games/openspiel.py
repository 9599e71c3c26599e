"""Every zero-sum game of OpenSpiel as text: `openspiel:NAME(parameters)`, sequential or simultaneous, two seats or more.

What a seat reads is what the library gives it:

- **perfect information**: the position (`observation_string`) and all moves so far, chance included;
- **imperfect information**: the library's description of the information set (`information_state_string`);
- where the library has no such description, or one that forgets what the seat has seen before: what the seat sees now,
  and all that it saw and did before.

Nothing that the library keeps from a seat is shown. The games whose name ends in `_ir` forget on purpose, and are left
to forget.

All chance of these games is in explicit nodes and drawn from the game's seed, so the same seed and replies give the
same game, in all of them. Games that draw chance inside the library are refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import pyspiel

from ..records import Ending, Message, Parsed, Turn
from .base import Game
from .chance import Chance, SeededChance
from .openspiel_names import load, zero_sum_names
from .parsing import how_to_reply, parse_action
from .registry import register_source
from .solver_state import SolverState


PREFIX = "openspiel"

# Their information_state_string is the same after different pasts of the seat's own (a test finds them by playing).
_FORGETFUL = ("dark_hex", "go_fish", "repeated_leduc_poker", "turn_based_simultaneous_game")
# Perfect information that another string than observation_string tells better: that of goofspiel runs its cards
# together, that of oware is one row of numbers.
_POSITIONS = {
    "goofspiel": lambda state, player: state.information_state_string(player),
    "oware": lambda state, player: str(state),
}
_LISTED_ACTIONS = 40
_PAYOFF_ROWS = 40
_KEY_CHARS = 160
_PLAYED = "You played"

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_CHANCE = re.compile(r"^chance outcome \d+ (?=\S)")
_SEAT = re.compile(r"^(?:\[P\d+\]\s*|P\d+:\s*|Player: \d+ Action: |player=\d+ move=)")
_BRACKETS = str.maketrans("[]{}", "()()")
# What the parser of replies strips as Markdown.
_MARKS = str.maketrans("", "", "*`$\"'")


@dataclass(frozen=True, eq=False)
class _Setup:
    """What all games of one name share.

    `recall` says where a seat's past stands: `"moves"` (all moves are public), `"state"` (in its information state) or
    `"log"` (nowhere: the game keeps it).
    """

    name: str
    base: str
    game: pyspiel.Game
    latest: bool
    recall: str
    one_shot: bool
    has_information_state: bool
    has_observation: bool
    roles: tuple[str, ...]
    worst_returns: tuple[float, ...]
    introduction: str


@lru_cache(maxsize=1024)
def _setup(name: str) -> _Setup:
    loaded = load(name)
    game, kind = loaded.game, loaded.game.get_type()
    simultaneous = kind.dynamics == pyspiel.GameType.Dynamics.SIMULTANEOUS
    if kind.information != pyspiel.GameType.Information.IMPERFECT_INFORMATION:
        recall = "moves"
    elif kind.provides_information_state_string and not set(re.findall(r"\w+", loaded.name)) & set(_FORGETFUL):
        recall = "state"
    else:
        recall = "log"
    stated = {key: value for key, value in loaded.values.items() if key != "observation"}
    listed = ", ".join(f"{key}={value}" for key, value in stated.items() if value != "" and "\n" not in str(value))
    seats = game.num_players()
    introduction = (
        f"a zero-sum game of {seats} players.\n"
        f"It is {loaded.base} of the OpenSpiel library{f' with {listed}' if listed else ''}.\n"
        + ("All players choose at the same time.\n" if simultaneous else "")
        + f"Your payoff is in points, from {game.min_utility():g} to {game.max_utility():g}; the payoffs of all players "
        "add up to 0.\n"
    )
    one_shot = kind.information == pyspiel.GameType.Information.ONE_SHOT
    if one_shot:
        introduction += _payoffs(game)
    return _Setup(
        name=f"{PREFIX}:{loaded.name}",
        base=loaded.base,
        game=game,
        latest=loaded.values["observation"] == "latest",
        recall=recall,
        one_shot=one_shot,
        has_information_state=kind.provides_information_state_string,
        has_observation=kind.provides_observation_string,
        roles=tuple(f"player {player}" for player in range(seats)),
        worst_returns=(float(game.min_utility()),) * seats,
        introduction=f"in {kind.long_name}, {introduction}",
    )


def _payoffs(game: pyspiel.Game) -> str:
    """The payoffs of a small game of one simultaneous move, which no position tells."""
    state = game.new_initial_state()
    if not state.is_simultaneous_node():
        return ""
    legal = [state.legal_actions(player) for player in range(game.num_players())]
    if prod(len(actions) for actions in legal) > _PAYOFF_ROWS:
        return ""
    words = [_words(state, player, actions) for player, actions in enumerate(legal)]
    rows = []
    for joint, named in zip(product(*legal), product(*words), strict=True):
        end = state.clone()
        end.apply_actions(list(joint))
        if not end.is_terminal():
            return ""
        rows.append(f"{', '.join(named)}: {', '.join(f'{value:g}' for value in end.returns())}\n")
    seats = ", ".join(f"player {player}" for player in range(game.num_players()))
    return f"Payoffs ({seats}), by their choices in the same order:\n{''.join(rows)}"


class OpenSpielGame:
    """One game of OpenSpiel; a [`~spiral_trl.games.base.Game`].

    Args:
        name (`str`): Name without the prefix, such as `goofspiel(num_cards=4,observation=latest)`. `observation` is
            `"words"` (default): what the module's text says; or `"latest"`: what the seat sees now
            (`observation_string`) and no past, so that with perfect information the prompt, and the key of the turn,
            depend on the position alone.
    """

    def __init__(self, name: str):
        setup = _setup(name)
        self._setup = setup
        self.name = setup.name
        self.num_players = len(setup.roles)
        self.roles = setup.roles
        self.worst_returns = setup.worst_returns
        self.ending: Ending | None = None
        self._state: pyspiel.State | None = None
        self._turns: tuple[Turn, ...] = ()
        self._actions: dict[int, dict[str, int]] = {}

    def reset(self, seed: int, chance: Chance | None = None) -> None:
        """Deals. Chance is drawn from `chance`, by default `SeededChance(seed)`."""
        self.ending = None
        self._seed = seed
        self._chance: Chance = SeededChance(seed) if chance is None else chance
        self._count = 0
        self._moves: list[str] = []
        self._logs: list[list[str]] = [[] for _ in self.roles]
        self._seen: list[str | None] = [None] * self.num_players
        self._settle(self._setup.game.new_initial_state())

    def copy(self, chance: Chance) -> OpenSpielGame:
        """An independent game at the same point, whose further chance is drawn from `chance`."""
        other = OpenSpielGame.__new__(OpenSpielGame)
        other.__dict__.update(self.__dict__)
        # States are never changed once a turn may hold them, so both games can share this one.
        other._chance = chance
        other._moves = list(self._moves)
        other._logs = [list(log) for log in self._logs]
        other._seen = list(self._seen)
        return other

    def turns(self) -> Sequence[Turn]:
        """Who is asked now: one seat, or every seat with a choice at a simultaneous node."""
        self._current()
        return self._turns

    def parse(self, player: int, text: str) -> Parsed:
        """The legal action that `text` names; see [`~spiral_trl.games.parsing.parse_action`]."""
        self._check_asked(player)
        return parse_action(text, tuple(self._actions[player]))

    def step(self, actions: Mapping[int, str]) -> None:
        """Plays one action for each seat that was asked."""
        state = self._current()
        for player in sorted({*actions, *self._actions}):
            self._check_asked(player)
            if actions.get(player) not in self._actions[player]:
                raise ValueError(f"{self.name}: player {player} cannot play {actions.get(player)!r} here")
        chosen = {}
        for player, action in sorted(actions.items()):
            chosen[player] = self._actions[player][action]
            if self._setup.recall == "moves":
                self._moves.append(f"{self.roles[player]} {action}")
            elif self._setup.recall == "log":
                self._logs[player].append(f"{_PLAYED} [{action}].")
        self._count += len(actions)
        state = state.clone()
        if state.is_simultaneous_node():
            # OpenSpiel takes any action of a seat that has none.
            state.apply_actions([chosen.get(player, 0) for player in range(self.num_players)])
        else:
            state.apply_action(next(iter(chosen.values())))
        self._settle(state)

    def returns(self) -> tuple[float, ...]:
        """Points of each seat."""
        state = self._current()
        if self.ending is None:
            raise ValueError(f"{self.name}: the game is not over")
        return tuple(float(value) for value in state.returns())

    def _current(self) -> pyspiel.State:
        if self._state is None:
            raise ValueError(f"{self.name} was not dealt: reset it first")
        return self._state

    def _check_asked(self, player: int) -> None:
        self._current()
        if player not in self._actions:
            asked = " and ".join(f"player {seat}" for seat in self._actions) or "nobody, for the game is over,"
            raise ValueError(f"{self.name}: {asked} is asked, not player {player}")

    def _settle(self, state: pyspiel.State) -> None:
        """Goes on from `state`, which no turn holds yet: draws chance until a seat is asked or the game is over."""
        setup = self._setup
        self._state = state
        self._observe(state)
        while state.is_chance_node():
            outcomes = state.chance_outcomes()
            outcome = outcomes[self._chance.choose([probability for _, probability in outcomes])][0]
            if setup.recall == "moves":
                drawn = _CHANCE.sub("", state.action_to_string(pyspiel.PlayerId.CHANCE, outcome))
                self._moves.append(f"chance {_plain(drawn, outcome)}")
            state.apply_action(outcome)
            self._observe(state)
        self._actions, self._turns = {}, ()
        if state.is_terminal():
            self.ending = Ending.TERMINAL
            return
        asked = range(self.num_players) if state.is_simultaneous_node() else (state.current_player(),)
        for player in asked:
            legal = state.legal_actions(player)
            if legal:
                self._actions[player] = dict(zip(_words(state, player, legal), legal, strict=True))
        if setup.recall == "log" and setup.has_information_state:
            for player in self._actions:
                self._note(player, state.information_state_string(player))
        self._turns = tuple(
            self._turn(state, player, self._count + position) for position, player in enumerate(self._actions)
        )

    def _observe(self, state: pyspiel.State) -> None:
        """Notes what every seat sees, in games that describe no information sets. Seats see what others do only here;
        an information state tells it at the seat's next turn."""
        if self._setup.recall == "log" and not self._setup.has_information_state:
            if not state.is_chance_node():
                for player in range(self.num_players):
                    self._note(player, state.observation_string(player))

    def _note(self, player: int, text: str) -> None:
        text = _clean(text)
        before = self._seen[player]
        if text != before:
            self._logs[player].append(_change(before, text))
            self._seen[player] = text

    def _turn(self, state: pyspiel.State, player: int, index: int) -> Turn:
        setup, legal = self._setup, tuple(self._actions[player])
        situation, key = self._situation(state, player)
        together = "Choose at the same time as the others" if len(self._actions) > 1 else "It is your turn"
        content = (
            f"You are {self.roles[player]} {setup.introduction}{situation}{together}. {_choices(legal)} "
            f"{how_to_reply(legal[-1])}"
        )
        sequential = not state.is_simultaneous_node()
        return Turn(
            game=self.name,
            episode=0,
            seed=self._seed,
            index=index,
            player=player,
            role=self.roles[player],
            messages=(Message(role="user", content=content),),
            legal_actions=legal,
            infoset=f"{player}|{key}",
            state=SolverState(state, self._actions[player]) if sequential else None,
        )

    def _situation(self, state: pyspiel.State, player: int) -> tuple[str, str]:
        """What the seat reads of the game so far, and the key of its information set."""
        setup = self._setup
        if setup.recall == "moves":
            position = _clean(self._position(state, player))
            shown = "" if setup.one_shot else f"The position:\n{position}\n"
            if setup.latest:
                return shown, _key(position)
            moves = "; ".join(self._moves) or "none"
            past = "" if not shown else f"Moves so far: {moves}.\n"
            return f"{past}{shown}", _key(" ".join(map(str, state.history())))
        if setup.recall == "state":
            known = _clean(state.information_state_string(player))
            key = _key(known)
        else:
            log = self._logs[player]
            # The newest entry is what the seat sees now, unless its last move changed nothing that it sees.
            before = log if log[-1].startswith(_PLAYED) else log[:-1]
            known = "\n".join([*before, f"You see now:\n{self._seen[player]}"])
            key = _key("\n".join(log))
        if setup.latest and setup.has_observation:
            return f"What you see:\n{_clean(state.observation_string(player))}\n", key
        return f"What you know, in the library's notation:\n{known}\n", key

    def _position(self, state: pyspiel.State, player: int) -> str:
        if self._setup.base in _POSITIONS:
            return _POSITIONS[self._setup.base](state, player)
        return state.observation_string(player) if self._setup.has_observation else str(state)


def _choices(legal: tuple[str, ...]) -> str:
    listed = [f"[{action}]" for action in legal[:_LISTED_ACTIONS]]
    if len(legal) > len(listed):
        return f"There are {len(legal)} legal actions, all written like the first {len(listed)}: {', '.join(listed)}."
    if len(listed) == 1:
        return f"The only legal action is {listed[0]}."
    return f"Choose {', '.join(listed[:-1])} or {listed[-1]}."


def _words(state: pyspiel.State, player: int, actions: Sequence[int]) -> list[str]:
    """A word for each action: the library's, such that the parser of replies can tell them apart."""
    words = [_plain(state.action_to_string(player, action), action) for action in actions]
    if len(set(words)) < len(words) or "" in words:
        words = [
            f"{action}: {word}" if word == "" or words.count(word) > 1 else word
            for word, action in zip(words, actions, strict=True)
        ]
    return words


def _plain(text: str, action: int) -> str:
    """The library's name of an action, without the seat or the number that it may start with, nor marks that replies
    are read without."""
    text = _SEAT.sub("", text.strip()).removeprefix(f"{action} - ")
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    return " ".join(text.translate(_BRACKETS).translate(_MARKS).split()).strip("_; ")


def _clean(text: str) -> str:
    lines = _COLOURS.sub("", text).strip("\n").split("\n")
    return "\n".join(line.rstrip() for line in lines)


def _change(before: str | None, text: str) -> str:
    """What a seat newly saw: the lines that changed where their number did not, else all."""
    lines = text.split("\n")
    old = [] if before is None else before.split("\n")
    if len(lines) != len(old) or len(lines) == 1:
        return f"You saw:\n{text}"
    changed = (f"line {i}: {line}" for i, (line, was) in enumerate(zip(lines, old, strict=True), 1) if line != was)
    return "\n".join(["You saw a change:", *changed])


def _key(text: str) -> str:
    """A short key for `text`: itself, or its digest where it is long."""
    return text if len(text) <= _KEY_CHARS else hashlib.sha256(text.encode()).hexdigest()[:32]


class _Source:
    """OpenSpiel as a source of games; see [`~spiral_trl.games.registry.GameSource`]."""

    def names(self) -> list[str]:
        """The zero-sum games that need no parameter, sorted."""
        return list(zero_sum_names())

    def parse(self, name: str) -> tuple[str, dict[str, Any], str]:
        """Base name, every parameter, canonical name; see [`~spiral_trl.games.openspiel_names.load`]."""
        loaded = load(name)
        return loaded.base, dict(loaded.values), loaded.name

    def make(self, name: str) -> Game:
        """A new game."""
        return OpenSpielGame(name)


register_source(PREFIX, _Source())
