"""Matches between two players on paired deals: each deal is played twice, with the seats swapped.

Luck of the deal then falls on both players alike, and the pair of games is the statistical unit: the two games of a
pair share their deal and are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..games.chance import derive_seeds
from ..games.registry import canonical_name, make_game
from ..players.base import Player
from ..records import ENDINGS, Ending, EpisodeBatch
from ..rollout import MAX_TURNS, play
from ..stats import Interval, mean_interval, wilson_interval


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
        mean_return ([`~spiral_trl.stats.Interval`]): Mean return over both seats, with the 95% t interval over pairs.
        illegal_rate (`float`): Share of the player's replies that were no legal action.
    """

    game: str
    player: str
    opponent: str
    seed: int
    pairs: int
    seats: tuple[SeatResult, ...]
    win_rate: Interval
    mean_return: Interval
    illegal_rate: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **vars(self),
            "seats": [seat.to_dict() for seat in self.seats],
            "win_rate": self.win_rate.to_dict(),
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
        max_turns (`int`, *optional*, defaults to `50`): See [`~spiral_trl.rollout.play`].

    Raises:
        `ValueError`: If the game is unknown or not for two players, or `pairs` is less than 1.
    """
    name = canonical_name(game)
    roles = make_game(name).roles
    if len(roles) != 2:
        raise ValueError(f"A match is between two players, but {name} has {len(roles)} seats.")
    if pairs < 1:
        raise ValueError(f"`pairs` has to be at least 1 deal, not {pairs!r}.")
    seeds = derive_seeds(seed, np.arange(pairs))
    seats, won, returns, illegal_replies, replies = [], [], [], 0, 0
    for seat, role in enumerate(roles):
        seating = [player, opponent] if seat == 0 else [opponent, player]
        batch = play(name, seating, seeds, illegal=illegal, max_turns=max_turns)
        mine, theirs = batch.outcomes.returns[:, seat], batch.outcomes.returns[:, 1 - seat]
        counted = batch.outcomes.endings != ENDINGS.index(Ending.TRUNCATED)
        wins = (mine > theirs) & counted
        seat_illegal, seat_replies = count_illegal(batch, seat)
        seats.append(
            SeatResult(
                seat=seat,
                role=role,
                games=pairs,
                win_rate=wilson_interval(int(wins.sum()), pairs),
                draw_rate=float(((mine == theirs) & counted).mean()),
                loss_rate=float(((mine < theirs) & counted).mean()),
                truncated_rate=float((~counted).mean()),
                mean_return=mean_interval(mine),
                illegal_rate=seat_illegal / max(1, seat_replies),
            )
        )
        won.append(wins)
        returns.append(mine)
        illegal_replies += seat_illegal
        replies += seat_replies
    share = np.mean(won, axis=0)  # (pairs,)
    one_sided = share.min() == share.max() and share[0] in (0.0, 1.0)
    return MatchResult(
        game=name,
        player=player.name,
        opponent=opponent.name,
        seed=seed,
        pairs=pairs,
        seats=tuple(seats),
        win_rate=wilson_interval(int(share.sum()), pairs) if one_sided else mean_interval(share),
        mean_return=mean_interval(np.mean(returns, axis=0)),
        illegal_rate=illegal_replies / max(1, replies),
    )


def count_illegal(batch: EpisodeBatch, seat: int) -> tuple[int, int]:
    """How many of the replies of `seat` in `batch` were no legal action, and how many there were."""
    illegal = np.array([step.reply.action is None for step in batch.samples], dtype=bool)
    mine = batch.turn_sample[batch.turn_player == seat]
    return int(illegal[mine].sum()), len(mine)
