"""The configuration: fields, defaults, help and docstring held together; TRL's options known by name; bad values."""

import re
from dataclasses import MISSING, fields

import pytest
import torch
from transformers import TrainingArguments
from trl import GRPOConfig

from spiral_trl import SelfPlayConfig
from spiral_trl.training.config import REFUSED


OWN = {field.name: field for field in fields(SelfPlayConfig) if field.name in SelfPlayConfig.__annotations__}
OF_TRL = {field.name for field in fields(GRPOConfig)} - {field.name for field in fields(TrainingArguments)}
# Given a default only so that what a user sets can be told; never to be used
UNUSED = {"num_train_epochs", "num_generations"}


@pytest.fixture
def make(tmp_path):
    machine = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    return lambda **given: SelfPlayConfig(**{**machine, **given})


# ------------------------------------------------------------------------------------- fields, help and docstring


def documented():
    """Name, type and default (`None` where there is none) of every parameter in the docstring."""
    pattern = r"^ {4,8}(\w+) \(`([^`]+)`, \*optional\*(?:, defaults to `([^`]+)`)?\):\n {8,12}\S"
    return {name: (kind, default) for name, kind, default in re.findall(pattern, SelfPlayConfig.__doc__, re.MULTILINE)}


def default_of(field):
    return field.default_factory() if field.default is MISSING else field.default


def test_every_field_has_help_that_is_a_sentence():
    assert len(OWN) > 15
    for name, field in OWN.items():
        text = field.metadata.get("help", "")
        assert text and text[0].isupper() and text.endswith("."), f"{name}: {text!r}"


def test_the_docstring_lists_the_fields_of_the_class_and_no_other():
    found = documented()
    assert set(OWN) - UNUSED - set(found) == set(), "fields that the docstring does not know"
    # Documented beside our own: where the configuration changes what TrainingArguments does
    assert set(found) - set(OWN) == {"eval_on_start", "greater_is_better"}


@pytest.mark.parametrize("name", sorted(set(OWN) - UNUSED))
def test_the_docstring_states_the_default(name):
    kind, default = documented()[name]
    value = default_of(OWN[name])
    if default is None or default == "":
        assert value is None
    else:
        assert eval(default) == value
        assert kind.split("[")[0] == type(value).__name__


def test_defaults_are_the_papers(make):
    # Table 6, all experiments
    args = make()
    assert (args.learning_rate, args.lr_scheduler_type, args.warmup_steps) == (1e-6, "constant", 0)
    assert (args.optim, args.adam_beta1, args.adam_beta2) == ("adamw_torch_fused", 0.9, 0.95)
    assert (args.weight_decay, args.max_grad_norm) == (0.0, 1.0)
    assert (args.max_steps, args.num_iterations) == (400 * 2, 2)
    assert args.games_per_generation == 128
    assert (args.epsilon, args.beta, args.temperature, args.top_p, args.top_k) == (0.2, 0.0, 1.0, 1.0, 0)
    assert args.max_completion_length == 8192
    assert (args.advantage, args.baseline_decay) == ("rae", 0.95)
    assert (args.loss_type, args.scale_rewards, args.importance_sampling_level) == ("dr_grpo", "none", "token")


# ---------------------------------------------------------------------------------------------------- TRL's options

TRAINER, LOSS, PLAYER, VLLM = (
    "GRPOTrainer.__init__",
    "GRPOTrainer._compute_loss",
    "LanguageModelPlayer",
    "VLLMGeneration",
)
# Options that work as TRL documents them, and where they act
WORKS = {
    "model_init_kwargs": TRAINER,
    "trust_remote_code": TRAINER,
    "disable_dropout": TRAINER,
    "cast_lm_head_to_fp32": TRAINER,
    "router_aux_loss_coef": LOSS,
    "max_completion_length": PLAYER + " and the normaliser of dr_grpo",
    "temperature": PLAYER + " and " + LOSS,
    "top_p": PLAYER,
    "top_k": PLAYER,
    "min_p": PLAYER,
    "repetition_penalty": PLAYER,
    "generation_kwargs": PLAYER,
    "chat_template_kwargs": PLAYER,
    "pad_to_multiple_of": "training_rows",
    "mask_truncated_completions": "training_rows",
    "steps_per_generation": "GRPOTrainer._prepare_inputs",
    "num_iterations": "GRPOTrainer._prepare_inputs",
    "loss_type": "SelfPlayConfig.__post_init__, which takes those of LOSS_TYPES",
    "scale_rewards": "SelfPlayConfig.__post_init__, which takes no other than none",
    "reward_weights": "shaping_rewards",
    "epsilon": LOSS,
    "epsilon_high": LOSS,
    "delta": LOSS,
    "importance_sampling_level": LOSS,
    "top_entropy_quantile": LOSS,
    "entropy_coef": LOSS,
    "use_adaptive_entropy": LOSS,
    "entropy_coef_min": LOSS,
    "entropy_coef_max": LOSS,
    "entropy_coef_delta": LOSS,
    "entropy_target": LOSS,
    "off_policy_mask_threshold": LOSS,
    "beta": LOSS,
    "use_bias_correction_kl": LOSS,
    "sync_ref_model": "SyncRefModelCallback",
    "ref_model_mixup_alpha": "SyncRefModelCallback",
    "ref_model_sync_steps": "SyncRefModelCallback",
    "log_completions": "GRPOTrainer.log",
    "num_completions_to_print": "GRPOTrainer.log",
    "log_unique_prompts": "GRPOTrainer.log",
    "log_completions_hub_repo": TRAINER,
    "use_transformers_continuous_batching": "GRPOTrainer._generate_single_turn",
    "use_transformers_paged": "another name of use_transformers_continuous_batching",
    "transformers_continuous_batching_config": TRAINER,
    "use_vllm": "GRPOTrainer._generate_single_turn",
    "vllm_mode": VLLM,
    "vllm_model_impl": VLLM,
    "vllm_enable_sleep_mode": VLLM,
    "vllm_structured_outputs_regex": VLLM,
    "vllm_server_base_url": VLLM,
    "vllm_server_host": VLLM,
    "vllm_server_port": VLLM,
    "vllm_server_timeout": VLLM,
    "vllm_group_port": VLLM,
    "vllm_gpu_memory_utilization": VLLM,
    "vllm_max_model_length": VLLM,
    "vllm_tensor_parallel_size": VLLM,
    "vllm_importance_sampling_correction": "score_rows",
    "vllm_importance_sampling_mode": "importance_sampling_ratio",
    "vllm_importance_sampling_clip_max": "importance_sampling_ratio",
    "vllm_importance_sampling_clip_min": "importance_sampling_ratio",
    "vllm_importance_sampling_cap": "another name of vllm_importance_sampling_clip_max",
}


