"""Traces: what a model wrote while it played a game or solved a problem, from files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...records import Ending, Episode, dataset_to_episodes


DOMAINS = ("games", "math")
# Players whose replies hold no reasoning
_BOTS = ("random", "cfr", "minimax", "mcts", "human")


@dataclass(frozen=True)
class Trace:
    """What a model wrote: all replies of one seat in one game, or one solution of a problem.

    Args:
        domain (`str`): One of [`DOMAINS`].
        checkpoint (`str`): Label of the checkpoint that wrote it, such as `0` or `400`.
        success (`bool`, *optional*): Whether the seat won, or the solution is right; `None` where neither, as in a draw.
        text (`str`): The text, which is untrusted.
        group (`str`): What it is not independent within: the game (by its name and seed) or the problem.
    """

    domain: str
    checkpoint: str
    success: bool | None
    text: str
    group: str

    @property
    def id(self) -> str:
        """Name of the text: equal texts have equal ones."""
        return hashlib.sha256(self.text.encode("utf-8", errors="replace")).hexdigest()[:16]


def read_traces(domain: str, path: Path, label: str | None = None, players: Sequence[str] = ()) -> list[Trace]:
    """The traces in a file or folder.

    A folder is one that `save_to_disk` wrote; a file ends in `.jsonl` or `.parquet`. Each row is an episode, in the
    columns of [`~spiral_trl.records.episodes_to_dataset`], or a trace: `text`, and where known `success` (true, false
    or null), `checkpoint` and `group` (rows of one group, such as a problem, are not independent).

    Args:
        domain (`str`): One of [`DOMAINS`]; episodes are games.
        path (`Path`): The file or folder.
        label (`str`, *optional*): Label of the checkpoint. By default the row's `checkpoint`, or of an episode the
            `policy_version` of its replies.
        players (`Sequence[str]`, *optional*): Whose seats of episodes are taken; by default everyone's who is no bot.

    Raises:
        `ValueError`: If the file is no such file, or a row is malformed.
    """
    found: list[Trace] = []
    seats: set[str] = set()
    for number, row in enumerate(_rows(path), 1):
        where = f"{path}: row {number}"
        if "steps" in row:
            if domain != "games":
                raise ValueError(f"{where} is an episode; name episodes with --games")
            try:
                (episode,) = dataset_to_episodes([row])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{where} is no episode ({type(error).__name__}: {error})") from None
            seats |= set(episode.players)
            found += _of_episode(episode, label, players, where)
        else:
            found.append(_of_row(domain, row, label, str(path), number, where))
    if not found:
        of = f" of {', '.join(players)}" if players else ""
        played = f"; it was played by {', '.join(sorted(seats))}" if seats else ""
        raise ValueError(f"{path} holds no trace{of}{played}")
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_dir():
        yield from _of_folder(path)
    elif not path.exists():
        raise ValueError(f"there is no file or folder {path}")
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path}: line {number} is no JSON ({error})") from None
                if not isinstance(row, dict):
                    raise ValueError(f"{path}: line {number} is no JSON object")
                yield row
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as table:
                for batch in table.iter_batches(batch_size=256):
                    yield from batch.to_pylist()
        except pa.ArrowException as error:
            raise ValueError(f"{path} is no readable Parquet file ({error})") from None
    else:
        raise ValueError(f"{path} has to be a folder of a dataset, or end with .jsonl or .parquet")


def _of_folder(path: Path) -> Iterator[dict[str, Any]]:
    import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is no dataset that save_to_disk wrote ({error})") from None
    if not isinstance(data, datasets.Dataset):
        raise ValueError(f"{path} holds several splits ({', '.join(data)}); name the folder of one")
    yield from data


def _of_episode(episode: Episode, label: str | None, players: Sequence[str], where: str) -> Iterator[Trace]:
    """A trace for each seat that replied."""
    for seat, name in enumerate(episode.players):
        if name not in players if players else name.partition("(")[0] in _BOTS:
            continue
        replies = [step.reply for step in episode.steps if step.turn.player == seat]
        if not replies:
            continue
        versions = {reply.policy_version for reply in replies}
        if label is None and (len(versions) > 1 or None in versions):
            raise ValueError(
                f"{where} does not say which checkpoint wrote it; name it as in 400={where.split(':')[0]}"
            )
        texts = [reply.text for reply in replies]
        yield Trace(
            domain="games",
            checkpoint=label if label is not None else str(versions.pop()),
            success=_won(episode, seat),
            text=texts[0] if len(texts) == 1 else "\n\n".join(f"Reply {n}:\n{t}" for n, t in enumerate(texts, 1)),
            group=f"{episode.game}, seed {episode.seed}",
        )


def _won(episode: Episode, seat: int) -> bool | None:
    """Whether the seat won, or lost: a game that was cut, and a draw, are neither."""
    own, best = episode.returns[seat], max(episode.returns)
    if episode.ending is Ending.TRUNCATED or (own == best and episode.returns.count(best) > 1):
        return None
    return own == best


def _of_row(domain: str, row: Mapping[str, Any], label: str | None, source: str, number: int, where: str) -> Trace:
    text, success, checkpoint = row.get("text"), row.get("success"), row.get("checkpoint")
    if not isinstance(text, str):
        raise ValueError(f"{where} needs text, a string; it has {', '.join(map(str, row)) or 'nothing'}")
    # 1.0 and 0.0 too: a Parquet column of integers with a null may come as real numbers
    if success not in (None, True, False) or isinstance(success, str):
        raise ValueError(f"{where}: success must be true, false or null, not {str(success)[:40]!r}")
    if label is None:
        if isinstance(checkpoint, float) and checkpoint.is_integer():
            checkpoint = int(checkpoint)
        if isinstance(checkpoint, bool) or not isinstance(checkpoint, (int, str)) or checkpoint == "":
            raise ValueError(f"{where} has no checkpoint; add that column, or name the file as in 400={source}")
        label = str(checkpoint)
    group = row.get("group")
    return Trace(
        domain=domain,
        checkpoint=label,
        success=None if success is None else bool(success),
        text=text,
        # What no column groups stands alone
        group=f"{source}, row {number}" if group is None else f"{domain} group {group}",
    )


def order_checkpoints(traces: Iterable[Trace]) -> list[str]:
    """The labels of checkpoints: by their number where all are numbers, else in the order in which they come."""
    labels = list(dict.fromkeys(trace.checkpoint for trace in traces))
    try:
        return sorted(labels, key=float)
    except ValueError:
        return labels


def shuffled(traces: Sequence[Trace], seed: int) -> list[Trace]:
    """The traces in an order that depends on what they are and on `seed` alone: its beginning is a random sample,
    and more traces do not change the order of those that were there."""

    def place(trace: Trace) -> bytes:
        parts = json.dumps([seed, trace.domain, trace.checkpoint, trace.group, trace.text])
        return hashlib.sha256(parts.encode("ascii")).digest()

    return sorted(traces, key=place)


def sample_traces(traces: Sequence[Trace], per_checkpoint: int | None, seed: int) -> list[Trace]:
    """At most `per_checkpoint` random traces of each domain and checkpoint, all where that is `None`; shuffled."""
    taken: dict[tuple[str, str], int] = {}
    kept = []
    for trace in shuffled(traces, seed):
        stratum = (trace.domain, trace.checkpoint)
        taken[stratum] = taken.get(stratum, 0) + 1
        if per_checkpoint is None or taken[stratum] <= per_checkpoint:
            kept.append(trace)
    return kept
