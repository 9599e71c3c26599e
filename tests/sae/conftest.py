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
