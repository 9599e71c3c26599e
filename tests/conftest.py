"""What holds for every test: one thread, no network, no telemetry; and what several tests play with."""

import os


# Before any import that reads them.
os.environ.update(
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_OFFLINE="1",
    TRL_EXPERIMENTAL_SILENCE="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
)

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    import torch

    torch.set_num_threads(1)


def build_talkative_model(seed=0):
    """The embedded model, untrained but inclined to actions and to the end of a reply: legal, illegal, ambiguous and
    cut replies all occur, with probabilities that depend on the prompt."""
    import torch

    from spiral_trl.training.tiny import ACTIONS, build_tiny_model

    model, tokenizer = build_tiny_model(seed)
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    with torch.no_grad():
        head.weight.copy_(6 * model.lm_head.weight)
        head.bias.zero_()
        head.bias[tokenizer.convert_tokens_to_ids(list(ACTIONS))] = 3.0
        head.bias[tokenizer.eos_token_id] = 4.0
    model.lm_head = head
    return model.eval(), tokenizer


@pytest.fixture(scope="session")
def talkative():
    """Model and tokenizer of [`build_talkative_model`]. Not to be changed."""
    return build_talkative_model()


@pytest.fixture
def build_talkative():
    """For tests that change the model: builds one of their own."""
    return build_talkative_model


@pytest.fixture
def register_game(monkeypatch):
    """Registers a game for one test. Tables and names are remembered by name, so each test takes a name of its own."""
    from spiral_trl.games import registry

    def add(name, make):
        assert name not in registry._GAMES
        monkeypatch.setitem(registry._GAMES, name, registry._Entry(make, {}, None))
        return name

    yield add
    registry._parse.cache_clear()
