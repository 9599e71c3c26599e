"""Who plays what in a generation: games, opponents and seats, by game index.

All of it derives from the run's seed, the generation and the index alone, so that it is the same on every process,
however many there are, and in a resumed run. Shares are met exactly, up to rounding, rather than on average.

`G` games of a generation, `K` kinds of games, `O` opponents, `P` most seats of any kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..games.chance import hash_bits, uniforms


# Streams of draws beside those of games and replies (see `games/chance.py`)
_SHARE = 101
_ORDER = 102
_MEMBERS = 103


@dataclass(frozen=True)
class Schedule:
    """Who plays what in a generation.

    Args:
        game (`np.ndarray`): `[G]` kind of game.
        opponent (`np.ndarray`): `[G]` opponent.
        seat (`np.ndarray`): `[G]` the learner's seat; -1 where it has all of them.
        draw (`np.ndarray`): `[G]` which of the drawn members of a pool is met; -1 for other opponents.
    """

    game: np.ndarray
    opponent: np.ndarray
    seat: np.ndarray
    draw: np.ndarray

    def learner(self, num_players: Sequence[int]) -> np.ndarray:
        """`[G, P]` which seats the learner has, where kind `k` has `num_players[k]` seats."""
        seats = np.arange(max(num_players))
        there = seats < np.asarray(num_players)[self.game][:, None]
        return there & ((self.seat < 0)[:, None] | (seats == self.seat[:, None]))


def deal_games(num_games: int, weights: Sequence[float] | None, num_kinds: int) -> np.ndarray:
    """`[G]` the kind of each game: in turn, or in proportion to `weights`.

    With weights the next game is of the kind that is furthest behind its share (the largest remainder), the first such
    on a tie; equal weights deal in turn as none do.
    """
    if weights is None or len(set(weights)) == 1:
        return np.arange(num_games) % num_kinds
    share = np.asarray(weights, dtype=float) / sum(weights)
    dealt = np.zeros(num_kinds)
    kinds = np.empty(num_games, dtype=np.int64)
    for i in range(num_games):
        # Shares such as 0.1 are not exact: what differs by rounding is a tie
        kinds[i] = np.argmax(np.round(share * (i + 1) - dealt, 9))
        dealt[kinds[i]] += 1
    return kinds


def deal(
    seed: int,
    generation: int,
    game: np.ndarray,
    num_players: Sequence[int],
    weights: Sequence[float],
    *,
    own: int | None,
    pool: int | None,
    draws: int,
) -> Schedule:
    """Opponents and seats of the games of a generation.

    Args:
        seed (`int`): Seed of the run.
        generation (`int`): Index of the generation.
        game (`np.ndarray`): `[G]` kind of each game; see [`deal_games`].
        num_players (`Sequence[int]`): `[K]` seats of each kind.
        weights (`Sequence[float]`): `[O]` shares of the opponents in every kind of game. Over generations each comes up
            its exact share of times; in one, that rounded up or down.
        own (`int`, *optional*): The opponent that is the learner itself, which then has all seats.
        pool (`int`, *optional*): The opponent that is a pool.
        draws (`int`): Members of the pool that are met.
    """
    opponent = np.full(len(game), -1, dtype=np.int64)
    seat = np.full(len(game), -1, dtype=np.int64)
    draw = np.full(len(game), -1, dtype=np.int64)
    inner = np.cumsum(np.asarray(weights, dtype=float) / sum(weights))[:-1]
    pooled = 0
    for kind, players in enumerate(num_players):
        here = np.flatnonzero(game == kind)
        if not len(here):
            continue
        # Systematic sampling: one uniform number for all, so that counts are shares rounded up or down
        at = (np.arange(len(here)) + float(uniforms(seed, _SHARE, generation, kind))) / len(here)
        shuffled = here[np.argsort(hash_bits(seed, _ORDER, generation, here), kind="stable")]
        opponent[shuffled] = np.searchsorted(inner, at, side="right")
        for o in range(len(weights)):
            met = here[opponent[here] == o]
            if o == own:
                continue
            # In turn, and over generations from another seat
            turn = np.arange(len(met)) + generation
            if o == pool:
                # Each member from every seat before the next member
                count = np.arange(len(met)) + pooled
                draw[met] = count // players % draws
                seat[met] = (count + generation) % players
                pooled += len(met)
            else:
                seat[met] = turn % players
    return Schedule(game, opponent, seat, draw)


def members_uniform(seed: int, generation: int) -> float:
    """The uniform number in [0, 1) that chooses the members of a pool that a generation meets."""
    return float(uniforms(seed, _MEMBERS, generation))
