"""The policy's own snapshots as opponents: their files, and players that hold their weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from ..players.language_model import LanguageModelPlayer
from ..players.pool import LEARNER, Counts, Member, PoolSpec, PoolState
from .checkpoint import POOL_FOLDER, POOL_STATE_NAME
from .schedule import members_uniform


# Members that one generation meets, at most: each has its weights read in every round in which it is asked
MEMBERS_PER_GENERATION = 4


class SnapshotPool:
    """Snapshots of the policy in training, and players with their weights.

    A snapshot holds the parameters that are trained: of a model with an adapter the adapter alone. A member plays by
    the model in training itself, whose trained parameters are exchanged for the member's while it is asked and put
    back after, to the bit. Beside the model that takes one copy of those parameters, as a second model would, and a
    member's replies are what the policy's were.

    Args:
        spec ([`~spiral_trl.players.pool.PoolSpec`]): Matchmaking, size and cadence.
        folder (`str`): Where snapshots are written by the process that saves, and read by all.
        saves (`bool`): Whether this process writes.
        wait (`Callable`): Waits for all processes.
        model (`Callable`): Context manager that yields the unwrapped model in training.
        make_player (`Callable`): Called with a name and such a context manager; answers the player that generates with
            what the context yields.
    """

    def __init__(
        self,
        spec: PoolSpec,
        folder: str | os.PathLike,
        *,
        saves: bool,
        wait: Callable[[], None],
        model: Callable[[], AbstractContextManager[PreTrainedModel]],
        make_player: Callable[[str, Callable[[], AbstractContextManager[PreTrainedModel]]], LanguageModelPlayer],
    ):
        self.spec = spec
        self.folder = Path(folder)
        self.state = PoolState()
        self._saves = saves
        self._wait = wait
        self._model = model
        self._make_player = make_player
        self._players: dict[int, LanguageModelPlayer] = {}

    # --------------------------------------------------------------------------------------------------- opponents

    def members(self, seed: int, generation: int) -> list[int]:
        """Numbers of the members that a generation meets, by draw; the same on every process."""
        return self.state.draw(self.spec, MEMBERS_PER_GENERATION, members_uniform(seed, generation))

    def player(self, number: int) -> LanguageModelPlayer:
        """The player that is a member."""
        if number not in self._players:
            member = next(member for member in self.state.members if member.number == number)
            player = self._make_player(f"snapshot of step {member.step}", lambda: self._exchanged(member))
            player.policy_version = member.step
            self._players[number] = player
        return self._players[number]

    def record(self, results: Mapping[tuple[int, int], Counts]) -> None:
        """Adds the policy's results of a generation, those of all processes."""
        self.state.record(results, self.spec)

    def metrics(self) -> dict[str, float]:
        """Size of the pool, and the policy's rating: Elo points above the initial policy."""
        return {
            "self_play/pool/size": len(self.state.members),
            "self_play/pool/rating": self.state.ratings()[LEARNER],
        }

    # --------------------------------------------------------------------------------------------------- snapshots

    def snapshot(self, generation: int, step: int) -> None:
        """Takes a snapshot where one is due before `generation` is played. Called by all processes."""
        if not self.state.is_due(generation, self.spec):
            return
        member, leaving = self.state.add(generation, step, self.spec)
        if self._saves:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._model() as model:
                tensors = {name: p.detach().cpu().clone() for name, p in _trained(model).items()}
            draft = self._path(member).with_suffix(".tmp")
            save_file(tensors, draft)
            os.replace(draft, self._path(member))
        self._wait()  # until it can be read, and no one reads those that leave
        for old in leaving:
            self._players.pop(old.number, None)
            if self._saves:
                self._path(old).unlink(missing_ok=True)

    def _path(self, member: Member, folder: Path | None = None) -> Path:
        return (folder or self.folder) / f"member-{member.number}.safetensors"

    @contextmanager
    def _exchanged(self, member: Member) -> Iterator[PreTrainedModel]:
        """The model in training with the weights of `member`, for a while."""
        with self._model() as model, torch.no_grad():
            parameters = _trained(model)
            own = {name: p.detach().clone() for name, p in parameters.items()}
            try:
                with safe_open(self._path(member), framework="pt") as file:
                    _check_names(self._path(member), set(file.keys()), set(parameters))
                    for name, p in parameters.items():
                        p.copy_(file.get_tensor(name))
                yield model
            finally:
                for name, p in parameters.items():
                    p.copy_(own[name])

    # ------------------------------------------------------------------------------------------------- checkpoints

    def save(self, checkpoint: str | os.PathLike) -> None:
        """Writes the state into a checkpoint, and links the snapshots there: a file that no one writes to again need
        not be there twice. Called by the process that saves."""
        folder = Path(checkpoint) / POOL_FOLDER
        shutil.rmtree(folder, ignore_errors=True)  # of a checkpoint that is written over
        folder.mkdir(parents=True)
        for member in self.state.members:
            _link(self._path(member), self._path(member, folder))
        (Path(checkpoint) / POOL_STATE_NAME).write_text(json.dumps(self.state.to_dict()) + "\n")

    def load(self, checkpoint: str | os.PathLike) -> None:
        """Restores what [`save`] wrote. A checkpoint of a run without a pool leaves it empty: its first member is then
        the policy as it is resumed. Called by all processes."""
        self.reset()
        path = Path(checkpoint) / POOL_STATE_NAME
        if path.is_file():
            self.state = PoolState.from_dict(json.loads(path.read_text()))
        if self._saves:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            for member in self.state.members:
                _link(self._path(member, Path(checkpoint) / POOL_FOLDER), self._path(member))
        self._wait()

    def reset(self) -> None:
        """Forgets all members, for a run that begins."""
        self.state, self._players = PoolState(), {}


def _trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _check_names(path: Path, found: set[str], expected: set[str]) -> None:
    if found != expected:
        odd = sorted(found ^ expected)[0]
        raise ValueError(
            f"{path} is a snapshot of other parameters than are trained now: {odd} is in only one of the two. Resume "
            "with the model, and the adapter, that the run started with."
        )


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
