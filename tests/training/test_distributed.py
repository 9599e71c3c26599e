"""Two processes: the same games, baselines and gradients as one process, and the same after a kill and a resume."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from spiral_trl.training.checkpoint import last_whole_checkpoint


pytestmark = pytest.mark.distributed

RUN = {
    "games_per_generation": 30,
    "max_steps": 8,
    "num_iterations": 2,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 3,
    "logging_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "beta": 0.3,
    "sync_ref_model": True,
    "ref_model_sync_steps": 4,
    "seed": 5,
    "optim": "sgd",
    "learning_rate": 0.3,
}


GAMES = ["kuhn_poker(observation=compact)", "kuhn_poker(observation=compact,seat_bonus=1)"]
RUNS = {
    "plain": RUN,
    # Evaluation plays the same games on every process, and of two games a process may have none of one
    "engine": RUN | {"engine": True, "games": GAMES, "max_steps": 4, "eval_steps": 2, "save_steps": 4},
    "opponents": RUN
    | {
        "opponents": {"self": 1, "random": 1, "pool(matchmaking=pfsp,every=1,size=3)": 2},
        "games": GAMES,
        "game_weights": [2, 1],
        "eval_strategy": "no",
        "guard_seat_gap": 0.01,
        "guard_window": 2,
    },
    # The random player and the members are asked on each process for itself, the engine on all of them at once
    "engine and opponents": RUN
    | {
        "engine": True,
        "games": GAMES,
        "games_per_generation": 6,
        "opponents": {"self": 1, "random": 2, "pool(every=1)": 2},
        "max_steps": 6,
        "eval_strategy": "no",
        "save_steps": 6,
    },
    "guard": RUN | {"guard_entropy": 99.0, "guard_window": 2, "guard_action": "rollback", "save_steps": 1},
}


@pytest.fixture(scope="module")
def folder(start_worker, worker_run, tmp_path_factory):
    """The folders of all runs, which are made one after the other by the same two processes: starting them is what
    takes long."""
    folder = tmp_path_factory.mktemp("two")
    runs = (
        worker_run(output_dir=str(folder / name), ranks=str(folder / f"ranks of {name}"), **settings)
        for name, settings in RUNS.items()
    )
    worker = start_worker(*runs, processes=2)
    assert re.findall(r"processes: (\d)", worker.finish()) == ["2"] * 2 * len(RUNS)
    return folder


@pytest.fixture(scope="module")
def resumed(folder, start_worker, worker_run):
    """A run that was killed, both processes of it, and one that ended after a step that is not saved; both resumed."""
    worker = start_worker(worker_run(output_dir=str(folder / "killed"), pause=0.2, **RUN), processes=2)
    worker.kill_at(lambda: last_whole_checkpoint(folder / "killed") is not None)
    assert not (folder / "killed" / "checkpoint-8").exists()
    assert re.findall(r"processes: (\d)", worker.output()) == ["2", "2"]
    shutil.copytree(folder / "opponents" / "checkpoint-6", folder / "ended" / "checkpoint-6")
    runs = (
        worker_run(output_dir=str(folder / name), resume=True, **settings)
        for name, settings in (("killed", RUN), ("ended", RUNS["opponents"]))
    )
    start_worker(*runs, processes=2).finish()
    return SimpleNamespace(killed=folder / "killed", ended=folder / "ended")


def ended_alike(folder, name):
    """What the ranks ended with, and their parameters, which are the same on both, as baselines and counters are."""
    ranks = [json.loads((folder / f"ranks of {name}" / f"{rank}.json").read_text()) for rank in (0, 1)]
    weights = [load_file(folder / f"ranks of {name}" / f"{rank}.safetensors") for rank in (0, 1)]
    assert ranks[0]["processes"] == ranks[1]["processes"] == 2
    assert ranks[0]["baselines"] == ranks[1]["baselines"] and ranks[0]["played"] == ranks[1]["played"]
    assert all(torch.equal(value, weights[1][parameter]) for parameter, value in weights[0].items())
    return ranks, weights[0]


def test_two_processes_agree_with_each_other_and_with_one_process(make_trainer, folder, tmp_path):
    # Each rank had turns of its own to train on
    ranks, weights = ended_alike(folder, "plain")
    assert len(ranks[0]["baselines"]) == 2
    assert any(one != other for one, other in zip(ranks[0]["turns"], ranks[1]["turns"], strict=True))

    # One process: the replies of a game derive from its seed, so as long as they coincide so do outcomes and baselines,
    # to the bit. Gradients are summed in another order: parameters agree to rounding.
    alone = make_trainer(output_dir=str(tmp_path / "one"), **RUN)
    alone.train()
    assert alone.accelerator.num_processes == 1
    assert ranks[0]["played"] == alone.played
    assert ranks[0]["baselines"] == [list(alone.advantage.baselines.values())[i] for i in (0, 1)]
    for name, value in alone.model.named_parameters():
        torch.testing.assert_close(weights[name], value.detach(), rtol=0, atol=1e-5)
    own = [entry for entry in alone.state.log_history if "loss" in entry]
    path = folder / "plain" / "checkpoint-8" / "trainer_state.json"
    logs = [entry for entry in json.loads(path.read_text())["log_history"] if "loss" in entry]
    assert [entry["step"] for entry in logs] == [2, 3, 4, 6, 8]
    compared = 0
    for one, two in zip(own, logs, strict=True):
        assert one.keys() == two.keys()
        # Not among them: means over micro-batches (kl, entropy, clip_ratio), which hold other rows here
        for name in one.keys() & {"loss", "grad_norm", "learning_rate"}:
            assert two[name] == pytest.approx(one[name], abs=1e-4), name
        of_games = {name for name in one if name.startswith(("self_play/", "reward", "completions/", "num_tokens"))}
        compared += len(of_games)
        for name in of_games - {"self_play/tokens_per_second"}:
            assert two[name] == pytest.approx(one[name], abs=1e-6), name
    assert compared > 60


def test_a_run_killed_in_the_middle_and_resumed_equals_one_that_was_not(folder, resumed, assert_equal_checkpoints):
    assert_equal_checkpoints(resumed.killed / "checkpoint-8", folder / "plain" / "checkpoint-8")


def test_processes_whose_engines_sample_differently_stay_in_step(folder):
    (first, _), _ = ended_alike(folder, "engine")
    assert first["played"]["games"] == 60 and len(first["baselines"]) == 4


def test_opponents_and_the_pool_are_those_of_one_process(make_trainer, folder, tmp_path):
    (first, _), _ = ended_alike(folder, "opponents")
    alone = make_trainer(output_dir=str(tmp_path / "one"), **RUNS["opponents"])
    alone.train()
    state = json.loads((folder / "opponents" / "checkpoint-8" / "pool_state.json").read_text())
    assert state == json.loads(json.dumps(alone.pool.state.to_dict())) and len(state["members"]) == 3
    assert list(alone.advantage.baselines.values()) == first["baselines"]
    assert alone.played == first["played"]


def test_opponents_and_the_pool_are_the_same_after_a_resume(folder, resumed, assert_equal_checkpoints):
    assert_equal_checkpoints(resumed.ended / "checkpoint-8", folder / "opponents" / "checkpoint-8")


def test_an_engine_and_opponents_stay_in_step(folder):
    (first, _), _ = ended_alike(folder, "engine and opponents")
    assert first["played"]["games"] == 18


def test_a_guard_stops_every_process_at_the_same_step(folder):
    # The second generation fills the window, at the third of two steps each
    (first, _), weights = ended_alike(folder, "guard")
    assert first["played"]["games"] == 60
    saved = load_file(folder / "guard" / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in saved.items())
