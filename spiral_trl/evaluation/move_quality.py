"""How often a player finds a best move, and what its moves give away, in games that can be solved.

A move is best if the game, played perfectly by both seats from there on, is worth as much after it as before; what it
loses is the difference, in the game's units. That is defined at every position of a two-player zero-sum game of perfect
information. In games of hidden information, such as poker, the worth of a move depends on what is played elsewhere, and
a move that an equilibrium plays rarely is no mistake; such games are refused, and
[`~spiral_trl.evaluation.exploitability`] has the figure for them.

Solved are games that attach an OpenSpiel state ([`~spiral_trl.games.solver_state.SolverState`]) and are either without
chance, with at most 50,000 positions ([`~spiral_trl.players.search.position_values`]), or Pig to at most 100 points
between two, by value iteration (Neller and Presser, "Optimal Play of the Dice Game Pig", 2004), as if it had no
horizon.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..games.chance import derive_seeds
from ..games.registry import canonical_name, first_turns, make_game
from ..games.solver_state import SolverState
from ..players.base import Player
from ..players.search import position_values
from ..records import Ending, Episode, EpisodeBatch, Turn
from ..rollout import play, replay
from ..stats import Interval, ratio_interval


# Losses below it are rounding: value iteration stops closer to its fixed point
_EQUAL = 1e-9
_PIG_TARGET = 100


@dataclass(frozen=True)
class Moves:
    """The quality of some moves. Intervals are 95%; games are independent in them, moves of one game are not.

    Args:
        best_move_rate ([`~spiral_trl.stats.Interval`]): Share of moves that were best. Moves without an alternative
            count too.
        value_lost_per_move ([`~spiral_trl.stats.Interval`]): Mean of what a move gave away, in the game's units.
        moves (`int`): How many moves.
        games (`int`): Games with such a move.
    """

    best_move_rate: Interval
    value_lost_per_move: Interval
    moves: int
    games: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **asdict(self),
            "best_move_rate": self.best_move_rate.to_dict(),
            "value_lost_per_move": self.value_lost_per_move.to_dict(),
        }


@dataclass(frozen=True)
class MoveQuality(Moves):
    """The quality of the moves of some games.

    Args:
        game (`str`): Canonical name of the game.
        illegal (`int`): Illegal replies. One that ended the game is a move too, and lost the difference between what
            the position was worth and the return it ended with. One after which the game went on, by a retry or a
            random move, is none.
        by_seat (`dict[str, Moves]`): By role, for seats that moved.
    """

    game: str
    illegal: int
    by_seat: dict[str, Moves]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return super().to_dict() | {"by_seat": {role: moves.to_dict() for role, moves in self.by_seat.items()}}


def measure_moves(
    player_or_episodes: Player | EpisodeBatch | Sequence[Episode],
    game: str,
    *,
    only: str | None = None,
    games: int = 256,
    seed: int = 0,
    max_turns: int = 1000,
) -> MoveQuality:
    """Rate of best moves and value lost per move.

    Args:
        player_or_episodes ([`~spiral_trl.players.base.Player`], [`~spiral_trl.records.EpisodeBatch`] or a list of
            [`~spiral_trl.records.Episode`]): A player, who then plays both seats of `games` games; or games that were
            played, whose moves are looked up by playing them again. Episodes of other games than `game` are left out.
        game (`str`): Name of the game.
        only (`str`, *optional*): Counts the moves of the player of this name alone, as in `Episode.players`.
        games (`int`, *optional*, defaults to `256`): Games that a player plays.
        seed (`int`, *optional*, defaults to `0`): They derive from it.
        max_turns (`int`, *optional*, defaults to `1000`): Turns after which they are truncated.

    Raises:
        `ValueError`: If the game cannot be solved, with the reason; if no move is left to count; or if an episode
            does not follow the game's rules.
    """
    name = canonical_name(game)
    values = _solver(name)
    if isinstance(player_or_episodes, EpisodeBatch):
        episodes: Sequence[Episode] = player_or_episodes.episodes()
    elif isinstance(player_or_episodes, Sequence):
        episodes = player_or_episodes
    else:
        if games < 1:
            raise ValueError(f"`games` has to be at least 1, not {games!r}.")
        seeds = derive_seeds(seed, np.arange(games))
        episodes = play(name, [player_or_episodes] * 2, seeds, max_turns=max_turns).episodes()

    illegal = 0
    # What each move of a game lost: for each role a list by game, and for all roles together under None
    lost: dict[str | None, list[list[float]]] = defaultdict(list)
    for episode in episodes:
        if canonical_name(episode.game) != name:
            continue
        in_game: dict[str | None, list[float]] = defaultdict(list)
        for turn, action, after in _replayed(episode):
            if only is not None and episode.players[turn.player] != only:
                continue
            worth = values(turn)
            illegal += action is None
            if action is not None:
                after = worth[action]
            if after is not None:
                for key in (turn.role, None):
                    in_game[key].append(max(worth.values()) - after)
        for key, losses in in_game.items():
            lost[key].append(losses)
    if not lost:
        raise ValueError(f"There is no move of {only or 'any player'} in {name} to measure.")
    return MoveQuality(
        **vars(_summary(lost[None])),
        game=name,
        illegal=illegal,
        by_seat={role: _summary(lost[role]) for role in make_game(name).roles if role in lost},
    )


def _summary(lost: list[list[float]]) -> Moves:
    """From what each move of each game lost."""
    moves = np.array([len(losses) for losses in lost])
    rate = ratio_interval([sum(loss <= _EQUAL for loss in losses) for losses in lost], moves)
    value = ratio_interval([sum(loss for loss in losses if loss > _EQUAL) for losses in lost], moves)
    return Moves(
        best_move_rate=Interval(rate.estimate, max(0.0, rate.low), min(1.0, rate.high)),
        value_lost_per_move=Interval(value.estimate, max(0.0, value.low), value.high),
        moves=int(moves.sum()),
        games=len(lost),
    )


def _replayed(episode: Episode) -> Iterator[tuple[Turn, str | None, float | None]]:
    """Each reply of a game: its turn with the state that stored turns lack, the action or `None` for an illegal reply,
    and where such a reply ended the game, the return of its seat."""
    for _, turn, step in replay(episode):
        ended = step.reply.action is None and step is episode.steps[-1] and episode.ending is Ending.ILLEGAL
        yield turn, step.reply.action, episode.returns[turn.player] if ended else None


# ------------------------------------------------------------------------------------------------------------ solvers

_Values = Callable[[Turn], Mapping[str, float]]


@lru_cache(maxsize=8)
def _solver(name: str) -> _Values:
    """What each legal action of a turn of the game `name` is worth to the seat that is asked, under perfect play after
    it.

    Raises:
        `ValueError`: If there is no such value, or it cannot be computed.
    """
    turns = first_turns(name)
    solver = turns[0].state if turns else None
    if not isinstance(solver, SolverState) or solver.part is not None:
        raise ValueError(f"{name} has no known best moves: no OpenSpiel game has its rules and payoffs.")
    engine = solver.state.get_game()
    if engine.get_type().short_name == "pig":
        return _pig(name, engine.get_parameters())
    solved = position_values(str(engine))
    if isinstance(solved, str):
        # What stands after the semicolon is advice on who can play it
        raise ValueError(f"{name} has no known best moves: {solved.partition(';')[0]}.")

    def values(turn: Turn) -> Mapping[str, float]:
        attached = turn.state
        assert isinstance(attached, SolverState)
        sign = -1.0 if turn.player else 1.0
        worth = {}
        for action, number in attached.actions.items():
            after = attached.state.child(number)
            worth[action] = sign * solved[after.current_player(), str(after)]
        return worth

    return values


_PIG_STATE = re.compile(r"Scores: (\d+) (\d+), Turn total: (\d+)\n")


def _pig(name: str, parameters: Mapping[str, Any]) -> _Values:
    target = parameters["winscore"]
    standard = parameters["diceoutcomes"] == 6 and not parameters["piglet"]
    if parameters["players"] != 2 or not standard or target > _PIG_TARGET:
        raise ValueError(
            f"{name} has no known best moves: Pig is solved for two players, one die of six sides and at most "
            f"{_PIG_TARGET} points."
        )
    win = pig_win_probabilities(target)

    def values(turn: Turn) -> Mapping[str, float]:
        assert isinstance(turn.state, SolverState)
        match = _PIG_STATE.match(str(turn.state.state))
        assert match is not None
        scores, total = (int(match[1]), int(match[2])), int(match[3])
        own, other = scores[turn.player], scores[1 - turn.player]
        hold = 1.0 if own + total >= target else 1 - win[0, other, own + total]
        rolled = [win[at, own, other] if own + (at := total + face) < target else 1.0 for face in range(2, 7)]
        chances = {"hold": hold, "roll": (1 - win[0, other, own] + sum(rolled)) / 6}
        return {action: 2 * chances[action] - 1 for action in turn.legal_actions or ()}

    return values


@lru_cache(maxsize=2)
def pig_win_probabilities(target: int) -> np.ndarray:
    """Probability that the player to choose wins Pig between two optimal players, by turn total, own and other score.

    Value iteration on the equations of Neller and Presser (2004), from the largest turn total down: with `i` the own
    score, `j` the other's and `k` the turn total, `P[k, i, j]` is the larger of holding, `1 - P[0, j, i + k]`, and
    rolling, `(1 - P[0, j, i] + P[k + 2, i, j] + ... + P[k + 6, i, j]) / 6`.

    Args:
        target (`int`): Score that wins.

    Returns:
        `np.ndarray`: `[target, target, target]`; 1 where turn total and own score reach the target.
    """
    win = np.ones((target + 6, target, target))
    own = np.arange(target)
    start = np.full((target, target), 0.5)  # win[0], of the round before
    while True:
        for total in reversed(range(target)):
            going = own[: target - total]  # own scores with which the target is not reached
            hold = 1 - start[:, going + total].T  # (own, other)
            roll = (1 - start[:, going].T + win[total + 2 : total + 7, going].sum(0)) / 6
            win[total, going] = np.maximum(hold, roll)
        change = np.abs(win[0] - start).max()
        start = win[0].copy()
        if change < 1e-13:
            return win[:target]
