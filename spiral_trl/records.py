"""What was asked, what was answered, and how the game ended: the records every other module passes on.

A [`Turn`] is what one seat is asked, a [`Reply`] what it answered, an [`Episode`] one finished game. An
[`EpisodeBatch`] holds many games in columns: each distinct (turn, reply) pair is stored once and referred to by index,
which is what makes thousands of small games a step affordable. Both forms convert into each other without loss, and
to and from a [`~datasets.Dataset`].

Axes used in shapes throughout the package: `G` games (episodes), `P` players (seats), `T` turns of all games together,
`S` distinct samples, that is (turn, reply) pairs.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import chain
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np


if TYPE_CHECKING:
    from datasets import Dataset


class Message(TypedDict):
    """One chat message, in the form that chat templates take."""

    role: str
    content: str


class Ending(str, Enum):
    """How a game ended. Kept apart from its returns, so that a truncation is never read as a draw."""

    TERMINAL = "terminal"  # by the rules
    ILLEGAL = "illegal"  # a reply was illegal or ambiguous, and the illegal-move policy ended the game
    TRUNCATED = "truncated"  # the turn limit was reached


ENDINGS: tuple[Ending, ...] = tuple(Ending)

_LONE_SURROGATES = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Parsed:
    """What a game read out of a reply: an action, or the reason why there is none."""

    action: str | None
    error: str | None = None


@dataclass(frozen=True)
class Turn:
    """What one seat is asked.

    Args:
        game (`str`): Name of the game with its parameters, such as `kuhn_poker(rounds=5)`.
        episode (`int`): Index of the game within the batch that is being played.
        seed (`int`): Seed of the game. Chance and sampled replies derive from it and from `index` alone.
        index (`int`): How many turns of this game came before this one.
        player (`int`): Seat that is asked, from 0.
        role (`str`): Name of the seat.
        messages (`tuple[Message, ...]`): This seat's chat, newest observation last: all that it may see.
        legal_actions (`tuple[str, ...]`, *optional*): `None` where actions are free text.
        infoset (`str`, *optional*): Key of the information set, where the game has one.
        state (`object`, *optional*): For solvers only: never rendered, compared or stored.
    """

    game: str
    episode: int
    seed: int
    index: int
    player: int
    role: str
    messages: tuple[Message, ...]
    legal_actions: tuple[str, ...] | None
    infoset: str | None = None
    state: object = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Reply:
    """What a player answered.

    Args:
        text (`str`): The reply as text. Where a model wrote it, it is untrusted. Lone surrogates, which no UTF-8 file can
            hold, become U+FFFD.
        action (`str`, *optional*): The action the game parsed from it; `None` if there was none.
        error (`str`, *optional*): Why no action could be parsed.
        prompt_ids, completion_ids (`tuple[int, ...]`, *optional*): Token ids; `None` for players that are no model.
        logprobs (`tuple[float, ...]`, *optional*): Log-probabilities of the sampled tokens, where the sampler has them.
        finish_reason (`str`): `"stop"` (the player ended its reply) or `"length"` (it was cut).
        policy_version (`int`, *optional*): Training step of the weights that wrote it.
    """

    text: str
    action: str | None = None
    error: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    completion_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    finish_reason: str = "stop"
    policy_version: int | None = None

    def __post_init__(self) -> None:
        if not self.text.isascii():
            object.__setattr__(self, "text", _LONE_SURROGATES.sub("\ufffd", self.text))


@dataclass(frozen=True)
class Step:
    """One turn and the reply to it."""

    turn: Turn
    reply: Reply


@dataclass(frozen=True)
class Episode:
    """One finished game.

    Args:
        game (`str`): Name of the game with its parameters.
        seed (`int`): Seed that deals it again.
        players (`tuple[str, ...]`): Who sat in each seat.
        roles (`tuple[str, ...]`): Name of each seat.
        steps (`tuple[Step, ...]`): All turns, in order.
        returns (`tuple[float, ...]`): Total of each seat, in the game's own units.
        ending (`Ending`): How it ended.
    """

    game: str
    seed: int
    players: tuple[str, ...]
    roles: tuple[str, ...]
    steps: tuple[Step, ...]
    returns: tuple[float, ...]
    ending: Ending


@dataclass(frozen=True)
class Outcomes:
    """How games ended, without their turns: what advantage estimators read, and what processes exchange.

    Args:
        games (`tuple[str, ...]`): Distinct game names.
        roles (`tuple[tuple[str, ...], ...]`): Role names of each of `games`.
        game (`np.ndarray`): `[G]` index into `games`.
        returns (`np.ndarray`): `[G, P]` returns in the game's units; columns past a game's players are NaN.
        endings (`np.ndarray`): `[G]` index into [`ENDINGS`].
    """

    games: tuple[str, ...]
    roles: tuple[tuple[str, ...], ...]
    game: np.ndarray
    returns: np.ndarray
    endings: np.ndarray

    def __len__(self) -> int:
        return len(self.game)


@dataclass(frozen=True)
class EpisodeBatch:
    """Many games in columns. `batch.episodes()` gives them one by one.

    Args:
        outcomes (`Outcomes`): Game, returns and ending of each of the `G` games.
        seeds (`np.ndarray`): `[G]` seed of each game.
        players (`tuple[tuple[str, ...], ...]`): Distinct seatings: who sat in each seat.
        seating (`np.ndarray`): `[G]` index into `players`.
        samples (`list[Step]`): `S` distinct (turn, reply) pairs. Their turns carry the episode, seed and index of
            their first occurrence.
        turn_sample (`np.ndarray`): `[T]` index into `samples`.
        turn_episode (`np.ndarray`): `[T]` index of the game.
        turn_player (`np.ndarray`): `[T]` seat that was asked.
        turn_index (`np.ndarray`): `[T]` how many turns of that game came before. Turns are sorted by game, then
            by this index.
    """

    outcomes: Outcomes
    seeds: np.ndarray
    players: tuple[tuple[str, ...], ...]
    seating: np.ndarray
    samples: list[Step]
    turn_sample: np.ndarray
    turn_episode: np.ndarray
    turn_player: np.ndarray
    turn_index: np.ndarray

    def __len__(self) -> int:
        return len(self.seeds)

    def episode(self, index: int) -> Episode:
        """The game at `index` as an [`Episode`]; negative ones count from the end."""
        index = range(len(self))[index]
        first, last = np.searchsorted(self.turn_episode, [index, index + 1])
        seed = int(self.seeds[index])
        steps = []
        for position in range(first, last):
            sample = self.samples[self.turn_sample[position]]
            turn = replace(sample.turn, episode=index, seed=seed, index=int(self.turn_index[position]))
            steps.append(Step(turn, sample.reply))
        game = int(self.outcomes.game[index])
        roles = self.outcomes.roles[game]
        return Episode(
            game=self.outcomes.games[game],
            seed=seed,
            players=self.players[self.seating[index]],
            roles=roles,
            steps=tuple(steps),
            returns=tuple(float(value) for value in self.outcomes.returns[index, : len(roles)]),
            ending=ENDINGS[self.outcomes.endings[index]],
        )

    def episodes(self, indices: Iterable[int] | None = None) -> list[Episode]:
        """The games at `indices` (all by default) as [`Episode`]s."""
        return [self.episode(int(i)) for i in (range(len(self)) if indices is None else indices)]

    @classmethod
    def from_episodes(cls, episodes: Sequence[Episode]) -> EpisodeBatch:
        """Columns from single games. Equal (turn, reply) pairs are stored once."""
        builder = BatchBuilder()
        for position, episode in enumerate(episodes):
            builder.add(
                position=position,
                game=episode.game,
                roles=episode.roles,
                seed=episode.seed,
                players=episode.players,
                samples=[builder.sample(step.turn, step.reply) for step in episode.steps],
                seats=[step.turn.player for step in episode.steps],
                indices=[step.turn.index for step in episode.steps],
                returns=episode.returns,
                ending=episode.ending,
            )
        return builder.build()[0]

    @classmethod
    def concatenate(cls, batches: Sequence[EpisodeBatch], order: np.ndarray | None = None) -> EpisodeBatch:
        """The games of several batches. A (turn, reply) pair that several of them hold is kept once for each.

        Args:
            batches (`Sequence[EpisodeBatch]`): What is joined.
            order (`np.ndarray`, *optional*): `[G]` distinct keys of the games, one batch after the other; the result
                is sorted by them. By default the games stay in this order.
        """
        batches = [batch for batch in batches if len(batch)]
        if not batches:
            return cls.from_episodes([])
        if len(batches) == 1 and (order is None or (np.diff(order) > 0).all()):
            return batches[0]
        num_players = max(batch.outcomes.returns.shape[1] for batch in batches)
        games = _Codes()
        seatings = _Codes()
        roles: dict[str, tuple[str, ...]] = {}
        columns: dict[str, list[np.ndarray]] = {}
        samples: list[Step] = []
        num_games = 0
        for batch in batches:
            outcomes = batch.outcomes
            roles |= dict(zip(outcomes.games, outcomes.roles, strict=True))
            width = num_players - outcomes.returns.shape[1]
            for name, column in {
                "game": games.of(outcomes.games)[outcomes.game],
                "returns": np.pad(outcomes.returns, ((0, 0), (0, width)), constant_values=np.nan),
                "endings": outcomes.endings,
                "seeds": batch.seeds,
                "seating": seatings.of(batch.players)[batch.seating],
                "turn_sample": batch.turn_sample + len(samples),
                "turn_episode": batch.turn_episode + num_games,
                "turn_player": batch.turn_player,
                "turn_index": batch.turn_index,
            }.items():
                columns.setdefault(name, []).append(column)
            samples += batch.samples
            num_games += len(batch)
        return _assemble(
            {name: np.concatenate(parts) for name, parts in columns.items()},
            np.arange(num_games) if order is None else order,
            games.names,
            roles,
            seatings.names,
            samples,
        )


class _Codes:
    """Numbers for names, in the order in which they come."""

    def __init__(self) -> None:
        self._codes: dict[Any, int] = {}

    def code(self, name: Hashable) -> int:
        return self._codes.setdefault(name, len(self._codes))

    def of(self, names: Iterable[Hashable]) -> np.ndarray:
        """`[n]` codes of `names`."""
        return np.array([self.code(name) for name in names], dtype=np.int64)

    @property
    def names(self) -> list[Any]:
        """Every name, at its code."""
        return list(self._codes)


class BatchBuilder:
    """Puts an [`EpisodeBatch`] together from games that end in any order.

    Attributes:
        samples (`list[Step]`): The distinct (turn, reply) pairs so far.
    """

    def __init__(self) -> None:
        self.samples: list[Step] = []
        self._known: dict[tuple, int] = {}
        self._games = _Codes()
        self._roles: dict[str, tuple[str, ...]] = {}
        self._seatings = _Codes()
        # One row each: (position, game, seed, seating, ending), and the returns
        self._rows: list[tuple[int, int, int, int, int]] = []
        self._returns: list[Sequence[float]] = []
        # Of each game: samples, seats, indices
        self._turns: list[tuple[Sequence[int], Sequence[int], Sequence[int]]] = []

    def sample(self, turn: Turn, reply: Reply) -> int:
        """Index of a (turn, reply) pair in `samples`. Turns are equal where they read alike: their episode, seed and
        index do not count."""
        messages = tuple([(message["role"], message["content"]) for message in turn.messages])
        key = (turn.game, turn.player, messages, turn.legal_actions, turn.infoset, reply)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = len(self.samples)
            self.samples.append(Step(turn, reply))
        return found

    def add(
        self,
        *,
        position: int,
        game: str,
        roles: tuple[str, ...],
        seed: int,
        players: tuple[str, ...],
        samples: Sequence[int],
        seats: Sequence[int],
        indices: Sequence[int],
        returns: Sequence[float],
        ending: Ending,
    ) -> None:
        """Adds a finished game.

        Args:
            position (`int`): Where it stands among the games; the batch is sorted by it.
            game, roles, seed, players, returns, ending: As in [`Episode`].
            samples, seats, indices (`Sequence[int]`): Of each of its turns what [`sample`] answered, the seat that was
                asked, and how many turns came before.
        """
        self._roles[game] = roles
        self._rows.append(
            (position, self._games.code(game), seed, self._seatings.code(players), ENDINGS.index(ending))
        )
        self._returns.append(returns)
        self._turns.append((samples, seats, indices))

    def build(self) -> tuple[EpisodeBatch, np.ndarray]:
        """The batch, and the `[G]` position of each of its games."""
        num_players = max((len(returns) for returns in self._returns), default=0)
        totals = np.full((len(self._rows), num_players), np.nan)
        for i, returns in enumerate(self._returns):
            totals[i, : len(returns)] = returns
        position, game, seeds, seating, endings = np.array(self._rows, dtype=np.int64).reshape(-1, 5).T
        lengths = [len(samples) for samples, _, _ in self._turns]
        turns = [np.array(list(chain.from_iterable(part)), dtype=np.int64) for part in zip(*self._turns, strict=True)]
        turn_sample, turn_player, turn_index = turns or [np.zeros(0, dtype=np.int64)] * 3
        columns = {
            "game": game,
            "returns": totals,
            "endings": endings,
            "seeds": seeds,
            "seating": seating,
            "turn_sample": turn_sample,
            "turn_episode": np.repeat(np.arange(len(lengths)), lengths),
            "turn_player": turn_player,
            "turn_index": turn_index,
        }
        batch = _assemble(columns, position, self._games.names, self._roles, self._seatings.names, self.samples)
        return batch, np.sort(position)


def _assemble(
    columns: dict[str, np.ndarray],
    order: np.ndarray,
    games: list[str],
    roles: dict[str, tuple[str, ...]],
    seatings: list[tuple[str, ...]],
    samples: list[Step],
) -> EpisodeBatch:
    """A batch from columns of games in any order: sorted by `order`, with only those games, seatings and samples that
    occur, in the order in which they first do."""
    sort = np.argsort(order)
    rank = np.empty(len(sort), dtype=np.int64)
    rank[sort] = np.arange(len(sort))
    turn_episode = rank[columns["turn_episode"]]
    turns = np.lexsort((columns["turn_index"], turn_episode))
    turn_episode, turn_index = turn_episode[turns], columns["turn_index"][turns]
    seeds = columns["seeds"][sort]
    used_games, game, _ = _by_first_use(columns["game"][sort])
    used_seatings, seating, _ = _by_first_use(columns["seating"][sort])
    used_samples, turn_sample, first = _by_first_use(columns["turn_sample"][turns])
    kept = []
    for sample, episode, seed, index in zip(
        used_samples.tolist(),
        turn_episode[first].tolist(),
        seeds[turn_episode[first]].tolist(),
        turn_index[first].tolist(),
        strict=True,
    ):
        step = samples[sample]
        if (step.turn.episode, step.turn.seed, step.turn.index) != (episode, seed, index):
            step = Step(replace(step.turn, episode=episode, seed=seed, index=index), step.reply)
        kept.append(step)
    return EpisodeBatch(
        outcomes=Outcomes(
            games=tuple(games[g] for g in used_games),
            roles=tuple(roles[games[g]] for g in used_games),
            game=game,
            returns=columns["returns"][sort],
            endings=columns["endings"][sort],
        ),
        seeds=seeds,
        players=tuple(seatings[s] for s in used_seatings),
        seating=seating,
        samples=kept,
        turn_sample=turn_sample,
        turn_episode=turn_episode,
        turn_player=columns["turn_player"][turns],
        turn_index=turn_index,
    )


def _by_first_use(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct codes in the order in which they first occur, `codes` as indices into those, and where each first
    occurs."""
    used, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(used), dtype=np.int64)
    rank[order] = np.arange(len(used))
    return used[order], rank[inverse], first[order]


