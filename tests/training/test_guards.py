"""Guards against collapse: what raises an alarm, what is done about it, and that a resumed run knows of it."""

import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState

from spiral_trl.records import Outcomes
from spiral_trl.training.checkpoint import last_good_checkpoint, read_state
from spiral_trl.training.guards import GuardCallback, guard_figures


GAME = "kuhn_poker(observation=compact)"
BONUS = "kuhn_poker(observation=compact,seat_bonus=1)"


@pytest.fixture
def guard(make_args):
    def make(**settings):
        return GuardCallback(make_args(**settings), [GAME])

    return make


def step(guard, at=1):
    control = guard.on_step_end(guard.args, TrainerState(global_step=at), TrainerControl())
    return control.should_training_stop


# ------------------------------------------------------------------------------------------------------------- figures


def test_figures_of_a_generation():
    outcomes = Outcomes(
        games=("g", "h"),
        roles=(("a", "b"), ("a", "b")),
        game=np.array([0, 0, 1, 1, 1]),
        returns=np.array([[1.0, -1.0], [2.0, -2.0], [0.5, -0.5], [0.0, 0.0], [9.0, -9.0]]),
        endings=np.zeros(5, dtype=int),
        # The last game is against an opponent, which had the first seat
        learner=np.array([[True, True]] * 4 + [[False, True]]),
    )
    sums = {}
    for game, role, turns, illegal, tokens, surprisal in (
        ("g", "a", 4, 1, 40, 10.0),
        ("g", "b", 2, 0, 20, 20.0),
        ("h", "a", 2, 1, 20, 10.0),
    ):
        sums |= {
            f"{game}|{role}|{k}": v
            for k, v in zip(
                ("turns", "illegal", "tokens", "surprisal"), (turns, illegal, tokens, surprisal), strict=True
            )
        }
    sums |= {"|min_length": 1.0, "|max_length": 99.0}
    figures = guard_figures(outcomes, sums)
    # By hand: roles of g 1.5 and -1.5; of h 0.25 and (-0.5 + 0 - 9) / 3
    assert figures == {
        "reply_length": 10.0,
        "entropy": 0.5,
        "illegal_rate": 0.25,
        "seat_gap": pytest.approx(0.25 + 9.5 / 3),
    }


def test_figures_that_there_are_not():
    outcomes = Outcomes(
        games=("g",),
        roles=(("a", "b"),),
        game=np.zeros(1, dtype=int),
        returns=np.array([[1.0, -1.0]]),
        endings=np.zeros(1, dtype=int),
        learner=np.array([[True, False]]),
    )
    sums = {"g|a|turns": 0.0, "g|a|illegal": 0.0, "g|a|tokens": 0.0, "g|a|surprisal": float("nan")}
    assert all(np.isnan(value) for value in guard_figures(outcomes, sums).values())


# -------------------------------------------------------------------------------------------------------------- alarms


def test_an_alarm_is_of_the_mean_over_a_whole_window(guard, caplog):
    watch = guard(guard_illegal_rate=0.5, guard_window=3)
    seen = [watch.observe({"illegal_rate": value}) for value in (1.0, 1.0, 0.0, 0.0, 0.5, 0.9, 0.2, 0.0)]
    # Means of three: 2/3, 1/3, 1/6, .47, .53, .37
    name = "self_play/guard/illegal_rate"
    assert [figures[name] for figures in seen] == [0, 0, 1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("name", "settings", "values", "alarmed"),
    [
        ("reply_length", {"guard_reply_length": 0.5}, [100, 60, 51, 49], [0, 0, 0, 1]),
        ("entropy", {"guard_entropy": 0.2}, [0.5, 0.21, 0.2, 0.19], [0, 0, 0, 1]),
        ("seat_gap", {"guard_seat_gap": 0.7}, [0.1, 0.7, 0.8, 0.6], [0, 0, 1, 0]),
        ("illegal_rate", {"guard_illegal_rate": 0.3}, [0.0, 0.3, 0.4, 0.1], [0, 0, 1, 0]),
    ],
)
def test_each_bound(guard, name, settings, values, alarmed):
    watch = guard(guard_window=1, **settings)
    assert set(watch.bounds) == {name}
    others = {"reply_length": 0.0, "entropy": 0.0, "seat_gap": 99.0, "illegal_rate": 1.0}
    seen = [watch.observe(others | {name: value}) for value in values]
    assert [figures[f"self_play/guard/{name}"] for figures in seen] == alarmed
    assert all(len(figures) == 1 for figures in seen)


def test_figures_that_are_missing_are_passed_over(guard):
    watch = guard(guard_entropy=0.5, guard_window=2)
    for value in (1.0, float("nan"), 0.1):
        watch.observe({"entropy": value})
    assert watch.alarms == []  # (1 + .1) / 2
    watch.observe({"entropy": 0.1})
    assert watch.alarms == ["entropy"]


