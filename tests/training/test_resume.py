"""A run that is ended and resumed equals the run that never was, to the bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from spiral_trl.training.checkpoint import STATE_NAME, checkpoints, is_whole, last_whole_checkpoint, rotate


# Steps, saves and logs fall on different steps; a generation serves two of them
RUN = {
    "max_steps": 18,
    "num_iterations": 2,
    "save_strategy": "steps",
    "save_steps": 3,
    "logging_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 6,
    "eval_on_start": True,
    "beta": 0.3,
    "sync_ref_model": True,
    "ref_model_sync_steps": 4,
    "lr_scheduler_type": "linear",
}


class EndAfter(TrainerCallback):
    """Stops at once after a step, before it is logged or saved."""

    class Ended(Exception):
        pass

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise self.Ended


def test_a_run_killed_in_the_middle_and_resumed_equals_one_that_was_not(
    make_trainer, start_worker, worker_run, tmp_path, assert_equal_checkpoints
):
    folder = tmp_path / "run"
    worker = start_worker(worker_run(output_dir=str(folder), pause=0.15, **RUN))
    worker.kill_at(lambda: last_whole_checkpoint(folder) is not None)
    assert not (folder / "checkpoint-18").exists()
    start_worker(worker_run(output_dir=str(folder), resume=True, **RUN)).finish()

    make_trainer(output_dir=str(tmp_path / "whole"), **RUN).train()
    assert_equal_checkpoints(folder / "checkpoint-18", tmp_path / "whole" / "checkpoint-18")


VARIANTS = {
    "on a refresh of the reference": {"save_steps": 4},
    "off a refresh, between two iterations": {"save_steps": 5},
    "off a refresh, after a generation": {"save_steps": 6},
    "a generation in several optimizer steps": {"num_iterations": 1, "steps_per_generation": 4, "save_steps": 5},
    "several iterations of several steps": {"steps_per_generation": 2, "save_steps": 3},
    "accumulated gradients": {"gradient_accumulation_steps": 3, "save_steps": 5},
    "no magnet": {"beta": 0.0, "sync_ref_model": False, "save_steps": 5},
    "a fixed reference": {"sync_ref_model": False, "save_steps": 5},
    "several games": {"games": ["kuhn_poker(observation=compact)", "kuhn_poker(observation=compact, seat_bonus=1)"]},
    "games as text": {"illegal_moves": "retry(1)", "save_steps": 5},
    "one baseline for both roles": {"advantage": "shared", "save_steps": 5},
    "opponents": {"opponents": ["self", "random", "cfr"], "save_steps": 5},
    "shares of games": {
        "games": ["kuhn_poker(observation=compact)", "kuhn_poker(observation=compact, seat_bonus=1)"],
        "game_weights": [3, 1],
        "save_steps": 5,
    },
    "a pool, inside a generation": {
        "opponents": {"self": 1, "random": 1, "pool(matchmaking=pfsp,every=1,size=3)": 2},
        "save_steps": 5,
    },
    "a pool, before it takes a snapshot": {
        "opponents": {"pool(matchmaking=rating,every=2,size=2)": 1},
        "save_steps": 4,
    },
    "a pool, games as text": {
        "opponents": {"self": 1, "pool(every=2)": 1},
        "illegal_moves": "retry(1)",
        "save_steps": 5,
    },
    "adaptive entropy": {"use_adaptive_entropy": True, "entropy_target": 2.0, "entropy_coef_delta": 1e-3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_runs_equal_whole_ones(make_trainer, tmp_path, assert_equal_checkpoints, variant):
    settings = {**RUN, "max_steps": 12, "eval_games": 4, **VARIANTS[variant]}
    # The last step is saved as well: what is compared holds optimizer, reference, baselines, counters and log
    make_trainer(output_dir=str(tmp_path / "whole"), **settings).train()
    # What a run that ends after step 11 leaves
    *_, newest, last = checkpoints(tmp_path / "whole")
    assert last.name == "checkpoint-12"
    shutil.copytree(newest, tmp_path / "ended" / newest.name)
    torch.manual_seed(12345)  # what the ended process left behind must not matter
    make_trainer(output_dir=str(tmp_path / "ended"), **settings).train(resume_from_checkpoint=True)
    assert_equal_checkpoints(tmp_path / "ended" / "checkpoint-12", last)


def test_the_comparison_sees_a_lost_baseline_and_a_lost_reference(make_trainer, tmp_path, assert_equal_checkpoints):
    settings = {**RUN, "max_steps": 6, "save_steps": 5, "eval_strategy": "no", "eval_on_start": False}
    make_trainer(output_dir=str(tmp_path / "whole"), **settings).train()
    for name in ("baseline", "reference"):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "whole" / "checkpoint-5", folder / "checkpoint-5")
        if name == "baseline":
            path = folder / "checkpoint-5" / STATE_NAME
            state = json.loads(path.read_text())
            state["advantage"]["baselines"] = {}
            path.write_text(json.dumps(state))
        else:
            shutil.copy(
                tmp_path / "whole" / "checkpoint-6" / "model.safetensors",
                folder / "checkpoint-5" / "reference.safetensors",
            )
        trainer = make_trainer(output_dir=str(folder), **settings | {"max_steps": 8})
        trainer.train(resume_from_checkpoint=True)
    make_trainer(output_dir=str(tmp_path / "longer"), **settings | {"max_steps": 8}).train()
    for name in ("baseline", "reference"):
        with pytest.raises(AssertionError):
            assert_equal_checkpoints(tmp_path / name / "checkpoint-8", tmp_path / "longer" / "checkpoint-8")


def test_an_evaluation_at_the_start_is_not_repeated_where_a_run_is_resumed(make_trainer):
    settings = RUN | {"max_steps": 6}
    with pytest.raises(EndAfter.Ended):
        make_trainer(callbacks=[EndAfter(5)], **settings).train()
    trainer = make_trainer(**settings)
    trainer.train(resume_from_checkpoint=True)
    evaluated = [entry["step"] for entry in trainer.state.log_history if "eval_runtime" in entry]
    assert evaluated == [0, 6]
    assert trainer.args.eval_on_start


def test_a_finished_run_that_is_resumed_trains_no_further(make_trainer, parameters, tmp_path):
    settings = RUN | {"max_steps": 6}
    first = make_trainer(**settings)
    first.train()
    again = make_trainer(**settings)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    assert again.played == first.played
    assert all(torch.equal(value, parameters(first)[name]) for name, value in parameters(again).items())


def test_an_unmarked_checkpoint_is_passed_over_and_refused_by_name(make_trainer, tmp_path, assert_equal_checkpoints):
    folder = tmp_path / "run"
    settings = RUN | {"max_steps": 12}
    make_trainer(**settings).train()
    shutil.copytree(folder / "checkpoint-12", tmp_path / "expected")
    for name in ("checkpoint-9", "checkpoint-12"):
        (folder / name / STATE_NAME).unlink()

    with pytest.raises(ValueError, match=r"checkpoint-12 has no self_play_state\.json.*cut off.*checkpoint-6"):
        make_trainer(**settings).train(resume_from_checkpoint=str(folder / "checkpoint-12"))

    steps = []

    class First(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    make_trainer(callbacks=[First()], **settings).train(resume_from_checkpoint=True)
    assert steps == [7, 8, 9, 10, 11, 12]
    assert_equal_checkpoints(folder / "checkpoint-12", tmp_path / "expected")


def test_a_checkpoint_cut_off_before_its_mark_is_not_whole(make_trainer, tmp_path, monkeypatch):
    # The process ends while TRL has written its part and the mark is not there yet
    settings = RUN | {"max_steps": 6, "save_total_limit": 1}

    def end(folder, state):
        if state["micro_step"] == 6:
            raise EndAfter.Ended
        write_state(folder, state)

    from spiral_trl.training import saving as module

    write_state = module.write_state
    monkeypatch.setattr(module, "write_state", end)
    trainer = make_trainer(**settings)
    with pytest.raises(EndAfter.Ended):
        trainer.train()
    assert trainer.args.save_total_limit == 1
    assert [(path.name, is_whole(path)) for path in checkpoints(tmp_path / "run")] == [
        ("checkpoint-3", True),
        ("checkpoint-6", False),
    ]


def test_there_is_always_a_whole_checkpoint_once_there_is_one(make_trainer, tmp_path, monkeypatch):
    from trl import GRPOTrainer

    folder = tmp_path / "run"
    seen = []
    save = GRPOTrainer._save_checkpoint

    def noting(self, model, trial):
        seen.append([path.name for path in checkpoints(folder) if is_whole(path)])
        save(self, model, trial)
        seen.append([path.name for path in checkpoints(folder) if is_whole(path)])

    monkeypatch.setattr(GRPOTrainer, "_save_checkpoint", noting)
    make_trainer(**RUN | {"max_steps": 9, "save_total_limit": 1}).train()
    assert seen == [[], [], ["checkpoint-3"], ["checkpoint-3"], ["checkpoint-6"], ["checkpoint-6"]]
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-9"]


def fake_checkpoints(folder, *names, whole=()):
    for name in names:
        (folder / name).mkdir(parents=True)
        if name in whole:
            (folder / name / STATE_NAME).write_text("{}")


@pytest.mark.parametrize(
    ("whole", "limit", "keep", "left"),
    [
        ([2, 4, 10], None, None, [2, 4, 8, 10, 12]),
        ([2, 4, 10], 2, None, [4, 10]),  # by number, not by text; 8 and 12 were cut off
        ([2, 4, 10], 1, 2, [2, 10]),
        ([2], 1, None, [2]),
        ([], 1, None, [2, 4, 8, 10, 12]),
    ],
)
def test_rotation(tmp_path, whole, limit, keep, left):
    names = [f"checkpoint-{step}" for step in (2, 4, 8, 10, 12)]
    fake_checkpoints(tmp_path, *names, "runs", whole=[f"checkpoint-{step}" for step in whole])
    rotate(tmp_path, limit, None if keep is None else str(tmp_path / f"checkpoint-{keep}"))
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in left]
    assert (tmp_path / "runs").is_dir()


def test_checkpoints_without_optimizer_state_are_refused(make_trainer, tmp_path):
    make_trainer(**RUN | {"max_steps": 3, "save_only_model": True}).train()
    assert not (tmp_path / "run" / "checkpoint-3" / "optimizer.pt").exists()
    with pytest.raises(ValueError, match="save_only_model=True.*Pass it as the model"):
        make_trainer(**RUN).train(resume_from_checkpoint=True)


def test_a_generation_in_the_middle_belongs_to_its_number_of_processes(make_trainer, tmp_path):
    make_trainer(**RUN | {"max_steps": 3}).train()
    path = tmp_path / "run" / "checkpoint-3" / STATE_NAME
    state = json.loads(path.read_text())
    assert state["unspent_generation"] and state["processes"] == 1
    path.write_text(json.dumps(state | {"processes": 2}))
    with pytest.raises(ValueError, match="by 2 processes; resume it with as many, not 1"):
        make_trainer(**RUN).train(resume_from_checkpoint=True)


def test_baselines_of_another_advantage_are_refused(make_trainer):
    make_trainer(**RUN | {"max_steps": 3}).train()
    with pytest.raises(ValueError, match="belongs to the advantage 'rae', but this run uses 'shared'"):
        make_trainer(**RUN, advantage="shared").train(resume_from_checkpoint=True)


def test_nothing_to_resume_from(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="no whole checkpoint to resume from in .*run"):
        make_trainer(**RUN).train(resume_from_checkpoint=True)
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(ValueError, match="elsewhere does not exist"):
        make_trainer(**RUN).train(resume_from_checkpoint=str(elsewhere))
    elsewhere.mkdir()
    with pytest.raises(ValueError, match="elsewhere has no self_play_state.json: it is not a self-play checkpoint"):
        make_trainer(**RUN).train(resume_from_checkpoint=str(elsewhere))


@pytest.mark.parametrize("left", ["checkpoint-3", "metrics.json"])
def test_a_folder_with_another_run_is_refused_unless_told(make_trainer, tmp_path, left):
    folder = tmp_path / "run"
    settings = RUN | {"max_steps": 3}
    if left == "metrics.json":
        folder.mkdir()
        (folder / left).write_text("{}")
    else:
        make_trainer(**settings).train()
    with pytest.raises(ValueError, match="holds another run. Resume it .* or set overwrite_output_dir=True"):
        make_trainer(**settings).train()
    trainer = make_trainer(overwrite_output_dir=True, **settings)
    trainer.train()
    assert trainer.state.global_step == 3
    assert not (folder / "metrics.json").exists()


def test_a_run_written_over_leaves_nothing_that_could_be_resumed_for_it(make_trainer, tmp_path):
    make_trainer(**RUN | {"max_steps": 9, "seed": 1}).train()
    with pytest.raises(EndAfter.Ended):
        make_trainer(overwrite_output_dir=True, callbacks=[EndAfter(5)], **RUN).train()
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-3"]


def test_state_is_json_and_safetensors_only(make_trainer, tmp_path):
    make_trainer(**RUN | {"max_steps": 3}).train()
    folder = tmp_path / "run" / "checkpoint-3"
    ours = {"self_play_state.json", "reference.safetensors", "generation-0.safetensors"}
    assert ours <= {path.name for path in folder.iterdir()}
    state = json.loads(Path(folder / STATE_NAME).read_text())
    assert state["micro_step"] == 3 and state["played"]["games"] == 2 * 32
    assert state["advantage"]["name"] == "rae"
    assert set(state["advantage"]["baselines"]["kuhn_poker(observation=compact)"]) == {"player 0", "player 1"}
