"""Pig in words: OpenSpiel's `pig`, a race with one die (rules: Neller and Presser, "Optimal Play of the Dice Game
Pig", 2004).

The observation is one of three: `words` (rules, payoff, seat, all that happened, the scores), `latest` (the same
without what happened), `compact` (one line of digits and few words, such as
`player 0 turn 0 1 2 own 0 2 3 next 0 4 0`: the turn total, the own score, that of each following player).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import pyspiel

from ..names import Parameter
from ..records import Ending
from .board import OBSERVATIONS
from .registry import format_name, parse_name, register
from .sequential import SequentialGame, action_request
from .solver_state import SolverState


# Legal actions with OpenSpiel's numbers: before score and turn total reach the target, and after
_ROLL_OR_HOLD = {"roll": 0, "hold": 1}
_HOLD = {"hold": 1}
DIE = (1 / 6,) * 6


@dataclass(frozen=True)
class _Setup:
    """What all games of one name share."""

    name: str
    engine: pyspiel.Game
    target: int
    horizon: int
    observation: str
    roles: tuple[str, ...]
    introductions: tuple[str, ...]


@lru_cache(maxsize=64)
def _setup(target: int, players: int, horizon: int, observation: str) -> _Setup:
    name = format_name("pig", {"target": target, "players": players, "horizon": horizon, "observation": observation})
    values = parse_name(name)[1]
    roles = tuple(f"player {player}" for player in range(players))
    order = "player 1 follows" if players == 2 else "the others follow in the order of their numbers"
    lost = "-1" if players == 2 else f"-1/{players - 1}"
    rules = (
        "Rules: The players take turns, each with as many rolls of one six-sided die as it likes. Player 0 starts, "
        f"{order}, and so on in turn. Before each roll the player may roll or hold. A roll of 2 to 6 is added to its "
        "turn total, and it chooses again. A roll of 1 loses the turn total and ends the turn. Holding adds the turn "
        f"total to the player's score and ends the turn. Whoever first holds at {target} or more wins; a player whose "
        "score and turn total together are that many may no longer roll. "
        f"If nobody has won after {horizon} choices of all players together, the game ends undecided.\n"
        f"Your payoff is +1 if you win, {lost} if another player wins, 0 if nobody does.\n"
    )
    count = "two players" if players == 2 else f"{players} players"
    return _Setup(
        name=name,
        engine=pyspiel.load_game(f"pig(winscore={target},players={players},horizon={horizon})"),
        target=target,
        horizon=horizon,
        observation=values["observation"],
        roles=roles,
        introductions=tuple(
            f"You are {role} in a game of Pig, a zero-sum dice game of {count}.\n{rules}" for role in roles
        ),
    )


class Pig(SequentialGame[pyspiel.State]):
    """Pig; a [`~spiral_trl.games.base.Game`]. A roll is one choice of chance: die faces 1 to 6.

    A game to 100 takes about 130 choices between random players: play it with `max_turns` of
    [`~spiral_trl.rollout.play`] well above its default of 50.

    Args:
        target (`int`, *optional*, defaults to `100`): Score that wins (OpenSpiel's `winscore`), 2 to 1000.
        players (`int`, *optional*, defaults to `2`): Number of seats, 2 to 10.
        horizon (`int`, *optional*, defaults to `1000`): Choices of all players together after which the game ends
            undecided, as truncated, 1 to 100,000.
        observation (`str`, *optional*, defaults to `"words"`): `"words"`, `"latest"` or `"compact"`; see the module.
    """

    def __init__(self, target: int = 100, players: int = 2, horizon: int = 1000, observation: str = "words"):
        self._setup = _setup(target, players, horizon, observation)
        super().__init__(self._setup.name)
        self.num_players = players
        self.roles = self._setup.roles
        self.worst_returns = (-1.0 / (players - 1),) * players
        self._player = 0
        self._scores = [0] * players
        self._turn_total = 0
        # Finished turns in words and as a key, and the rolls of the one that goes on
        self._told = ""
        self._key = ""
        self._rolls: list[str] = []

    def _deal(self) -> None:
        """Scores of 0."""
        self._position = self._setup.engine.new_initial_state()
        self._player = 0
        self._scores = [0] * self.num_players
        self._turn_total = 0
        self._told = self._key = ""
        self._rolls = []

    def _mover(self, position: pyspiel.State) -> int:
        return self._player

    def _legal(self, position: pyspiel.State) -> Mapping[str, int]:
        reached = self._scores[self._player] + self._turn_total >= self._setup.target
        return _HOLD if reached else _ROLL_OR_HOLD

    def _attached(self, position: pyspiel.State, player: int) -> SolverState:
        return SolverState(position, self._legal(position))

    def _infoset(self, position: pyspiel.State, player: int) -> str:
        """`player|turns/...` in `words`, where a turn is its rolls and `h` for hold; else `player|scores|turn total`."""
        if self._setup.observation == "words":
            return f"{player}|{self._key}{''.join(self._rolls)}"
        return f"{player}|{' '.join(map(str, self._scores))}|{self._turn_total}"

    def _observation(self, position: pyspiel.State, player: int) -> str:
        setup = self._setup
        following = [(player + step) % self.num_players for step in range(1, self.num_players)]
        if setup.observation == "compact":
            width = len(str(setup.target))
            parts = [("turn", self._turn_total), ("own", self._scores[player])]
            parts += [("next", self._scores[other]) for other in following]
            return f"player {player} " + " ".join(f"{word} {' '.join(f'{n:0{width}d}')}" for word, n in parts)
        told = ""
        if setup.observation == "words":
            now = f"{self.roles[player]} rolled {' '.join(self._rolls)}" if self._rolls else ""
            told = f"So far: {'; '.join(filter(None, (self._told, now))) or 'nothing'}.\n"
        choice = " or ".join(f"[{action}]" for action in self._legal(position))
        others = "".join(f", player {other} has {self._scores[other]}" for other in following)
        return (
            f"{setup.introductions[player]}{told}"
            f"Scores: you have {self._scores[player]}{others}. Your turn total is {self._turn_total}.\n"
            f"{action_request(choice, 'hold')}"
        )

    def _play(self, position: pyspiel.State, player: int, action: str) -> None:
        """Rolls or holds."""
        state = position.child(_ROLL_OR_HOLD[action])
        if action == "hold":
            self._scores[player] += self._turn_total
            self._pass_on("held", "h")
        elif not state.is_terminal():  # the horizon's last roll is not resolved
            outcome = self._chance.choose(DIE)
            state.apply_action(outcome)
            self._rolls.append(str(outcome + 1))
            if outcome == 0:
                self._pass_on("", "")
            else:
                self._turn_total += outcome + 1
        self._position = state
        if state.is_terminal():
            won = max(self._scores) >= self._setup.target
            # +1 for the winner; the others share -1 equally; 0 for all at the horizon
            self._end(state.returns(), Ending.TERMINAL if won else Ending.TRUNCATED)

    def _pass_on(self, how: str, mark: str) -> None:
        rolled = f"rolled {' '.join(self._rolls)}" if self._rolls else ""
        turn = f"{self.roles[self._player]} {' and '.join(filter(None, (rolled, how)))}"
        self._told += f"; {turn}" if self._told else turn
        self._key += f"{''.join(self._rolls)}{mark}/"
        self._rolls = []
        self._turn_total = 0
        self._player = (self._player + 1) % self.num_players


register(
    "pig",
    Pig,
    {
        "target": Parameter(100, int, low=2, high=1000),
        "players": Parameter(2, int, low=2, high=10),
        "horizon": Parameter(1000, int, low=1, high=100_000),
        "observation": Parameter("words", choices=OBSERVATIONS),
    },
)
