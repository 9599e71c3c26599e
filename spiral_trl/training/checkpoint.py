"""What a self-play checkpoint holds beside TRL's, and when it is whole.

`self_play_state.json` holds baselines, counters and the position inside a generation. It is written last, once every
process has written its part, and so marks the checkpoint as whole: a folder without it is never resumed from.
`reference.safetensors` holds a refreshed reference model, `generation-RANK.safetensors` the rows of a generation that
is not spent yet, `pool_state.json` and `pool/` the pool of opponents. JSON and safetensors only, never pickle.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


STATE_NAME = "self_play_state.json"
REFERENCE_NAME = "reference.safetensors"
POOL_STATE_NAME = "pool_state.json"
POOL_FOLDER = "pool"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """Checkpoint folders of a run, whole or not, oldest first."""
    folder = Path(output_dir)
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _CHECKPOINT.fullmatch(path.name))]
    return [path for _, path in sorted(found) if path.is_dir()]


def is_whole(checkpoint: str | os.PathLike) -> bool:
    """Whether a checkpoint was written to its end."""
    return (Path(checkpoint) / STATE_NAME).is_file()


def last_whole_checkpoint(output_dir: str | os.PathLike) -> Path | None:
    """The newest checkpoint that was written to its end."""
    whole = [path for path in checkpoints(output_dir) if is_whole(path)]
    return whole[-1] if whole else None


def last_good_checkpoint(output_dir: str | os.PathLike) -> Path | None:
    """The newest whole checkpoint that was saved while no guard raised an alarm."""
    for path in reversed(checkpoints(output_dir)):
        if is_whole(path) and not read_state(path).get("guards", {}).get("alarms"):
            return path
    return None


def write_state(checkpoint: str | os.PathLike, state: dict[str, Any]) -> None:
    """Writes the state, and with it the mark that the checkpoint is whole; never half of it."""
    path = Path(checkpoint) / STATE_NAME
    draft = path.with_suffix(".tmp")
    with open(draft, "w") as file:
        json.dump(state, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def read_state(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """The state of a checkpoint.

    Raises:
        `ValueError`: If the checkpoint is not whole.
    """
    path = Path(checkpoint) / STATE_NAME
    if not path.is_file():
        last = last_whole_checkpoint(Path(checkpoint).parent)
        hint = f" The last whole one is {last}." if last is not None else ""
        raise ValueError(
            f"{checkpoint} has no {STATE_NAME}: it is not a self-play checkpoint, or its writing was cut off.{hint}"
        )
    return json.loads(path.read_text())


def rotate(output_dir: str | os.PathLike, limit: int | None, keep: str | None) -> None:
    """Deletes the oldest whole checkpoints beyond `limit`, and what was cut off before the newest whole one.

    Args:
        output_dir (`str`): Folder of the run.
        limit (`int`, *optional*): How many whole checkpoints stay; `None` keeps all.
        keep (`str`, *optional*): A checkpoint that stays in any case (the best so far).
    """
    if limit is None or limit < 1:
        return
    whole = [path for path in checkpoints(output_dir) if is_whole(path)]
    kept = {path.resolve() for path in whole[-limit:]}
    if keep is not None:
        kept.add(Path(keep).resolve())
    for path in checkpoints(output_dir):
        cut_off = not is_whole(path) and whole and path != whole[-1]
        if path.resolve() not in kept and (path in whole or cut_off):
            shutil.rmtree(path)


def discard_run(output_dir: str | os.PathLike) -> None:
    """Deletes checkpoints, snapshots and figures of the run that a new one writes over: they would be taken for its
    own, by resuming, by rotation and by the model card."""
    for path in checkpoints(output_dir):
        shutil.rmtree(path)
    shutil.rmtree(Path(output_dir) / POOL_FOLDER, ignore_errors=True)
    (Path(output_dir) / "metrics.json").unlink(missing_ok=True)
    # Where a run compares plain self-play, that one lies inside
    shutil.rmtree(Path(output_dir) / "plain", ignore_errors=True)


def abandon_after(checkpoint: str | os.PathLike) -> None:
    """Takes the mark from checkpoints newer than the one a run goes on from: they are of a branch that it leaves, and
    would be resumed from, or kept by rotation, in place of its own."""
    folder = Path(checkpoint).resolve()
    newer = False
    for path in checkpoints(folder.parent):
        if newer:
            unmark(path)
        newer = newer or path.resolve() == folder


def unmark(checkpoint: str | os.PathLike) -> None:
    """Takes the mark of being whole from a checkpoint, before anything in it is written anew."""
    (Path(checkpoint) / STATE_NAME).unlink(missing_ok=True)


def _buffer_path(checkpoint: str | os.PathLike, rank: int) -> Path:
    return Path(checkpoint) / f"generation-{rank}.safetensors"


def save_buffer(checkpoint: str | os.PathLike, rank: int, buffer: list[dict[str, torch.Tensor | None]]) -> None:
    """Saves the micro-batches of a generation that is not spent yet."""
    tensors = {
        f"{position}.{name}": value.contiguous()
        for position, inputs in enumerate(buffer)
        for name, value in inputs.items()
        if value is not None
    }
    # Slices of one generation share storage, which safetensors refuses
    save_file({name: value.detach().cpu().clone() for name, value in tensors.items()}, _buffer_path(checkpoint, rank))


def load_buffer(checkpoint: str | os.PathLike, rank: int, device: torch.device) -> list[dict[str, torch.Tensor]]:
    """The micro-batches that [`save_buffer`] saved."""
    buffer: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(_buffer_path(checkpoint, rank)).items():
        position, name = key.split(".", 1)
        buffer.setdefault(int(position), {})[name] = value.to(device)
    return [buffer[position] for position in sorted(buffer)]