def test_a_warning_says_what_is_out_of_bounds_once(guard, caplog):
    watch = guard(guard_illegal_rate=0.25, guard_reply_length=0.5, guard_window=1)
    with caplog.at_level(logging.WARNING):
        watch.observe({"illegal_rate": 0.0, "reply_length": 80.0})
        assert not step(watch)
        watch.observe({"reply_length": 20.0, "illegal_rate": 0.75})
        assert not step(watch, at=7)
        watch.observe({"illegal_rate": 0.8, "reply_length": 10.0})
        assert not step(watch)
    (record,) = caplog.records
    assert record.getMessage() == (
        "Training may be collapsing at step 7: the mean reply length in tokens is 20, below 0.5 of the first window's "
        "80 (guard_reply_length); the share of illegal replies is 0.75, above 0.25 (guard_illegal_rate)."
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        watch.observe({"reply_length": 80.0, "illegal_rate": 0.0})
    assert [r.getMessage() for r in caplog.records] == [
        "The alarm of guard_reply_length is over: the mean reply length in tokens is 80.",
        "The alarm of guard_illegal_rate is over: the share of illegal replies is 0.",
    ]


def test_the_anchor_is_looked_at_in_evaluations(guard):
    watch = guard(
        guard_anchor="random",
        guard_anchor_win_rate=0.5,
        eval_strategy="steps",
        eval_steps=1,
        eval_opponents=["random", "cfr"],
    )

    def evaluated(rate, prefix="eval"):
        metrics = {f"{prefix}_{GAME}/random/win_rate": rate, f"{prefix}_{GAME}/cfr/win_rate": 0.0}
        watch.on_evaluate(watch.args, TrainerState(), TrainerControl(), metrics=metrics)
        return list(watch.alarms)

    assert evaluated(0.6) == [] and evaluated(0.0, "held_out") == []
    assert evaluated(0.4) == ["anchor_win_rate"]
    assert watch.observe({"illegal_rate": 1.0}) == {"self_play/guard/anchor_win_rate": 1.0}
    assert evaluated(0.5) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guard_action": "halt"}, "guard_action is 'halt', but must be one of warn, stop, rollback"),
        ({"guard_action": "rolback"}, "did you mean 'rollback'"),
        ({"guard_window": 0}, "guard_window is 0"),
        ({"guard_reply_length": 1.5}, "guard_reply_length is 1.5, but must be a number above 0 and at most 1"),
        ({"guard_entropy": -1.0}, "guard_entropy is -1.0, but must be a number above 0"),
        ({"guard_seat_gap": float("inf")}, "guard_seat_gap is inf"),
        ({"guard_illegal_rate": "0.5"}, "guard_illegal_rate is '0.5'"),
        ({"guard_anchor": "random"}, "go together"),
        ({"guard_anchor_win_rate": 0.5}, "go together"),
        (
            {"guard_anchor": "rnd", "guard_anchor_win_rate": 0.5},
            "guard_anchor is 'rnd', but must be one of eval_opponents .random.",
        ),
        ({"guard_anchor": "random", "guard_anchor_win_rate": 0.5}, "set eval_strategy"),
        ({"guard_action": "rollback"}, "needs checkpoints"),
    ],
)
def test_bad_bounds_are_refused_in_one_line(make_args, settings, message):
    with pytest.raises(ValueError, match=message) as raised:
        make_args(**settings)
    assert "\n" not in str(raised.value)


# ------------------------------------------------------------------------------------------------------------ training


class Spoil(TrainerCallback):
    """Makes most replies noise after a step."""

    def __init__(self, at):
        self.at = at
        self.trainer = None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.at:
            self.trainer.model.lm_head.weight.data *= -1


SPOILED = {
    "max_steps": 12,
    "num_iterations": 1,
    "learning_rate": 1e-4,
    "save_strategy": "steps",
    "save_steps": 2,
    "guard_illegal_rate": 0.5,
    "guard_window": 1,
}


def spoiled(make_trainer, at=5, **settings):
    spoil = Spoil(at)
    trainer = make_trainer(callbacks=[spoil], **SPOILED | settings)
    spoil.trainer = trainer
    return trainer


def test_warn_goes_on(make_trainer, caplog):
    trainer = spoiled(make_trainer)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 12
    logged = [e["self_play/guard/illegal_rate"] for e in trainer.state.log_history if "loss" in e]
    assert logged[:5] == [0.0] * 5 and logged[5] == 1.0
    assert sum("Training may be collapsing at step 6" in r.getMessage() for r in caplog.records) == 1
    assert last_good_checkpoint(trainer.args.output_dir).name == "checkpoint-4"


def test_stop_ends_training_and_names_the_last_good_checkpoint(make_trainer, caplog, tmp_path):
    trainer = spoiled(make_trainer, guard_action="stop")
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 6
    good = tmp_path / "run" / "checkpoint-4"
    (message,) = [r.getMessage() for r in caplog.records if "collapsing" in r.getMessage()]
    assert f"resume_from_checkpoint={good}" in message
    # The step at which it stops is saved, and marked
    assert read_state(tmp_path / "run" / "checkpoint-6")["guards"]["alarms"] == ["illegal_rate"]
    rates = [e["self_play/illegal_rate"] for e in trainer.state.log_history if "loss" in e]
    assert rates[-1] > 0.5 > rates[-2]


