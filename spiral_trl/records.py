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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, TypedDict

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
        games: dict[str, int] = {}
        roles: list[tuple[str, ...]] = []
        seatings: dict[tuple[str, ...], int] = {}
        samples: list[Step] = []
        known: dict[tuple, int] = {}
        turn_sample, turn_episode, turn_player, turn_index = [], [], [], []
        num_players = max((len(episode.roles) for episode in episodes), default=0)
        returns = np.full((len(episodes), num_players), np.nan)
        for i, episode in enumerate(episodes):
            if episode.game not in games:
                games[episode.game] = len(games)
                roles.append(episode.roles)
            seatings.setdefault(episode.players, len(seatings))
            returns[i, : len(episode.returns)] = episode.returns
            for step in episode.steps:
                turn = step.turn
                messages = tuple((message["role"], message["content"]) for message in turn.messages)
                key = (turn.game, turn.player, messages, turn.legal_actions, turn.infoset, step.reply)
                if key not in known:
                    known[key] = len(samples)
                    samples.append(step)
                turn_sample.append(known[key])
                turn_episode.append(i)
                turn_player.append(turn.player)
                turn_index.append(turn.index)
        outcomes = Outcomes(
            games=tuple(games),
            roles=tuple(roles),
            game=np.array([games[episode.game] for episode in episodes], dtype=np.int64),
            returns=returns,
            endings=np.array([ENDINGS.index(episode.ending) for episode in episodes], dtype=np.int64),
        )
        return cls(
            outcomes=outcomes,
            seeds=np.array([episode.seed for episode in episodes], dtype=np.int64),
            players=tuple(seatings),
            seating=np.array([seatings[episode.players] for episode in episodes], dtype=np.int64),
            samples=samples,
            turn_sample=np.array(turn_sample, dtype=np.int64),
            turn_episode=np.array(turn_episode, dtype=np.int64),
            turn_player=np.array(turn_player, dtype=np.int64),
            turn_index=np.array(turn_index, dtype=np.int64),
        )

    @classmethod
    def concatenate(cls, batches: Sequence[EpisodeBatch]) -> EpisodeBatch:
        """The games of several batches, one batch after the other. A game may occur in one of them only."""
        batches = [batch for batch in batches if len(batch)]
        if len(batches) == 1:
            return batches[0]
        if not batches:
            return cls.from_episodes([])
        num_players = max(batch.outcomes.returns.shape[1] for batch in batches)
        sizes = {
            "episode": [len(batch) for batch in batches],
            "sample": [len(batch.samples) for batch in batches],
            "game": [len(batch.outcomes.games) for batch in batches],
            "seating": [len(batch.players) for batch in batches],
        }
        before = {name: np.concatenate([[0], np.cumsum(counts)[:-1]]) for name, counts in sizes.items()}

        def joined(columns: Iterable[np.ndarray], offset: np.ndarray | None = None) -> np.ndarray:
            parts = list(columns)
            return np.concatenate(parts if offset is None else [p + o for p, o in zip(parts, offset, strict=True)])

        returns = [
            np.pad(
                b.outcomes.returns, ((0, 0), (0, num_players - b.outcomes.returns.shape[1])), constant_values=np.nan
            )
            for b in batches
        ]
        games = tuple(game for batch in batches for game in batch.outcomes.games)
        if len(set(games)) < len(games):
            raise ValueError("Batches of the same game cannot be concatenated: play it with all seeds at once.")
        return cls(
            outcomes=Outcomes(
                games=games,
                roles=tuple(roles for batch in batches for roles in batch.outcomes.roles),
                game=joined((b.outcomes.game for b in batches), before["game"]),
                returns=joined(returns),
                endings=joined(b.outcomes.endings for b in batches),
            ),
            seeds=joined(b.seeds for b in batches),
            players=tuple(seats for batch in batches for seats in batch.players),
            seating=joined((b.seating for b in batches), before["seating"]),
            samples=[sample for batch in batches for sample in batch.samples],
            turn_sample=joined((b.turn_sample for b in batches), before["sample"]),
            turn_episode=joined((b.turn_episode for b in batches), before["episode"]),
            turn_player=joined(b.turn_player for b in batches),
            turn_index=joined(b.turn_index for b in batches),
        )


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
