"""Two processes: the same games, baselines and gradients as one process, and the same after a kill and a resume."""

import json
import re
import shutil

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


def test_two_processes_agree_with_each_other_with_one_process_and_with_a_resumed_run(
    make_trainer, start_worker, tmp_path, assert_equal_checkpoints
):
    worker = start_worker(processes=2, output_dir=str(tmp_path / "two"), ranks=str(tmp_path / "ranks"), **RUN)
    assert re.findall(r"processes: (\d)", worker.finish()) == ["2", "2"]

    # Every rank ends with the same parameters, baselines and counters, and had turns of its own to train on
    ranks = [json.loads((tmp_path / "ranks" / f"{rank}.json").read_text()) for rank in (0, 1)]
    weights = [load_file(tmp_path / "ranks" / f"{rank}.safetensors") for rank in (0, 1)]
    assert ranks[0]["processes"] == ranks[1]["processes"] == 2
    assert ranks[0]["baselines"] == ranks[1]["baselines"] and len(ranks[0]["baselines"]) == 2
    assert ranks[0]["played"] == ranks[1]["played"]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert any(one != other for one, other in zip(ranks[0]["turns"], ranks[1]["turns"], strict=True))

    # One process: the replies of a game derive from its seed, so as long as they coincide so do outcomes and baselines,
    # to the bit. Gradients are summed in another order: parameters agree to rounding.
    alone = make_trainer(output_dir=str(tmp_path / "one"), **RUN)
    alone.train()
    assert alone.accelerator.num_processes == 1
    assert ranks[0]["played"] == alone.played
    assert ranks[0]["baselines"] == [list(alone.advantage.baselines.values())[i] for i in (0, 1)]
    for name, value in alone.model.named_parameters():
        torch.testing.assert_close(weights[0][name], value.detach(), rtol=0, atol=1e-5)
    own = [entry for entry in alone.state.log_history if "loss" in entry]
    path = tmp_path / "two" / "checkpoint-8" / "trainer_state.json"
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

    # Killed, both of them, and resumed
    worker = start_worker(processes=2, output_dir=str(tmp_path / "killed"), pause=0.2, **RUN)
    worker.kill_at(lambda: last_whole_checkpoint(tmp_path / "killed") is not None)
    assert not (tmp_path / "killed" / "checkpoint-8").exists()
    assert re.findall(r"processes: (\d)", worker.output()) == ["2", "2"]
    start_worker(processes=2, output_dir=str(tmp_path / "killed"), resume=True, **RUN).finish()
    assert_equal_checkpoints(tmp_path / "killed" / "checkpoint-8", tmp_path / "two" / "checkpoint-8")


def test_processes_whose_engines_sample_differently_stay_in_step(start_worker, tmp_path):
    # Evaluation plays the same games on every process, and of two games a process may have none of one
    worker = start_worker(
        processes=2,
        engine=True,
        games=["kuhn_poker(observation=compact)", "kuhn_poker(observation=compact,seat_bonus=1)"],
        output_dir=str(tmp_path / "run"),
        ranks=str(tmp_path / "ranks"),
        **RUN | {"max_steps": 4, "eval_steps": 2, "save_steps": 4},
    )
    assert re.findall(r"processes: (\d)", worker.finish()) == ["2", "2"]
    ranks = [json.loads((tmp_path / "ranks" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0]["played"] == ranks[1]["played"] and ranks[0]["played"]["games"] == 60
    assert ranks[0]["baselines"] == ranks[1]["baselines"] and len(ranks[0]["baselines"]) == 4
    weights = [load_file(tmp_path / "ranks" / f"{rank}.safetensors") for rank in (0, 1)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_opponents_and_the_pool_are_the_same_on_every_process_and_after_a_resume(
    make_trainer, start_worker, tmp_path, assert_equal_checkpoints
):
    settings = RUN | {
        "opponents": {"self": 1, "random": 1, "pool(matchmaking=pfsp,every=1,size=3)": 2},
        "games": ["kuhn_poker(observation=compact)", "kuhn_poker(observation=compact,seat_bonus=1)"],
        "game_weights": [2, 1],
        "eval_strategy": "no",
        "guard_seat_gap": 0.01,
        "guard_window": 2,
    }
    folder = tmp_path / "two"
    worker = start_worker(processes=2, output_dir=str(folder), ranks=str(tmp_path / "ranks"), **settings)
    assert re.findall(r"processes: (\d)", worker.finish()) == ["2", "2"]
    ranks = [json.loads((tmp_path / "ranks" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0]["baselines"] == ranks[1]["baselines"] and ranks[0]["played"] == ranks[1]["played"]
    weights = [load_file(tmp_path / "ranks" / f"{rank}.safetensors") for rank in (0, 1)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())

    # One process meets the same opponents in the same games, with the same results
    alone = make_trainer(output_dir=str(tmp_path / "one"), **settings)
    alone.train()
    state = json.loads((folder / "checkpoint-8" / "pool_state.json").read_text())
    assert state == json.loads(json.dumps(alone.pool.state.to_dict())) and len(state["members"]) == 3
    assert list(alone.advantage.baselines.values()) == ranks[0]["baselines"]
    assert alone.played == ranks[0]["played"]

    # Ended after a step that is not saved, and resumed
    resumed = tmp_path / "resumed"
    shutil.copytree(folder / "checkpoint-6", resumed / "checkpoint-6")
    start_worker(processes=2, output_dir=str(resumed), resume=True, **settings).finish()
    assert_equal_checkpoints(resumed / "checkpoint-8", folder / "checkpoint-8")


def test_an_engine_and_opponents_stay_in_step(start_worker, tmp_path):
    # The random player and the members are asked on each process for itself, the engine on all of them at once
    worker = start_worker(
        processes=2,
        engine=True,
        games=["kuhn_poker(observation=compact)", "kuhn_poker(observation=compact,seat_bonus=1)"],
        output_dir=str(tmp_path / "run"),
        ranks=str(tmp_path / "ranks"),
        **RUN
        | {
            "games_per_generation": 6,
            "opponents": {"self": 1, "random": 2, "pool(every=1)": 2},
            "max_steps": 6,
            "eval_strategy": "no",
            "save_steps": 6,
        },
    )
    assert re.findall(r"processes: (\d)", worker.finish()) == ["2", "2"]
    ranks = [json.loads((tmp_path / "ranks" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0]["played"] == ranks[1]["played"] and ranks[0]["played"]["games"] == 18
    assert ranks[0]["baselines"] == ranks[1]["baselines"]


def test_a_guard_stops_every_process_at_the_same_step(start_worker, tmp_path):
    worker = start_worker(
        processes=2,
        ranks=str(tmp_path / "ranks"),
        **RUN | {"guard_entropy": 99.0, "guard_window": 2, "guard_action": "rollback", "save_steps": 1},
    )
    assert re.findall(r"processes: (\d)", worker.finish()) == ["2", "2"]
    # The second generation fills the window, at the third of two steps each
    ranks = [json.loads((tmp_path / "ranks" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0]["played"] == ranks[1]["played"] and ranks[0]["played"]["games"] == 60
    saved = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")
    for rank in (0, 1):
        weights = load_file(tmp_path / "ranks" / f"{rank}.safetensors")
        assert all(torch.equal(value, weights[name]) for name, value in saved.items())
