"""Training runs on the embedded model: what is learned, logged, evaluated and refused."""

import copy
import json
import random

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, EarlyStoppingCallback, TrainerCallback

from spiral_trl import SelfPlayTrainer
from spiral_trl.advantages import LeaveOneOut
from spiral_trl.records import Ending


GAME = "kuhn_poker(observation=compact)"
BONUS = "kuhn_poker(observation=compact,seat_bonus=1)"


def logs(trainer, kind="loss"):
    return [entry for entry in trainer.state.log_history if kind in entry]


# ---------------------------------------------------------------------------------------------------------- training


def test_parameters_change_and_steps_and_games_are_counted(make_trainer, load_model, parameters):
    trainer = make_trainer(max_steps=3, num_iterations=2, gradient_accumulation_steps=2)
    result = trainer.train()
    before = parameters(load_model())
    assert all(not torch.equal(value, before[name]) for name, value in parameters(trainer).items())
    assert trainer.state.global_step == result.global_step == 3
    assert trainer._step == 6
    assert trainer.played["games"] == 2 * 32  # two updates with the first generation, one with the second
    assert trainer.state.num_input_tokens_seen == trainer.played["tokens"]


def test_equal_seeds_give_equal_runs_and_others_do_not(make_trainer, parameters):
    runs = []
    for seed in (1, 1, 2):
        trainer = make_trainer(seed=seed)
        trainer.train()
        runs.append(parameters(trainer))
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
    assert not all(torch.equal(value, runs[2][name]) for name, value in runs[0].items())


