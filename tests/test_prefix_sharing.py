from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spiral_trl import prefix_sharing
from spiral_trl.games.chance import uniforms
from spiral_trl.prefix_sharing import distinct_rows, sample_distinct


EOS = 1
PROMPTS = [[2, 9, 10], [2, 9, 11, 12, 14, 15, 16, 17, 3], [5], [2, 9, 10, 13, 3, 4], [2, 9, 11]]


@torch.no_grad()
def next_logits(model, ids):
    """Logits after `ids`: one plain forward pass over all of it, without padding or cache."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()


def reference(model, prompts, which, draw, max_new_tokens, eos=(EOS,), process=None):
    """Samples one by one by inversion, every prefix computed on its own.

    Answers tokens, log-probabilities, and how far the nearest draw lay from a boundary between two tokens: where that
    is well above rounding, rounding cannot have decided anything.
    """
    known = {}
    tokens, logprobs, margin = [], [], 1.0
    for sample, prompt in enumerate(which):
        done, lps = [], []
        for position in range(max_new_tokens):
            prefix = (*prompts[prompt], *done)
            if prefix not in known:
                logits = next_logits(model, prefix)
                if process is not None:
                    logits = process(prefix, logits)
                known[prefix] = torch.log_softmax(logits, -1).numpy()
            cdf = np.cumsum(np.exp(known[prefix]))
            u = float(draw(np.array([sample]), position)[0])
            token = int(np.searchsorted(cdf, u * cdf[-1], side="right"))
            margin = min(margin, np.abs(cdf[:-1] - u).min())
            done.append(token)
            lps.append(known[prefix][token])
            if token in eos:
                break
        tokens.append(tuple(done))
        logprobs.append(lps)
    return tokens, logprobs, margin


def seeded(seed):
    return lambda samples, position: uniforms(seed, samples, position)


def sampled(model, prompts, which, draw, **kwargs):
    kwargs = {"max_new_tokens": 4, "eos_token_ids": {EOS}, "pad_token_id": 0, **kwargs}
    result = sample_distinct(model, prompts, np.asarray(which), draw, **kwargs)
    assert [result.prompt[c] for c in result.completion] == list(which)
    assert sorted(set(result.completion)) == list(range(len(result.token_ids)))  # none is there for nothing
    pairs = list(zip(result.prompt, result.token_ids, strict=True))
    assert len(set(pairs)) == len(pairs)
    return result


def by_sample(result):
    return [result.token_ids[c] for c in result.completion], [result.logprobs[c] for c in result.completion]


def assert_close(got, expected, tolerance=1e-5):
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


def gpt2():
    """Absolute positions, so that padding shifts every token unless positions are given."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=22, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    return GPT2LMHeadModel(config).eval()


def gemma2():
    """Sliding windows shorter than the prompts, and logits that are not the head's output."""
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
        final_logit_softcapping=2.0,
        initializer_range=0.5,
    )
    return Gemma2ForCausalLM(config).eval()


@pytest.fixture(scope="module", params=["qwen3", "gpt2", "gemma2"])
def model(request, talkative):
    return talkative[0] if request.param == "qwen3" else {"gpt2": gpt2, "gemma2": gemma2}[request.param]()


@pytest.fixture(scope="module")
def one_by_one(model):
    which = np.random.default_rng(0).integers(len(PROMPTS), size=150)
    tokens, logprobs, margin = reference(model, PROMPTS, which, seeded(1), 4)
    assert margin > 1e-6
    assert len(set(tokens)) > 20 and {len(t) for t in tokens} == {1, 2, 3, 4}  # there is something to compare
    return which, tokens, logprobs


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("max_rows", [512, 3, 1])
def test_it_samples_what_one_by_one_sampling_does(model, one_by_one, use_cache, max_rows):
    which, tokens, logprobs = one_by_one
    result = sampled(model, PROMPTS, which, seeded(1), use_cache=use_cache, max_rows=max_rows)
    got, got_logprobs = by_sample(result)
    assert got == tokens
    assert_close(got_logprobs, logprobs)


