"""The embedded model, and stores of codes that a test writes down itself."""

import numpy as np
import pytest
import torch

from spiral_trl.sae.store import TOKEN, open_store, rows_of, write_shard, write_store


@pytest.fixture(scope="session")
def embedded():
    """The embedded model and its tokenizer, untrained."""
    from spiral_trl.training.tiny import build_tiny_model

    model, tokenizer = build_tiny_model(seed=0)
    return model.eval(), tokenizer


@pytest.fixture
def make_store(tmp_path):
    """`make_store({layer: dense codes (tokens, features)}, groups=..., shards=..., name=...)`."""

    def make(codes, groups=None, shards=1, name="store", value_dtype="float32", **about):
        count = len(next(iter(codes.values())))
        tokens = np.zeros(count, TOKEN)
        tokens["group"] = tokens["document"] = np.arange(count) // 8 if groups is None else groups
        tokens["token"], tokens["player"], tokens["turn"] = np.arange(count) % 17, -1, -1
        folder = tmp_path / name
        layers = {
            str(layer): {"num_features": dense.shape[1], "dictionary": "made", "fingerprint": "made"}
            for layer, dense in codes.items()
        }
        write_store(folder, {"model": "made", "source": {"kind": "made"}, "layers": layers, **about})
        for number, at in enumerate(np.array_split(np.arange(count), shards)):
            write_shard(
                folder, number, tokens[at], {layer: rows_of(dense[at], value_dtype) for layer, dense in codes.items()}
            )
        return open_store(folder)

    return make


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


class MadeDictionary:
    """A dictionary of random weights: what [`~spiral_trl.sae.dictionaries.Dictionary`] shows of itself."""

    def __init__(self, layer, width, num_features, seed=0):
        random = torch.Generator().manual_seed(1000 * seed + layer)
        self.layer, self.width, self.num_features = layer, width, num_features
        self.name, self.fingerprint = f"made {layer}", f"{seed}-{layer}"
        self.weights = torch.randn(width, num_features, generator=random) / width**0.5
        self.directions = torch.randn(num_features, width, generator=random) / num_features**0.5
        self.calls = 0

    def read(self, stream):
        return stream.float()

    def encode(self, stream):
        self.calls += 1
        return torch.relu(self.read(stream) @ self.weights - 0.02)

    def decode(self, codes):
        return codes @ self.directions

    def error(self, stream, codes):
        return self.read(stream) - self.decode(codes)

    def to_dict(self):
        return {"dictionary": self.name, "num_features": self.num_features, "fingerprint": self.fingerprint}


@pytest.fixture(scope="session")
def made_dictionary():
    """The class, for tests that derive from it: conftest is a module of several folders, and cannot be imported."""
    return MadeDictionary


@pytest.fixture
def make_dictionaries():
    """`make_dictionaries(model, num_features=..., layers=..., seed=...)`: one for each layer of a model."""

    def make(model, num_features=48, layers=None, seed=0):
        layers = range(model.config.num_hidden_layers + 1) if layers is None else layers
        return {layer: MadeDictionary(layer, model.config.hidden_size, num_features, seed) for layer in layers}

    return make


def build_random_model(kind, seed=0):
    """A small model of random weights in the shape of Qwen3, GPT-2 or GPT-NeoX, three blocks deep, of 60 tokens and 64
    positions, and its final norm. Its weights are large enough for positions and tokens to matter in every block."""
    from transformers import (
        AutoModelForCausalLM,
        GPT2Config,
        GPTNeoXConfig,
        Qwen3Config,
    )

    sizes = dict(vocab_size=60, hidden_size=24, num_hidden_layers=3, num_attention_heads=2, initializer_range=0.3)
    sizes |= dict(max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    config = {
        "qwen3": lambda: Qwen3Config(**sizes, num_key_value_heads=1, head_dim=12, intermediate_size=48),
        "gpt2": lambda: GPT2Config(**sizes),
        "gpt_neox": lambda: GPTNeoXConfig(**sizes, intermediate_size=48, rotary_pct=0.5),
    }[kind]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(params=["qwen3", "gpt2", "gpt_neox"])
def random_model(request):
    return build_random_model(request.param)


@pytest.fixture
def build_model():
    return build_random_model
