"""What the trainer overrides and calls of TRL: a test fails by name when one of it moves."""

import configparser
import inspect
from pathlib import Path

import pytest
import torch
import trl
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from trl import GRPOTrainer
from trl.models import utils as model_utils
from trl.trainer import utils as trainer_utils
from trl.trainer.callbacks import SyncRefModelCallback

from spiral_trl import SelfPlayTrainer


SETUP = Path(__file__).parents[2] / "setup.cfg"
SIGNATURES = {
    "__init__": "model reward_funcs args train_dataset eval_dataset processing_class reward_processing_classes "
    "callbacks optimizers quantization_config peft_config tools rollout_func environment_factory",
    "get_train_dataloader": "",
    "_prepare_inputs": "generation_batch",
    "_generate_and_score_completions": "inputs",
    "_generate_single_turn": "prompt_ids images multimodal_fields num_generations has_tool_images",
    "_calculate_rewards": "inputs prompts completions completion_ids_list",
    "_get_per_token_logps_and_entropies": "model input_ids attention_mask logits_to_keep batch_size compute_entropy "
    "compute_aux_loss pixel_values image_grid_thw num_images pixel_attention_mask spatial_shapes num_tiles image_sizes "
    "token_type_ids mm_token_type_ids image_position_ids",
    "compute_loss": "model inputs return_outputs num_items_in_batch",
    "_compute_loss": "model inputs",
    "training_step": "model inputs num_items_in_batch",
    "train": "resume_from_checkpoint trial ignore_keys_for_eval",
    "evaluate": "eval_dataset ignore_keys metric_key_prefix",
    "log": "logs start_time",
    "create_model_card": "model_name dataset_name tags",
    "save_model": "output_dir _internal_call",
    "_save_checkpoint": "model trial",
    "_load_optimizer_and_scheduler": "checkpoint",
    "_get_output_dir": "trial",
    "_load_best_model": "",
    "create_accelerator_and_postprocess": "",
}
FUNCTIONS = {
    "split_tensor_dict": (trainer_utils, "tensor_dict num_chunks"),
    "shuffle_sequence_dict": (trainer_utils, "seq_dict"),
    "pad": (trainer_utils, "tensors padding_value padding_side pad_to_multiple_of"),
    "use_adapter": (trainer_utils, "model adapter_name"),
    "unwrap_model_for_generation": (
        model_utils,
        "model accelerator gather_deepspeed3_params generation_kwargs gradient_checkpointing_kwargs",
    ),
    "disable_gradient_checkpointing": (model_utils, "model gradient_checkpointing_kwargs"),
}


