"""Earlier selves as opponents: which snapshots of the policy there are, how play against them went, and who is met.

The pool knows no weights: a member is a number, and [`~spiral_trl.training.pool.SnapshotPool`] keeps its snapshot.
Every process holds the same state, as it is changed by results that all of them know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..names import Parameter, read_parameters, split_name
from ..ratings import bradley_terry


POOL = "pool"
MATCHMAKING = ("uniform", "pfsp", "rating", "newest")
_PARAMETERS = {
    "matchmaking": Parameter("uniform", choices=MATCHMAKING),
    "size": Parameter(16, int, low=1, high=1000),
    "every": Parameter(25, int, low=1, high=1_000_000),
    "power": Parameter(2.0, float, low=0.0, high=100.0),
}
# The policy in training, in pay-offs and ratings
LEARNER = -1
# Generations whose results are recent, at most
_RECENT = 100
# Members nearest in rating that `rating` chooses from
_NEAREST = 4


@dataclass(frozen=True)
class PoolSpec:
    """What the name `pool(matchmaking=...,size=...,every=...)` says.

    Args:
        matchmaking (`str`): Whom the policy meets:
            - `uniform`: any member, equally often (fictitious play: Brown, 1951);
            - `pfsp`: member `i` with weight `(1 - w_i) ** power`, where `w_i` is the policy's recent score against it
              and 1/2 where there is none (prioritised fictitious self-play: Vinyals et al., 2019, `f_hard`);
            - `rating`: one of the four members nearest in rating, equally often;
            - `newest`: the newest member.
        size (`int`): Most members. Beyond it the oldest leaves.
        every (`int`): Generations from one snapshot to the next.
        power (`float`): For `pfsp`.
    """

    matchmaking: str = "uniform"
    size: int = 16
    every: int = 25
    power: float = 2.0

    @classmethod
    def parse(cls, name: str) -> PoolSpec:
        """From a name such as `pool(matchmaking=pfsp,size=8)`.

        Raises:
            `ValueError`: For another name, an unknown parameter, or a value that is not allowed.
        """
        base, given = split_name(name, "player")
        if base != POOL:
            raise ValueError(f"{name!r} is no pool; its name is {POOL}(matchmaking=...,size=...,every=...)")
        return cls(**read_parameters(base, given, _PARAMETERS)[0])


def is_pool(name: str) -> bool:
    """Whether a player's name is that of a pool."""
    return name.partition("(")[0].strip() == POOL


@dataclass(frozen=True)
class Member:
    """A snapshot of the policy.

    Args:
        number (`int`): Counts all snapshots of the run, from 0.
        generation (`int`): The generation before which it was taken.
        step (`int`): Optimizer steps the policy had made.
    """

    number: int
    generation: int
    step: int


# Wins of the player in the first seat, draws, and wins of the other
Counts = tuple[int, int, int]