def episodes_to_dataset(episodes: Iterable[Episode]) -> Dataset:
    """One row for each game, without loss: [`dataset_to_episodes`] gives equal episodes back.

    `Turn.game`, `Turn.episode` and `Turn.seed` are not stored with each turn: they are the row's `game`, its position
    and its `seed`. `Turn.state` is never stored.
    """
    from datasets import Dataset, Features, List, Value

    string, integer, real = Value("string"), Value("int64"), Value("float64")
    step = {
        "player": integer,
        "role": string,
        "index": integer,
        "messages": List({"role": string, "content": string}),
        "legal_actions": List(string),
        "infoset": string,
        "text": string,
        "action": string,
        "error": string,
        "prompt_ids": List(integer),
        "completion_ids": List(integer),
        "logprobs": List(real),
        "finish_reason": string,
        "policy_version": integer,
    }
    features = Features(
        {
            "game": string,
            "seed": integer,
            "players": List(string),
            "roles": List(string),
            "returns": List(real),
            "ending": string,
            "steps": List(step),
        }
    )

    def optional_list(values: Sequence | None) -> list | None:
        return None if values is None else list(values)

    rows: dict[str, list] = {name: [] for name in features}
    for episode in episodes:
        rows["game"].append(episode.game)
        rows["seed"].append(episode.seed)
        rows["players"].append(list(episode.players))
        rows["roles"].append(list(episode.roles))
        rows["returns"].append(list(episode.returns))
        rows["ending"].append(episode.ending.value)
        rows["steps"].append(
            [
                {
                    "player": turn.player,
                    "role": turn.role,
                    "index": turn.index,
                    "messages": [dict(message) for message in turn.messages],
                    "legal_actions": optional_list(turn.legal_actions),
                    "infoset": turn.infoset,
                    "text": reply.text,
                    "action": reply.action,
                    "error": reply.error,
                    "prompt_ids": optional_list(reply.prompt_ids),
                    "completion_ids": optional_list(reply.completion_ids),
                    "logprobs": optional_list(reply.logprobs),
                    "finish_reason": reply.finish_reason,
                    "policy_version": reply.policy_version,
                }
                for turn, reply in ((step.turn, step.reply) for step in episode.steps)
            ]
        )
    return Dataset.from_dict(rows, features=features)