def test_each_generation_deals_new_games_by_the_policy_of_its_step(make_trainer):
    seen = []

    class Note(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            batch = trainer.last_batch
            seen.append((batch.seeds.tolist(), {step.reply.policy_version for step in batch.samples}))

    trainer = make_trainer(max_steps=4, num_iterations=2, callbacks=[Note()])
    trainer.train()
    assert seen[0] == seen[1] and seen[2] == seen[3]
    assert not set(seen[0][0]) & set(seen[2][0]) and len(set(seen[0][0])) == 32
    assert [versions for _, versions in seen] == [{0}, {0}, {2}, {2}]


def test_metrics_are_those_of_the_games_played(make_trainer):
    trainer = make_trainer(max_steps=1, beta=0.1, games_per_generation=64)
    trainer.train()
    logged = logs(trainer)[0]
    episodes = trainer.last_batch.episodes()
    assert {episode.ending for episode in episodes} == {Ending.TERMINAL, Ending.ILLEGAL}
    turns = [(episode, step) for episode in episodes for step in episode.steps]

    baselines, advantages = [0.0, 0.0], []
    for episode in episodes:
        advantages += [episode.returns[step.turn.player] - baselines[step.turn.player] for step in episode.steps]
        baselines = [0.95 * b + 0.05 * r for b, r in zip(baselines, episode.returns, strict=True)]

    expected = {
        "reward": 0.0,
        "reward_std": np.std([r for episode in episodes for r in episode.returns]),
        "completions/mean_length": np.mean([len(step.reply.completion_ids) for _, step in turns]),
        "completions/min_length": min(len(step.reply.completion_ids) for _, step in turns),
        "completions/max_length": 3,
        "completions/clipped_ratio": np.mean([step.reply.finish_reason == "length" for _, step in turns]),
        "num_tokens": sum(len(step.reply.completion_ids) for _, step in turns),
        "self_play/tokens": sum(len(step.reply.completion_ids) for _, step in turns),
        "self_play/turns": len(turns),
        "self_play/games": 64,
        "self_play/illegal_rate": np.mean([step.reply.action is None for _, step in turns]),
        f"self_play/{GAME}/ending/terminal": np.mean([episode.ending is Ending.TERMINAL for episode in episodes]),
        f"self_play/{GAME}/ending/illegal": np.mean([episode.ending is Ending.ILLEGAL for episode in episodes]),
        f"self_play/{GAME}/ending/truncated": 0.0,
    }
    for player in (0, 1):
        prefix = f"self_play/{GAME}/player {player}"
        mine = [step.reply for _, step in turns if step.turn.player == player]
        surprisal = -sum(sum(reply.logprobs) for reply in mine)
        expected |= {
            f"{prefix}/return": np.mean([episode.returns[player] for episode in episodes]),
            f"{prefix}/baseline": baselines[player],
            f"{prefix}/advantage_std": np.std(
                [a for a, (_, step) in zip(advantages, turns, strict=True) if step.turn.player == player]
            ),
            f"{prefix}/illegal_rate": np.mean([reply.action is None for reply in mine]),
            f"{prefix}/reply_length": np.mean([len(reply.completion_ids) for reply in mine]),
            f"{prefix}/entropy": surprisal / sum(len(reply.completion_ids) for reply in mine),
        }
    for name, value in expected.items():
        assert logged[name] == pytest.approx(value, abs=1e-9), name
    assert logged["self_play/tokens_per_second"] > 0
    # TRL's own; and nothing under our names that is not above
    assert {"loss", "grad_norm", "learning_rate", "kl", "entropy", "step_time", "clip_ratio/region_mean"} <= set(
        logged
    )
    assert {"clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/low_min", "clip_ratio/high_max"} <= set(logged)
    ours = {name for name in logged if name.startswith("self_play/")} - {"self_play/tokens_per_second"}
    assert ours <= set(expected)
    assert logged["entropy"] > 0


def test_the_spiral_policy_is_not_zero_sum_and_its_returns_reach_the_baselines(make_trainer, tmp_path):
    from spiral_trl.training.tiny import save_tiny_model

    save_tiny_model(tmp_path / "untrained", seed=1)
    trainer = make_trainer(model=str(tmp_path / "untrained"), illegal_moves="spiral", max_steps=1)
    trainer.train()
    logged = logs(trainer)[0]
    episodes = trainer.last_batch.episodes()
    illegal = [episode for episode in episodes if episode.ending is Ending.ILLEGAL]
    assert len(illegal) > 16
    assert {episode.returns for episode in illegal} <= {(-1.5, 0.5), (0.5, -1.5)}
    assert logged["reward"] == pytest.approx(np.mean([episode.returns for episode in episodes]))
    assert logged["reward"] < -0.2
    first = trainer.advantage.baselines[GAME, "player 0"], trainer.advantage.baselines[GAME, "player 1"]
    assert sum(first) != pytest.approx(0, abs=1e-2)


def test_several_games_in_one_run(make_trainer):
    trainer = make_trainer(games=[GAME, BONUS], games_per_generation=33, max_steps=2)
    trainer.train()
    outcomes = trainer.last_batch.outcomes
    assert outcomes.games == (GAME, BONUS)
    assert [int((outcomes.game == g).sum()) for g in (0, 1)] == [17, 16]
    assert set(trainer.advantage.baselines) == {(game, f"player {p}") for game in (GAME, BONUS) for p in (0, 1)}
    logged = logs(trainer)[0]
    for game in (GAME, BONUS):
        for role in ("player 0", "player 1"):
            assert {f"self_play/{game}/{role}/{name}" for name in ("return", "baseline", "entropy")} <= set(logged)
    returns = [logged[f"self_play/{BONUS}/player {p}/return"] for p in (0, 1)]
    assert sum(returns) == pytest.approx(0) and logged["reward"] == pytest.approx(0)


def test_a_game_played_as_text(make_trainer, small_qwen, parameters):
    trainer = make_trainer(
        model=str(small_qwen),
        games="kuhn_poker(rounds=2)",
        illegal_moves="random_legal",  # the untrained model answers noise
        games_per_generation=6,
        max_completion_length=4,
        gradient_accumulation_steps=2,
        num_iterations=2,
    )
    before = parameters(trainer)
    trainer.train()
    assert any(not torch.equal(value, before[name]) for name, value in parameters(trainer).items())
    lengths = [len(episode.steps) for episode in trainer.last_batch.episodes()]
    assert len(set(lengths)) > 1 and min(lengths) >= 4
    logged = logs(trainer)[0]
    assert logged["self_play/illegal_rate"] == 1.0
    assert logged["self_play/kuhn_poker(rounds=2)/ending/terminal"] == 1.0
    # Deals and policy are the game's own: the same games, whoever answers
    assert logged["self_play/turns"] == sum(lengths)


@pytest.mark.parametrize("advantage", ["none", "shared", "leave_one_out"])
def test_other_advantages_train(make_trainer, parameters, advantage):
    trainer = make_trainer(advantage=advantage)
    before = parameters(trainer)
    trainer.train()
    assert trainer.advantage.name == advantage
    assert any(not torch.equal(value, before[name]) for name, value in parameters(trainer).items())


def test_an_advantage_of_ones_own(make_trainer):
    class Doubled(LeaveOneOut):
        def __call__(self, outcomes):
            return 2 * super().__call__(outcomes)

    seen = {}
    for estimator in (LeaveOneOut(), Doubled()):
        trainer = make_trainer(estimator=estimator, max_steps=1, log_completions=True, num_completions_to_print=0)
        trainer.train()
        seen[type(estimator)] = np.array(trainer._logs["advantages"])
    assert np.array_equal(seen[Doubled], 2 * seen[LeaveOneOut]) and seen[LeaveOneOut].any()


# --------------------------------------------------------------------------------- completions, shaping, generation


def test_the_completions_table(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=2, log_completions=True, num_completions_to_print=0)
    trainer.train()
    folder = tmp_path / "run" / "completions"
    table = pd.read_parquet(folder / "completions_00002.parquet")
    turns = [(episode, step) for episode in trainer.last_batch.episodes() for step in episode.steps]
    assert len(turns) < 128
    assert set(table["step"]) == {2}
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    assert {"step", "prompt", "completion", "advantage", "game", "role", "action", "error", "return"} <= set(table)
    for row, (episode, step) in zip(rows, turns, strict=True):
        assert [dict(message) for message in row["prompt"]] == [dict(message) for message in step.turn.messages]
        assert row["completion"][0]["content"] == step.reply.text
        assert (row["game"], row["role"], row["action"]) == (GAME, step.turn.role, step.reply.action)
        assert row["return"] == episode.returns[step.turn.player]
        assert (row["error"] is None) == (step.reply.action is not None)
    assert len({round(row["advantage"], 6) for row in rows}) > 10


def test_no_reward_function_by_default(make_trainer):
    trainer = make_trainer(max_steps=1)
    trainer.train()
    assert not any(name.startswith("rewards/") for name in logs(trainer)[0])
    with pytest.raises(RuntimeError, match="never|placeholder"):
        trainer.reward_funcs[0](prompts=[], completions=[])


def test_shaping_is_weighted_added_to_the_advantage_and_logged(make_trainer, tmp_path):
    calls = []

    def bets(prompts, completions, completion_ids, game, role, action, error, seat_return, **kwargs):
        calls.append((prompts, completions, completion_ids, game, role, action, error, seat_return))
        return [1.0 if a == "bet" else 0.0 for a in action]

    def short(completion_ids, log_metric, log_extra, **kwargs):
        log_metric("rows", len(completion_ids))
        log_extra("length", [len(ids) for ids in completion_ids])
        # None: this reward has nothing to say of the turn
        return [None if len(ids) == 3 else 10.0 for ids in completion_ids]

    settings = {
        "max_steps": 1,
        "log_completions": True,
        "num_completions_to_print": 0,
        "gradient_accumulation_steps": 3,
    }
    plain = make_trainer(**settings)
    plain.train()
    shaped = make_trainer(
        reward_funcs=[bets, short], reward_weights=[0.25, 2.0], output_dir=str(tmp_path / "shaped"), **settings
    )
    shaped.train()

    turns = [(episode, step) for episode in shaped.last_batch.episodes() for step in episode.steps]
    rewards = np.array([0.25 * (step.reply.action == "bet") for _, step in turns])
    rewards += [0.0 if len(step.reply.completion_ids) == 3 else 20.0 for _, step in turns]
    assert 0 < np.count_nonzero(rewards) < len(turns)
    added = np.array(shaped._logs["advantages"]) - np.array(plain._logs["advantages"])
    assert added == pytest.approx(rewards, abs=1e-6)
    # What the loss was given: the same, in any order, and zeros where there is only padding
    given = torch.cat([inputs["advantages"] for inputs in shaped._buffered_inputs])
    expected = sorted([*shaped._logs["advantages"], *[0.0] * (len(given) - len(turns))])
    assert sorted(given.tolist()) == pytest.approx(expected, abs=1e-5)

    prompts, completions, completion_ids, game, role, action, error, seat_return = calls[0]
    for i, (episode, step) in enumerate(turns):
        assert prompts[i] == [dict(message) for message in step.turn.messages]
        assert completions[i] == [{"role": "assistant", "content": step.reply.text}]
        assert tuple(completion_ids[i]) == step.reply.completion_ids
        assert (game[i], role[i], action[i], error[i]) == (GAME, step.turn.role, step.reply.action, step.reply.error)
        assert seat_return[i] == episode.returns[step.turn.player]
    logged = logs(shaped)[0]
    assert logged["rewards/short/mean"] == 10.0
    assert logged["rows"] == len(given) > len(turns)
    table = pd.read_parquet(tmp_path / "shaped" / "completions" / "completions_00001.parquet")
    assert list(table["length"]) == [len(step.reply.completion_ids) for _, step in turns]
    assert logged["rewards/bets/mean"] == pytest.approx(np.mean([step.reply.action == "bet" for _, step in turns]))


def test_generation_options_reach_the_player(make_trainer, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    words = tokenizer.get_vocab()
    tokenizer.chat_template = "{% if mark %}<|unk|> {% endif %}" + tokenizer.chat_template
    trainer = make_trainer(
        processing_class=tokenizer,
        generation_kwargs={"suppress_tokens": [words["[bet]"], words["[fold]"]]},
        chat_template_kwargs={"mark": True},
        max_steps=1,
    )
    trainer.train()
    replies = [step.reply for step in trainer.last_batch.samples]
    tokens = {token for reply in replies for token in reply.completion_ids}
    assert words["[check]"] in tokens
    assert not tokens & {words["[bet]"], words["[fold]"]}
    assert all(reply.prompt_ids[0] == words["<|unk|>"] for reply in replies)


def test_sampling_options_reach_the_player(make_trainer):
    trainer = make_trainer(top_k=1, max_steps=1)
    trainer.train()
    replies = {}
    for step in trainer.last_batch.samples:
        replies.setdefault(step.turn.messages[-1]["content"], set()).add(step.reply.text)
    assert len(replies) >= 6 and all(len(texts) == 1 for texts in replies.values())
    with pytest.raises(ValueError, match="generation_kwargs: num_beams cannot be used in self-play"):
        make_trainer(generation_kwargs={"num_beams": 4})


def test_the_temperature_is_that_of_sampling_and_of_the_loss(make_trainer):
    # On-policy, the log-probabilities of the sampler and of the loss are one thing
    trainer = make_trainer(temperature=0.7, num_iterations=2, max_steps=1)
    trainer.train()
    own = {step.reply.completion_ids: step.reply.logprobs for step in trainer.last_batch.samples}
    by_prompt = {(step.reply.prompt_ids, step.reply.completion_ids): step.reply for step in trainer.last_batch.samples}
    assert own
    inputs = trainer._buffered_inputs[0]
    for i in range(0, len(inputs["advantages"]), 7):
        prompt = tuple(inputs["prompt_ids"][i][inputs["prompt_mask"][i].bool()].tolist())
        completion = tuple(inputs["completion_ids"][i][inputs["completion_mask"][i].bool()].tolist())
        expected = by_prompt[prompt, completion].logprobs
        found = inputs["old_per_token_logps"][i][: len(completion)]
        assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_experts_are_balanced_over_all_rows(make_trainer, monkeypatch):
    from trl import GRPOTrainer

    rows = []
    monkeypatch.setattr(
        GRPOTrainer,
        "_get_per_token_logps_and_entropies",
        lambda self, model, ids, mask, *args, **kwargs: rows.append(len(ids)) or (ids[:, :1].float(), None, None),
    )
    trainer = make_trainer()
    ids, mask = torch.ones(5, 4, dtype=torch.long), torch.ones(5, 4, dtype=torch.long)
    trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 1)
    trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 1, compute_aux_loss=True)
    assert rows == [1, 5]


