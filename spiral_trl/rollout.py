"""Plays many games at once, any players, to episodes.

[`play`] gathers the turns of all live games, asks each player once, and steps. Games small enough to tabulate are
stepped as arrays instead of one by one; the episodes are equal either way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from .errors import did_you_mean
from .games.base import Game
from .games.chance import CHANCE as CHANCE_STREAM
from .games.chance import ILLEGAL, uniforms
from .games.registry import make_game
from .games.table import CHANCE, DECISION, TERMINAL, GameTable, tabulate
from .players.base import Player
from .records import ENDINGS, Ending, Episode, EpisodeBatch, Message, Outcomes, Parsed, Reply, Step, Turn


# The release's limit; every game of the package ends long before.
MAX_TURNS = 50
# Most turns of one game that are asked ahead of time where players are speculative.
_LOOKAHEAD = 8


@dataclass(frozen=True)
class IllegalMoves:
    """What an illegal or ambiguous reply does.

    Args:
        policy (`str`): One of
            - `forfeit`: the game ends; the offender gets its worst return by the rules, the others share its negation,
              so that breaking the rules is never better than losing by them;
            - `spiral`: the game ends with -1.5 for the offender and +0.5 for the opponent (the SPIRAL release; not
              zero-sum, two players only);
            - `retry`: the seat is told so and asked again, `retries` times; then `forfeit`;
            - `random_legal`: a uniformly random legal action is played instead (for evaluation).
        retries (`int`): For `retry`.
    """

    policy: str
    retries: int = 0

    @classmethod
    def parse(cls, name: str) -> IllegalMoves:
        """From `forfeit`, `spiral`, `retry(k)` or `random_legal`.

        Raises:
            `ValueError`: For any other name.
        """
        match = re.fullmatch(r"retry\((\d+)\)", name.replace(" ", ""))
        if match and int(match[1]) >= 1:
            return cls("retry", int(match[1]))
        if name in ("forfeit", "spiral", "random_legal"):
            return cls(name)
        raise ValueError(
            f"Unknown illegal-move policy {name!r}. Choose forfeit, spiral, retry(k) with k >= 1, or random_legal"
            f"{did_you_mean(name, ('forfeit', 'spiral', 'retry(1)', 'random_legal'))}"
        )

    def returns(self, offender: int, worst_returns: Sequence[float]) -> tuple[float, ...]:
        """Totals of a game that `offender` ended by an illegal reply."""
        num_players = len(worst_returns)
        if self.policy == "spiral":
            if num_players != 2:
                raise ValueError(f"The illegal-move policy spiral is for two players, not {num_players}.")
            lost, others = -1.5, 0.5
        else:
            lost = worst_returns[offender]
            others = -lost / (num_players - 1)
        return tuple(lost if player == offender else others for player in range(num_players))


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
    """Plays one game for each seed.

    Args:
        game (`str`): Name of the game, such as `kuhn_poker(rounds=5)`.
        players (`Sequence[Player]`): One player for each seat; the same object may sit in several.
        seeds (`Sequence[int]`): `[G]` seed of each game. Deals derive from it, and so do replies of the players of this
            package.
        illegal (`str`, *optional*, defaults to `"forfeit"`): See [`IllegalMoves`].
        max_turns (`int`, *optional*, defaults to `50`): A game is truncated after so many turns, with returns of 0.
        tabulated (`bool`, *optional*): Whether to step the game as a table. By default wherever it has one and its
            turns are within `max_turns`.
        synchronize (`Callable`, *optional*): For players whose generation is a collective operation of several
            processes: called in every round with the number of pending turns here, answers the most on any process.
            A process that is done asks a turn of its own again, and drops the reply, until every process is.

    Returns:
        [`~spiral_trl.records.EpisodeBatch`]

    Raises:
        `ValueError`: If the game is unknown, the number of players is wrong, or the policy is unknown.
    """
    policy = IllegalMoves.parse(illegal)
    probe = make_game(game)
    if len(players) != probe.num_players:
        raise ValueError(f"{probe.name} has {probe.num_players} seats, but {len(players)} players were given.")
    policy.returns(0, probe.worst_returns)  # refuses a policy that is not for so many players
    seeds = np.asarray(seeds, dtype=np.int64)
    can_tabulate = policy.policy in ("forfeit", "spiral") and synchronize is None
    table = tabulate(probe.name) if tabulated is not False and can_tabulate else None
    if table is not None and (table.depth > max_turns or table.simultaneous):
        table = None
    if table is None:
        if tabulated:
            raise ValueError(
                f"{probe.name} cannot be played as a table: it is too large, simultaneous or free text, can pass "
                f"max_turns={max_turns}, or the illegal-move policy {illegal} needs single games."
            )
        return _play_text(probe.name, players, seeds, policy, max_turns, synchronize)
    return _play_table(table, players, seeds, policy)


# ---------------------------------------------------------------------------------------------- one by one, as text


@dataclass
class _Live:
    """One game in play, and what this round has come to: accepted actions, and what refused seats are told."""

    game: Game
    episode: int
    steps: list[Step] = field(default_factory=list)
    retries: int = 0
    actions: dict[int, str] = field(default_factory=dict)
    complaints: dict[int, str] = field(default_factory=dict)


def _play_text(
    name: str,
    players: Sequence[Player],
    seeds: np.ndarray,
    policy: IllegalMoves,
    max_turns: int,
    synchronize: Callable[[int], int] | None,
) -> EpisodeBatch:
    seating = tuple(player.name for player in players)
    finished: dict[int, Episode] = {}
    live: list[_Live] = []

    def finish(entry: _Live, returns: Sequence[float], ending: Ending) -> None:
        finished[entry.episode] = Episode(
            game=name,
            seed=int(seeds[entry.episode]),
            players=seating,
            roles=entry.game.roles,
            steps=tuple(entry.steps),
            returns=tuple(float(value) for value in returns),
            ending=ending,
        )

    for episode, seed in enumerate(seeds):
        game = make_game(name)
        game.reset(int(seed))
        live.append(_Live(game, episode))

    spare = make_game(name)
    spare.reset(0)
    last_turn = spare.turns()[0]
    while True:
        pending: list[tuple[_Live, Turn]] = []
        for entry in live:
            asked = [turn for turn in entry.game.turns() if turn.player not in entry.actions]
            # Seats that are asked at once have an index each: replies that derive from it must not coincide
            for index, turn in enumerate(asked, start=len(entry.steps)):
                turn = replace(
                    turn,
                    episode=entry.episode,
                    seed=int(seeds[entry.episode]),
                    index=index,
                    messages=_told(turn.messages, entry.complaints.get(turn.player)),
                )
                pending.append((entry, turn))
        most = len(pending) if synchronize is None else synchronize(len(pending))
        if most == 0:
            break
        if not pending:
            # Every process takes part in every generation
            players[last_turn.player].reply([last_turn])
            continue
        last_turn = pending[0][1]

        replies: list[Reply | None] = [None] * len(pending)
        for player in {id(player): player for player in players}.values():
            mine = [i for i, (_, turn) in enumerate(pending) if players[turn.player] is player]
            if mine:
                for i, answer in zip(mine, player.reply([pending[i][1] for i in mine]), strict=True):
                    replies[i] = answer

        for entry in live:
            entry.complaints = {}
        for (entry, turn), reply in zip(pending, replies, strict=True):
            assert reply is not None
            parsed = entry.game.parse(turn.player, reply.text)
            reply = replace(reply, action=parsed.action, error=parsed.error)
            entry.steps.append(Step(turn, reply))
            action = parsed.action
            if action is None and policy.policy == "random_legal":
                action = _random_legal(turn)
            if action is None:
                entry.complaints[turn.player] = _complaint(turn)
            else:
                entry.actions[turn.player] = action

        played, live = live, []
        for entry in played:
            if entry.complaints:
                if policy.policy == "retry" and entry.retries < policy.retries and len(entry.steps) < max_turns:
                    entry.retries += 1
                    live.append(entry)
                else:
                    offender = next(iter(entry.complaints))
                    finish(entry, policy.returns(offender, entry.game.worst_returns), Ending.ILLEGAL)
                continue
            entry.game.step(entry.actions)
            entry.retries, entry.actions = 0, {}
            if entry.game.ending is not None:
                finish(entry, entry.game.returns(), entry.game.ending)
            elif len(entry.steps) >= max_turns:
                finish(entry, [0.0] * entry.game.num_players, Ending.TRUNCATED)
            else:
                live.append(entry)
    return EpisodeBatch.from_episodes([finished[episode] for episode in range(len(seeds))])


def _random_legal(turn: Turn) -> str | None:
    if not turn.legal_actions:
        return None
    choice = int(uniforms(turn.seed, ILLEGAL, turn.index) * len(turn.legal_actions))
    return turn.legal_actions[choice]


def _complaint(turn: Turn) -> str:
    """What a seat is told after an illegal reply. Never holds the reply's own text."""
    legal = turn.legal_actions
    names = f" Legal actions: {', '.join(f'[{action}]' for action in legal)}." if legal else ""
    return f"Your last reply was no legal action.{names} Reply again."