@dataclass
class PoolState:
    """Members, and the games between them and the policy in training.

    Args:
        members (`list[Member]`): Oldest first.
        taken (`int`): Snapshots taken so far, those that left included.
        payoffs (`dict[tuple[int, int], Counts]`): For two members, by number: results where the one had the first seat
            and the other had another. A member's games against earlier ones are those that the policy played recently
            when the snapshot was taken.
        recent (`list[dict[tuple[int, int], Counts]]`): For each of the last generations, results of the policy
            ([`LEARNER`]) in either seat.
        oldest_rating (`float`): Rating of the oldest member: 0 for the initial policy, and where that has left, what
            it was when the member before left.
    """

    members: list[Member] = field(default_factory=list)
    taken: int = 0
    payoffs: dict[tuple[int, int], Counts] = field(default_factory=dict)
    recent: list[dict[tuple[int, int], Counts]] = field(default_factory=list)
    oldest_rating: float = 0.0

    @property
    def numbers(self) -> list[int]:
        """Numbers of the members, oldest first."""
        return [member.number for member in self.members]

    def is_due(self, generation: int, spec: PoolSpec) -> bool:
        """Whether a snapshot is taken before `generation` is played."""
        if not self.members:
            return True
        return generation % spec.every == 0 and self.members[-1].generation != generation

    def add(self, generation: int, step: int, spec: PoolSpec) -> tuple[Member, list[Member]]:
        """Takes the policy in as a new member; answers it, and those that leave."""
        member = Member(self.taken, generation, step)
        for (first, second), counts in self._learners().items():
            pair = (member.number, second) if first == LEARNER else (first, member.number)
            self.payoffs[pair] = counts
        self.members.append(member)
        self.taken += 1
        leaving = []
        while len(self.members) > spec.size:
            self.oldest_rating = self.ratings()[self.members[1].number]
            leaving.append(self.members.pop(0))
            gone = leaving[-1].number
            self.payoffs = {pair: counts for pair, counts in self.payoffs.items() if gone not in pair}
            self.recent = [
                {pair: counts for pair, counts in results.items() if gone not in pair} for results in self.recent
            ]
        return member, leaving

    def record(self, results: Mapping[tuple[int, int], Counts], spec: PoolSpec) -> None:
        """Adds the policy's results of a generation, by (player in the first seat, other); one of them is
        [`LEARNER`]."""
        self.recent.append(dict(results))
        del self.recent[: -min(spec.every, _RECENT)]

    def score(self, number: int) -> tuple[float, int]:
        """The policy's mean recent score against a member (1 a win, 1/2 a draw; 1/2 where they did not meet), and the
        games it is from."""
        counts = self._learners()
        won, drawn, lost = counts.get((LEARNER, number), (0, 0, 0))
        lost_second, drawn_second, won_second = counts.get((number, LEARNER), (0, 0, 0))
        games = won + drawn + lost + lost_second + drawn_second + won_second
        if not games:
            return 0.5, 0
        return (won + won_second + (drawn + drawn_second) / 2) / games, games

    def matrix(self) -> tuple[np.ndarray, np.ndarray]:
        """`[M + 1, M + 1]` games, and mean score of the row against the column (NaN where there is no game), for the
        members, oldest first, and then the policy."""
        ids = [*self.numbers, LEARNER]
        position = {number: i for i, number in enumerate(ids)}
        games = np.zeros((len(ids), len(ids)), dtype=np.int64)
        points = np.zeros((len(ids), len(ids)))
        for (first, second), (won, drawn, lost) in (self.payoffs | self._learners()).items():
            i, j = position[first], position[second]
            games[[i, j], [j, i]] += won + drawn + lost
            points[i, j] += won + drawn / 2
            points[j, i] += lost + drawn / 2
        return games, np.divide(points, games, out=np.full(points.shape, np.nan), where=games > 0)

    def ratings(self) -> dict[int, float]:
        """Rating of every member and of the policy in Elo points, from all games known (Bradley and Terry, with the
        advantage of the first seat taken out). The initial policy is at 0."""
        ids = [*self.numbers, LEARNER]
        position = {number: i for i, number in enumerate(ids)}
        known = {pair: counts for pair, counts in (self.payoffs | self._learners()).items() if sum(counts)}
        if not known:
            return dict.fromkeys(ids, self.oldest_rating)
        first, second, score = (
            np.repeat(column, np.ravel(list(known.values())))
            for column in (
                [position[first] for first, _ in known for _ in range(3)],
                [position[second] for _, second in known for _ in range(3)],
                [1.0, 0.5, 0.0] * len(known),
            )
        )
        fitted = bradley_terry(first, second, score, len(ids), anchor=0, intervals=False).rating
        return {number: float(fitted[i]) + self.oldest_rating for number, i in position.items()}

    def report(self) -> dict[str, Any]:
        """As JSON values: steps and ratings of the members, oldest first, the rating of the policy, and the pay-off
        [`matrix`], whose last row and column are the policy's; `None` where two never met."""
        games, score = self.matrix()
        ratings = self.ratings()
        return {
            "members": [{"step": member.step, "rating": ratings[member.number]} for member in self.members],
            "rating": ratings[LEARNER],
            "games": games.tolist(),
            "score": [[None if np.isnan(value) else value for value in row] for row in score.tolist()],
        }

    def weights(self, spec: PoolSpec) -> np.ndarray:
        """`[M]` how often the policy meets each member; sums to 1."""
        size = len(self.members)
        if not size:
            raise ValueError("The pool has no member yet; the first snapshot is taken when training begins.")
        weights = np.ones(size)
        if spec.matchmaking == "newest":
            weights[:-1] = 0.0
        elif spec.matchmaking == "pfsp":
            weights = np.array([(1.0 - self.score(number)[0]) ** spec.power for number in self.numbers])
        elif spec.matchmaking == "rating":
            ratings = self.ratings()
            distance = [abs(ratings[number] - ratings[LEARNER]) for number in self.numbers]
            # Of members as near, the newer
            nearest = sorted(range(size), key=lambda i: (distance[i], -i))[:_NEAREST]
            weights[[i for i in range(size) if i not in nearest]] = 0.0
        if not weights.sum():  # beaten, all of them and always
            weights = np.ones(size)
        return weights / weights.sum()

    def draw(self, spec: PoolSpec, count: int, uniform: float) -> list[int]:
        """Numbers of `count` members, each drawn by its weight; several draws are spread over the members
        (systematic sampling), so that each comes up its expected number of times up to rounding.

        Args:
            spec ([`PoolSpec`]): Matchmaking.
            count (`int`): Members to draw.
            uniform (`float`): A uniform number in [0, 1).
        """
        weights = self.weights(spec)
        chosen = np.searchsorted(np.cumsum(weights)[:-1], (np.arange(count) + uniform) / count, side="right")
        return [self.numbers[i] for i in chosen]

    def _learners(self) -> dict[tuple[int, int], Counts]:
        """The policy's recent results."""
        total: dict[tuple[int, int], Counts] = {}
        for results in self.recent:
            for pair, counts in results.items():
                won, drawn, lost = total.get(pair, (0, 0, 0))
                total[pair] = (won + counts[0], drawn + counts[1], lost + counts[2])
        return total

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "members": [asdict(member) for member in self.members],
            "taken": self.taken,
            "payoffs": _rows(self.payoffs),
            "recent": [_rows(results) for results in self.recent],
            "oldest_rating": self.oldest_rating,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> PoolState:
        """What [`to_dict`] answered."""
        return cls(
            members=[Member(**member) for member in state["members"]],
            taken=state["taken"],
            payoffs=_counts(state["payoffs"]),
            recent=[_counts(rows) for rows in state["recent"]],
            oldest_rating=state["oldest_rating"],
        )


def _rows(results: Mapping[tuple[int, int], Counts]) -> list[list[int]]:
    return [[*pair, *counts] for pair, counts in results.items()]


def _counts(rows: Sequence[Sequence[int]]) -> dict[tuple[int, int], Counts]:
    return {(first, second): (won, drawn, lost) for first, second, won, drawn, lost in rows}
