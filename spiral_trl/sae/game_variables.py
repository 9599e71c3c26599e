"""What stands behind each step of recorded games, as variables that features may stand for.

The games are played again, since stored turns lack their state. For each role of each game:

- the seat's own information, such as its card: those events of the game that it sees and another seat does not;
- the history: the events that all seats see;
- the legal moves, or whether each single one is legal where there are many sets of them;
- the probability with which an equilibrium plays each move, where a solver knows one;
- the return of the seat, whether it won, and the move it made.

Who sees an event is asked of OpenSpiel: a seat sees it if what the seat observes right after it (its information state)
would be another, had another outcome or move come in its place. That needs nothing of a game but its information
states, and says the same as OpenSpiel's observers of private and of public information, which many games lack.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyspiel

from ..errors import UsageError
from ..games.registry import canonical_name, parse_name
from ..games.solver_state import SolverState
from ..players.bots import CFRPlayer
from ..players.search import MinimaxPlayer
from ..records import Episode, Step, Turn
from ..rollout import replay


# What a seat's own information is called, and in whose games it stands first in the key of an information set
OWN = {"kuhn_poker": "card", "leduc_poker": "card", "liars_dice": "dice"}
HISTORY = "history"
MIN_GAMES = 10
# Values of a variable at most; sets of legal moves at most, above which each move is a variable
_LEVELS = 32
_SETS = 8
# Other outcomes that are tried in place of one
_ALTERNATIVES = 8
_CHANCE = re.compile(r"^chance outcome:? *", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Variable:
    """One quantity at each of a role's steps.

    Args:
        name (`str`): Such as `card` or `equilibrium: bet`.
        values (`np.ndarray`): `(steps,)` float64: a number, or the index of a level; NaN where it is not defined.
        levels (`tuple[str, ...]`, *optional*): The values of a categorical variable; none for a number.
        also (`tuple[str, ...]`, *optional*): Other variables that tell the same steps apart, or, for numbers, differ
            by a scale: they need no test of their own.
    """

    name: str
    values: np.ndarray
    levels: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def categorical(self) -> bool:
        return bool(self.levels)


@dataclass(frozen=True, eq=False)
class RoleSteps:
    """The steps of one role of one game, in the order of the episodes.

    Args:
        game (`str`): Canonical name.
        role (`str`), player (`int`): The seat.
        group (`np.ndarray`): `(steps,)` which of the episodes.
        turn (`np.ndarray`): `(steps,)` `Turn.index` in it.
        step (`np.ndarray`): `(steps,)` place among the episode's steps.
        variables (`tuple[Variable, ...]`): Those that vary.
        own (`tuple[str | None, ...]`): The seat's own information at each step, where it is known.
        rest (`tuple[str | None, ...]`): All else that the seat knows: steps with equal `rest` are told apart by `own`.
        notes (`tuple[str, ...]`): What is not there, and why.
    """

    game: str
    role: str
    player: int
    group: np.ndarray
    turn: np.ndarray
    step: np.ndarray
    variables: tuple[Variable, ...]
    own: tuple[str | None, ...]
    rest: tuple[str | None, ...]
    notes: tuple[str, ...]

    @property
    def own_name(self) -> str:
        """What the seat's own information is called."""
        return own_name(self.game)

    def variable(self, name: str) -> Variable:
        """The variable of this name, or one that tells the same.

        Raises:
            [`~spiral_trl.errors.UsageError`]: If there is none.
        """
        for variable in self.variables:
            if name == variable.name or name in variable.also:
                return variable
        known = ", ".join(variable.name for variable in self.variables) or "none"
        raise UsageError(f"{self.role} of {self.game} has no variable {name!r}; it has {known}")


def own_name(game: str) -> str:
    """What a seat's own information is called in a game."""
    return OWN.get(_base(game), "own information")


def _base(game: str) -> str:
    return parse_name(game)[0].rpartition(":")[2]


def game_variables(episodes: Sequence[Episode], *, min_games: int = MIN_GAMES) -> list[RoleSteps]:
    """Variables of recorded games, by game and role.

    Args:
        episodes (`Sequence[Episode]`): The games, in the order in which a store of codes counts them as groups.
        min_games (`int`, *optional*, defaults to `10`): A level seen in fewer games of the role counts as not defined.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there are no steps, or an episode does not follow its game's rules.
    """
    rows: dict[tuple[str, int], list[_Row]] = {}
    observer = _Observer()
    solvers: dict[str, _Solver] = {}
    for group, episode in enumerate(episodes):
        name = canonical_name(episode.game)
        solver = solvers.setdefault(name, _Solver())
        try:
            for place, (_, turn, step) in enumerate(replay(episode)):
                row = _Row(group, place, step, turn, *observer.knows(turn), solver.probabilities(turn), episode)
                rows.setdefault((name, turn.player), []).append(row)
        except ValueError as error:
            raise UsageError(f"episode {group} cannot be played again: {error}") from None
    if not rows:
        raise UsageError("the episodes have no steps")
    for name in {name for name, _ in rows}:
        _put_in_words(name, [row for (game, _), part in rows.items() if game == name for row in part])
    return [
        _role_steps(name, player, part, solvers[name].note, min_games) for (name, player), part in sorted(rows.items())
    ]


