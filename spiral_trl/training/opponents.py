"""Whom the policy plays in training, and how it fares against them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from ..games.registry import make_game
from ..players.base import Player
from ..players.pool import LEARNER, Counts, PoolSpec, is_pool
from ..records import Outcomes
from ..rollout import Match
from .pool import MEMBERS_PER_GENERATION, SnapshotPool
from .schedule import Schedule, deal, deal_games


SELF = "self"


def read_opponents(given: Mapping[str, float] | Sequence[str] | str | None) -> dict[str, float]:
    """Names of opponents with their weights, in the order given.

    Args:
        given (`dict`, `list` or `str`, *optional*): Weights by name; or names of equal weight; or a single name, or
            either of the former as JSON. `None` is `self` alone.

    Raises:
        `ValueError`: If there is none, a name is there twice, a weight is no positive number, there are several pools,
            or a pool's name is wrong.
    """
    if isinstance(given, str):
        given = _read_text(given)
    if given is None:
        return {SELF: 1.0}
    if not isinstance(given, Mapping):
        names = list(given)
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"opponents is {given!r}, but must list names or map names to weights.")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"opponents names {twice[0]!r} twice; give it a weight, such as {{{twice[0]}: 2}}.")
        given = dict.fromkeys(names, 1.0)
    if not given:
        raise ValueError("opponents is empty; leave it out, or name at least one, such as self.")
    weights: dict[str, float] = {}
    for name, weight in given.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not isfinite(weight) or weight <= 0:
            raise ValueError(f"opponents: the weight of {name} is {weight!r}, but must be a number above 0.")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"opponents: {name!r} is no name of a player.")
        weights[name.strip()] = float(weight)
    pools = [name for name in weights if is_pool(name)]
    if len(pools) > 1:
        raise ValueError(f"opponents has {len(pools)} pools, {' and '.join(pools)}, but there can be only one.")
    for name in pools:
        PoolSpec.parse(name)
    if "human" in weights:
        raise ValueError("opponents: human cannot be an opponent in training.")
    return weights


def _read_text(text: str) -> Any:
    if not text.lstrip().startswith(("{", "[")):
        return [text]
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"opponents is {text!r}, which is no valid JSON: {error}") from None


def others(weights: Mapping[str, float]) -> list[str]:
    """Names of opponents that are players of their own: neither the policy nor a pool of its snapshots."""
    return [name for name in weights if name != SELF and not is_pool(name)]


class Lineup:
    """Games and opponents of a run, and who meets whom in each generation.

    Args:
        games (`Sequence[str]`): Canonical names.
        game_weights (`Sequence[float]`, *optional*): Their shares; equal by default.
        opponents (`Mapping[str, float]`): Shares of the opponents; see [`read_opponents`].
        seed (`int`): Seed of the run.
        learner ([`~spiral_trl.players.base.Player`]): The policy in training.
        players (`Mapping[str, Player]`): The players that [`others`] names.
        labels (`Mapping[str, str]`): What those are called in metrics.
        pool ([`SnapshotPool`], *optional*): The pool, where one is among the opponents.
    """

    def __init__(
        self,
        games: Sequence[str],
        game_weights: Sequence[float] | None,
        opponents: Mapping[str, float],
        seed: int,
        learner: Player,
        players: Mapping[str, Player],
        labels: Mapping[str, str],
        pool: SnapshotPool | None,
    ):
        self.games = list(games)
        self.seats = [make_game(game).num_players for game in games]
        self.names = list(opponents)
        self.weights = list(opponents.values())
        self.labels = [labels.get(name, "pool" if is_pool(name) else name) for name in self.names]
        self.pool = pool
        self._game_weights = game_weights
        self._seed = seed
        self._learner = learner
        self._players = players
        self._own = self.names.index(SELF) if SELF in self.names else None
        self._pool = next((o for o, name in enumerate(self.names) if is_pool(name)), None)

    def schedule(self, generation: int, num_games: int) -> Schedule:
        """Who plays what in a generation, all processes together."""
        return deal(
            self._seed,
            generation,
            deal_games(num_games, self._game_weights, len(self.games)),
            self.seats,
            self.weights,
            own=self._own,
            pool=self._pool,
            draws=MEMBERS_PER_GENERATION,
        )

    def matches(
        self, schedule: Schedule, generation: int, mine: np.ndarray, seeds: np.ndarray, every: bool
    ) -> tuple[list[Match], np.ndarray]:
        """The matches of some of a generation's games.

        Args:
            schedule ([`Schedule`]): Of the generation.
            generation (`int`): Its index.
            mine (`np.ndarray`): `[g]` indices of the games to be played here.
            seeds (`np.ndarray`): `[g]` their seeds.
            every (`bool`): Whether matches without a game here are listed too, so that all processes list the same.

        Returns:
            `tuple[list[Match], np.ndarray]`: The matches, and `[g]` the index of each game in the order of matches.
        """
        members = self._members(generation)
        matches: list[Match] = []
        order: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
        # Draws of one member are one match, so that its games are asked for together
        drawn = np.array([*members, LEARNER])[schedule.draw[mine]] if members else np.full(len(mine), LEARNER)
        for g, game in enumerate(self.games):
            for o in range(len(self.names)):
                for number in sorted(set(members)) if o == self._pool else [LEARNER]:
                    for seat in [-1] if o == self._own else range(self.seats[g]):
                        here = (schedule.game[mine] == g) & (schedule.opponent[mine] == o)
                        here &= (schedule.seat[mine] == seat) & (drawn == number)
                        if here.any() or every:
                            matches.append(Match(game, self._seating(g, o, number, seat), seeds[here]))
                            order.append(mine[here])
        return matches, np.concatenate(order)

    def _members(self, generation: int) -> list[int]:
        return [] if self.pool is None else self.pool.members(self._seed, generation)

    def _seating(self, game: int, opponent: int, number: int, seat: int) -> list[Player]:
        if opponent == self._own:
            return [self._learner] * self.seats[game]
        if opponent == self._pool:
            assert self.pool is not None
            other: Player = self.pool.player(number)
        else:
            other = self._players[self.names[opponent]]
        return [self._learner if p == seat else other for p in range(self.seats[game])]

    def record(self, schedule: Schedule, generation: int, outcomes: Outcomes) -> dict[str, float]:
        """Tells the pool the results of a generation, and answers metrics against every opponent.

        Args:
            schedule ([`Schedule`]): Of the generation.
            generation (`int`): Its index.
            outcomes ([`~spiral_trl.records.Outcomes`]): Of all processes' games, in the order of their index.

        Returns:
            `dict[str, float]`: `self_play/GAME/vs_OPPONENT/win_rate` and `.../return`, of the learner's seat.
        """
        metrics: dict[str, float] = {}
        mine, score = learner_results(outcomes, schedule)
        game = np.array([self.games.index(name) for name in outcomes.games], dtype=np.int64)[outcomes.game]
        for g, name in enumerate(self.games):
            for o, label in enumerate(self.labels):
                here = (game == g) & (schedule.opponent == o)
                if o != self._own and here.any():
                    metrics[f"self_play/{name}/vs_{label}/win_rate"] = float((score[here] == 1.0).mean())
                    metrics[f"self_play/{name}/vs_{label}/return"] = float(mine[here].mean())
        if self.pool is not None:
            members = np.array([*self._members(generation), LEARNER])[schedule.draw]
            results: dict[tuple[int, int], Counts] = {}
            for number in np.unique(members[schedule.draw >= 0]).tolist():
                for first in (True, False):
                    met = score[(members == number) & (schedule.draw >= 0) & ((schedule.seat == 0) == first)]
                    won, drawn, lost = (int((met == value).sum()) for value in (1.0, 0.5, 0.0))
                    if len(met):
                        pair = (LEARNER, number) if first else (number, LEARNER)
                        results[pair] = (won, drawn, lost) if first else (lost, drawn, won)
            self.pool.record(results)
            metrics |= self.pool.metrics()
        return metrics


def learner_results(outcomes: Outcomes, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """`[G]` the learner's return, and its score: 1 where it got more than every other seat, 1/2 where the best of them
    got as much, else 0. NaN where it had all seats."""
    met = np.flatnonzero(schedule.seat >= 0)
    mine, score = np.full(len(outcomes), np.nan), np.full(len(outcomes), np.nan)
    returns = outcomes.returns[met].copy()
    mine[met] = returns[np.arange(len(met)), schedule.seat[met]]
    returns[np.arange(len(met)), schedule.seat[met]] = -np.inf
    best = np.nanmax(returns, axis=1, initial=-np.inf)
    score[met] = np.where(mine[met] > best, 1.0, np.where(mine[met] == best, 0.5, 0.0))
    return mine, score
