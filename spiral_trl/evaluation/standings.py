"""From the games of a round robin to pay-offs, standings and ratings.

Axes: `D` deals, each played with either player in the first seat, `P` players.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ratings import Ratings, bradley_terry, unexplained
from ..stats import Interval, mean_interval, wilson_interval


_FLOOR_REPLICATES = 200


@dataclass(frozen=True)
class MatchGames:
    """The games of two players on the same deals.

    Args:
        game (`str`): Canonical name of the game.
        player, opponent (`int`): Indices of the players.
        returns (`np.ndarray`): `[2, D, 2]` by seat of the player and deal: its return, and the opponent's.
        truncated (`np.ndarray`): `[2, D]` whether the game was cut at the turn limit.
        illegal, replies (`np.ndarray`): `[2, 2]` by seat of the player: replies that were no legal action, and all
            replies, of the player and of the opponent.
    """

    game: str
    player: int
    opponent: int
    returns: np.ndarray
    truncated: np.ndarray
    illegal: np.ndarray
    replies: np.ndarray

    @property
    def pairs(self) -> int:
        """Deals that were played from both seats."""
        return self.returns.shape[1]

    @property
    def points(self) -> np.ndarray:
        """`[2, D]` 1 where the player won, 0.5 for a draw, 0 where it lost; NaN where the game was truncated."""
        mine, theirs = self.returns[..., 0], self.returns[..., 1]
        return np.where(self.truncated, np.nan, (1 + np.sign(mine - theirs)) / 2)

    def swapped(self) -> MatchGames:
        """The same games as the opponent sees them."""
        return MatchGames(
            game=self.game,
            player=self.opponent,
            opponent=self.player,
            returns=self.returns[::-1, :, ::-1],
            truncated=self.truncated[::-1],
            illegal=self.illegal[::-1, ::-1],
            replies=self.replies[::-1, ::-1],
        )


def score_interval(values: np.ndarray) -> Interval | None:
    """Interval of a mean of scores in [0, 1], one for each independent unit: t, within [0, 1], or Wilson's where all are
    0 or all are 1.

    Args:
        values (`np.ndarray`): `[n]`; NaN where a unit has no score. `None` where none has.
    """
    values = values[~np.isnan(values)]
    if not values.size:
        return None
    if values.min() == values.max() and values[0] in (0.0, 1.0):
        return wilson_interval(int(values.sum()), values.size)
    interval = mean_interval(values)
    return Interval(interval.estimate, max(0.0, interval.low), min(1.0, interval.high))


@dataclass(frozen=True)
class Standing:
    """How a player fared against all others.

    Args:
        player (`str`): Name of the player.
        games (`int`): Games played, those against itself left out.
        score ([`~spiral_trl.stats.Interval`], *optional*): Mean of 1 for a win, 1/2 for a draw and 0 for a loss: over
            opponents on each deal, then over deals, with a 95% interval over those. Pairs with a truncated game are
            left out.
        seat_scores (`tuple[Interval | None, Interval | None]`): The same in the first and in the second seat.
        mean_return ([`~spiral_trl.stats.Interval`], *optional*): Mean return in the game's units, with the 95% t interval
            over deals; `None` over several games, whose units differ.
        illegal_rate (`float`): Share of the player's replies that were no legal action.
        truncated_rate (`float`): Share of its games that were cut at the turn limit.
    """

    player: str
    games: int
    score: Interval | None
    seat_scores: tuple[Interval | None, Interval | None]
    mean_return: Interval | None
    illegal_rate: float
    truncated_rate: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **vars(self),
            "score": _json(self.score),
            "seat_scores": [_json(score) for score in self.seat_scores],
            "mean_return": _json(self.mean_return),
        }


@dataclass(frozen=True)
class Table:
    """Pay-offs, standings and ratings in one game, or over several.

    Args:
        game (`str`, *optional*): Canonical name of the game; `None` over all games.
        players (`tuple[str, ...]`): Names of the `P` players who met another one here.
        score (`tuple[tuple[Interval | None, ...], ...]`): `[P, P]` mean score of the row against the column, with a 95%
            interval over pairs; `None` for those who did not meet.
        mean_return (`tuple[tuple[Interval | None, ...], ...]`, *optional*): `[P, P]` mean return of the row against the
            column, in the game's units; `None` over several games.
        standings (`tuple[Standing, ...]`): Of each player, in the order of `players`.
        ratings ([`~spiral_trl.ratings.Ratings`], *optional*): `None` where every game was truncated.
        cyclic_share (`float`, *optional*): What of the pay-offs no rating explains: the share of the squared norm of the
            log-odds matrix that is cyclic; see [`~spiral_trl.ratings.unexplained`]. The odds of two players are those
            of their mean score, with half a win added to either side. `None` for fewer than three players.
        cyclic_floor (`float`, *optional*): What `cyclic_share` reads on average where the ratings are all there is:
            from 200 simulations of the same games out of the fitted model. A share no larger is noise.
    """

    game: str | None
    players: tuple[str, ...]
    score: tuple[tuple[Interval | None, ...], ...]
    mean_return: tuple[tuple[Interval | None, ...], ...] | None
    standings: tuple[Standing, ...]
    ratings: Ratings | None
    cyclic_share: float | None
    cyclic_floor: float | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""

        def rows(matrix: Sequence[Sequence[Interval | None]]) -> list[list[dict | None]]:
            return [[_json(cell) for cell in row] for row in matrix]

        return {
            "game": self.game,
            "players": list(self.players),
            "score": rows(self.score),
            "mean_return": None if self.mean_return is None else rows(self.mean_return),
            "standings": [standing.to_dict() for standing in self.standings],
            "ratings": None if self.ratings is None else self.ratings.to_dict(self.players),
            "cyclic_share": self.cyclic_share,
            "cyclic_floor": self.cyclic_floor,
        }


def _json(interval: Interval | None) -> dict[str, float | None] | None:
    return None if interval is None else interval.to_dict()


def make_table(
    game: str | None, matches: Sequence[MatchGames], names: Sequence[str], anchor: int, replicates: int, seed: int
) -> Table | None:
    """The table of `matches`.

    Args:
        game (`str`, *optional*): What the table is of; `None` for several games.
        matches (`Sequence[MatchGames]`): Matches; those of one game are on the same deals, in the same order.
        names (`Sequence[str]`): Names of all players.
        anchor (`int`): Index of the player whose rating is 0; the first who played where that one did not.
        replicates (`int`): Resamples for the intervals of ratings.
        seed (`int`): Seed of the resampling.

    Returns:
        [`Table`], *optional*: `None` where no two players met.
    """
    met = [match for match in matches if match.player != match.opponent]
    present = sorted({index for match in met for index in (match.player, match.opponent)})
    if not present:
        return None
    views = [*met, *(match.swapped() for match in met)]
    one_game = game is not None

    def against(i: int, j: int) -> list[MatchGames]:
        return [view for view in views if (view.player, view.opponent) == (i, j)]

    score = tuple(tuple(_score(against(i, j)) for j in present) for i in present)
    mean_return = tuple(tuple(_mean_return(against(i, j)) for j in present) for i in present) if one_game else None
    standings = tuple(_standing(names[i], [view for view in views if view.player == i], one_game) for i in present)
    ratings = _rate(matches, present, anchor, replicates, seed)
    share = floor = None
    if ratings is not None and len(present) > 2:
        share, floor = _cyclic(matches, present, ratings, seed)
    return Table(
        game=game,
        players=tuple(names[i] for i in present),
        score=score,
        mean_return=mean_return,
        standings=standings,
        ratings=ratings,
        cyclic_share=share,
        cyclic_floor=floor,
    )


def _score(views: Sequence[MatchGames]) -> Interval | None:
    return score_interval(np.concatenate([view.points.mean(0) for view in views])) if views else None


def _mean_return(views: Sequence[MatchGames]) -> Interval | None:
    return mean_interval(np.concatenate([view.returns[..., 0].mean(0) for view in views])) if views else None


def _standing(name: str, views: Sequence[MatchGames], one_game: bool) -> Standing:
    illegal = sum(int(view.illegal[:, 0].sum()) for view in views)
    replies = sum(int(view.replies[:, 0].sum()) for view in views)
    games = sum(2 * view.pairs for view in views)
    first, second = (score_interval(_over_deals((view.game, _whole(view)[seat]) for view in views)) for seat in (0, 1))
    returns = _over_deals((view.game, view.returns[..., 0].mean(0)) for view in views)
    return Standing(
        player=name,
        games=games,
        score=score_interval(_over_deals((view.game, _whole(view).mean(0)) for view in views)),
        seat_scores=(first, second),
        mean_return=mean_interval(returns) if one_game else None,
        illegal_rate=illegal / max(1, replies),
        truncated_rate=sum(int(view.truncated.sum()) for view in views) / games,
    )


def _whole(view: MatchGames) -> np.ndarray:
    """`[2, D]` points, NaN in both seats where either game was truncated: a half pair favours one seat."""
    points = view.points
    return np.where(np.isnan(points).any(0), np.nan, points)


def _over_deals(values: Iterable[tuple[str, np.ndarray]]) -> np.ndarray:
    """One mean for each deal of each game: matches on one deal are not independent of each other.

    Args:
        values (`Iterable[tuple[str, np.ndarray]]`): The game and `[D]` values of each match, NaN where it has none.
    """
    by_game: dict[str, list[np.ndarray]] = {}
    for game, row in values:
        by_game.setdefault(game, []).append(row)
    means = []
    for rows in by_game.values():
        table = np.full((len(rows), max(map(len, rows))), np.nan)
        for at, row in enumerate(rows):
            table[at, : len(row)] = row
        known = ~np.isnan(table)
        table, known = table[:, known.any(0)], known[:, known.any(0)]
        means.append(np.where(known, table, 0.0).sum(0) / known.sum(0))
    return np.concatenate(means)


def _rate(
    matches: Sequence[MatchGames], present: Sequence[int], anchor: int, replicates: int, seed: int
) -> Ratings | None:
    place = {index: at for at, index in enumerate(present)}
    games = sorted({match.game for match in matches})
    deals = max(match.pairs for match in matches)
    first, second, score, pair = [], [], [], []
    for match in matches:
        if match.player not in place:
            continue
        # A player's games against itself are the same from both seats, and count once
        for seat in (0, 1) if match.player != match.opponent else (0,):
            points = match.points[seat]
            counted = np.flatnonzero(~np.isnan(points))
            seats = (match.player, match.opponent) if seat == 0 else (match.opponent, match.player)
            first.append(np.full(len(counted), place[seats[0]]))
            second.append(np.full(len(counted), place[seats[1]]))
            score.append(points[counted] if seat == 0 else 1 - points[counted])
            pair.append(games.index(match.game) * deals + counted)
    if not sum(map(len, score)):
        return None
    return bradley_terry(
        np.concatenate(first),
        np.concatenate(second),
        np.concatenate(score),
        len(present),
        pair=np.concatenate(pair),
        anchor=place.get(anchor, 0),
        replicates=replicates,
        seed=seed,
    )


def _cyclic(matches: Sequence[MatchGames], present: Sequence[int], ratings: Ratings, seed: int) -> tuple[float, float]:
    """The cyclic share of the log-odds, and what it is on average where ratings explain the games."""
    place = {index: at for at, index in enumerate(present)}
    size = len(present)
    total = np.zeros((size, size))
    cells = []  # first seat, second seat, games, points of the first
    for match in matches:
        if match.player == match.opponent:
            continue
        i, j = place[match.player], place[match.opponent]
        for seat, (a, b) in enumerate(((i, j), (j, i))):
            own = match.points[seat]
            own = own[~np.isnan(own)]
            cells.append((a, b, len(own), own.sum() if seat == 0 else len(own) - own.sum()))
    first, second, n, won = (np.array(column) for column in zip(*cells, strict=True))
    np.add.at(total, (first, second), n)
    np.add.at(total, (second, first), n)

    def share(won: np.ndarray) -> float:
        points = np.zeros((size, size))
        np.add.at(points, (first, second), won)
        np.add.at(points, (second, first), n - won)
        odds = np.log(points + 0.5) - np.log(total - points + 0.5)
        return unexplained(np.where((total > 0) | np.eye(size, dtype=bool), odds, np.nan)).share

    rng = np.random.default_rng(seed)
    probabilities = ratings.outcome_probabilities(first, second)
    simulated = [
        share(rng.multinomial(n.astype(int), probabilities) @ np.array([1, 0.5, 0])) for _ in range(_FLOOR_REPLICATES)
    ]
    return share(won), float(np.mean(simulated))
