"""Many games in columns."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from .episode import ENDINGS, Ending, Episode, Reply, Step, Turn


@dataclass(frozen=True)
class Outcomes:
    """How games ended, without their turns: what advantage estimators read, and what processes exchange.

    Args:
        games (`tuple[str, ...]`): Distinct game names.
        roles (`tuple[tuple[str, ...], ...]`): Role names of each of `games`.
        game (`np.ndarray`): `[G]` index into `games`.
        returns (`np.ndarray`): `[G, P]` returns in the game's units; columns past a game's players are NaN.
        endings (`np.ndarray`): `[G]` index into [`ENDINGS`].
        learner (`np.ndarray`, *optional*): `[G, P]` which seats the policy in training had. By default all.
    """

    games: tuple[str, ...]
    roles: tuple[tuple[str, ...], ...]
    game: np.ndarray
    returns: np.ndarray
    endings: np.ndarray
    learner: np.ndarray = None  # type: ignore[assignment]  # never None once made

    def __post_init__(self) -> None:
        if self.learner is None:
            object.__setattr__(self, "learner", ~np.isnan(self.returns))

    def __len__(self) -> int:
        return len(self.game)


@dataclass(frozen=True)
class EpisodeBatch:
    """Many games in columns. `batch.episodes()` gives them one by one.

    Args:
        outcomes (`Outcomes`): Game, returns and ending of each of the `G` games.
        seeds (`np.ndarray`): `[G]` seed of each game.
        players (`tuple[tuple[str, ...], ...]`): Distinct seatings: who sat in each seat.
        seating (`np.ndarray`): `[G]` index into `players`.
        samples (`list[Step]`): `S` distinct (turn, reply) pairs. Their turns carry the episode, seed and index of
            their first occurrence.
        turn_sample (`np.ndarray`): `[T]` index into `samples`.
        turn_episode (`np.ndarray`): `[T]` index of the game.
        turn_player (`np.ndarray`): `[T]` seat that was asked.
        turn_index (`np.ndarray`): `[T]` how many turns of that game came before. Turns are sorted by game, then
            by this index.
    """

    outcomes: Outcomes
    seeds: np.ndarray
    players: tuple[tuple[str, ...], ...]
    seating: np.ndarray
    samples: list[Step]
    turn_sample: np.ndarray
    turn_episode: np.ndarray
    turn_player: np.ndarray
    turn_index: np.ndarray

    def __len__(self) -> int:
        return len(self.seeds)

    def episode(self, index: int) -> Episode:
        """The game at `index` as an [`Episode`]; negative ones count from the end."""
        index = range(len(self))[index]
        first, last = np.searchsorted(self.turn_episode, [index, index + 1])
        seed = int(self.seeds[index])
        steps = []
        for position in range(first, last):
            sample = self.samples[self.turn_sample[position]]
            turn = replace(sample.turn, episode=index, seed=seed, index=int(self.turn_index[position]))
            steps.append(Step(turn, sample.reply))
        game = int(self.outcomes.game[index])
        roles = self.outcomes.roles[game]
        return Episode(
            game=self.outcomes.games[game],
            seed=seed,
            players=self.players[self.seating[index]],
            roles=roles,
            steps=tuple(steps),
            returns=tuple(float(value) for value in self.outcomes.returns[index, : len(roles)]),
            ending=ENDINGS[self.outcomes.endings[index]],
        )

    def episodes(self, indices: Iterable[int] | None = None) -> list[Episode]:
        """The games at `indices` (all by default) as [`Episode`]s."""
        return [self.episode(int(i)) for i in (range(len(self)) if indices is None else indices)]

    @classmethod
    def from_episodes(cls, episodes: Sequence[Episode]) -> EpisodeBatch:
        """Columns from single games. Equal (turn, reply) pairs are stored once."""
        builder = BatchBuilder()
        for position, episode in enumerate(episodes):
            builder.add(
                position=position,
                game=episode.game,
                roles=episode.roles,
                seed=episode.seed,
                players=episode.players,
                samples=[builder.sample(step.turn, step.reply) for step in episode.steps],
                seats=[step.turn.player for step in episode.steps],
                indices=[step.turn.index for step in episode.steps],
                returns=episode.returns,
                ending=episode.ending,
            )
        return builder.build()[0]

    @classmethod
    def concatenate(cls, batches: Sequence[EpisodeBatch], order: np.ndarray | None = None) -> EpisodeBatch:
        """The games of several batches. A (turn, reply) pair that several of them hold is kept once for each.

        Args:
            batches (`Sequence[EpisodeBatch]`): What is joined.
            order (`np.ndarray`, *optional*): `[G]` distinct keys of the games, one batch after the other; the result
                is sorted by them. By default the games stay in this order.
        """
        batches = [batch for batch in batches if len(batch)]
        if not batches:
            return cls.from_episodes([])
        if len(batches) == 1 and (order is None or (np.diff(order) > 0).all()):
            return batches[0]
        num_players = max(batch.outcomes.returns.shape[1] for batch in batches)
        games = _Codes()
        seatings = _Codes()
        roles: dict[str, tuple[str, ...]] = {}
        columns: dict[str, list[np.ndarray]] = {}
        samples: list[Step] = []
        num_games = 0
        for batch in batches:
            outcomes = batch.outcomes
            roles |= dict(zip(outcomes.games, outcomes.roles, strict=True))
            width = num_players - outcomes.returns.shape[1]
            for name, column in {
                "game": games.of(outcomes.games)[outcomes.game],
                "returns": np.pad(outcomes.returns, ((0, 0), (0, width)), constant_values=np.nan),
                "endings": outcomes.endings,
                "learner": np.pad(outcomes.learner, ((0, 0), (0, width))),
                "seeds": batch.seeds,
                "seating": seatings.of(batch.players)[batch.seating],
                "turn_sample": batch.turn_sample + len(samples),
                "turn_episode": batch.turn_episode + num_games,
                "turn_player": batch.turn_player,
                "turn_index": batch.turn_index,
            }.items():
                columns.setdefault(name, []).append(column)
            samples += batch.samples
            num_games += len(batch)
        return _assemble(
            {name: np.concatenate(parts) for name, parts in columns.items()},
            np.arange(num_games) if order is None else order,
            games.names,
            roles,
            seatings.names,
            samples,
        )


class _Codes:
    """Numbers for names, in the order in which they come."""

    def __init__(self) -> None:
        self._codes: dict[Any, int] = {}

    def code(self, name: Hashable) -> int:
        return self._codes.setdefault(name, len(self._codes))

    def of(self, names: Iterable[Hashable]) -> np.ndarray:
        """`[n]` codes of `names`."""
        return np.array([self.code(name) for name in names], dtype=np.int64)

    @property
    def names(self) -> list[Any]:
        """Every name, at its code."""
        return list(self._codes)


class BatchBuilder:
    """Puts an [`EpisodeBatch`] together from games that end in any order.

    Attributes:
        samples (`list[Step]`): The distinct (turn, reply) pairs so far.
    """

    def __init__(self) -> None:
        self.samples: list[Step] = []
        self._known: dict[tuple, int] = {}
        self._games = _Codes()
        self._roles: dict[str, tuple[str, ...]] = {}
        self._seatings = _Codes()
        # One row each: (position, game, seed, seating, ending), and the returns
        self._rows: list[tuple[int, int, int, int, int]] = []
        self._returns: list[Sequence[float]] = []
        # Of each game: samples, seats, indices
        self._turns: list[tuple[Sequence[int], Sequence[int], Sequence[int]]] = []

    def sample(self, turn: Turn, reply: Reply) -> int:
        """Index of a (turn, reply) pair in `samples`. Turns are equal where they read alike: their episode, seed and
        index do not count."""
        messages = tuple([(message["role"], message["content"]) for message in turn.messages])
        key = (turn.game, turn.player, messages, turn.legal_actions, turn.infoset, reply)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = len(self.samples)
            self.samples.append(Step(turn, reply))
        return found

    def add(
        self,
        *,
        position: int,
        game: str,
        roles: tuple[str, ...],
        seed: int,
        players: tuple[str, ...],
        samples: Sequence[int],
        seats: Sequence[int],
        indices: Sequence[int],
        returns: Sequence[float],
        ending: Ending,
    ) -> None:
        """Adds a finished game.

        Args:
            position (`int`): Where it stands among the games; the batch is sorted by it.
            game, roles, seed, players, returns, ending: As in [`Episode`].
            samples, seats, indices (`Sequence[int]`): Of each of its turns what [`sample`] answered, the seat that was
                asked, and how many turns came before.
        """
        self._roles[game] = roles
        self._rows.append(
            (position, self._games.code(game), seed, self._seatings.code(players), ENDINGS.index(ending))
        )
        self._returns.append(returns)
        self._turns.append((samples, seats, indices))

    def build(self) -> tuple[EpisodeBatch, np.ndarray]:
        """The batch, and the `[G]` position of each of its games."""
        num_players = max((len(returns) for returns in self._returns), default=0)
        totals = np.full((len(self._rows), num_players), np.nan)
        for i, returns in enumerate(self._returns):
            totals[i, : len(returns)] = returns
        position, game, seeds, seating, endings = np.array(self._rows, dtype=np.int64).reshape(-1, 5).T
        lengths = [len(samples) for samples, _, _ in self._turns]
        turns = [np.array(list(chain.from_iterable(part)), dtype=np.int64) for part in zip(*self._turns, strict=True)]
        turn_sample, turn_player, turn_index = turns or [np.zeros(0, dtype=np.int64)] * 3
        columns = {
            "game": game,
            "returns": totals,
            "endings": endings,
            "learner": ~np.isnan(totals),
            "seeds": seeds,
            "seating": seating,
            "turn_sample": turn_sample,
            "turn_episode": np.repeat(np.arange(len(lengths)), lengths),
            "turn_player": turn_player,
            "turn_index": turn_index,
        }
        batch = _assemble(columns, position, self._games.names, self._roles, self._seatings.names, self.samples)
        return batch, np.sort(position)


def _assemble(
    columns: dict[str, np.ndarray],
    order: np.ndarray,
    games: list[str],
    roles: dict[str, tuple[str, ...]],
    seatings: list[tuple[str, ...]],
    samples: list[Step],
) -> EpisodeBatch:
    """A batch from columns of games in any order: sorted by `order`, with only those games, seatings and samples that
    occur, in the order in which they first do."""
    sort = np.argsort(order)
    rank = np.empty(len(sort), dtype=np.int64)
    rank[sort] = np.arange(len(sort))
    turn_episode = rank[columns["turn_episode"]]
    turns = np.lexsort((columns["turn_index"], turn_episode))
    turn_episode, turn_index = turn_episode[turns], columns["turn_index"][turns]
    seeds = columns["seeds"][sort]
    used_games, game, _ = _by_first_use(columns["game"][sort])
    used_seatings, seating, _ = _by_first_use(columns["seating"][sort])
    used_samples, turn_sample, first = _by_first_use(columns["turn_sample"][turns])
    kept = []
    for sample, episode, seed, index in zip(
        used_samples.tolist(),
        turn_episode[first].tolist(),
        seeds[turn_episode[first]].tolist(),
        turn_index[first].tolist(),
        strict=True,
    ):
        step = samples[sample]
        if (step.turn.episode, step.turn.seed, step.turn.index) != (episode, seed, index):
            step = Step(replace(step.turn, episode=episode, seed=seed, index=index), step.reply)
        kept.append(step)
    return EpisodeBatch(
        outcomes=Outcomes(
            games=tuple(games[g] for g in used_games),
            roles=tuple(roles[games[g]] for g in used_games),
            game=game,
            returns=columns["returns"][sort],
            endings=columns["endings"][sort],
            learner=columns["learner"][sort],
        ),
        seeds=seeds,
        players=tuple(seatings[s] for s in used_seatings),
        seating=seating,
        samples=kept,
        turn_sample=turn_sample,
        turn_episode=turn_episode,
        turn_player=columns["turn_player"][turns],
        turn_index=turn_index,
    )


def _by_first_use(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct codes in the order in which they first occur, `codes` as indices into those, and where each first
    occurs."""
    used, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(used), dtype=np.int64)
    rank[order] = np.arange(len(used))
    return used[order], rank[inverse], first[order]