# -------------------------------------------------------------------------------------------------------------- PEFT


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_an_adapter_trains_alone(make_trainer, parameters, tmp_path, beta):
    from peft import LoraConfig, PeftModel
    from transformers import AutoModelForCausalLM

    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(peft_config=lora, beta=beta, max_steps=3, save_strategy="steps", save_steps=3)
    before = parameters(trainer)
    trainer.train()
    after = parameters(trainer)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed and all("lora_" in name for name in changed)
    assert trainer.ref_model is None
    if beta:
        kl = [entry["kl"] for entry in logs(trainer)]
        assert kl[0] == pytest.approx(0, abs=1e-7) and kl[1] > 1e-7
    # What is saved is the adapter, and what is left in memory after the reference was asked is adapted
    folder = tmp_path / "run" / "checkpoint-3"
    base = AutoModelForCausalLM.from_pretrained(trainer.model.peft_config["default"].base_model_name_or_path)
    ids = torch.tensor([[2, 9, 10]])
    adapted = PeftModel.from_pretrained(base, folder)(ids).logits
    assert torch.allclose(adapted, trainer.model(input_ids=ids).logits, atol=1e-6)


def test_a_resumed_adapter_goes_on(make_trainer, parameters, tmp_path):
    from peft import LoraConfig

    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "beta": 0.3}
    whole = make_trainer(peft_config=lora, output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    resumed = make_trainer(peft_config=lora, output_dir=str(tmp_path / "resumed"), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert all(torch.equal(value, parameters(whole)[name]) for name, value in parameters(resumed).items())


def test_a_refreshed_reference_beside_an_adapter_is_refused(make_trainer):
    from peft import LoraConfig

    with pytest.raises(ValueError, match="sync_ref_model=True cannot be used with PEFT.*sync_ref_model=False"):
        make_trainer(peft_config=LoraConfig(task_type="CAUSAL_LM"), beta=0.3, sync_ref_model=True)


# -------------------------------------------------------------------------------------------------------- evaluation


def test_an_evaluation_reports_what_it_says(make_trainer):
    trainer = make_trainer(eval_opponents=["random", "cfr"], eval_games=64)
    metrics = trainer.evaluate()
    names = ["illegal_rate", "exploitability", "nash_conv", "exploitability_given_legal", "unexplored_mass", "runtime"]
    names += [f"{GAME}/{role}/return" for role in ("player 0", "player 1")]
    names += [f"{GAME}/{opponent}/{figure}" for opponent in ("random", "cfr") for figure in ("return", "win_rate")]
    assert set(metrics) == {f"eval_{name}" for name in names}
    assert metrics["eval_nash_conv"] == pytest.approx(2 * metrics["eval_exploitability"])
    assert metrics[f"eval_{GAME}/player 0/return"] == -metrics[f"eval_{GAME}/player 1/return"]
    assert logs(trainer, "eval_runtime")[0]["eval_exploitability"] == metrics["eval_exploitability"]
    again = trainer.evaluate()
    assert {k: v for k, v in again.items() if k != "eval_runtime"} == {
        k: v for k, v in metrics.items() if k != "eval_runtime"
    }
    assert "held_out_exploitability" in trainer.evaluate(metric_key_prefix="held_out")


def test_several_games_are_evaluated_each_and_on_average(make_trainer):
    metrics = make_trainer(games=[GAME, BONUS], eval_opponents=[]).evaluate()
    each = [metrics[f"eval_{game}/exploitability"] for game in (GAME, BONUS)]
    assert metrics["eval_exploitability"] == pytest.approx(np.mean(each))
    assert not any("random" in name for name in metrics)


def test_opponents_meet_only_games_they_can_play(make_trainer, small_qwen):
    metrics = make_trainer(
        model=str(small_qwen),
        games="kuhn_poker(rounds=3,rules=spiral)",
        eval_opponents=["random", "cfr"],
        eval_games=2,
        max_completion_length=2,
    ).evaluate()
    assert any("/random/" in name for name in metrics) and not any("/cfr/" in name for name in metrics)


def test_evaluations_are_limited_to_the_turns_of_training(make_trainer, small_qwen):
    settings = {"illegal_moves": "random_legal", "eval_games": 2, "max_completion_length": 2, "eval_opponents": []}
    game = "kuhn_poker(rounds=2)"
    # Cut off in the first hand, every game is worth nothing
    metrics = make_trainer(model=str(small_qwen), games=game, max_turns=1, **settings).evaluate()
    assert metrics[f"eval_{game}/player 0/return"] == metrics[f"eval_{game}/player 1/return"] == 0


def everything(trainer):
    """Training state, as copies."""
    return copy.deepcopy(
        {
            "parameters": [p.detach() for p in trainer.model.parameters()],
            "training": [module.training for module in trainer.model.modules()],
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state()[1],
            "python": random.getstate(),
            "baselines": trainer.advantage.state_dict(),
            "played": trainer.played,
            "step": (trainer._step, trainer.state.global_step, trainer.state.num_input_tokens_seen),
            "metrics": dict(trainer._metrics["train"]),
            "version": trainer.player.policy_version,
            "buffer": [inputs["advantages"] for inputs in trainer._buffered_inputs or []],
            "gradients": [None if p.grad is None else p.grad for p in trainer.model.parameters()],
        }
    )


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return one == other


def test_an_evaluation_changes_no_training_state(make_trainer):
    compared = []

    class Evaluate(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            before = everything(trainer)
            trainer.evaluate()
            after = everything(trainer)
            compared.append([name for name in before if not same(before[name], after[name])])

    trainer = make_trainer(max_steps=2, num_iterations=2, logging_steps=2, callbacks=[Evaluate()])
    trainer.train()
    assert compared == [[], []]
    assert all(module.training for module in trainer.model.modules())
    trainer.model.eval()
    trainer.evaluate()
    assert not trainer.model.training


def test_a_run_with_evaluations_ends_like_one_without(make_trainer, parameters):
    settings = {"max_steps": 6, "num_iterations": 2, "steps_per_generation": 2, "beta": 0.2, "sync_ref_model": True}
    settings |= {"ref_model_sync_steps": 2, "log_completions": True, "num_completions_to_print": 1}
    with_evaluations = make_trainer(eval_strategy="steps", eval_steps=1, eval_on_start=True, **settings)
    with_evaluations.train()
    assert len(logs(with_evaluations, "eval_runtime")) == 7
    random_states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    without = make_trainer(**settings)
    without.train()
    assert torch.equal(random_states[0], torch.get_rng_state())
    assert random_states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    found = parameters(with_evaluations)
    assert all(torch.equal(found[name], value) for name, value in parameters(without).items())
    for one, other in zip(logs(with_evaluations), logs(without), strict=True):
        for name in one.keys() - {"step_time", "self_play/tokens_per_second"}:
            assert one[name] == other[name], name


def test_the_best_model_is_the_least_exploitable_and_is_loaded_at_the_end(make_trainer, parameters, tmp_path):
    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                trainer.model.lm_head.weight.data *= -1  # most replies are noise from here on

    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(
        max_steps=8,
        learning_rate=1e-3,
        callbacks=[Spoil()],
        metric_for_best_model="eval_exploitability",
        load_best_model_at_end=True,
        save_total_limit=1,
        **settings,
    )
    assert trainer.args.greater_is_better is False
    trainer.train()
    by_step = {entry["step"]: entry["eval_exploitability"] for entry in logs(trainer, "eval_runtime")}
    best = min(by_step, key=by_step.get)
    assert best in (2, 4) and by_step[8] > by_step[best] + 0.3
    assert trainer.state.best_metric == by_step[best]
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    saved = load_file(tmp_path / "run" / f"checkpoint-{best}" / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in parameters(trainer).items())
    assert trainer.evaluate()["eval_exploitability"] == pytest.approx(by_step[best], abs=1e-6)


def test_early_stopping(make_trainer):
    trainer = make_trainer(
        max_steps=20,
        eval_strategy="steps",
        eval_steps=2,
        metric_for_best_model="eval_exploitability",
        greater_is_better=False,
        # Nothing improves by this much
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2, early_stopping_threshold=10.0)],
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
    )
    trainer.train()
    assert trainer.state.global_step == 6


# ---------------------------------------------------------------------------------------------------------- refusals


def test_datasets_are_refused(make_trainer, make_args, tiny_model):
    for name in ("train_dataset", "eval_dataset"):
        with pytest.raises(ValueError, match="Self-play takes no dataset.*games and max_steps"):
            SelfPlayTrainer(tiny_model, GAME, make_args(), **{name: [{"prompt": "x"}]})
    with pytest.raises(ValueError, match="takes no dataset"):
        make_trainer().evaluate(eval_dataset=[])


@pytest.mark.parametrize(
    ("games", "message"),
    [
        ([], "games is empty"),
        ("kuhn_pokr", "unknown game 'kuhn_pokr'.*did you mean 'kuhn_poker'"),
        ([GAME, "kuhn_poker(seat_bonus=0,observation=compact)"], "named twice"),
    ],
)
def test_games_are_checked_before_the_model_is_looked_for(make_args, games, message):
    with pytest.raises(ValueError, match=message):
        SelfPlayTrainer("./no/such/model", games, make_args())


def test_a_model_folder_that_does_not_exist_is_no_name_on_the_hub(make_args, tmp_path):
    with pytest.raises(ValueError, match=r"The model folder \./no/such/model does not exist"):
        SelfPlayTrainer("./no/such/model", GAME, make_args())


def test_a_tokenizer_without_chat_template_is_refused_with_the_fix(make_trainer, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template.*clone_chat_template"):
        make_trainer(processing_class=tokenizer)


def test_the_configuration_of_another_trainer_is_refused(tiny_model, tmp_path):
    from trl import GRPOConfig

    args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(TypeError, match="args must be a SelfPlayConfig, got GRPOConfig"):
        SelfPlayTrainer(tiny_model, GAME, args)


def test_fsdp_without_another_engine_is_refused(make_trainer, monkeypatch):
    create = SelfPlayTrainer.create_accelerator_and_postprocess

    def pretend(self):
        create(self)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(SelfPlayTrainer, "create_accelerator_and_postprocess", pretend)
    with pytest.raises(ValueError, match="FSDP shards the model that generates; set use_vllm=True"):
        make_trainer()


def test_a_refreshed_reference_under_zero_3_is_refused(make_trainer, monkeypatch):
    class ZeRO3:
        zero_stage = 3

    init = SelfPlayTrainer.__bases__[0].__init__

    def pretend(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.args.deepspeed_plugin = ZeRO3()

    monkeypatch.setattr(SelfPlayTrainer.__bases__[0], "__init__", pretend)
    with pytest.raises(ValueError, match="sync_ref_model cannot be saved and restored under ZeRO-3"):
        make_trainer(beta=0.1, sync_ref_model=True)


def test_a_prompt_longer_than_the_model_says_what_to_lower(make_trainer):
    with pytest.raises(ValueError, match="passes the model's 128 positions. Lower max_completion_length"):
        make_trainer(max_completion_length=120).train()


# -------------------------------------------------------------------------------------------------------------- card


def test_checkpoints_get_trls_card_and_finished_runs_their_own(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "SPIRAL" in card and "2506.24119" in card and "self-play" in card

    from spiral_trl.hub import card as module

    written = []
    monkeypatch.setattr(module, "write_model_card", lambda metrics, path: written.append((metrics, path)))
    (tmp_path / "run" / "metrics.json").write_text(json.dumps({"game": "kuhn_poker"}))
    trainer.create_model_card()
    assert written == [({"game": "kuhn_poker"}, tmp_path / "run" / "README.md")]


# ------------------------------------------------------------------------------------------------------------- logging


def test_what_is_saved_is_logged(make_trainer):
    trainer = make_trainer(max_steps=7, logging_steps=4, save_strategy="steps", save_steps=3)
    trainer.train()
    assert [entry["step"] for entry in logs(trainer)] == [3, 4, 6, 7]