@dataclass
class _Row:
    """One step, with what the seat knows as names of events."""

    group: int
    place: int
    step: Step
    turn: Turn
    own: tuple[str, ...] | None
    public: tuple[str, ...] | None
    equilibrium: Mapping[str, float]
    episode: Episode
    own_word: str | None = None
    public_word: str | None = None
    rest: str | None = None


class _Observer:
    """Who sees the events of OpenSpiel's games."""

    def __init__(self) -> None:
        self._events: dict[tuple[str, tuple[int, ...]], tuple[frozenset[int], str]] = {}
        self._words: dict[tuple[str, tuple[int, ...]], str] = {}

    def knows(self, turn: Turn) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
        """Events that the seat sees and another does not, and events that all see; `None` where that is not known."""
        if not isinstance(turn.state, SolverState):
            return None, None
        state = turn.state.state
        game = state.get_game()
        kind = game.get_type()
        if kind.dynamics != pyspiel.GameType.Dynamics.SEQUENTIAL:
            return None, None
        name, history = str(game), tuple(state.history())
        for word, action in turn.state.actions.items():
            self._words[name, (*history, action)] = word
        own, public = [], []
        # In a match the seats may take turns as OpenSpiel's first player
        seat = state.current_player()
        seats = frozenset(range(game.num_players()))
        for count, (seen, event) in enumerate(self._walk(name, state)):
            event = self._words.get((name, history[: count + 1]), event)
            if seen == seats:
                public.append(event)
            elif seat in seen:
                own.append(event)
        return tuple(own), tuple(public)

    def _walk(self, name: str, end: pyspiel.State) -> Iterator[tuple[frozenset[int], str]]:
        """Seats that see each event of a history, and its name."""
        state: pyspiel.State | None = None
        history = tuple(end.history())
        for count, action in enumerate(history):
            key = name, history[: count + 1]
            if key not in self._events:
                if state is None:
                    state = end.get_game().new_initial_state()
                    for earlier in history[:count]:
                        state.apply_action(earlier)
                mover = state.current_player()
                event = _CHANCE.sub("", state.action_to_string(mover, action))
                self._events[key] = _seen_by(state, action), event
            if state is not None:
                state.apply_action(action)
            yield self._events[key]


def _seen_by(state: pyspiel.State, action: int) -> frozenset[int]:
    """The seats that would observe another thing, had another outcome or move come."""
    game = state.get_game()
    kind, seats = game.get_type(), range(game.num_players())
    observe: Callable[[Any, int], str]
    if kind.information == pyspiel.GameType.Information.PERFECT_INFORMATION:
        return frozenset(seats)
    if kind.provides_information_state_string:
        observe = type(state).information_state_string
    elif kind.provides_observation_string:
        observe = type(state).observation_string
    else:
        return frozenset(seats)
    others = [other for other in state.legal_actions() if other != action][:_ALTERNATIVES]
    after = state.child(action)
    told = [observe(after, seat) for seat in seats]
    seen = {seat for other in others for seat in seats if observe(state.child(other), seat) != told[seat]}
    # What cannot come otherwise is no secret
    return frozenset(seen) if others else frozenset(seats)


class _Solver:
    """Equilibrium probabilities of one game, of the solver that can play it, and why there are none."""

    def __init__(self) -> None:
        self.note: str | None = None
        self._player: CFRPlayer | MinimaxPlayer | None = None
        self._looked = False
        self._known: dict[tuple[int, str | None], dict[str, float]] = {}

    def probabilities(self, turn: Turn) -> Mapping[str, float]:
        if not self._looked:
            self._looked = True
            self._player = self._find(turn)
        if self._player is None:
            return {}
        if turn.infoset is None:
            return self._player.action_probabilities(turn)
        key = turn.player, turn.infoset
        if key not in self._known:
            self._known[key] = self._player.action_probabilities(turn)
        return self._known[key]

    def _find(self, turn: Turn) -> CFRPlayer | MinimaxPlayer | None:
        reasons = []
        for player in (CFRPlayer(), MinimaxPlayer()):
            try:
                player.check(turn)
            except ValueError as error:
                reasons.append(str(error))
            else:
                return player
        self.note = f"no equilibrium is known: {'; '.join(reasons)}"
        return None


def _put_in_words(game: str, rows: Sequence[_Row]) -> None:
    """Writes what seats know in the words of the game's own keys where these say the same, else by names of events."""
    has_words = _base(game) in OWN
    spelled = [_spelled(row.turn) if has_words else None for row in rows]
    own = [None if row.own is None else tuple(sorted(row.own)) for row in rows]
    same_own = _agree(own, [None if words is None else words[0] for words in spelled])
    same_public = _agree([row.public for row in rows], [None if words is None else words[1] for words in spelled])
    for row, words in zip(rows, spelled, strict=True):
        if words is not None and same_own:
            row.own_word = words[0]
            row.rest = words[2]
        elif row.own:
            row.own_word = ", ".join(sorted(row.own))
        if words is not None and same_public:
            row.public_word = words[1]
        elif row.public is not None:
            row.public_word = ", ".join(row.public) or "none"
        if row.rest is None and row.own_word is not None:
            row.rest = row.public_word


