"""The embedded model: its text round trip, its chat template, and what the warm start does and does not teach."""

import math
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from spiral_trl.games import make_game, tabulate
from spiral_trl.training.tiny import (
    MAX_REASONING_WORDS,
    REASONING_WORDS,
    build_tiny_model,
    completion_text,
    random_play_dataset,
    save_tiny_model,
    warm_start,
)


GAME = "kuhn_poker(observation=compact)"


def reply_probability(model, tokenizer, turn, text):
    """Probability of exactly `text` and the end token as the reply to `turn`."""
    prompt = tokenizer.apply_chat_template(list(turn.messages), add_generation_prompt=True, return_dict=False)
    reply = [*tokenizer.encode(text), tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + reply])).logits[0].double()
    logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
    return logprobs[torch.arange(len(reply)), reply].sum().exp().item()


def test_the_model_is_small_and_of_the_documented_shape():
    model, tokenizer = build_tiny_model(0)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (32, 2, 64)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 8)
    assert not config.tie_word_embeddings
    assert config.vocab_size == len(tokenizer) == 22
    assert model.dtype == torch.float32
    assert sum(parameter.numel() for parameter in model.parameters()) < 21_000


def test_weights_depend_on_the_seed_alone_and_the_global_random_state_stays():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, _ = build_tiny_model(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    again, _ = build_tiny_model(3)
    other, _ = build_tiny_model(4)
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize("sizes", [{"hidden_size": 12}, {"hidden_size": 0}, {"num_layers": 0}])
def test_impossible_sizes_are_refused(sizes):
    name, value = next(iter(sizes.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        build_tiny_model(0, **sizes)


@pytest.mark.parametrize("reasoning", [False, True])
def test_saved_and_loaded_it_gives_the_same_logits(tmp_path, reasoning):
    model, tokenizer = build_tiny_model(1, reasoning=reasoning)
    save_tiny_model(tmp_path, 1, reasoning=reasoning)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    loaded_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|user|> player 1 card Q history bet <|assistant|> Q [call]"
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert torch.equal(ids, loaded_tokenizer(text, return_tensors="pt").input_ids)
    assert torch.equal(model(ids).logits, loaded(ids).logits)
    assert loaded_tokenizer.chat_template == tokenizer.chat_template
    assert loaded_tokenizer.padding_side == "left"
    assert loaded.generation_config.eos_token_id == loaded_tokenizer.eos_token_id
    assert loaded.generation_config.pad_token_id == loaded_tokenizer.pad_token_id
    assert ("hmm" in loaded_tokenizer.get_vocab()) is reasoning


def test_text_survives_the_tokenizer():
    _, tokenizer = build_tiny_model(0, reasoning=True)
    for text in ("J [bet]", "hmm maybe weak K [check]", "player 0 card J history check bet"):
        ids = tokenizer.encode(text)
        assert len(ids) == len(text.split())
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*tokenizer.encode("J [bet]"), tokenizer.eos_token_id], skip_special_tokens=True) == (
        "J [bet]"
    )
    assert tokenizer.encode("J dragon") == [*tokenizer.encode("J"), tokenizer.unk_token_id]
    assert tokenizer.unk_token_id not in (tokenizer.pad_token_id, tokenizer.eos_token_id)


def test_every_word_of_the_game_is_known():
    _, tokenizer = build_tiny_model(0)
    for turn in tabulate(GAME).turns:
        for text in [*(m["content"] for m in turn.messages), *(completion_text(turn, a) for a in turn.legal_actions)]:
            assert tokenizer.unk_token_id not in tokenizer.encode(text)


def test_a_chat_only_grows():
    _, tokenizer = build_tiny_model(0)
    chat = [
        {"role": "user", "content": "player 0 card J history none"},
        {"role": "assistant", "content": "J [check]"},
        {"role": "user", "content": "player 0 card J history check bet"},
        {"role": "assistant", "content": "J [fold]"},
    ]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == (
        "<|user|> player 0 card J history none <|assistant|> J [check]<|end|> "
        "<|user|> player 0 card J history check bet <|assistant|> J [fold]<|end|> "
    )
    for tokenize in (True, False):
        seen = [
            tokenizer.apply_chat_template(chat[:n], add_generation_prompt=n % 2 == 1, tokenize=tokenize)
            for n in (1, 2, 3, 4)
        ]
        seen = [chat["input_ids"] if tokenize else chat for chat in seen]
        for shorter, longer in zip(seen, seen[1:], strict=False):
            assert len(shorter) < len(longer)
            assert longer[: len(shorter)] == shorter


def test_random_play_is_legal_and_uniform():
    rows = 6000
    dataset = random_play_dataset(GAME, rows, seed=0)
    assert dataset.column_names == ["prompt", "completion"]
    turns = {turn.messages[-1]["content"]: turn for turn in tabulate(GAME).turns}
    assert len(turns) == 12
    counts = Counter()
    for prompt, completion in zip(dataset["prompt"], dataset["completion"], strict=True):
        observation, reply = prompt[-1]["content"], completion[0]["content"]
        assert completion[0]["role"] == "assistant"
        card, action = reply.split()
        assert card == observation.split()[3]
        assert action.strip("[]") in turns[observation].legal_actions
        counts[observation, action] += 1
    # 24 cells of 250 expected rows; the standard deviation of a cell is below 16.
    assert len(counts) == 24
    assert all(abs(count - rows / 24) < 5 * 16 for count in counts.values())


def test_the_game_reads_the_action_that_the_reply_names():
    game = make_game(GAME)
    game.reset(0)
    (turn,) = game.turns()
    for action in turn.legal_actions:
        assert game.parse(turn.player, completion_text(turn, action)).action == action


def test_reasoning_has_every_length_equally_often():
    rows = 3500
    dataset = random_play_dataset(GAME, rows, seed=1, reasoning=True)
    replies = [completion[0]["content"].split() for completion in dataset["completion"]]
    lengths = Counter(len(words) - 2 for words in replies)
    assert set(lengths) == set(range(MAX_REASONING_WORDS + 1))
    # 500 expected rows each; the standard deviation is below 21.
    assert all(abs(count - rows / 7) < 5 * 21 for count in lengths.values())
    assert {word for words in replies for word in words[:-2]} == set(REASONING_WORDS)


def test_random_play_depends_on_its_seed_alone():
    first, again, other = (random_play_dataset(GAME, 50, seed=seed) for seed in (5, 5, 6))
    assert first.to_list() == again.to_list() != other.to_list()


def test_after_the_warm_start_replies_are_legal_and_strategy_free(tmp_path):
    folder = save_tiny_model(tmp_path / "fresh", 0)
    warm_start(folder, GAME, tmp_path / "warm", seed=0, steps=80)
    files = {path.name for path in (tmp_path / "warm").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= files
    assert "training_args.bin" not in files

    fresh = AutoModelForCausalLM.from_pretrained(folder)
    model, tokenizer = (cls.from_pretrained(tmp_path / "warm") for cls in (AutoModelForCausalLM, AutoTokenizer))
    for turn in tabulate(GAME).turns:
        texts = [completion_text(turn, action) for action in turn.legal_actions]
        assert sum(reply_probability(fresh, tokenizer, turn, text) for text in texts) < 0.1
        probabilities = [reply_probability(model, tokenizer, turn, text) for text in texts]
        legal = sum(probabilities)
        assert legal > 0.95
        entropy = -sum(p / legal * math.log2(p / legal) for p in probabilities)
        assert entropy > 0.97  # bits; 1 is uniform, 0.97 is 40 to 60


def test_the_warm_start_is_deterministic(tmp_path):
    def weights(name, seed):
        model, tokenizer = build_tiny_model(2)
        warm_start(model, GAME, tmp_path / name, seed=seed, tokenizer=tokenizer, steps=3)
        return AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()

    first, again, other = weights("first", 0), weights("again", 0), weights("other", 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_warm_start_with_reasoning_gives_replies_of_free_length(tmp_path):
    folder = save_tiny_model(tmp_path / "fresh", 0, reasoning=True)
    warm_start(folder, GAME, tmp_path / "warm", seed=0, steps=80, reasoning=True)
    model, tokenizer = (cls.from_pretrained(tmp_path / "warm") for cls in (AutoModelForCausalLM, AutoTokenizer))
    turn = tabulate(GAME).turns[0]
    prompt = tokenizer.apply_chat_template(list(turn.messages), add_generation_prompt=True, return_dict=False)
    torch.manual_seed(0)
    sampled = model.generate(torch.tensor([prompt] * 200), do_sample=True, max_new_tokens=12, top_k=0)
    replies = [tokenizer.decode(row[len(prompt) :], skip_special_tokens=True) for row in sampled]
    endings = tuple(completion_text(turn, action) for action in turn.legal_actions)
    legal = [reply for reply in replies if reply.endswith(endings)]
    assert len(legal) > 170
    assert len({len(reply.split()) for reply in legal}) >= 6


def test_words_the_model_does_not_know_are_named(tmp_path):
    model, tokenizer = build_tiny_model(0)
    with pytest.raises(ValueError, match=r"does not know these words of 'kuhn_poker'.*more.*observation=compact"):
        warm_start(model, "kuhn_poker", tmp_path, seed=0, tokenizer=tokenizer, steps=1)
    with pytest.raises(ValueError, match="reasoning=True"):
        warm_start(model, GAME, tmp_path, seed=0, tokenizer=tokenizer, steps=1, reasoning=True)
    with pytest.raises(ValueError, match="tokenizer"):
        warm_start(model, GAME, tmp_path, seed=0)
    with pytest.raises(ValueError, match="kuhn_pokr"):
        random_play_dataset("kuhn_pokr", 1, seed=0)
