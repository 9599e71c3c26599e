"""Round robins: every two players meet in every game that both can play."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ..errors import PlayerError
from ..games.registry import canonical_name
from ..players.base import Player
from ..rollout import MAX_TURNS
from .match import MatchResult, cannot_play, check_match, match_result, match_seed, play_pairs
from .standings import MatchGames, Table, make_table


# Pairs that a player who is paid or waited for plays at a time: where it fails, those before are kept
_BLOCK = 16


@dataclass(frozen=True)
class LeftOut:
    """A player that did not play a game, and why."""

    player: str
    game: str
    reason: str


@dataclass(frozen=True)
class ArenaResult:
    """A round robin.

    Args:
        games (`tuple[str, ...]`): Canonical names of the games.
        players (`tuple[str, ...]`): Names of all players, also of those who were left out of every game.
        pairs (`int`): Deals of each match, each played from both seats.
        seed (`int`): The same seed deals the same games.
        illegal (`str`): Illegal-move policy.
        matches (`tuple[MatchResult, ...]`): Every match that was played, from the point of view of both of its players.
            A match's own `seed` deals its games again in [`play_match`].
        tables (`tuple[Table, ...]`): Pay-offs, standings and ratings of each game that two players could play, and
            over all of them where there are several.
        left_out (`tuple[LeftOut, ...]`): Who did not play what, and why.
        notes (`tuple[str, ...]`): What failed midway. Matches that were cut short count with the pairs played by then.
    """

    games: tuple[str, ...]
    players: tuple[str, ...]
    pairs: int
    seed: int
    illegal: str
    matches: tuple[MatchResult, ...]
    tables: tuple[Table, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **vars(self),
            "matches": [match.to_dict() for match in self.matches],
            "tables": [table.to_dict() for table in self.tables],
            "left_out": [vars(entry) for entry in self.left_out],
        }


def play_arena(
    games: Sequence[str],
    players: Sequence[Player],
    pairs: int,
    seed: int = 0,
    *,
    self_play: bool = False,
    illegal: str = "forfeit",
    max_turns: int = MAX_TURNS,
    anchor: str | None = None,
    replicates: int = 1000,
    progress: Callable[[int, int, str], None] | None = None,
) -> ArenaResult:
    """A round robin: every two players meet on `pairs` deals of every game that both can play, in both seats.

    All matches of a game are on the same deals, so that a match does not depend on who else takes part, and
    differences between players are not blurred by the luck of the deal. Where a player fails midway, what was played
    is kept and noted.

    Args:
        games (`Sequence[str]`): Names of two-player games.
        players (`Sequence[Player]`): At least two, of different names. Who cannot play a game is left out of it.
        pairs (`int`): Deals of each match, at least 2; twice as many games are played.
        seed (`int`, *optional*, defaults to `0`): Deals, and replies of the players of this package, derive from it.
        self_play (`bool`, *optional*, defaults to `False`): Whether players also play themselves. It tells of the seats
            and of draws, not of strength.
        illegal (`str`, *optional*, defaults to `"forfeit"`): See [`~spiral_trl.rollout.IllegalMoves`].
        max_turns (`int`, *optional*, defaults to `1000`): See [`~spiral_trl.rollout.play`].
        anchor (`str`, *optional*): The player whose rating is 0; by default the first. In games which that one is left
            out of, the first who plays.
        replicates (`int`, *optional*, defaults to `1000`): Resamples for the intervals of ratings.
        progress (`Callable`, *optional*): Called before each match with the number of matches that are over, how many
            there are, and what is played next.

    Raises:
        `ValueError`: If a game is unknown, named twice or not for two players, players are fewer than two or share a
            name, or `pairs` is less than 2.
    """
    names = [canonical_name(game) for game in games]
    called = [player.name for player in players]
    for what, listed, least in (("game", names, 1), ("player", called, 2)):
        if len(listed) < least:
            raise ValueError(f"An arena needs at least {least} {what}{'s' * (least > 1)}, not {len(listed)}.")
        twice = sorted({name for name in listed if listed.count(name) > 1})
        if twice:
            raise ValueError(f"An arena cannot tell two {what}s named {twice[0]!r} apart.")
    if pairs < 2:
        raise ValueError(f"`pairs` has to be at least 2 deals, for an interval over them, not {pairs!r}.")
    for name in names:
        check_match(name, pairs)
    if anchor is not None and anchor not in called:
        raise ValueError(f"The anchor {anchor!r} is none of the players: {', '.join(called)}.")

    left_out = []
    schedule: list[tuple[str, int, int]] = []
    for name in names:
        able = []
        for index, player in enumerate(players):
            reason = cannot_play(player, name)
            if reason is None:
                able.append(index)
            else:
                left_out.append(LeftOut(player.name, name, reason))
        schedule += [(name, i, j) for i, j in combinations(able, 2)]
        schedule += [(name, i, i) for i in able if self_play]

    played, notes = play_schedule(schedule, players, pairs, seed, illegal, max_turns, progress)
    matches = []
    for match_games in played:
        both = [match_games] if match_games.player == match_games.opponent else [match_games, match_games.swapped()]
        matches += [match_result(view, called, match_seed(view.game, seed)) for view in both]
    anchor_index = 0 if anchor is None else called.index(anchor)
    tables = [
        make_table(
            label,
            [match_games for match_games in played if label in (None, match_games.game)],
            called,
            anchor_index,
            replicates,
            seed,
        )
        for label in [*names, *([None] if len(names) > 1 else [])]
    ]
    return ArenaResult(
        games=tuple(names),
        players=tuple(called),
        pairs=pairs,
        seed=seed,
        illegal=illegal,
        matches=tuple(matches),
        tables=tuple(table for table in tables if table is not None),
        left_out=tuple(left_out),
        notes=tuple(notes),
    )


def play_schedule(
    schedule: Sequence[tuple[str, int, int]],
    players: Sequence[Player],
    pairs: int,
    seed: int,
    illegal: str,
    max_turns: int,
    progress: Callable[[int, int, str], None] | None,
) -> tuple[list[MatchGames], list[str]]:
    """Plays matches one after the other, and goes on with the others where one fails.

    Args:
        schedule (`Sequence[tuple[str, int, int]]`): Canonical name of the game and indices of the players of each match.
        players (`Sequence[Player]`): Players.
        pairs, seed, illegal, max_turns, progress: See [`play_arena`].

    Returns:
        `tuple[list[MatchGames], list[str]]`: The games, and what failed. A match that failed is there with the blocks
        of deals that were finished before, if any.
    """
    played: list[MatchGames] = []
    notes: list[str] = []
    gone: set[int] = set()
    for done, (name, i, j) in enumerate(schedule):
        if gone & {i, j}:
            continue
        one, two = players[i], players[j]
        if progress is not None:
            progress(done, len(schedule), f"{name}: {one.name} against {two.name}")
        waited_for = {k for k in (i, j) if not players[k].speculative}
        block = _BLOCK if waited_for else pairs
        games, error = play_pairs(name, (one, two), (i, j), pairs, match_seed(name, seed), illegal, max_turns, block)
        if games.pairs:
            played.append(games)
        if error is not None:
            kept = f"{games.pairs} of {pairs} pairs are kept"
            notes.append(f"{name}: {one.name} against {two.name} stopped, {kept}: {error}")
            # Who alone can have failed would only fail again
            if len(waited_for) == 1 and isinstance(error.__cause__, PlayerError):
                gone |= waited_for
                notes.append(f"{players[waited_for.pop()].name} stopped answering and is not asked again")
    return played, notes