def dataset_to_episodes(dataset: Dataset) -> list[Episode]:
    """The episodes that [`episodes_to_dataset`] stored."""

    def optional_tuple(values: list | None) -> tuple | None:
        return None if values is None else tuple(values)

    episodes = []
    for position, row in enumerate(dataset):
        steps = []
        for step in row["steps"]:
            turn = Turn(
                game=row["game"],
                episode=position,
                seed=row["seed"],
                index=step["index"],
                player=step["player"],
                role=step["role"],
                messages=tuple(
                    Message(role=message["role"], content=message["content"]) for message in step["messages"]
                ),
                legal_actions=optional_tuple(step["legal_actions"]),
                infoset=step["infoset"],
            )
            reply = Reply(
                text=step["text"],
                action=step["action"],
                error=step["error"],
                prompt_ids=optional_tuple(step["prompt_ids"]),
                completion_ids=optional_tuple(step["completion_ids"]),
                logprobs=optional_tuple(step["logprobs"]),
                finish_reason=step["finish_reason"],
                policy_version=step["policy_version"],
            )
            steps.append(Step(turn, reply))
        episodes.append(
            Episode(
                game=row["game"],
                seed=row["seed"],
                players=tuple(row["players"]),
                roles=tuple(row["roles"]),
                steps=tuple(steps),
                returns=tuple(row["returns"]),
                ending=Ending(row["ending"]),
            )
        )
    return episodes
