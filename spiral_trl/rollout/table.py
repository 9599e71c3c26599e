"""Games small enough to tabulate, stepped as arrays: thousands at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import PlayerError
from ..games.chance import CHANCE as CHANCE_STREAM
from ..games.chance import uniforms
from ..games.table import CHANCE, DECISION, TERMINAL, GameTable, tabulate
from ..players.base import Player
from ..records import ENDINGS, Ending, EpisodeBatch, Outcomes, Parsed, Reply, Step
from .failure import game_failed, player_failed
from .illegal import IllegalMoves


if TYPE_CHECKING:
    from .matches import Match


# Most turns of one game that are asked ahead of time where players are speculative.
_LOOKAHEAD = 8


def play_table(
    table: GameTable,
    matches: Sequence[Match],
    positions: Sequence[np.ndarray],
    policy: IllegalMoves,
    parts: list[tuple[EpisodeBatch, np.ndarray]],
) -> None:
    """Plays matches in one game on its table: every step below acts on all live games at once.

    Args:
        table ([`~spiral_trl.games.table.GameTable`]): The game.
        matches (`Sequence[Match]`): Matches in it, with at least one seed.
        positions (`Sequence[np.ndarray]`): For each match `[g]`, where its games stand among those of the whole call.
        policy ([`IllegalMoves`]): What an illegal reply does; one that ends the game.
        parts (`list`): Takes the finished games and their positions, also where this raises.

    Raises:
        [`~spiral_trl.errors.PlayError`]: If the game's code raises, or a player raises
            [`~spiral_trl.errors.PlayerError`].
    """
    seeds = np.concatenate([match.seeds for match in matches])
    where = np.concatenate(list(positions))
    names = [tuple(player.name for player in match.players) for match in matches]
    distinct_names = list(dict.fromkeys(names))
    seating = np.repeat([distinct_names.index(name) for name in names], [len(match.seeds) for match in matches])
    players = list({id(player): player for match in matches for player in match.players}.values())
    number = {id(player): k for k, player in enumerate(players)}
    # (G, P): which of the players has each seat
    seats = np.repeat(
        [[number[id(player)] for player in match.players] for match in matches],
        [len(match.seeds) for match in matches],
        axis=0,
    )
    num_games = len(seeds)
    node = np.zeros(num_games, dtype=np.int64)
    draws = np.zeros(num_games, dtype=np.int64)
    step_sample = np.full((num_games, max(1, table.depth)), -1, dtype=np.int64)
    step_player = np.full_like(step_sample, -1)
    returns = np.zeros((num_games, table.num_players))
    endings = np.full(num_games, -1, dtype=np.int64)
    samples = _Samples(table, players, seats, seeds, step_sample)
    ahead = _lookahead(table.name) if all(player.speculative for player in players) else None
    forfeits = np.array([policy.returns(player, table.worst_returns) for player in range(table.num_players)])

    def finished() -> tuple[EpisodeBatch, np.ndarray]:
        over = np.flatnonzero(endings >= 0)
        batch = EpisodeBatch(
            outcomes=Outcomes(
                games=(table.name,),
                roles=(table.roles,),
                game=np.zeros(len(over), dtype=np.int64),
                returns=returns[over],
                endings=endings[over],
            ),
            seeds=seeds[over],
            players=tuple(distinct_names),
            seating=seating[over],
            **samples.columns(seeds[over], step_sample[over], step_player[over], where[over]),
        )
        return batch, where[over]

    try:
        _draw_chance(table, node, draws, seeds, np.arange(num_games))
        asked: tuple[np.ndarray, np.ndarray] | None = None
        if ahead is not None:
            asked = _ask_ahead(table, samples, node, ahead)

        for ply in range(table.depth + 1):
            over = (endings < 0) & (table.kind[node] == TERMINAL)
            returns[over] = table.returns[node[over]]
            endings[over] = np.where(
                table.truncated[node[over]], ENDINGS.index(Ending.TRUNCATED), ENDINGS.index(Ending.TERMINAL)
            )
            live = np.flatnonzero(endings < 0)
            if not len(live):
                break
            if asked is not None:
                sample = asked[0][live, asked[1][node[live]]]
            else:
                index = np.full(len(live), ply, dtype=np.int64)
                sample = samples.ask(table.turn[node[live]], index, live)
            step_sample[live, ply] = sample
            step_player[live, ply] = table.player[node[live]]
            action = samples.actions()[sample]
            illegal = action < 0
            offenders = live[illegal]
            returns[offenders] = forfeits[table.player[node[offenders]]]
            endings[offenders] = ENDINGS.index(Ending.ILLEGAL)
            going = live[~illegal]
            node[going] = table.child[node[going], action[~illegal]]
            _draw_chance(table, node, draws, seeds, going)
    finally:
        parts.append(finished())


def _draw_chance(table: GameTable, node: np.ndarray, draws: np.ndarray, seeds: np.ndarray, games: np.ndarray) -> None:
    """Moves `games` on, in place, until none stands at a chance node; the same draws as `SeededChance` makes."""
    games = games[table.kind[node[games]] == CHANCE]
    while len(games):
        cdf = table.cdf[node[games]]
        draw = uniforms(seeds[games], CHANCE_STREAM, draws[games])
        outcome = (cdf[:, :-1] <= (draw * cdf[:, -1])[:, None]).sum(1)
        draws[games] += 1
        node[games] = table.child[node[games], outcome]
        games = games[table.kind[node[games]] == CHANCE]


class _Samples:
    """The distinct (turn, reply) pairs of one batch, with the table's column of each parsed action.

    Args:
        table ([`~spiral_trl.games.table.GameTable`]): The game.
        players (`Sequence[Player]`): Distinct players.
        seats (`np.ndarray`): `[G, P]` which of `players` has each seat of each game.
        seeds (`np.ndarray`): `[G]` seeds of all games.
        history (`np.ndarray`): `[G, depth]` samples of the turns that each game has had, -1 past them.
    """

    def __init__(
        self,
        table: GameTable,
        players: Sequence[Player],
        seats: np.ndarray,
        seeds: np.ndarray,
        history: np.ndarray,
    ):
        self.table = table
        self.players = players
        self.seats = seats
        self.seeds = seeds
        self.history = history
        self.turns: list[int] = []
        self.replies: list[Reply] = []
        self._columns: list[int] = []
        self._actions: np.ndarray | None = None

    def ask(self, turn: np.ndarray, index: np.ndarray, games: np.ndarray) -> np.ndarray:
        """`[B]` samples of `games`, which stand at `turn` and had `index` turns before, all `[B]`."""
        out = np.empty(len(games), dtype=np.int64)
        seat = np.array([t.player for t in self.table.turns], dtype=np.int64)[turn]
        asked = self.seats[games, seat]
        seeds = self.seeds[games]
        for k, player in enumerate(self.players):
            mine = asked == k
            if not mine.any():
                continue
            distinct, which = np.unique(turn[mine], return_inverse=True)
            try:
                replies, of = player.sample([self.table.turns[u] for u in distinct], which, seeds[mine], index[mine])
            except PlayerError as error:
                first = games[mine][0]
                moves = self._moves(first)
                raise player_failed(
                    player.name, int(mine.sum()), self.table.name, int(self.seeds[first]), moves, error
                ) from error
            # Each reply is given to one turn only, so any game that got it tells which
            turn_of = np.zeros(len(replies), dtype=np.int64)
            turn_of[of] = turn[mine]
            out[mine] = len(self.replies) + of
            for r, (u, reply) in enumerate(zip(turn_of, replies, strict=True)):
                try:
                    parsed = _parse(self.table.name, int(u), reply.text)
                except Exception as error:
                    first = games[mine][of == r][0]
                    raise game_failed(self.table.name, int(self.seeds[first]), self._moves(first), error) from error
                self.turns.append(int(u))
                self.replies.append(replace(reply, action=parsed.action, error=parsed.error))
                self._columns.append(-1 if parsed.action is None else self.table.actions.index(parsed.action))
        self._actions = None
        return out

    def _moves(self, game: int) -> list[Step]:
        return [
            self._step(sample, game, int(self.seeds[game]), index)
            for index, sample in enumerate(self.history[game].tolist())
            if sample >= 0
        ]

    def actions(self) -> np.ndarray:
        """`[S]` column of each sample's action in the table; -1 where it is illegal."""
        if self._actions is None:
            self._actions = np.array(self._columns, dtype=np.int64)
        return self._actions

    def columns(
        self, seeds: np.ndarray, history: np.ndarray, players: np.ndarray, positions: np.ndarray
    ) -> dict[str, Any]:
        """Turns and samples of some games as an [`~spiral_trl.records.EpisodeBatch`] has them.

        Args:
            seeds, positions (`np.ndarray`): `[G]` of each game.
            history, players (`np.ndarray`): `[G, depth]` sample and seat of each turn; samples are -1 past the last.
        """
        turn_episode, turn_index = np.nonzero(history >= 0)
        used, first, turn_sample = np.unique(history[turn_episode, turn_index], return_index=True, return_inverse=True)
        return {
            "samples": [
                self._step(
                    int(sample),
                    int(positions[turn_episode[at]]),
                    int(seeds[turn_episode[at]]),
                    int(turn_index[at]),
                )
                for sample, at in zip(used, first, strict=True)
            ],
            "turn_sample": turn_sample,
            "turn_episode": turn_episode,
            "turn_player": players[turn_episode, turn_index],
            "turn_index": turn_index,
        }

    def _step(self, sample: int, episode: int, seed: int, index: int) -> Step:
        turn = replace(self.table.turns[self.turns[sample]], episode=episode, seed=seed, index=index)
        return Step(turn, self.replies[sample])


