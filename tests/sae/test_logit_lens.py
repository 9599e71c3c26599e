"""The logit lens and the text of tokens, against the models' own modules and whole texts."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from spiral_trl.errors import UsageError
from spiral_trl.sae.logit_lens import LogitLens, final_norm, norm_scale
from spiral_trl.sae.pieces import Pieces


SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 40,
}


@pytest.fixture(
    params=[
        (GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=40), True),
        (LlamaConfig(**SMALL), False),
        (Gemma2Config(**SMALL), False),
        (GPTNeoXConfig(**SMALL), True),
    ],
    ids=["gpt2", "llama", "gemma2", "gpt_neox"],
)
def shaped(request):
    """A model whose norm scales and shifts, and whether the norm takes the mean off."""
    config, centred = request.param
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in final_norm(model).parameters():
            parameter.normal_()
    return model, centred


def test_scores_are_what_the_norm_and_the_unembedding_make_of_a_direction(shaped):
    model, centred = shaped
    norm, head = final_norm(model), model.get_output_embeddings()
    directions = torch.randn(70, 32)
    with torch.no_grad():
        # The norm's bias falls out; what it divides by is put back
        length = (directions - directions.mean(dim=1, keepdim=True) if centred else directions).square().mean(dim=1)
        wanted = (head(norm(directions)) - head(norm(-directions))) / 2 * length.sqrt()[:, None]
        wanted = wanted - wanted.mean(dim=1, keepdim=True)
    high, high_scores, low, low_scores = LogitLens(model).extremes(directions.numpy(), 5)
    assert torch.allclose(torch.tensor(high_scores), wanted.topk(5).values, rtol=1e-3, atol=1e-4)
    assert torch.allclose(torch.tensor(low_scores), wanted.topk(5, largest=False).values, rtol=1e-3, atol=1e-4)
    assert torch.allclose(wanted.gather(1, torch.tensor(high)), wanted.topk(5).values, rtol=1e-3, atol=1e-4)
    assert torch.allclose(wanted.gather(1, torch.tensor(low)), torch.tensor(low_scores), rtol=1e-3, atol=1e-4)


def test_a_norm_is_told_by_what_it_does(shaped):
    model, centred = shaped
    assert norm_scale(final_norm(model), 32)[1] is centred
    # Of an odd width too
    odd = torch.nn.LayerNorm(5) if centred else torch.nn.RMSNorm(5)
    torch.nn.init.normal_(odd.weight)
    scale, told = norm_scale(odd.half(), 5)
    assert told is centred and torch.allclose(scale, odd.weight.float(), rtol=1e-3)


def test_no_token_beyond_the_vocabulary_is_named(shaped):
    model, _ = shaped
    high, _, low, _ = LogitLens(model).extremes(torch.randn(20, 32).numpy(), 50, vocabulary=7)
    assert high.shape == (20, 7) and max(high.max(), low.max()) == 6


def test_directions_of_another_width_are_refused(shaped):
    with pytest.raises(UsageError, match="width 8 cannot be read by an unembedding of width 32"):
        LogitLens(shaped[0]).extremes(torch.randn(2, 8).numpy(), 3)
    assert LogitLens(shaped[0]).extremes(torch.randn(0, 32).numpy(), 3)[0].shape == (0, 3)


TEXT = 'A "quick" fox: naïve café, 好吃 \U0001f600!\n  two  spaces </script>'


def byte_level():
    backend = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def sentencepiece_like():
    """Words with a mark for the space, single characters, and bytes for all others, as Llama 2 has them."""
    words = ["▁A", "▁fox", ":", "▁two", "▁", "a", "▁a"]
    single = [c for c in map(chr, range(33, 127)) if c not in words]
    vocab = [f"<0x{byte:02X}>" for byte in range(256)] + words + single
    merges = [("▁", "A"), ("▁", "a")]
    backend = Tokenizer(
        models.BPE(vocab={word: i for i, word in enumerate(vocab)}, merges=merges, byte_fallback=True, unk_token="!")
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("make", [byte_level, sentencepiece_like])
def test_pieces_read_as_the_text(make):
    tokenizer = make()
    tokens = tokenizer(TEXT)["input_ids"]
    pieces = Pieces(tokenizer).split(tokens)
    assert len(pieces) == len(tokens) and "".join(pieces).strip() == TEXT
    assert pieces.count("好") == 1 and pieces.count("\U0001f600") == 1
    # One character of three tokens, shown where it is looked for
    at = pieces.index("好")
    moved = Pieces(tokenizer).split(tokens, peak=at + 2)
    assert moved[at : at + 3] == ["", "", "好"] and "".join(moved).strip() == TEXT
    # A window that begins and ends within characters
    cut = Pieces(tokenizer).split(tokens[at + 1 : at + 4])
    assert len(cut) == 3 and all(cut)


def test_special_tokens_and_numbers_without_text():
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"eos_token": "<|end|>"})
    pieces = Pieces(tokenizer)
    assert pieces.of(tokenizer.eos_token_id) == "<|end|>"
    assert pieces.of(len(tokenizer) + 5) == f"<{len(tokenizer) + 5}>"
    assert pieces.count == len(tokenizer)
    assert Pieces(None).split([4, 5]) == ["<4>", "<5>"] and Pieces(None).count is None


def test_words_keep_the_spaces_between_them(embedded):
    tokenizer = embedded[1]
    tokens = tokenizer("player 0 card J [bet]")["input_ids"]
    assert Pieces(tokenizer).split(tokens) == [" player", " 0", " card", " J", " [bet]"]


def test_a_byte_level_tokenizer_that_was_trained(small_qwen):
    tokenizer = AutoTokenizer.from_pretrained(small_qwen)
    text = "<|im_start|>user\nthe player holds\n\n the card é<|im_end|>"
    assert "".join(Pieces(tokenizer).split(tokenizer(text)["input_ids"])) == text