def _spelled(turn: Turn) -> tuple[str, str, str] | None:
    """Own information, history, and all but the own information, of the key `player|own|history` of a game with words,
    where earlier hands of a match stand before the newest."""
    if turn.infoset is None:
        return None
    known = turn.infoset.partition("|")[2]
    earlier, _, newest = known.rpartition(" / ")
    own, bar, public = newest.partition("|")
    if not bar:
        return None
    history = " | ".join(part or "none" for part in public.split("|"))
    return own, history, f"{earlier} / {public}"


def _agree(events: Sequence[tuple[str, ...] | None], words: Sequence[str | None]) -> bool:
    """Whether words are known throughout and follow from the events, where those are known."""
    found: dict[tuple[str, ...], str] = {}
    for event, word in zip(events, words, strict=True):
        if word is None or (event is not None and found.setdefault(event, word) != word):
            return False
    return True


# ----------------------------------------------------------------------------------------------------------- variables


@dataclass
class _Columns:
    """Variables as they are put together."""

    group: np.ndarray
    min_games: int
    variables: list[Variable] = field(default_factory=list)

    def categorical(self, name: str, values: Sequence[str | None]) -> None:
        """Adds a variable, unless fewer than two of its levels are seen in enough games."""
        games: dict[str, set[int]] = {}
        for value, group in zip(values, self.group.tolist(), strict=True):
            if value is not None:
                games.setdefault(value, set()).add(group)
        counts = Counter({level: len(seen) for level, seen in games.items() if len(seen) >= self.min_games})
        # Of equally frequent ones the first by name, so that the order of games does not matter
        common = sorted(counts, key=lambda level: (-counts[level], level))[:_LEVELS]
        levels = tuple(sorted(common, key=_natural))
        place = {level: float(number) for number, level in enumerate(levels)}
        column = np.array([np.nan if value is None else place.get(value, np.nan) for value in values])
        if len(levels) > 1:
            self._add(Variable(name, column, levels))

    def number(self, name: str, values: Sequence[float]) -> None:
        """Adds a variable, unless it is constant or defined in too few games."""
        column = np.array(values, dtype=np.float64)
        there = np.isfinite(column)
        if len(np.unique(self.group[there])) >= self.min_games and np.ptp(column[there]) > 1e-9:
            self._add(Variable(name, column))

    def _add(self, variable: Variable) -> None:
        for number, other in enumerate(self.variables):
            if _same(other, variable):
                self.variables[number] = replace(other, also=(*other.also, variable.name))
                return
        self.variables.append(variable)


def _natural(level: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", level)]


def _same(one: Variable, other: Variable) -> bool:
    """Whether two variables tell the same steps apart, or are the same number but for shift, scale and sign."""
    there = ~np.isnan(one.values)
    if one.categorical != other.categorical or not np.array_equal(there, ~np.isnan(other.values)):
        return False
    first, second = one.values[there], other.values[there]
    if one.categorical:
        return len(one.levels) == len(other.levels) == len(set(zip(first.tolist(), second.tolist(), strict=True)))
    return bool(abs(np.corrcoef(first, second)[0, 1]) > 1 - 1e-9)


def _role_steps(game: str, player: int, rows: Sequence[_Row], note: str | None, min_games: int) -> RoleSteps:
    group = np.array([row.group for row in rows], dtype=np.int64)
    columns = _Columns(group, min_games)
    columns.categorical(own_name(game), [row.own_word for row in rows])
    columns.categorical(HISTORY, [row.public_word for row in rows])
    columns.number("moves so far", [float(row.turn.index) for row in rows])
    legal = [row.turn.legal_actions for row in rows]
    sets = [None if actions is None else ", ".join(actions) for actions in legal]
    if len(set(sets)) <= _SETS:
        columns.categorical("legal moves", sets)
    else:
        for action in sorted({action for actions in legal for action in actions or ()}, key=_natural):
            allowed = [None if actions is None else "yes" if action in actions else "no" for actions in legal]
            columns.categorical(f"legal: {action}", allowed)
    for action in sorted({action for row in rows for action in row.equilibrium}, key=_natural):
        columns.number(f"equilibrium: {action}", [row.equilibrium.get(action, np.nan) for row in rows])
    returns = [row.episode.returns[player] for row in rows]
    columns.categorical("winning", ["draw" if value == 0 else "win" if value > 0 else "loss" for value in returns])
    columns.number("return", returns)
    columns.categorical("move made", [row.step.reply.action for row in rows])
    return RoleSteps(
        game=game,
        role=rows[0].turn.role,
        player=player,
        group=group,
        turn=np.array([row.step.turn.index for row in rows], dtype=np.int64),
        step=np.array([row.place for row in rows], dtype=np.int64),
        variables=tuple(columns.variables),
        own=tuple(row.own_word for row in rows),
        rest=tuple(row.rest for row in rows),
        notes=() if note is None else (note,),
    )