@pytest.mark.parametrize("max_rows", [512, 7])
@pytest.mark.parametrize("use_cache", [True, False])
def test_each_distinct_prefix_is_one_row(talkative, max_rows, use_cache):
    model, _ = talkative
    which = np.random.default_rng(1).integers(len(PROMPTS), size=400)
    rows, tokens_seen = [], []

    def count(module, args, kwargs):
        rows.append(kwargs["input_ids"].size(0))
        tokens_seen.append(kwargs["input_ids"].numel())

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        result = sampled(model, PROMPTS, which, seeded(2), max_rows=max_rows, use_cache=use_cache)
    finally:
        handle.remove()
    prefixes = {
        (prompt, ids[:k])
        for prompt, ids in zip(result.prompt, result.token_ids, strict=True)
        for k in range(len(ids))  # the last token is not read
    }
    assert sum(rows) == len(prefixes) < 0.8 * sum(len(t) for t in by_sample(result)[0])
    assert max(rows) <= max_rows
    if use_cache:
        # Beyond the (padded) prompts, one token a row
        prompts = [PROMPTS[i : i + max_rows] for i in range(0, len(PROMPTS), max_rows)]
        padded = sum(len(part) * max(map(len, part)) for part in prompts)
        assert sum(tokens_seen) == padded + len(prefixes) - len(PROMPTS)


def test_frequencies_are_those_of_all_sequences(talkative):
    model, _ = talkative
    prompts, count = PROMPTS[:2], 20_000
    vocab = model.config.vocab_size
    which = np.repeat([0, 1], count)
    result = sampled(model, prompts, which, seeded(3), max_new_tokens=2)
    for prompt, ids in enumerate(prompts):
        first = torch.softmax(next_logits(model, ids), -1).numpy()
        expected = {(EOS,): first[EOS]}
        for a, b in product(range(vocab), repeat=2):
            if a != EOS:
                if b == 0:
                    second = torch.softmax(next_logits(model, [*ids, a]), -1).numpy()
                expected[a, b] = first[a] * second[b]
        assert sum(expected.values()) == pytest.approx(1)
        drawn = {}
        for c in result.completion[which == prompt]:
            drawn[result.token_ids[c]] = drawn.get(result.token_ids[c], 0) + 1
        assert set(drawn) <= set(expected)
        likely = [s for s, p in expected.items() if p * count >= 5]
        assert len(likely) > 30
        rest = 1 - sum(expected[s] for s in likely)
        pairs = [(drawn.get(s, 0), expected[s] * count) for s in likely]
        pairs.append((count - sum(n for n, _ in pairs), rest * count))
        chi2 = sum((n - e) ** 2 / e for n, e in pairs)
        freedom = len(pairs) - 1
        assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


def test_log_probabilities_are_those_of_the_model(model):
    result = sampled(model, PROMPTS, np.arange(100) % len(PROMPTS), seeded(4))
    for prompt, ids, logprobs in zip(result.prompt, result.token_ids, result.logprobs, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*PROMPTS[prompt], *ids]]), use_cache=False).logits[0]
        expected = torch.log_softmax(logits.double(), -1)[len(PROMPTS[prompt]) - 1 : -1]
        assert_close([logprobs], [expected[torch.arange(len(ids)), list(ids)].numpy()])


def test_a_sample_does_not_depend_on_those_beside_it(talkative):
    model, _ = talkative
    which = np.arange(60) % len(PROMPTS)
    together = by_sample(sampled(model, PROMPTS, which, seeded(5)))
    for sample in range(0, 60, 7):
        alone = sampled(model, [PROMPTS[which[sample]]], [0], lambda _, p, s=sample: uniforms(5, np.array([s]), p))
        assert alone.token_ids == [together[0][sample]]
        assert_close(alone.logprobs, [together[1][sample]])


