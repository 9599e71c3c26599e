"""What holds for every test: one thread, no network, no telemetry; and what several tests play with."""

import os
import shutil


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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of an embedded model that mostly answers legally."""
    from spiral_trl.training.tiny import save_tiny_model, warm_start

    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_tiny_model(folder, seed=0)
    warm_start(folder, "kuhn_poker(observation=compact)", folder, seed=0, steps=40)
    return str(folder)


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


@pytest.fixture
def keep_environment(monkeypatch):
    """Recipes set variables from their YAML: puts back what a test in this process changed."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def small_qwen(tmp_path_factory):
    """Folder of a Qwen3 of some thousand parameters, untrained, with a byte-level BPE tokenizer and a ChatML template.

    For games that the embedded model cannot read: it takes any text, and answers noise.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("small") / "qwen"
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(["the player holds the card and checks, bets, calls or folds"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium, or a skip that says what is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield session
    session.quit()
