"""Rows of a set of expert decisions: what they say, and which decisions are kept.

One row is one decision, as a conversational prompt and completion, so that [`~trl.SFTTrainer`] takes the set as it is
and trains on the completion alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..records import ENDINGS, Ending, EpisodeBatch
from ..version import __version__


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Features


def features() -> Features:
    """Columns of a set: `prompt` and `completion` are chats, and the rest says where the decision comes from.

    `episode_id` counts games of one collection; with `seed`, `game` and `policy` it deals the same game again. `player`
    is the seat, `turn` its place in the game, `reward` the return of that seat at the end of the game, `returns` that
    of all seats, `end` how the game ended, `valid` whether the completion was read as a legal action, `policy` who
    decided, `env_version` the version of the rules.
    """
    from datasets import Features, List, Value

    message = {"role": Value("string"), "content": Value("string")}
    return Features(
        {
            "prompt": List(message),
            "completion": List(message),
            "game": Value("string"),
            "episode_id": Value("int64"),
            "seed": Value("int64"),
            "player": Value("int64"),
            "role": Value("string"),
            "turn": Value("int64"),
            "action": Value("string"),
            "legal_actions": List(Value("string")),
            "infoset": Value("string"),
            "reward": Value("float64"),
            "returns": List(Value("float64")),
            "end": Value("string"),
            "valid": Value("bool"),
            "policy": Value("string"),
            "env_version": Value("string"),
        }
    )


def kept_turns(batch: EpisodeBatch, keep: str, seats: Sequence[bool] | np.ndarray) -> np.ndarray:
    """`[K]` positions among the batch's turns of the decisions to keep.

    Only games that ended by their rules, seats of `seats` (`[P]`), and replies that named a legal action; with
    `keep="winners"` only the seat whose return exceeds that of every other.
    """
    outcomes = batch.outcomes
    terminal = outcomes.endings == ENDINGS.index(Ending.TERMINAL)
    legal = np.array([step.reply.action is not None for step in batch.samples], dtype=bool)
    here = terminal[batch.turn_episode] & legal[batch.turn_sample] & np.asarray(seats)[batch.turn_player]
    if keep == "winners" and len(batch):
        best = np.nanmax(outcomes.returns, axis=1)
        winner = np.where((outcomes.returns == best[:, None]).sum(1) == 1, np.nanargmax(outcomes.returns, axis=1), -1)
        here &= winner[batch.turn_episode] == batch.turn_player
    return np.flatnonzero(here)


def rows(batch: EpisodeBatch, ids: np.ndarray, turns: np.ndarray, policy: str) -> pa.Table:
    """The decisions `turns` as an Arrow table with the columns of [`features`].

    Args:
        batch ([`~spiral_trl.records.EpisodeBatch`]): Games.
        ids (`np.ndarray`): `[G]` index of each game in the collection.
        turns (`np.ndarray`): `[K]` positions among the batch's turns.
        policy (`str`): Who decided.
    """
    import pyarrow as pa

    used, sample = np.unique(batch.turn_sample[turns], return_inverse=True)
    episode = batch.turn_episode[turns]
    steps = [batch.samples[s] for s in used]
    schema = features().arrow_schema
    # What a (turn, reply) pair says is made once and taken by index
    distinct = {
        "prompt": [[dict(message) for message in step.turn.messages] for step in steps],
        "completion": [[{"role": "assistant", "content": step.reply.text}] for step in steps],
        "game": [step.turn.game for step in steps],
        "player": [step.turn.player for step in steps],
        "role": [step.turn.role for step in steps],
        "action": [step.reply.action for step in steps],
        "legal_actions": [None if (legal := step.turn.legal_actions) is None else list(legal) for step in steps],
        "infoset": [step.turn.infoset for step in steps],
        "valid": [step.reply.action is not None for step in steps],
    }
    players = batch.outcomes.returns.shape[1]
    returns = batch.outcomes.returns[episode]  # (K, P)
    lists = pa.ListArray.from_arrays(np.arange(len(turns) + 1) * players, pa.array(returns.ravel()))
    columns = {
        name: pa.array(values, schema.field(name).type).take(pa.array(sample)) for name, values in distinct.items()
    }
    columns |= {
        "episode_id": pa.array(ids[episode]),
        "seed": pa.array(batch.seeds[episode]),
        "turn": pa.array(batch.turn_index[turns]),
        "reward": pa.array(returns[np.arange(len(turns)), batch.turn_player[turns]]),
        "returns": lists,
        "end": pa.array([ending.value for ending in ENDINGS]).take(pa.array(batch.outcomes.endings[episode])),
        "policy": pa.array([policy] * len(turns), pa.string()),
        "env_version": pa.array([f"spiral_trl {__version__}"] * len(turns), pa.string()),
    }
    return pa.table([columns[name].cast(schema.field(name).type) for name in schema.names], schema=schema)


def in_order(tables: Sequence[pa.Table], limit: int) -> pa.Table:
    """The rows of several tables by game, at most `limit`."""
    import pyarrow as pa

    table = pa.concat_tables(tables)
    if len(tables) > 1:
        table = table.take(pa.array(np.argsort(table["episode_id"].to_numpy(), kind="stable")))
    return table.slice(0, limit)