def test_processed_logits_are_what_is_drawn_from(talkative):
    model, _ = talkative
    seen = []

    def process(tokens, mask, logits):
        for row, kept in zip(tokens.tolist(), mask.tolist(), strict=True):
            length = sum(kept)
            assert kept == [0] * (len(row) - length) + [1] * length
            seen.append(tuple(row[len(row) - length :]))
        logits = logits / 0.5
        logits[:, EOS] = -torch.inf
        return logits

    def alone(prefix, logits):
        logits = logits / 0.5
        logits[EOS] = -torch.inf
        return logits

    which = np.arange(60) % len(PROMPTS)
    tokens, logprobs, margin = reference(model, PROMPTS, which, seeded(6), 3, process=alone)
    assert margin > 1e-6
    got, got_logprobs = by_sample(
        sampled(model, PROMPTS, which, seeded(6), max_new_tokens=3, process_logits=process, max_rows=4)
    )
    assert got == tokens and all(len(t) == 3 and EOS not in t for t in got)
    assert_close(got_logprobs, logprobs)
    assert sorted(set(seen)) == sorted(seen)
    assert {tuple(prompt) for prompt in PROMPTS} <= set(seen)


def test_any_of_several_tokens_ends_a_completion(talkative):
    model, _ = talkative
    ends = {EOS, 5, 6}
    which = np.arange(200) % len(PROMPTS)
    tokens, _, margin = reference(model, PROMPTS, which, seeded(7), 6, eos=ends)
    assert margin > 1e-6
    got, _ = by_sample(sampled(model, PROMPTS, which, seeded(7), eos_token_ids=ends, max_new_tokens=6))
    assert got == tokens
    assert {t[-1] for t in got if len(t) < 6} == ends
    assert not any(set(t[:-1]) & ends for t in got)
    never, _ = by_sample(sampled(model, PROMPTS, which, seeded(7), eos_token_ids=(), max_new_tokens=3))
    assert {len(t) for t in never} == {3} and any(EOS in t[:-1] for t in never)


def test_one_token_is_the_shortest(talkative):
    got, _ = by_sample(sampled(talkative[0], PROMPTS, np.arange(20) % 5, seeded(8), max_new_tokens=1))
    assert {len(t) for t in got} == {1}


def test_prompts_without_samples_and_no_samples_at_all(talkative):
    model, _ = talkative
    result = sampled(model, PROMPTS, [3, 3, 1], seeded(9), max_rows=1)
    assert set(result.prompt) == {1, 3}
    assert sampled(model, PROMPTS, np.zeros(0, dtype=np.int64), seeded(9)).token_ids == []
    assert sampled(model, [], np.zeros(0, dtype=np.int64), seeded(9)).token_ids == []


class Fixed:
    """A model whose logits depend on the last token of the prefix: row `last` of a matrix."""

    device = torch.device("cpu")

    def __init__(self, probabilities):
        self.logits = torch.tensor(probabilities, dtype=torch.float64).log()

    def __call__(self, input_ids, **kwargs):
        return SimpleNamespace(logits=self.logits[input_ids[:, -1:]], past_key_values=None)


JUST_BELOW_ONE = np.nextafter(1.0, 0.0)


@pytest.mark.parametrize("u", [0.0, 0.3, 0.999999, JUST_BELOW_ONE])
def test_tokens_without_probability_are_never_drawn(u):
    # Of the first row token 1 or 2; of the others one token each, the ends of the vocabulary among them
    rows = [[0, 0.5, 0.5, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]]
    prompts = [[i % 4] for i in range(900)]
    got, logprobs = by_sample(
        sampled(
            Fixed(rows),
            prompts,
            np.arange(900),
            lambda samples, position: np.full(len(samples), u),
            max_new_tokens=1,
            eos_token_ids=(),
            use_cache=False,
            max_rows=1000,
        )
    )
    drawn = 1 if u < 0.5 else 2
    assert got == [((drawn,), (0,), (3,), (1,))[i % 4] for i in range(900)]
    assert_close(logprobs, [[np.log(0.5) if i % 4 == 0 else 0.0] for i in range(900)])