@pytest.mark.parametrize("name", sorted(OF_TRL))
def test_every_option_of_trl_is_known_to_work_or_refused(name):
    assert (name in WORKS) != (name in REFUSED), f"{name}: find out where it acts in self-play, or refuse it"


def test_no_option_is_known_that_trl_does_not_have():
    assert set(WORKS) <= OF_TRL
    assert set(REFUSED) <= OF_TRL | {"num_train_epochs"}


CHANGED = {
    "num_generations": 8,
    "num_generations_eval": 8,
    "generation_batch_size": 8,
    "num_train_epochs": 3.0,
    "shuffle_dataset": False,
    "multi_objective_aggregation": "normalize_then_sum",
    "cache_implementation": "static",
    "max_tool_calling_iterations": 3,
    "log_multimodal": False,
    "ds3_gather_for_generation": False,
} | {name: 0.123 for name in REFUSED if name.startswith(("sapo_", "vespo_"))}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_option_is_refused_by_name_and_with_the_reason(make, name):
    with pytest.raises(ValueError) as raised:
        make(**{name: CHANGED[name]})
    message = str(raised.value)
    assert message.startswith(f"{name}={CHANGED[name]!r} cannot be used in self-play: {REFUSED[name]}")
    assert "\n" not in message


# Each changes a run that everything acts on: several steps, clipped ratios, a drifting reference, long replies
BASE = {
    "max_steps": 4,
    "num_iterations": 2,
    "learning_rate": 3e-2,
    "beta": 0.3,
    "games_per_generation": 16,
    "gradient_accumulation_steps": 2,
}
ACTING = {
    "temperature": {"temperature": 0.5},
    "top_p": {"top_p": 0.5},
    "top_k": {"top_k": 2},
    "min_p": {"min_p": 0.5},
    "repetition_penalty": {"repetition_penalty": 3.0},
    "generation_kwargs": {"generation_kwargs": {"suppress_tokens": [6]}},
    "max_completion_length": {"max_completion_length": 2},
    "mask_truncated_completions": {"mask_truncated_completions": True},
    "steps_per_generation": {"steps_per_generation": 4},
    "num_iterations": {"num_iterations": 1},
    "loss_type dapo": {"loss_type": "dapo"},
    "loss_type cispo": {"loss_type": "cispo"},
    "epsilon": {"epsilon": 0.01},
    "epsilon_high": {"epsilon_high": 0.001},
    "delta": {"delta": 1.0},
    "importance_sampling_level": {"importance_sampling_level": "sequence"},
    "top_entropy_quantile": {"top_entropy_quantile": 0.2},
    "entropy_coef": {"entropy_coef": 0.1},
    "use_adaptive_entropy": {"use_adaptive_entropy": True, "entropy_target": 9.0, "entropy_coef_delta": 0.1},
    "off_policy_mask_threshold": {"off_policy_mask_threshold": 1e-6},
    "beta": {"beta": 0.9},
    "use_bias_correction_kl": {"use_bias_correction_kl": False},
    "sync_ref_model": {"sync_ref_model": True, "ref_model_sync_steps": 1},
    "ref_model_mixup_alpha": {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5},
    "advantage": {"advantage": "none"},
    "baseline_decay": {"baseline_decay": 0.5},
    "illegal_moves": {"illegal_moves": "spiral"},
    "games_per_generation": {"games_per_generation": 18},
    "opponents": {"opponents": ["self", "random"]},
    "opponents with a pool": {"opponents": ["self", "pool(every=1)"]},
    "adam_beta2": {"adam_beta2": 0.5},
    "lr_scheduler_type": {"lr_scheduler_type": "linear"},
}