def _told(messages: tuple[Message, ...], complaint: str | None) -> tuple[Message, ...]:
    """The chat with a complaint at its end: in the newest observation, as many chat templates refuse two messages of
    the user in a row."""
    if complaint is None:
        return messages
    if messages and messages[-1]["role"] == "user":
        newest = Message(role="user", content=f"{messages[-1]['content'].rstrip()}\n\n{complaint}")
        return (*messages[:-1], newest)
    return (*messages, Message(role="user", content=complaint))


# ------------------------------------------------------------------------------------------- thousands, as a table


def _play_table(table: GameTable, players: Sequence[Player], seeds: np.ndarray, policy: IllegalMoves) -> EpisodeBatch:
    """[`play`] on a table: every step below acts on all live games at once."""
    num_games = len(seeds)
    node = np.zeros(num_games, dtype=np.int64)
    draws = np.zeros(num_games, dtype=np.int64)
    step_sample = np.full((num_games, max(1, table.depth)), -1, dtype=np.int64)
    step_player = np.full_like(step_sample, -1)
    returns = np.zeros((num_games, table.num_players))
    endings = np.full(num_games, -1, dtype=np.int64)
    samples = _Samples(table)
    ahead = _lookahead(table.name) if all(player.speculative for player in players) else None
    forfeits = np.array([policy.returns(player, table.worst_returns) for player in range(table.num_players)])

    _draw_chance(table, node, draws, seeds, np.arange(num_games))
    asked: tuple[np.ndarray, np.ndarray] | None = None
    if ahead is not None:
        asked = _ask_ahead(table, players, samples, node, seeds, ahead)

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
            sample = samples.ask(players, table.turn[node[live]], seeds[live], index, live)
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

    turn_episode, turn_index = np.nonzero(step_sample >= 0)
    used, first, turn_sample = np.unique(step_sample[turn_episode, turn_index], return_index=True, return_inverse=True)
    steps = [
        samples.step(int(sample), int(turn_episode[at]), int(seeds[turn_episode[at]]), int(turn_index[at]))
        for sample, at in zip(used, first, strict=True)
    ]
    return EpisodeBatch(
        outcomes=Outcomes(
            games=(table.name,),
            roles=(table.roles,),
            game=np.zeros(num_games, dtype=np.int64),
            returns=returns,
            endings=endings,
        ),
        seeds=seeds,
        players=(tuple(player.name for player in players),),
        seating=np.zeros(num_games, dtype=np.int64),
        samples=steps,
        turn_sample=turn_sample,
        turn_episode=turn_episode,
        turn_player=step_player[turn_episode, turn_index],
        turn_index=turn_index,
    )


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
    """The distinct (turn, reply) pairs of one batch, with the table's column of each parsed action."""

    def __init__(self, table: GameTable):
        self.table = table
        self.turns: list[int] = []
        self.replies: list[Reply] = []
        self.columns: list[int] = []
        self._actions: np.ndarray | None = None

    def ask(
        self, players: Sequence[Player], turn: np.ndarray, seeds: np.ndarray, index: np.ndarray, games: np.ndarray
    ) -> np.ndarray:
        """`[B]` sample of each asked game; `turn`, `seeds`, `index` are `[B]`."""
        out = np.empty(len(games), dtype=np.int64)
        seat = np.array([t.player for t in self.table.turns])[turn]
        for player in {id(player): player for player in players}.values():
            mine = np.isin(seat, [p for p, other in enumerate(players) if other is player])
            if not mine.any():
                continue
            distinct, which = np.unique(turn[mine], return_inverse=True)
            replies, of = player.sample([self.table.turns[u] for u in distinct], which, seeds[mine], index[mine])
            # Each reply is given to one turn only, so any game that got it tells which
            turn_of = np.zeros(len(replies), dtype=np.int64)
            turn_of[of] = turn[mine]
            out[mine] = len(self.replies) + of
            for u, reply in zip(turn_of, replies, strict=True):
                parsed = _parse(self.table.name, int(u), reply.text)
                self.turns.append(int(u))
                self.replies.append(replace(reply, action=parsed.action, error=parsed.error))
                self.columns.append(-1 if parsed.action is None else self.table.actions.index(parsed.action))
        self._actions = None
        return out

    def actions(self) -> np.ndarray:
        """`[S]` column of each sample's action in the table; -1 where it is illegal."""
        if self._actions is None:
            self._actions = np.array(self.columns, dtype=np.int64)
        return self._actions

    def step(self, sample: int, episode: int, seed: int, index: int) -> Step:
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


def _ask_ahead(
    table: GameTable,
    players: Sequence[Player],
    samples: _Samples,
    node: np.ndarray,
    seeds: np.ndarray,
    ahead: _Ahead,
) -> tuple[np.ndarray, np.ndarray]:
    """Samples for every turn each game can come to: `[G, K]` sample, and `[N]` the column of each node."""
    possible = ahead.nodes[node]
    games, columns = np.nonzero(possible >= 0)
    at = possible[games, columns]
    out = np.full(possible.shape, -1, dtype=np.int64)
    out[games, columns] = samples.ask(players, table.turn[at], seeds[games], ahead.ply[at], games)
    return out, ahead.column
