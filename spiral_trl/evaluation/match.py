"""Matches on paired deals: each deal is played twice, with the seats swapped.

Luck of the deal then falls on both players alike, and the pair of games is the statistical unit: the two games of a
pair share their deal and are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable
from zlib import crc32

import numpy as np

from ..errors import PlayError
from ..games.chance import derive_seeds
from ..games.registry import canonical_name, first_turns, make_game
from ..players.base import Player
from ..records import ENDINGS, Ending, EpisodeBatch, Turn
from ..rollout import MAX_TURNS, Match, play_matches
from ..stats import Interval, mean_interval, wilson_interval
from .standings import MatchGames, score_interval


@dataclass(frozen=True)
class SeatResult:
    """How a player fared in one seat. Rates are over all games and, with `truncated_rate`, sum to 1.

    Args:
        seat (`int`): The seat, from 0.
        role (`str`): Name of the seat.
        games (`int`): Games played, each on a deal of its own.
        win_rate ([`~spiral_trl.stats.Interval`]): Share of games in which the player's return was the larger one, with
            Wilson's 95% interval.
        draw_rate (`float`): Share of games that ended with equal returns.
        loss_rate (`float`): Share of games in which the opponent's return was the larger one.
        truncated_rate (`float`): Share of games cut at the turn limit. They are neither won, drawn nor lost.
        mean_return ([`~spiral_trl.stats.Interval`]): The player's mean return in the game's units, with the 95% t
            interval.
        illegal_rate (`float`): Share of the player's replies that were no legal action.
    """

    seat: int
    role: str
    games: int
    win_rate: Interval
    draw_rate: float
    loss_rate: float
    truncated_rate: float
    mean_return: Interval
    illegal_rate: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **vars(self),
            "win_rate": self.win_rate.to_dict(),
            "mean_return": self.mean_return.to_dict(),
        }


@dataclass(frozen=True)
class MatchResult:
    """How a player fared against an opponent, from both seats.

    Args:
        game (`str`): Canonical name of the game.
        player, opponent (`str`): Names of the players.
        seed (`int`): Seed of the match: the same seed deals the same games.
        pairs (`int`): Deals, each played from both seats.
        seats (`tuple[SeatResult, ...]`): Results by seat of the player.
        win_rate ([`~spiral_trl.stats.Interval`]): Share of games won, with a 95% interval over pairs: t, or Wilson's
            where no game or every game was won.
        score ([`~spiral_trl.stats.Interval`], *optional*): Mean of 1 for a win, 1/2 for a draw and 0 for a loss, with
            such an interval, over the pairs in which no game was truncated; `None` where there is none.
        mean_return ([`~spiral_trl.stats.Interval`]): Mean return over both seats, with the 95% t interval over pairs.
        illegal_rate, opponent_illegal_rate (`float`): Share of the player's, and of the opponent's, replies that were no
            legal action.
        truncated_rate (`float`): Share of games cut at the turn limit.
    """

    game: str
    player: str
    opponent: str
    seed: int
    pairs: int
    seats: tuple[SeatResult, ...]
    win_rate: Interval
    score: Interval | None
    mean_return: Interval
    illegal_rate: float
    opponent_illegal_rate: float
    truncated_rate: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **vars(self),
            "seats": [seat.to_dict() for seat in self.seats],
            "win_rate": self.win_rate.to_dict(),
            "score": None if self.score is None else self.score.to_dict(),
            "mean_return": self.mean_return.to_dict(),
        }


def play_match(
    game: str,
    player: Player,
    opponent: Player,
    pairs: int,
    seed: int,
    *,
    illegal: str = "forfeit",
    max_turns: int = MAX_TURNS,
) -> MatchResult:
    """Plays a two-player game on `pairs` deals from both seats.

    Args:
        game (`str`): Name of the game.
        player ([`~spiral_trl.players.base.Player`]): Whose results are reported.
        opponent ([`~spiral_trl.players.base.Player`]): Whom it plays; may be the same object.
        pairs (`int`): Deals, at least one; twice as many games are played.
        seed (`int`): Deals, and replies of the players of this package, derive from it.
        illegal (`str`, *optional*, defaults to `"forfeit"`): See [`~spiral_trl.rollout.IllegalMoves`].
        max_turns (`int`, *optional*, defaults to `1000`): See [`~spiral_trl.rollout.play`].

    Raises:
        `ValueError`: If the game is unknown or not for two players, or `pairs` is less than 1.
        [`~spiral_trl.errors.PlayError`]: If a player or the game fails midway.
    """
    name = canonical_name(game)
    check_match(name, pairs)
    games, error = play_pairs(name, (player, opponent), (0, 1), pairs, seed, illegal, max_turns, block=pairs)
    if error is not None:
        raise error
    return match_result(games, (player.name, opponent.name), seed)


def check_match(name: str, pairs: int) -> None:
    """Refuses games that are not for two players, and fewer deals than one."""
    seats = make_game(name).num_players
    if seats != 2:
        raise ValueError(f"A match is between two players, but {name} has {seats} seats.")
    if pairs < 1:
        raise ValueError(f"`pairs` has to be at least 1 deal, not {pairs!r}.")


def play_pairs(
    name: str,
    players: tuple[Player, Player],
    indices: tuple[int, int],
    pairs: int,
    seed: int,
    illegal: str,
    max_turns: int,
    block: int,
) -> tuple[MatchGames, PlayError | None]:
    """Games of two players, `block` deals at a time, and what ended them early. A block that fails is dropped whole: the
    games that it did finish are its short ones."""
    player, opponent = players
    seeds = derive_seeds(seed, np.arange(pairs))
    returns, truncated = [np.empty((2, 0, 2))], [np.empty((2, 0), dtype=bool)]
    offences, replies = np.zeros((2, 2), dtype=np.int64), np.zeros((2, 2), dtype=np.int64)
    error: PlayError | None = None
    seatings = [(player, opponent)] if player is opponent else [(player, opponent), (opponent, player)]
    for at in range(0, pairs, block):
        dealt = seeds[at : at + block]
        try:
            batch = play_matches(
                [Match(name, seating, dealt) for seating in seatings], illegal=illegal, max_turns=max_turns
            )
        except PlayError as stopped:
            error = stopped
            break
        size = len(dealt)
        # (seatings, D, 2) by seat; of itself, a player sees one and the same game from both
        by_seat = batch.outcomes.returns.reshape(len(seatings), size, 2)
        cut = (batch.outcomes.endings == ENDINGS.index(Ending.TRUNCATED)).reshape(len(seatings), size)
        returns.append(np.stack([by_seat[0], by_seat[-1][:, ::-1]]))
        truncated.append(np.stack([cut[0], cut[-1]]))
        no_action = np.array([step.reply.action is None for step in batch.samples], dtype=bool)[batch.turn_sample]
        seating = batch.turn_episode // size
        for seat in range(2):
            for who in range(2):
                asked = (seating == seat % len(seatings)) & (batch.turn_player == (seat + who) % 2)
                offences[seat, who] += no_action[asked].sum()
                replies[seat, who] += asked.sum()
    games = MatchGames(
        game=name,
        player=indices[0],
        opponent=indices[1],
        returns=np.concatenate(returns, axis=1),
        truncated=np.concatenate(truncated, axis=1),
        illegal=offences,
        replies=replies,
    )
    return games, error


def match_result(games: MatchGames, names: Sequence[str], seed: int) -> MatchResult:
    """The result of a match whose players are called `names`, by index."""
    pairs = games.pairs
    mine, theirs = games.returns[..., 0], games.returns[..., 1]  # (2, pairs)
    counted = ~games.truncated
    wins = (mine > theirs) & counted
    seats = tuple(
        SeatResult(
            seat=seat,
            role=role,
            games=pairs,
            win_rate=wilson_interval(int(wins[seat].sum()), pairs),
            draw_rate=float(((mine == theirs) & counted)[seat].mean()),
            loss_rate=float(((mine < theirs) & counted)[seat].mean()),
            truncated_rate=float(games.truncated[seat].mean()),
            mean_return=mean_interval(mine[seat]),
            illegal_rate=games.illegal[seat, 0] / max(1, games.replies[seat, 0]),
        )
        for seat, role in enumerate(make_game(games.game).roles)
    )
    illegal_rates = games.illegal.sum(0) / np.maximum(1, games.replies.sum(0))
    win_share = score_interval(wins.mean(0))
    assert win_share is not None
    return MatchResult(
        game=games.game,
        player=names[games.player],
        opponent=names[games.opponent],
        seed=seed,
        pairs=pairs,
        seats=seats,
        win_rate=win_share,
        score=score_interval(games.points.mean(0)),
        mean_return=mean_interval(mine.mean(0)),
        illegal_rate=float(illegal_rates[0]),
        opponent_illegal_rate=float(illegal_rates[1]),
        truncated_rate=float(games.truncated.mean()),
    )


def count_illegal(batch: EpisodeBatch, seat: int) -> tuple[int, int]:
    """How many of the replies of `seat` in `batch` were no legal action, and how many there were."""
    illegal = np.array([step.reply.action is None for step in batch.samples], dtype=bool)
    mine = batch.turn_sample[batch.turn_player == seat]
    return int(illegal[mine].sum()), len(mine)


def match_seed(game: str, seed: int) -> int:
    """The seed of all matches of a game: games are dealt independently of each other, whichever are played."""
    return int(derive_seeds(seed, crc32(game.encode())))


@runtime_checkable
class TurnChecker(Protocol):
    """A player that can tell without a reply whether it can play a game."""

    def check(self, turn: Turn) -> None:
        """Raises `ValueError` where it cannot play the turn's game."""
        ...


def cannot_play(player: Player, game: str) -> str | None:
    """Why a player cannot play a game, or `None`. It is shown a first turn, and asked for a reply where that costs
    little."""
    first = first_turns(game)[:1]
    try:
        if isinstance(player, TurnChecker):
            for turn in first:
                player.check(turn)
        elif player.speculative:
            player.reply(first)
    except ValueError as error:
        return str(error)
    return None
