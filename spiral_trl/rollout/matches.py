"""Matches: who plays what on which seeds, and the two ways in which they are played."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import PlayError
from ..games.registry import make_game
from ..games.table import GameTable, tabulate
from ..players.base import Player
from ..records import BatchBuilder, EpisodeBatch
from .illegal import IllegalMoves
from .table import play_table
from .text import play_text


# Only a game that never ends comes so far: random players need about 130 turns of Pig. Training has a limit of its own,
# the release's 50.
MAX_TURNS = 1000


@dataclass(frozen=True, eq=False)
class Match:
    """Games of one kind between the same players.

    Args:
        game (`str`): Name of the game, such as `kuhn_poker(rounds=5)`.
        players (`Sequence[Player]`): One player for each seat; the same object may sit in several seats and matches.
        seeds (`np.ndarray`): `[G]` seed of each game. Deals derive from it, and so do replies of the players of this
            package.
    """

    game: str
    players: Sequence[Player]
    seeds: np.ndarray


def play(
    game: str,
    players: Sequence[Player],
    seeds: Sequence[int] | np.ndarray,
    *,
    illegal: str = "forfeit",
    max_turns: int = MAX_TURNS,
    tabulated: bool | None = None,
    synchronize: Callable[[int], int] | None = None,
) -> EpisodeBatch:
    """Plays one game for each seed: [`play_matches`] for a single match.

    Args:
        game (`str`), players (`Sequence[Player]`), seeds (`Sequence[int]`): See [`Match`].
        illegal, max_turns, tabulated, synchronize: See [`play_matches`].

    Returns:
        [`~spiral_trl.records.EpisodeBatch`]
    """
    match = Match(game, players, np.asarray(seeds, dtype=np.int64))
    return play_matches([match], illegal=illegal, max_turns=max_turns, tabulated=tabulated, synchronize=synchronize)


def play_matches(
    matches: Sequence[Match],
    *,
    illegal: str = "forfeit",
    max_turns: int = MAX_TURNS,
    tabulated: bool | None = None,
    synchronize: Callable[[int], int] | None = None,
    collective: Sequence[Player] | None = None,
) -> EpisodeBatch:
    """Plays several matches at once.

    Games that are played as text share one loop: a player, that is one object, is asked once in a round for its turns
    in all matches.

    Args:
        matches (`Sequence[Match]`): What is played. A match may have no seeds.
        illegal (`str`, *optional*, defaults to `"forfeit"`): See [`IllegalMoves`].
        max_turns (`int`, *optional*, defaults to `1000`): A game is truncated after so many turns, with returns of 0.
        tabulated (`bool`, *optional*): Whether to step the games as tables. By default wherever a game has one and its
            turns are within `max_turns`.
        synchronize (`Callable`, *optional*): For players whose generation is a collective operation of several
            processes. Called in every round for each of them with 2 where it has turns pending here, 1 where games go
            on without it and 0 where all are over; answers the most on any process. A process on which such a player
            has no turn while it has one elsewhere asks it a spare turn, and drops the reply. Every process has to
            give the same matches, with seeds of its own or none.
        collective (`Sequence[Player]`, *optional*): Those players. By default all.

    Returns:
        [`~spiral_trl.records.EpisodeBatch`]: The episodes, in the order of matches, then of seeds.

    Raises:
        `ValueError`: If a game is unknown, the number of players is wrong, or the policy is unknown.
        [`~spiral_trl.errors.PlayError`]: If a game's code raises, or a player raises
            [`~spiral_trl.errors.PlayerError`]. The games that were finished before are its `episodes`.
    """
    policy = IllegalMoves.parse(illegal)
    tables = [_table(match, illegal, max_turns, tabulated, synchronize is not None) for match in matches]
    named = [
        Match(make_game(match.game).name, match.players, np.asarray(match.seeds, dtype=np.int64)) for match in matches
    ]
    ends = np.cumsum([0, *(len(match.seeds) for match in named)])
    positions = [np.arange(*pair) for pair in zip(ends, ends[1:], strict=False)]

    parts: list[tuple[EpisodeBatch, np.ndarray]] = []
    builder = BatchBuilder()
    as_text = [m for m, table in enumerate(tables) if table is None]

    def all_finished() -> EpisodeBatch:
        together = [*parts, builder.build()]
        return EpisodeBatch.concatenate(
            [batch for batch, _ in together], order=np.concatenate([where for _, where in together])
        )

    try:
        for table, group in _by_table(named, tables):
            play_table(table, [named[m] for m in group], [positions[m] for m in group], policy, parts)
        play_text(
            [named[m] for m in as_text],
            [positions[m] for m in as_text],
            policy,
            max_turns,
            builder,
            synchronize,
            [player for match in named for player in match.players] if collective is None else collective,
        )
    except PlayError as error:
        error.episodes = all_finished()
        raise
    return all_finished()


def _by_table(matches: Sequence[Match], tables: Sequence[GameTable | None]) -> list[tuple[GameTable, list[int]]]:
    """Tables, with the indices of the matches that are played on each together: those whose players are all asked
    ahead of time, and apart from them those in which one is waited for."""
    groups: dict[tuple[str, bool], tuple[GameTable, list[int]]] = {}
    for m, (match, table) in enumerate(zip(matches, tables, strict=True)):
        if table is not None and len(match.seeds):
            key = table.name, all(player.speculative for player in match.players)
            groups.setdefault(key, (table, []))[1].append(m)
    return list(groups.values())


def _table(match: Match, illegal: str, max_turns: int, tabulated: bool | None, synchronized: bool) -> GameTable | None:
    """The table that a match is played on, if any; refuses matches that cannot be played at all."""
    policy = IllegalMoves.parse(illegal)
    probe = make_game(match.game)
    if len(match.players) != probe.num_players:
        raise ValueError(f"{probe.name} has {probe.num_players} seats, but {len(match.players)} players were given.")
    policy.returns(0, probe.worst_returns)  # refuses a policy that is not for so many players
    can_tabulate = policy.policy in ("forfeit", "spiral") and not synchronized
    table = None
    if tabulated is not False and can_tabulate:
        try:
            table = tabulate(probe.name)
        except PlayError:
            # Played as text, the error tells the seed; or nobody comes to where the game's code raises
            if tabulated:
                raise
    if table is not None and (table.depth > max_turns or table.simultaneous):
        table = None
    if table is None and tabulated:
        raise ValueError(
            f"{probe.name} cannot be played as a table: it is too large, simultaneous or free text, can pass "
            f"max_turns={max_turns}, or the illegal-move policy {illegal} needs single games."
        )
    return table
