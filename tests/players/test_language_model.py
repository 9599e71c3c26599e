import warnings
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from spiral_trl.games import tabulate
from spiral_trl.games.chance import derive_seeds
from spiral_trl.players.language_model import (
    LanguageModelPlayer,
    check_chat_template,
    default_eos_token_ids,
    evaluating,
)
from spiral_trl.records import Reply, Turn
from spiral_trl.rollout import play


GAME = "kuhn_poker(observation=compact)"
TURNS = tabulate(GAME).turns


def make_player(talkative, **kwargs):
    model, tokenizer = talkative
    return LanguageModelPlayer(model, tokenizer, **{"max_new_tokens": 4, **kwargs})


def turns_of(count, seed=0):
    which = np.random.default_rng(seed).integers(len(TURNS), size=count)
    seeds = derive_seeds(seed, np.arange(count))
    return [replace(TURNS[w], seed=int(s), index=i % 3) for i, (w, s) in enumerate(zip(which, seeds, strict=True))]


def turn_saying(content):
    return replace(TURNS[0], messages=({"role": "user", "content": content},))


@torch.no_grad()
def next_logits(model, ids):
    """Logits after `ids`, by one plain forward pass without padding."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()


def without_logprobs(reply):
    return replace(reply, logprobs=None)


def assert_same(got, expected):
    assert [without_logprobs(r) for r in got] == [without_logprobs(r) for r in expected]
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- replies


def test_a_reply_says_what_was_asked_and_answered(talkative):
    model, tokenizer = talkative
    player = make_player(talkative)
    player.policy_version = 12
    turns = turns_of(200)
    replies = player.reply(turns)
    assert {reply.finish_reason for reply in replies} == {"stop", "length"}
    for turn, reply in zip(turns, replies, strict=True):
        chat = tokenizer.apply_chat_template(list(turn.messages), add_generation_prompt=True, tokenize=False)
        assert list(reply.prompt_ids) == tokenizer.encode(chat, add_special_tokens=False)
        assert 1 <= len(reply.completion_ids) == len(reply.logprobs) <= 4
        ended = reply.completion_ids[-1] == tokenizer.eos_token_id
        assert reply.finish_reason == ("stop" if ended else "length")
        assert ended or len(reply.completion_ids) == 4
        assert tokenizer.eos_token_id not in reply.completion_ids[:-1]
        assert reply.policy_version == 12 and reply.action is None and reply.error is None
    for reply in replies[:30]:
        ids, lps = list(reply.prompt_ids), []
        for token in reply.completion_ids:
            lps.append(torch.log_softmax(next_logits(model, ids), -1)[token].item())
            ids.append(token)
        np.testing.assert_allclose(reply.logprobs, lps, rtol=0, atol=1e-5)


def test_the_text_skips_special_tokens(talkative):
    _, tokenizer = talkative
    player = make_player(talkative)
    ids = tokenizer.convert_tokens_to_ids(["<|pad|>", "J", "<|user|>", "[bet]", "<|end|>"])
    assert player.decode(ids) == "J [bet]"
    replies = player.reply(turns_of(300))
    assert not any("<|" in reply.text for reply in replies if tokenizer.unk_token_id not in reply.completion_ids)
    assert "[bet]" in {reply.text for reply in replies}


def test_sample_gives_what_reply_gives(talkative):
    player = make_player(talkative)
    rng = np.random.default_rng(0)
    which = rng.integers(len(TURNS), size=300)
    seeds, index = derive_seeds(1, np.arange(300)), rng.integers(3, size=300)
    replies, of = player.sample(TURNS, which, seeds, index)
    turns = [
        replace(TURNS[w], seed=int(s), index=int(i), episode=7) for w, s, i in zip(which, seeds, index, strict=True)
    ]
    assert_same(player.reply(turns), [replies[i] for i in of])
    assert_same([player.reply([turn])[0] for turn in turns[:40]], [replies[i] for i in of[:40]])
    # Each reply belongs to one turn only, and none is there for nothing
    owner = {}
    assert all(owner.setdefault(int(r), int(w)) == w for r, w in zip(of, which, strict=True))
    assert sorted(owner) == list(range(len(replies)))
    assert len(replies) < 300
    assert player.reply([]) == []


def test_replies_derive_from_seed_and_index(talkative):
    player = make_player(talkative)
    turn = TURNS[0]
    texts = {player.reply([replace(turn, seed=3, index=i)])[0].text for i in range(8)}
    assert len(texts) > 1
    assert len({player.reply([replace(turn, seed=s, index=0)])[0].text for s in range(8)}) > 1
    assert_same(
        player.reply([replace(turn, seed=3, index=1, episode=5)]), player.reply([replace(turn, seed=3, index=1)])
    )


def test_few_rows_at_once_give_the_same(talkative):
    turns = turns_of(60)
    assert_same(make_player(talkative, max_rows=2).reply(turns), make_player(talkative).reply(turns))


# ------------------------------------------------------------------------------------------ next-token probabilities


PREFIXES = [[2, 9, 10], [2, 9, 11, 12, 14, 15, 16, 17, 3], [5], [2, 9, 10, 13, 3, 4], [2, 9, 10]]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("max_rows", [512, 2])
def test_next_token_probabilities(talkative, temperature, max_rows):
    model, _ = talkative
    player = make_player(talkative, temperature=temperature, max_rows=max_rows)
    got = player.next_token_probs(PREFIXES)
    assert got.dtype == np.float64 and got.shape == (5, model.config.vocab_size)
    np.testing.assert_allclose(got.sum(1), 1, rtol=0, atol=1e-12)
    for row, prefix in zip(got, PREFIXES, strict=True):
        expected = torch.softmax(next_logits(model, prefix) / temperature, -1)
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-6)


def test_an_adapter_is_applied(build_talkative):
    peft = pytest.importorskip("peft")
    model, tokenizer = build_talkative()
    plain = [torch.softmax(next_logits(model, prefix), -1).numpy() for prefix in PREFIXES]
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the two libraries about each other
        wrapped = peft.get_peft_model(model, config)
    player = make_player((wrapped, tokenizer))
    got = player.next_token_probs(PREFIXES)
    expected = np.stack([torch.softmax(next_logits(wrapped, prefix), -1).numpy() for prefix in PREFIXES])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    assert np.abs(expected - np.stack(plain)).max() > 0.01
    # What is sampled has the adapter's log-probabilities too
    for reply in player.reply(turns_of(20)):
        lp = torch.log_softmax(next_logits(wrapped, reply.prompt_ids), -1)[reply.completion_ids[0]]
        assert reply.logprobs[0] == pytest.approx(lp.item(), abs=1e-5)
    with wrapped.disable_adapter():
        np.testing.assert_allclose(player.next_token_probs(PREFIXES), np.stack(plain), rtol=0, atol=1e-6)


def test_logits_that_are_not_the_output_of_the_head(talkative):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=22,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        sliding_window=4,
        final_logit_softcapping=0.5,
        initializer_range=0.5,
        eos_token_id=1,
    )
    model = Gemma2ForCausalLM(config).eval()
    got = make_player((model, talkative[1])).next_token_probs(PREFIXES)
    for row, prefix in zip(got, PREFIXES, strict=True):
        logits = next_logits(model, prefix)
        assert logits.abs().max() <= 0.5
        np.testing.assert_allclose(row, torch.softmax(logits, -1), rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------- sampling settings


def expected_logprob(reply, model, change):
    """Sum of log-probabilities of a reply where `change(prefix, logits)` acts on the logits of each token."""
    ids, total = list(reply.prompt_ids), 0.0
    for token in reply.completion_ids:
        total += torch.log_softmax(change(ids, next_logits(model, ids)), -1)[token].item()
        ids.append(token)
    return total


def keep_top_k(k):
    def change(_, logits):
        return logits.masked_fill(logits < logits.sort(descending=True).values[k - 1], -torch.inf)

    return change


def keep_top_p(p):
    def change(_, logits):
        probabilities = torch.softmax(logits, -1)
        order = probabilities.sort(descending=True).indices
        before = probabilities[order].cumsum(0) - probabilities[order]
        kept = order[before < p]
        return torch.full_like(logits, -torch.inf).index_put((kept,), logits[kept])

    return change


def keep_min_p(p):
    def change(_, logits):
        probabilities = torch.softmax(logits, -1)
        return logits.masked_fill(probabilities < p * probabilities.max(), -torch.inf)

    return change


def penalise(penalty):
    def change(ids, logits):
        logits = logits.clone()
        for token in set(ids):
            logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
        return logits

    return change


def forbid(tokens):
    def change(_, logits):
        logits = logits.clone()
        logits[tokens] = -torch.inf
        return logits

    return change


def forbid_repeated_pairs(ids, logits):
    logits = logits.clone()
    logits[[b for a, b in zip(ids, ids[1:], strict=False) if a == ids[-1]]] = -torch.inf
    return logits


SETTINGS = {
    "temperature": ({"temperature": 0.5}, lambda _, logits: logits / 0.5),
    "top_k": ({"top_k": 2}, keep_top_k(2)),
    "top_p": ({"top_p": 0.5}, keep_top_p(0.5)),
    "min_p": ({"min_p": 0.3}, keep_min_p(0.3)),
    "repetition_penalty": ({"repetition_penalty": 1.7}, penalise(1.7)),
    "bad_words_ids": ({"generation_kwargs": {"bad_words_ids": [[6], [5]]}}, forbid([5, 6])),
    "suppress_tokens": ({"generation_kwargs": {"suppress_tokens": [1]}}, forbid([1])),
    "no_repeat_ngram_size": ({"generation_kwargs": {"no_repeat_ngram_size": 2}}, forbid_repeated_pairs),
    "both": ({"temperature": 2.0, "top_k": 3}, lambda ids, logits: keep_top_k(3)(ids, logits / 2)),
}


@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_act_on_the_distribution(talkative, build_talkative, setting, pad_is_eos):
    model, tokenizer = talkative
    if pad_is_eos:  # as base models have it; then padding must count for nothing
        _, tokenizer = build_talkative()
        tokenizer.pad_token = tokenizer.eos_token
    arguments, change = SETTINGS[setting]
    player = make_player((model, tokenizer), **arguments)
    assert not player.plain_sampling
    turns = turns_of(150)
    assert len({len(player.prompt_ids(turn)) for turn in turns}) > 1  # some prompts are padded
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replies = player.reply(turns)
    for reply in set(replies):
        expected = expected_logprob(reply, model, change)
        assert expected > -torch.inf
        assert sum(reply.logprobs) == pytest.approx(expected, abs=1e-4)
    plain = make_player(talkative)
    assert plain.plain_sampling
    assert any(
        change(list(r.prompt_ids), next_logits(model, r.prompt_ids))[r.completion_ids[0]].isneginf()
        for r in plain.reply(turns)
    ) is (setting not in {"temperature", "repetition_penalty", "no_repeat_ngram_size"})


def test_the_most_probable_token_alone_is_greedy(talkative):
    model, _ = talkative
    for reply in make_player(talkative, top_k=1).reply(turns_of(60)):
        ids = list(reply.prompt_ids)
        for token in reply.completion_ids:
            assert token == next_logits(model, ids).argmax()
            ids.append(token)
        assert reply.logprobs == (0.0,) * len(reply.completion_ids)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"num_beams": 4}, "num_beams"),
        ({"do_sample": False, "max_length": 9}, "do_sample, max_length"),
        ({"temperature": 0.1}, "temperature"),
        ({"stop_strings": ["]"], "suppress_tokens": [3]}, "stop_strings"),
        ({"exponential_decay_length_penalty": (1, 1.5)}, "exponential_decay_length_penalty"),
        ({"encoder_repetition_penalty": 2.0}, "encoder_repetition_penalty"),
        ({"bad_word_ids": [[3]]}, "bad_word_ids"),
    ],
)
def test_other_generation_kwargs_are_refused_by_name(talkative, given, named):
    with pytest.raises(ValueError, match=f"^generation_kwargs: {named} cannot be used in self-play") as error:
        make_player(talkative, generation_kwargs=given)
    assert "Allowed: bad_words_ids, " in str(error.value) and "\n" not in str(error.value)
    assert ("did you mean 'bad_words_ids'?" in str(error.value)) is (named == "bad_word_ids")


# --------------------------------------------------------------------------------------------------- what is refused


def test_a_tokenizer_without_chat_template_is_refused_with_the_fix(build_talkative):
    model, tokenizer = build_talkative()
    tokenizer.chat_template = None
    for refused in (lambda: check_chat_template(tokenizer), lambda: LanguageModelPlayer(model, tokenizer)):
        with pytest.raises(ValueError, match=r"no chat template.*trl\.clone_chat_template\(model, tokenizer"):
            refused()


def test_a_prompt_that_is_too_long_is_refused(talkative):
    player = make_player(talkative, max_new_tokens=20)
    assert player.max_length == 128
    fits = " ".join(["J"] * (128 - 20 - 2))  # the template adds two tokens
    assert len(player.prompt_ids(turn_saying(fits))) == 108
    with pytest.raises(ValueError, match="has 109 tokens, and with 20 for the reply passes the model's 128 positions"):
        player.prompt_ids(turn_saying(fits + " J"))


def test_tokens_that_end_a_reply(build_talkative):
    model, tokenizer = build_talkative()
    ids = {"pad": tokenizer.pad_token_id, "end": tokenizer.eos_token_id}

    def defaults(declared, own="<|end|>"):
        model.generation_config.eos_token_id = declared
        tokenizer.eos_token = own
        return default_eos_token_ids(model, tokenizer)

    assert defaults(ids["end"]) == [ids["end"]]
    assert sorted(defaults([ids["pad"], ids["end"]])) == sorted(ids.values())
    assert sorted(defaults(ids["pad"])) == sorted(ids.values())
    assert sorted(defaults([ids["pad"], 7])) == sorted([*ids.values(), 7])
    assert defaults(None) == [ids["end"]]
    assert defaults([3, 4], own=None) == [3, 4]
    with pytest.raises(ValueError, match="name no end-of-sequence token. Set eos_token"):
        defaults(None, own=None)
    model.generation_config = None
    with pytest.raises(ValueError, match="name no end-of-sequence token. Set eos_token"):
        default_eos_token_ids(model, tokenizer)


def test_the_tokens_that_end_a_reply_may_be_given(talkative):
    player = make_player(talkative, eos_token_ids=[5, 6])
    replies = player.reply(turns_of(100))
    assert {r.completion_ids[-1] for r in replies if r.finish_reason == "stop"} == {5, 6}
    assert any(1 in r.completion_ids[:-1] for r in replies)


# ------------------------------------------------------------------------------------------------- model and engine


def test_the_model_is_taken_from_the_context_and_left_in_its_mode(build_talkative):
    model, tokenizer = build_talkative()
    other, _ = build_talkative(seed=1)
    other.train()
    inside = []

    @contextmanager
    def unwrap():
        inside.append("in")
        yield other
        inside.append("out")

    player = make_player((model, tokenizer), unwrap=unwrap)
    got = player.reply(turns_of(40))
    assert inside == ["in", "out"] and other.training
    assert_same(got, make_player((other, tokenizer)).reply(turns_of(40)))
    np.testing.assert_allclose(
        player.next_token_probs(PREFIXES), make_player((other, tokenizer)).next_token_probs(PREFIXES)
    )


def test_a_model_in_training_generates_without_dropout_and_trains_on():
    model = torch.nn.Dropout(0.5)
    for training in (True, False):
        model.train(training)
        with evaluating(model):
            assert not model.training
        assert model.training is training
    model.train()
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert model.training


@pytest.mark.parametrize("with_logprobs", [True, False])
def test_an_engine_generates_instead(talkative, with_logprobs):
    model, tokenizer = talkative
    asked = []

    def engine(prompts):
        asked.append(prompts)
        ids = [[5, tokenizer.eos_token_id] if i % 2 else [6, 5, 6, 5] for i in range(len(prompts))]
        return ids, [[-0.25] * len(row) for row in ids] if with_logprobs else None

    # An engine reads its own settings, such as vLLM's
    player = make_player(talkative, engine=engine, generation_kwargs={"presence_penalty": 0.5}, top_k=3)
    assert not player.speculative and make_player(talkative).speculative
    player.policy_version = 3
    turns = [TURNS[0], TURNS[1], TURNS[0], TURNS[0]]
    prompts = [player.prompt_ids(turn) for turn in turns]
    a, b = tokenizer.decode([6]), tokenizer.decode([5])
    odd = Reply(b, None, None, (), (5, 1), (-0.25, -0.25), "stop", 3)
    even = Reply(f"{a} {b} {a} {b}", None, None, (), (6, 5, 6, 5), (-0.25,) * 4, "length", 3)
    expected = [replace(odd if i % 2 else even, prompt_ids=prompts[i]) for i in range(4)]
    if not with_logprobs:
        expected = [without_logprobs(reply) for reply in expected]
    assert player.reply(turns) == expected
    assert asked == [[list(ids) for ids in prompts]]

    replies, of = player.sample(TURNS, np.array([0, 1, 0, 0]), np.zeros(4, dtype=int), np.zeros(4, dtype=int))
    assert [replies[i] for i in of] == expected
    batch = play(GAME, [player, player], range(10))
    assert sorted(batch.turn_sample) == list(range(len(batch.samples)))  # what an engine wrote twice is two samples
    assert len(asked[2]) == 10  # no turn is asked ahead of time


def test_chat_template_arguments_are_passed_on(build_talkative):
    model, tokenizer = build_talkative()
    tokenizer.chat_template = "{{ 'J ' if thinking else 'K ' }}{{ messages[0].content }}"
    first = {}
    for thinking in (True, False):
        player = make_player((model, tokenizer), chat_template_kwargs={"thinking": thinking})
        first[thinking] = tokenizer.decode(player.prompt_ids(turn_saying("Q"))[:1])
    assert first == {True: "J", False: "K"}


def test_the_prompt_is_the_whole_chat(talkative):
    model, tokenizer = talkative
    player = make_player(talkative)
    chat = (
        {"role": "user", "content": "card J"},
        {"role": "assistant", "content": "[check]"},
        {"role": "user", "content": "history bet"},
    )
    turn = Turn(GAME, 0, 0, 0, 0, "player 0", chat, ("call", "fold"))
    text = "<|user|> card J <|assistant|> [check]<|end|> <|user|> history bet <|assistant|>"
    assert tokenizer.decode(player.prompt_ids(turn)).split() == text.replace("]<", "] <").split()