@pytest.mark.parametrize("rows_at_once", [None, 3])
def test_draws_fall_where_the_cumulative_distribution_says(monkeypatch, rows_at_once):
    rng = np.random.default_rng(0)
    vocab = 50
    rows = rng.dirichlet(np.full(vocab, 0.1), size=vocab)
    if rows_at_once:
        monkeypatch.setattr(prefix_sharing, "_CDF_CHUNK", rows_at_once * vocab + 1)
    which = rng.integers(vocab, size=4000)
    draws = rng.random(4000)
    draws[:100] = JUST_BELOW_ONE
    draws[100:200] = 0.0
    got, _ = by_sample(
        sampled(
            Fixed(rows),
            [[i] for i in range(vocab)],
            which,
            lambda samples, position: draws[samples],
            max_new_tokens=1,
            eos_token_ids=(),
            use_cache=False,
        )
    )
    cdf = np.cumsum(rows, axis=1)
    expected = [
        int(np.searchsorted(cdf[w], min(u, 1 - 2**-32) * cdf[w, -1], "right"))
        for w, u in zip(which, draws, strict=True)
    ]
    # Beside 0, draws that lie on a boundary up to the rounding of float32 may fall on either side: there are none
    assert min(np.abs(cdf[w, :-1] - u).min() for w, u in zip(which[200:], draws[200:], strict=True)) > 1e-7
    assert [t for (t,) in got] == expected
    assert all(rows[w, t] > 0 for w, (t,) in zip(which, got, strict=True))


# --------------------------------------------------------------------------------------------------- distinct rows


def check_distinct(ids, mask):
    """`distinct_rows` of a batch, held against a dictionary."""
    found = distinct_rows(ids, mask)
    first_of = {}
    for i, row in enumerate(zip(ids.tolist(), mask.tolist(), strict=True)):
        first_of.setdefault(str(row), i)
    if len(first_of) == len(ids):
        assert found is None
        return 0
    first, inverse = found
    assert sorted(first.tolist()) == sorted(first_of.values())
    assert torch.equal(ids[first][inverse], ids) and torch.equal(mask[first][inverse], mask)
    return len(first)


@pytest.fixture(params=["weights", "no weights"])
def hashing(request, monkeypatch):
    """With the hash as it is, and with one that is the same for all rows of equal sums."""
    if request.param == "no weights":
        monkeypatch.setattr(torch, "randint", lambda low, high, size, **kw: torch.zeros(size, dtype=torch.int64))


def test_distinct_rows(hashing):
    generator = np.random.default_rng(0)
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    ids = every[torch.from_numpy(np.concatenate([generator.permutation(81) for _ in range(3)]))]
    mask = torch.from_numpy(generator.integers(0, 2, size=ids.shape))
    assert check_distinct(ids, torch.ones_like(mask)) == 81
    assert 81 < check_distinct(ids, mask) < 243
    assert check_distinct(ids[:1].repeat(5, 1), mask[:1].repeat(5, 1)) == 1


def test_rows_that_differ_in_order_or_mask_alone_are_distinct(hashing):
    ids = torch.tensor([[1, 2, 3], [3, 2, 1], [2, 2, 2], [1, 2, 3]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 1, 1]])
    assert check_distinct(ids, mask) == 0  # all differ
    assert check_distinct(torch.cat([ids, ids]), torch.cat([mask, mask])) == 4
    assert check_distinct(ids[[0, 1, 0]], mask[[0, 1, 0]]) == 2


def test_large_token_ids_do_not_hurt_the_hash():
    ids = torch.tensor([[2**40, 2**40 + 1], [2**40 + 1, 2**40], [2**40, 2**40 + 1]])
    assert check_distinct(ids, torch.ones_like(ids)) == 2


def test_results_gathered_back_carry_the_gradients_of_every_row():
    ids = torch.tensor([[1, 2], [3, 4], [1, 2], [1, 2]])
    first, inverse = distinct_rows(ids, torch.ones_like(ids))
    weight = torch.arange(5.0).requires_grad_()
    upstream = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    (weight[ids[first]][inverse] * upstream).sum().backward()
    torch.testing.assert_close(weight.grad, torch.tensor([0.0, 13.0, 16.0, 3.0, 4.0]))
