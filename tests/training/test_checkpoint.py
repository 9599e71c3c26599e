"""When a checkpoint is whole, which ones a resumed run leaves behind, and what it must share with its run."""

import pytest

from spiral_trl.training.checkpoint import (
    REFERENCE_NAME,
    abandon_after,
    checkpoints,
    discard_run,
    is_whole,
    last_whole_checkpoint,
    rotate,
    unmark,
    write_state,
)
from spiral_trl.training.checks import check_output_dir
from spiral_trl.training.config import SelfPlayConfig


GAME = "kuhn_poker(observation=compact)"


def make(folder, *steps, **state):
    for step in steps:
        path = folder / f"checkpoint-{step}"
        path.mkdir(parents=True)
        write_state(
            path,
            {
                "games": [GAME],
                "model_only": False,
                "unspent_generation": False,
                "micro_steps_per_generation": 2,
                **state,
            },
        )


def names(folder):
    return [path.name for path in checkpoints(folder)]


def config(folder, **changes):
    return SelfPlayConfig(output_dir=str(folder), use_cpu=True, bf16=False, **changes)


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    make(tmp_path, 100, 20, 3)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-100"
    unmark(tmp_path / "checkpoint-100")
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-20"
    assert names(tmp_path)[-1] == "checkpoint-100"


def test_going_on_from_an_older_checkpoint_leaves_the_newer_branch(tmp_path):
    make(tmp_path, 10, 20, 30)
    abandon_after(tmp_path / "checkpoint-20")
    assert [is_whole(path) for path in checkpoints(tmp_path)] == [True, True, False]
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-20"


def test_rotation_keeps_the_newest_and_the_best_whole_ones(tmp_path):
    make(tmp_path, 10, 20, 30, 40)
    unmark(tmp_path / "checkpoint-20")
    rotate(tmp_path, 1, str(tmp_path / "checkpoint-10"))
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-40"]


def test_rotation_never_deletes_the_only_whole_one(tmp_path):
    make(tmp_path, 10, 20)
    unmark(tmp_path / "checkpoint-20")
    rotate(tmp_path, 1, None)
    assert is_whole(tmp_path / "checkpoint-10")


def test_writing_over_a_run_leaves_nothing_that_would_be_taken_for_its_own(tmp_path):
    make(tmp_path, 10)
    make(tmp_path / "plain", 10)
    (tmp_path / "metrics.json").write_text("{}")
    discard_run(tmp_path)
    assert names(tmp_path) == [] and names(tmp_path / "plain") == [] and not (tmp_path / "metrics.json").exists()


def refused(args, resume, *words, games=(GAME,)):
    with pytest.raises(ValueError) as caught:
        check_output_dir(args, resume, list(games))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_resumed_run_shares_games_reference_and_generation(tmp_path):
    make(tmp_path, 10)
    checkpoint = str(tmp_path / "checkpoint-10")
    assert check_output_dir(config(tmp_path), True, [GAME]) == checkpoint
    assert check_output_dir(config(tmp_path), checkpoint, [GAME]) == checkpoint
    refused(config(tmp_path), True, GAME, "not on kuhn_poker", games=["kuhn_poker"])
    magnet = config(tmp_path, beta=0.1, sync_ref_model=True)
    refused(magnet, True, "no reference model")
    (tmp_path / "checkpoint-10" / REFERENCE_NAME).touch()
    assert check_output_dir(magnet, True, [GAME]) == checkpoint


def test_inside_a_generation_its_length_must_be_the_same(tmp_path):
    make(tmp_path, 10, unspent_generation=True)
    assert check_output_dir(config(tmp_path, num_iterations=2), True, [GAME])
    refused(config(tmp_path, num_iterations=3), True, "2 micro-steps", "not 3")


def test_what_to_resume_from_is_named_right(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    make(run, 10)
    make(other, 5)
    refused(config(run), str(run), "is a folder of checkpoints", "checkpoint-10")
    refused(config(run), str(run / "checkpoint-99"), "checkpoint-99 does not exist")
    refused(config(run), str(other / "checkpoint-5"), "holds another run")
    assert check_output_dir(config(tmp_path / "new"), str(other / "checkpoint-5"), [GAME])