def names(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize("method", SIGNATURES)
def test_a_method_of_the_trainer_is_where_it_was(method):
    assert hasattr(GRPOTrainer, method), f"GRPOTrainer.{method} is gone"
    assert names(getattr(GRPOTrainer, method)) == SIGNATURES[method].split(), (
        f"GRPOTrainer.{method} takes other things"
    )


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_is_where_it_was(function):
    module, expected = FUNCTIONS[function]
    assert hasattr(module, function), f"{module.__name__}.{function} is gone"
    assert names(getattr(module, function)) == expected.split(), f"{function} takes other things"


def test_the_list_holds_every_override():
    own = {name for name, value in vars(SelfPlayTrainer).items() if callable(value)}
    overridden = {name for name in own if hasattr(GRPOTrainer, name)}
    assert overridden <= set(SIGNATURES), f"not in this file: {overridden - set(SIGNATURES)}"


def test_the_docstring_lists_every_override():
    own = {name for name, value in vars(SelfPlayTrainer).items() if callable(value)}
    for name in own & set(dir(GRPOTrainer)):
        assert f"`{name}`" in SelfPlayTrainer.__doc__, f"the docstring does not say why {name} is overridden"


def test_the_range_of_trl_is_the_one_that_was_tested():
    setup = configparser.ConfigParser()
    setup.read(SETUP)
    lines = setup["options"]["install_requires"].split()
    [specifier] = [Requirement(line).specifier for line in lines if Requirement(line).name == "trl"]
    assert specifier == SpecifierSet(">=1.16,<1.17"), "test the seams with another TRL, then change this line as well"
    assert trl.__version__ in specifier


def test_the_split_of_a_batch_drops_a_remainder_and_keeps_scalars():
    # Why rows are padded to whole micro-batches
    batch = {"rows": torch.arange(7), "scalar": torch.tensor(5.0), "absent": None}
    parts = trainer_utils.split_tensor_dict(batch, 3)
    assert [part["rows"].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert all(part["scalar"] == 5.0 and part["absent"] is None for part in parts)


def test_the_shuffle_draws_from_torch_and_keeps_rows_together():
    # Resumed runs rely on the generator that a checkpoint saves
    batch = {"a": torch.arange(9), "b": torch.arange(9) * 10, "scalar": torch.tensor(5.0)}
    torch.manual_seed(3)
    one = trainer_utils.shuffle_sequence_dict(batch)
    torch.manual_seed(3)
    other = trainer_utils.shuffle_sequence_dict(batch)
    assert torch.equal(one["a"], other["a"]) and sorted(one["a"].tolist()) == list(range(9))
    assert torch.equal(one["b"], one["a"] * 10) and one["scalar"] == 5.0


def test_generations_are_asked_for_when_they_are_spent_and_buffered_by_step(make_trainer):
    asked = []
    trainer = make_trainer(num_iterations=2, gradient_accumulation_steps=2, max_steps=5)
    generate = trainer._generate_and_score_completions

    def noting(inputs):
        asked.append(trainer._step)
        return generate(inputs)

    trainer._generate_and_score_completions = noting
    trainer.train()
    assert asked == [0, 4, 8]
    assert trainer._step == 10
    assert len(trainer._buffered_inputs) == 2 and all(isinstance(inputs, dict) for inputs in trainer._buffered_inputs)


def test_log_probabilities_come_first_of_three_and_are_those_of_the_model(make_trainer, load_model):
    trainer = make_trainer()
    ids = torch.tensor([[2, 9, 10, 12, 13], [2, 9, 11, 12, 14]])
    answer = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, torch.ones_like(ids), 2, batch_size=1, compute_entropy=True
    )
    assert len(answer) == 3 and answer[2] is None
    expected = torch.log_softmax(load_model()(ids).logits, -1)[:, 2:-1]
    assert torch.allclose(answer[0], expected.gather(-1, ids[:, 3:, None])[..., 0], atol=1e-6)
    assert torch.allclose(answer[1], -(expected.exp() * expected).sum(-1), atol=1e-6)


@pytest.mark.parametrize(
    "name",
    "_step _buffered_inputs _metrics _logs _pending_metrics _pending_extra_logs _tokenizer accelerator args beta "
    "chat_template_kwargs eos_token_ids is_fsdp_enabled log_completions loss_type mask_truncated_completions "
    "max_completion_length min_p model model_wrapped num_iterations pad_to_multiple_of ref_model repetition_penalty "
    "reward_func_names reward_weights state temperature top_k top_p use_transformers_continuous_batching use_vllm "
    "vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min vllm_importance_sampling_correction "
    "vllm_importance_sampling_mode".split(),
)
def test_an_attribute_is_where_it_was(make_trainer, name):
    assert hasattr(make_trainer(), name)


def test_the_refresh_of_the_reference_is_a_callback_of_trl(make_trainer):
    trainer = make_trainer(beta=0.1, sync_ref_model=True)
    [callback] = [c for c in trainer.callback_handler.callbacks if isinstance(c, SyncRefModelCallback)]
    assert callback.ref_model is trainer.ref_model
    order = [type(c).__name__ for c in trainer.callback_handler.callbacks]
    # Logging has to be asked for after the flow of the step has decided to save
    assert order.index("LogWhereSavedCallback") > order.index("DefaultFlowCallback")


def test_an_engine_is_asked_by_trls_own_method(make_trainer):
    trainer = make_trainer(max_steps=1)
    asked = []

    def generate(prompt_ids, images, multimodal_fields, num_generations, **kwargs):
        asked.append((len(prompt_ids), images, multimodal_fields, num_generations))
        words = trainer._tokenizer.get_vocab()
        reply = [words["J"], words["[check]"], trainer._tokenizer.eos_token_id]
        return [reply for _ in prompt_ids], [[-0.5, -0.25, 0.0] for _ in prompt_ids], None

    trainer._generate_single_turn = generate
    trainer.player.engine = trainer._generate_by_engine
    trainer.train()
    assert {repr(rest) for _, *rest in asked} == {"[None, {}, 1]"}
    replies = [step.reply for step in trainer.last_batch.samples]
    assert {reply.text for reply in replies} == {"J [check]"}
    assert all(reply.logprobs == (-0.5, -0.25, 0.0) for reply in replies)
    assert sum(count for count, *_ in asked) >= len(trainer.last_batch.turn_sample)