@lru_cache(maxsize=100_000)
def _parse(name: str, turn: int, text: str) -> Parsed:
    """The action in a reply to a table's turn. Remembered: short replies coincide over a whole run."""
    table = tabulate(name)
    assert table is not None
    return table.games[turn].parse(table.turns[turn].player, text)


@dataclass(frozen=True)
class _Ahead:
    """Which decision nodes a game can still come to. `nodes` (N, K): of each node, padded with -1; `ply` (N,): turns
    between the last chance node and this one; `column` (N,): position of a node in the row of the root it hangs on."""

    nodes: np.ndarray
    ply: np.ndarray
    column: np.ndarray


@lru_cache(maxsize=32)
def _lookahead(name: str) -> _Ahead | None:
    """For games whose chance is all at the start and which then have few decision nodes: all of those, per deal.

    Asking for a handful of turns ahead, most of which will be needed, lets one batch serve the whole game.
    """
    table = tabulate(name)
    assert table is not None
    size = len(table.kind)
    nodes = np.full((size, _LOOKAHEAD), -1, dtype=np.int64)
    ply = np.zeros(size, dtype=np.int64)
    column = np.zeros(size, dtype=np.int64)
    stack, deals = [0], []
    while stack:
        node = stack.pop()
        if table.kind[node] == CHANCE:
            stack.extend(child for child in table.child[node] if child >= 0)
        else:
            deals.append(node)
    for deal in deals:
        found: list[int] = []
        walk = [(deal, 0)]
        while walk:
            node, depth = walk.pop()
            if table.kind[node] == CHANCE or len(found) > _LOOKAHEAD:
                return None
            if table.kind[node] == DECISION:
                ply[node], column[node] = depth, len(found)
                found.append(node)
                walk.extend((child, depth + 1) for child in table.child[node] if child >= 0)
        if len(found) > _LOOKAHEAD:
            return None
        nodes[deal, : len(found)] = found
    return _Ahead(nodes, ply, column)


def _ask_ahead(table: GameTable, samples: _Samples, node: np.ndarray, ahead: _Ahead) -> tuple[np.ndarray, np.ndarray]:
    """Samples for every turn each game can come to: `[G, K]` sample, and `[N]` the column of each node."""
    possible = ahead.nodes[node]
    games, columns = np.nonzero(possible >= 0)
    at = possible[games, columns]
    out = np.full(possible.shape, -1, dtype=np.int64)
    out[games, columns] = samples.ask(table.turn[at], ahead.ply[at], games)
    return out, ahead.column
