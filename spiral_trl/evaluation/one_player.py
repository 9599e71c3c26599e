"""One player measured: against opponents on paired deals, and against a best response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import PlayerError, PlayError, UsageError
from ..games.registry import canonical_name
from ..players.base import Player
from ..rollout import MAX_TURNS
from .arena import LeftOut, play_schedule
from .exploitability import Exploitability, ExploitabilityBound, measure_exploitability
from .match import MatchResult, cannot_play, check_match, match_result, match_seed
from .move_quality import MoveQuality, measure_moves


@dataclass(frozen=True)
class GameMeasures:
    """What was measured of a player in one game.

    Args:
        game (`str`): Canonical name of the game.
        matches (`tuple[MatchResult, ...]`): Against each opponent that can play the game.
        illegal_rate (`float`, *optional*): Share of the player's replies in those matches that were no legal action.
        exploitability ([`~spiral_trl.evaluation.exploitability.Exploitability`] or
            [`~spiral_trl.evaluation.exploitability.ExploitabilityBound`], *optional*): How much a best response would
            win, or what at least.
        no_exploitability (`str`, *optional*): Why there is none.
        moves ([`~spiral_trl.evaluation.move_quality.MoveQuality`], *optional*): How often it found a best move against
            itself, and what its moves gave away; `None` in games without known best moves.
    """

    game: str
    matches: tuple[MatchResult, ...]
    illegal_rate: float | None
    exploitability: Exploitability | ExploitabilityBound | None
    no_exploitability: str | None
    moves: MoveQuality | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **vars(self),
            "matches": [match.to_dict() for match in self.matches],
            "exploitability": None if self.exploitability is None else self.exploitability.to_dict(),
            "moves": None if self.moves is None else self.moves.to_dict(),
        }


@dataclass(frozen=True)
class PlayerMeasures:
    """What was measured of a player.

    Args:
        player (`str`): Name of the player.
        pairs (`int`): Deals of each match, each played from both seats.
        seed (`int`): The same seed deals the same games.
        illegal (`str`): Illegal-move policy of the matches.
        games (`tuple[GameMeasures, ...]`): By game that it can play.
        left_out (`tuple[LeftOut, ...]`): Who cannot play what, and why: the player itself or an opponent.
        notes (`tuple[str, ...]`): What failed midway.
    """

    player: str
    pairs: int
    seed: int
    illegal: str
    games: tuple[GameMeasures, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **vars(self),
            "games": [game.to_dict() for game in self.games],
            "left_out": [vars(entry) for entry in self.left_out],
        }


def measure_player(
    player: Player,
    games: Sequence[str],
    opponents: Sequence[Player],
    pairs: int,
    seed: int = 0,
    *,
    exploitability: bool = True,
    moves: bool = True,
    samples: int | None = None,
    illegal: str = "forfeit",
    max_turns: int = MAX_TURNS,
    progress: Callable[[int, int, str], None] | None = None,
) -> PlayerMeasures:
    """Results of a player against opponents, by seat, and its exploitability.

    Args:
        player ([`~spiral_trl.players.base.Player`]): Who is measured.
        games (`Sequence[str]`): Names of two-player games, at least one of which the player can play.
        opponents (`Sequence[Player]`): Whom it plays; those who cannot play a game are left out of it.
        pairs (`int`): Deals of each match, at least 2; twice as many games are played.
        seed (`int`, *optional*, defaults to `0`): Deals, and replies of the players of this package, derive from it.
        exploitability (`bool`, *optional*, defaults to `True`): Whether to measure exploitability; see
            [`~spiral_trl.evaluation.exploitability.measure_exploitability`]. Players that are paid or waited for are
            measured only where `samples` says how often to ask them.
        moves (`bool`, *optional*, defaults to `True`): Whether to measure moves in games with known best moves, over
            `pairs` games of the player against itself; see [`~spiral_trl.evaluation.move_quality.measure_moves`].
            Players that are paid or waited for: as above.
        samples (`int`, *optional*): Replies to sample for each turn.
        illegal (`str`, *optional*, defaults to `"forfeit"`): See [`~spiral_trl.rollout.IllegalMoves`].
        max_turns (`int`, *optional*, defaults to `1000`): See [`~spiral_trl.rollout.play`].
        progress (`Callable`, *optional*): Called before each part with the number of parts that are over, how many
            there are, and what is next.

    Raises:
        `ValueError`: If a game is unknown or not for two players, the player can play none, or `pairs` is less than 2.
    """
    names = [canonical_name(game) for game in games]
    if pairs < 2:
        raise ValueError(f"`pairs` has to be at least 2 deals, for an interval over them, not {pairs!r}.")
    for name in names:
        check_match(name, pairs)
    left_out = [LeftOut(player.name, name, reason) for name in names if (reason := cannot_play(player, name))]
    if len(left_out) == len(names):
        raise UsageError("; ".join(entry.reason for entry in left_out) or "there is no game to measure a player in")
    names = [name for name in names if name not in {entry.game for entry in left_out}]
    schedule = []
    for name in names:
        for index, opponent in enumerate(opponents, start=1):
            reason = cannot_play(opponent, name)
            if reason is None:
                schedule.append((name, 0, index))
            else:
                left_out.append(LeftOut(opponent.name, name, reason))
    parts = len(schedule) + exploitability * len(names)

    def tell(done: int, what: str) -> None:
        if progress is not None:
            progress(done, parts, what)

    played, notes = play_schedule(
        schedule, [player, *opponents], pairs, seed, illegal, max_turns, lambda done, _, what: tell(done, what)
    )
    called = [player.name, *(opponent.name for opponent in opponents)]
    affordable = player.speculative or samples is not None
    measured = []
    for at, name in enumerate(names):
        record: Exploitability | ExploitabilityBound | None = None
        why_not: str | None = "not asked for"
        if exploitability and not affordable:
            why_not = "replies are paid or waited for; say how many to sample for each turn"
        elif exploitability:
            tell(len(schedule) + at, f"{name}: exploitability")
            why_not = None
            try:
                record = measure_exploitability(player, name, samples=samples, seed=seed, pairs=pairs)
            except ValueError as error:
                why_not = str(error)
            except (PlayError, PlayerError) as error:
                why_not = str(error)
                notes.append(f"{name}: exploitability was not measured: {error}")
        mine = [match for match in played if match.game == name]
        replies = sum(int(match.replies[:, 0].sum()) for match in mine)
        quality: MoveQuality | None = None
        if moves and affordable:
            try:
                quality = measure_moves(player, name, games=pairs, seed=match_seed(name, seed), max_turns=max_turns)
            except ValueError:
                pass  # nobody knows its best moves
            except PlayError as error:
                notes.append(f"{name}: moves were not measured: {error}")
        measured.append(
            GameMeasures(
                game=name,
                matches=tuple(match_result(match, called, match_seed(name, seed)) for match in mine),
                illegal_rate=sum(int(match.illegal[:, 0].sum()) for match in mine) / replies if replies else None,
                exploitability=record,
                no_exploitability=why_not,
                moves=quality,
            )
        )
    return PlayerMeasures(player.name, pairs, seed, illegal, tuple(measured), tuple(left_out), tuple(notes))
