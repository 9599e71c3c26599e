"""Episodes as a `datasets.Dataset`, without loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .episode import Ending, Episode, Message, Reply, Step, Turn


if TYPE_CHECKING:
    from datasets import Dataset


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