def trained(trainer):
    trainer.train()
    return [p.detach().clone() for p in trainer.model.parameters()]


@pytest.fixture(scope="module")
def baseline():
    """Where the run ends without the option, once it is known."""
    return []


@pytest.mark.parametrize("option", ACTING)
def test_an_option_changes_what_is_learned(make_trainer, baseline, option):
    if not baseline:
        baseline.append(trained(make_trainer(**BASE)))
    weights = trained(make_trainer(**BASE | ACTING[option]))
    assert not all(torch.equal(*pair) for pair in zip(weights, baseline[0], strict=True))


def test_the_run_that_options_are_compared_with_repeats_itself(make_trainer):
    one, other = trained(make_trainer(**BASE)), trained(make_trainer(**BASE))
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "settings", [{"generation_rows": 3}, {"pad_to_multiple_of": 8}, {"per_device_train_batch_size": 5}], ids=str
)
def test_options_of_speed_change_nothing_that_is_learned(make_trainer, parameters, settings):
    runs = []
    for given in ({}, settings):
        trainer = make_trainer(**BASE | {"optim": "sgd", "learning_rate": 0.1} | given)
        trainer.train()
        runs.append(parameters(trainer))
    for name, value in runs[0].items():
        assert (value - runs[1][name]).abs().max() < 1e-5, name


# --------------------------------------------------------------------------------------------------------- bad values


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"games_per_generation": 0}, ["games_per_generation is 0", "at least 1"]),
        ({"games_per_generation": 12.5}, ["games_per_generation is 12.5", "whole number"]),
        ({"games_per_generation": True}, ["games_per_generation is True", "whole number"]),
        ({"max_turns": 0}, ["max_turns is 0", "at least 1"]),
        ({"generation_rows": -1}, ["generation_rows is -1"]),
        ({"max_steps": -1}, ["max_steps is -1", "at least 1"]),
        ({"eval_games": 7}, ["eval_games is 7", "must be even"]),
        ({"exploitability_samples": 1}, ["exploitability_samples is 1", "at least 2"]),
        ({"max_completion_length": 0}, ["max_completion_length is 0", "at least 1"]),
        ({"max_completion_length": None}, ["max_completion_length is None", "at least 1"]),
        ({"illegal_moves": "forgive"}, ["'forgive'", "forfeit, spiral, retry(k)"]),
        ({"illegal_moves": "retry(0)"}, ["'retry(0)'", "k >= 1"]),
        ({"advantage": "gae"}, ["no advantage 'gae'", "rae, none, shared, leave_one_out", "nearest is"]),
        ({"baseline_decay": 1.0}, ["decay", "[0, 1)", "1.0"]),
        ({"loss_type": "grpo"}, ["loss_type is 'grpo'", "dr_grpo, dapo, cispo", "average over rows"]),
        ({"scale_rewards": "group"}, ["scale_rewards is 'group'", "leave it at 'none'"]),
        ({"scale_rewards": True}, ["scale_rewards is True", "leave it at 'none'"]),
        ({"sync_ref_model": True}, ["sync_ref_model=True", "beta is 0", "Set beta above 0"]),
        (
            {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
            ["steps_per_generation (3)", "divisible by", "gradient_accumulation_steps (2)"],
        ),
        (
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1},
            ["processes is 1", "at least 2", "Raise per_device_train_batch_size"],
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_values_are_refused_in_one_line_with_field_value_and_fix(make, given, parts):
    with pytest.raises(ValueError) as raised:
        make(**given)
    message = str(raised.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_games_are_dealt_evenly_to_processes(make, monkeypatch):
    monkeypatch.setattr(SelfPlayConfig, "world_size", property(lambda self: 2))
    with pytest.raises(ValueError, match=r"games_per_generation \(33\) .* number of processes \(2\)"):
        make(games_per_generation=33)
    assert make(games_per_generation=34).games_per_generation == 34


@pytest.mark.parametrize(
    "given",
    [
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 7},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3, "steps_per_generation": 9},
        {"scale_rewards": False},
        {"illegal_moves": "retry(2)"},
        {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 3},
    ],
    ids=str,
)
def test_values_that_go_together_are_taken(make, given):
    args = make(**given)
    assert args.steps_per_generation % args.gradient_accumulation_steps == 0


@pytest.mark.parametrize(
    ("metric", "given", "expected"),
    [
        ("eval_exploitability", None, False),
        ("exploitability", None, False),
        ("eval_nash_conv", None, False),
        ("eval_illegal_rate", None, False),
        ("eval_exploitability", True, True),
        ("eval_kuhn_poker/random/win_rate", None, True),
        (None, None, None),
    ],
)
def test_less_exploitable_is_better(make, metric, given, expected):
    together = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "load_best_model_at_end": metric is not None,
    }
    assert make(metric_for_best_model=metric, greater_is_better=given, **together).greater_is_better is expected
