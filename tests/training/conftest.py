"""A warm-started embedded model, made once, and trainers on it that are ready in a moment."""

import pytest
import torch
from transformers import AutoModelForCausalLM


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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of an embedded model that mostly answers legally."""
    from spiral_trl.training.tiny import save_tiny_model, warm_start

    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_tiny_model(folder, seed=0)
    warm_start(folder, GAME, folder, seed=0, steps=40)
    return str(folder)


@pytest.fixture
def make_args(tmp_path):
    from spiral_trl import SelfPlayConfig

    def make(**overrides):
        return SelfPlayConfig(**{"output_dir": str(tmp_path / "run"), **SMALL, **overrides})

    return make


@pytest.fixture
def make_trainer(tiny_model, make_args):
    """`make_trainer(games=..., model=..., peft_config=..., FIELD=value)`; everything unknown is a field."""
    from spiral_trl import SelfPlayTrainer

    of_trainer = ("processing_class", "reward_funcs", "advantage", "callbacks", "optimizers", "peft_config")

    def make(model=None, games=GAME, **kwargs):
        given = {name: kwargs.pop(name) for name in of_trainer if name in kwargs}
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