def test_rollback_puts_the_model_back(make_trainer, parameters, tmp_path, caplog):
    trainer = spoiled(make_trainer, guard_action="rollback")
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 6
    saved = load_file(tmp_path / "run" / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in parameters(trainer).items())
    assert any("put back" in r.getMessage() for r in caplog.records)
    assert trainer.player.policy_version == 4
    # From there a run goes on as if nothing had been saved after
    resumed = make_trainer(**SPOILED | {"max_steps": 6})
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert resumed.guards.alarms == [] and resumed.state.global_step == 6


def test_rollback_of_an_adapter(make_trainer, parameters, tmp_path):
    from peft import LoraConfig

    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = spoiled(
        make_trainer, guard_action="rollback", guard_illegal_rate=0.25, peft_config=lora, learning_rate=1e-2
    )
    seen = {}

    class Note(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen[state.global_step] = parameters(trainer)

    trainer.add_callback(Note())
    trainer.train()
    assert trainer.state.global_step == 6
    for name, value in parameters(trainer).items():
        if "lora_" in name:
            assert torch.equal(value, seen[4][name])
            assert "lora_B" not in name or not torch.equal(value, seen[6][name])


def test_without_a_good_checkpoint_it_says_so(make_trainer, caplog):
    trainer = spoiled(make_trainer, at=1, guard_action="rollback", save_steps=5)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 2 and trainer.guards.roll_back_to is None
    assert any("There is no checkpoint from before the alarm" in r.getMessage() for r in caplog.records)


def test_an_anchor_that_is_lost_to_stops_training(make_trainer):
    trainer = spoiled(
        make_trainer,
        guard_illegal_rate=None,
        guard_action="stop",
        guard_anchor="random",
        guard_anchor_win_rate=0.3,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()
    rates = {e["step"]: e[f"eval_{GAME}/random/win_rate"] for e in trainer.state.log_history if "eval_runtime" in e}
    assert rates[4] >= 0.3 > rates[6] and trainer.state.global_step == 6


def test_a_resumed_run_knows_what_was_seen(make_trainer, tmp_path):
    settings = SPOILED | {"guard_window": 3, "guard_reply_length": 0.9, "max_steps": 8}
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    ended = make_trainer(output_dir=str(tmp_path / "ended"), **settings | {"max_steps": 4})
    ended.train()
    resumed = make_trainer(output_dir=str(tmp_path / "ended"), **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.guards.state_dict() == whole.guards.state_dict()
    assert len(whole.guards.state_dict()["windows"]["reply_length"]) == 3 and whole.guards.state_dict()["first"]


def test_without_bounds_nothing_is_logged(make_trainer):
    trainer = make_trainer()
    trainer.train()
    assert not any("guard" in name for entry in trainer.state.log_history for name in entry)


# ----------------------------------------------------------------------------------------------------- held-out games


def test_held_out_games_are_evaluated_and_enter_no_mean(make_trainer):
    plain = make_trainer(eval_games=32).evaluate()
    metrics = make_trainer(eval_games=32, eval_held_out_games=[BONUS]).evaluate()
    for name in plain.keys() - {"eval_runtime"}:
        assert metrics[name] == plain[name], name
    more = {name.removeprefix(f"eval_{BONUS}/") for name in metrics.keys() - plain.keys()}
    assert more == {
        "exploitability",
        "exploitability_given_legal",
        "illegal_rate",
        "nash_conv",
        "unexplored_mass",
        "player 0/return",
        "player 1/return",
        "random/return",
        "random/win_rate",
    }
    # The bonus moves a chip and changes no strategy
    assert metrics[f"eval_{BONUS}/exploitability"] == pytest.approx(plain["eval_exploitability"], abs=0.2)


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (["kuhn_pokr"], "eval_held_out_games: unknown game 'kuhn_pokr'"),
        (["kuhn_poker(seat_bonus=0,observation=compact)"], "is trained on"),
        ([BONUS, BONUS], "names .* twice"),
    ],
)
def test_bad_held_out_games_are_refused_before_the_model_is_loaded(make_trainer, held_out, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(model="./no/such/model", eval_held_out_games=held_out)


def test_opponents_of_evaluations_are_made_once(make_trainer, monkeypatch):
    from spiral_trl.training import playing

    made = []
    make = playing.make_player
    monkeypatch.setattr(playing, "make_player", lambda name, settings: made.append(name) or make(name, settings))
    trainer = make_trainer(opponents=["self", "random"], eval_opponents=["random", "cfr"], eval_games=4)
    trainer.evaluate()
    trainer.evaluate()
    assert sorted(made) == ["cfr", "random"]
