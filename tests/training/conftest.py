"""Trainers on the warm-started embedded model that are ready in a moment."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import ROOT
from transformers import AutoModelForCausalLM


WORKER = Path(__file__).with_name("run_worker.py")
GAME = "kuhn_poker(observation=compact)"
SMALL = {
    "games_per_generation": 32,
    "max_steps": 2,
    "num_iterations": 1,
    "max_completion_length": 3,
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-2,
    "eval_games": 16,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


@pytest.fixture
def make_args(tmp_path):
    from spiral_trl import SelfPlayConfig

    def make(**overrides):
        return SelfPlayConfig(**{"output_dir": str(tmp_path / "run"), **SMALL, **overrides})

    return make


@pytest.fixture
def make_trainer(tiny_model, make_args):
    """`make_trainer(games=..., peft_config=..., FIELD=value)`: fields of the config, and arguments of the trainer.

    The trainer's `advantage` is called `estimator`, as the config has a field of that name.
    """
    from spiral_trl import SelfPlayTrainer

    of_trainer = ("processing_class", "reward_funcs", "estimator", "callbacks", "optimizers", "peft_config")

    def make(model=None, games=GAME, **kwargs):
        given = {name: kwargs.pop(name) for name in of_trainer if name in kwargs}
        if "estimator" in given:
            given["advantage"] = given.pop("estimator")
        return SelfPlayTrainer(tiny_model if model is None else model, games, make_args(**kwargs), **given)

    return make


@pytest.fixture
def load_model(tiny_model):
    """The warm-started model anew, untouched by any trainer."""
    return lambda: AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


@pytest.fixture
def parameters():
    """Copies of a trainer's or a model's parameters."""

    def copies(of):
        model = of.accelerator.unwrap_model(of.model) if hasattr(of, "accelerator") else of
        return {name: p.detach().clone() for name, p in model.named_parameters()}

    return copies


# ----------------------------------------------------------------------------------------- runs in other processes


def is_running(pid):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Worker:
    """`run_worker.py` in processes of its own, one or several."""

    def __init__(self, folder, runs, processes=1):
        self.log = folder / f"worker-{time.monotonic_ns()}.log"
        path = folder / "settings.json"
        path.write_text(json.dumps(runs))
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [*launcher, str(WORKER), str(path)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, os.environ.get("PYTHONPATH", ""))))},
            )

    def output(self):
        return self.log.read_text()

    def finish(self):
        """Waits for the end; the output of a run that failed is shown."""
        assert self.process.wait(timeout=300) == 0, self.output()
        return self.output()

    def kill_at(self, condition):
        """Kills the whole group as soon as `condition()` holds."""
        deadline = time.monotonic() + 300
        while not condition():
            assert self.process.poll() is None, f"ended before it could be killed:\n{self.output()}"
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.01)
        self.kill()

    def kill(self):
        """The launcher and the ranks, which it puts into sessions of their own."""
        if self.process.poll() is not None:
            return
        ranks = [int(pid) for pid in re.findall(r"pid: (\d+)", self.output())]
        for pid in {self.process.pid, *ranks}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=60)
        while any(is_running(pid) for pid in ranks):
            time.sleep(0.01)


@pytest.fixture(scope="session")
def worker_run(tiny_model):
    """Settings of a run: `worker_run(output_dir=..., resume=..., pause=..., ranks=..., games=..., engine=...,
    FIELD=value)`; see `run_worker.py`."""

    def settings(resume=None, pause=0.0, ranks=None, games=GAME, engine=False, **args):
        of_run = {"resume": resume, "pause": pause, "ranks": ranks, "games": games, "engine": engine}
        return {"model": tiny_model, "args": {**SMALL, **args}, **of_run}

    return settings


@pytest.fixture(scope="module")
def start_worker(tmp_path_factory):
    """`start_worker(*runs, processes=...)`; ends with the module."""
    workers = []

    def start(*runs, processes=1):
        workers.append(Worker(tmp_path_factory.mktemp("worker"), runs, processes))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


# Depends on the clock
TIMED = {"step_time", "self_play/tokens_per_second"}


def without_times(value):
    """Log entries or states without what depends on the clock or the folder."""
    if isinstance(value, list):
        return [without_times(item) for item in value]
    if isinstance(value, dict):
        return {
            key: without_times(item)
            for key, item in value.items()
            if key not in TIMED | {"seconds", "best_model_checkpoint"} and not key.endswith("_runtime")
        }
    return value


def read_checkpoint(folder):
    """Everything a checkpoint holds, by file, times aside."""
    from safetensors.torch import load_file

    found = {}
    for path in sorted([*folder.iterdir(), *folder.glob("pool/*")]):
        if path.suffix == ".safetensors":
            found[str(path.relative_to(folder))] = load_file(path)
        elif path.name in ("optimizer.pt", "scheduler.pt") or path.name.startswith("rng_state"):
            found[path.name] = torch.load(path, weights_only=False)
        elif path.suffix == ".json":
            found[path.name] = without_times(json.loads(path.read_text()))
    return found


def assert_identical(one, other, where=""):
    """Equal to the bit, tensors included."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_identical(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_identical(*pair, f"{where}/{i}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other), where
    else:
        assert one == other or (one != one and other != other), where


@pytest.fixture
def assert_equal_checkpoints():
    """Asserts that two checkpoint folders hold the same, to the bit: `assert_equal_checkpoints(one, other)`."""

    def compare(one, other):
        one, other = read_checkpoint(one), read_checkpoint(other)
        assert {"model.safetensors", "optimizer.pt", "self_play_state.json", "trainer_state.json"} <= set(one)
        assert_identical(one, other)

    return compare
