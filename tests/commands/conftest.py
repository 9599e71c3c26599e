"""How tests call `spiral-trl`."""

import io
import sys

import pytest


@pytest.fixture
def run(capsys, monkeypatch):
    """Calls `spiral-trl` with what a person types; answers exit code, stdout and stderr."""
    from spiral_trl.commands.main import main

    def call(*argv, typed=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(part) for part in argv])
        return ended.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def no_model(monkeypatch):
    """Fails where a model, or its tokenizer, would be made or loaded."""
    import transformers

    from spiral_trl.players import frozen_model, registry
    from spiral_trl.training import run as training

    def fail(*args, **kwargs):
        raise AssertionError("a model was loaded")

    for owner in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer, transformers.PreTrainedModel):
        monkeypatch.setattr(owner, "from_pretrained", fail)
    monkeypatch.setattr(registry, "load_model_player", fail)
    monkeypatch.setattr(frozen_model, "load_model_player", fail)
    for name in ("SelfPlayTrainer", "save_tiny_model", "warm_start"):
        monkeypatch.setattr(training, name, fail)
