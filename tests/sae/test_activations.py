"""Residual streams by hooks: those that transformers gives, on three architectures, and those that edits make of them."""

from types import SimpleNamespace

import pytest
import torch

from spiral_trl.errors import UsageError
from spiral_trl.sae.activations import blocks, check_layers, edited_residuals, hook_name, num_layers, read_residuals


FINAL_NORM = {"qwen3": "model.norm", "gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}


@pytest.fixture
def inputs():
    ids = torch.randint(1, 60, (3, 11), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def hidden_states(model, inputs):
    """What enters each block, from transformers; its last one has passed the final norm."""
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True).hidden_states


def test_streams_are_the_hidden_states_of_transformers(random_model, inputs):
    streams = read_residuals(random_model, inputs, [0, 1, 2, 3])
    expected = hidden_states(random_model, inputs)
    assert list(streams) == [0, 1, 2, 3]
    for layer in range(3):
        assert torch.equal(streams[layer], expected[layer])
    norm = random_model.get_submodule(FINAL_NORM[random_model.config.model_type])
    with torch.no_grad():
        assert torch.equal(norm(streams[3]), expected[3])
    assert not torch.allclose(streams[3], expected[3])


def test_what_is_read_does_not_depend_on_what_else_is(random_model, inputs):
    every = read_residuals(random_model, inputs, [0, 1, 2, 3])
    for layers in ([1], [2, 0], [3]):
        some = read_residuals(random_model, inputs, layers)
        assert list(some) == layers
        assert all(torch.equal(some[layer], every[layer]) for layer in layers)


@pytest.mark.parametrize(("whole", "runs"), [(False, False), (True, True)])
def test_blocks_after_the_last_wanted_layer_run_only_where_asked(random_model, inputs, whole, runs):
    ran = []
    blocks(random_model)[2].register_forward_hook(lambda *_: ran.append(True))
    read_residuals(random_model, inputs, [1], whole=whole)
    assert bool(ran) is runs


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_an_edit_takes_the_place_of_a_stream(random_model, inputs, layer):
    with torch.no_grad():
        before = random_model(**inputs).logits
        with edited_residuals(random_model, {layer: lambda stream: stream}):
            assert torch.equal(random_model(**inputs).logits, before)
        with edited_residuals(random_model, {layer: torch.zeros_like}):
            edited = random_model(**inputs).logits
        assert not torch.allclose(edited, before)
        # No hook is left
        assert torch.equal(random_model(**inputs).logits, before)
    if layer == 3:
        # All positions end with the same stream, so with the same logits
        assert torch.allclose(edited, edited[:1, :1].expand_as(edited))


def test_later_layers_read_what_an_edit_makes(random_model, inputs):
    before = read_residuals(random_model, inputs, [1, 2])
    with edited_residuals(random_model, {1: lambda stream: stream + 1}):
        after = read_residuals(random_model, inputs, [0, 2])
    assert torch.equal(after[0], read_residuals(random_model, inputs, [0])[0])
    assert not torch.allclose(after[2], before[2])
    # The block computes from the edited stream what it would from that stream elsewhere
    with edited_residuals(random_model, {1: lambda stream: before[1] + 1}):
        assert torch.allclose(read_residuals(random_model, inputs, [2])[2], after[2], atol=1e-6)


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_edits_hold_under_generation_with_a_cache(random_model, layer):
    prompt = torch.tensor([[5, 9, 31, 2]])
    push = torch.randn(24, generator=torch.Generator().manual_seed(3)) * 5
    seen = []

    def edit(stream):
        seen.append(stream.shape[1])
        return stream + push

    def generated(**options):
        ids = random_model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=8,
            min_new_tokens=8,
            **options,
        )
        return ids[0, 4:].tolist()

    plain = generated(use_cache=True)
    with edited_residuals(random_model, {layer: edit}):
        cached = generated(use_cache=True)
        assert seen == [4] + [1] * 7
        seen.clear()
        uncached = generated(use_cache=False)
        assert seen == list(range(4, 12))
    assert cached == uncached != plain
    assert generated(use_cache=True) == plain


def test_hooks_are_removed_also_after_an_error(random_model, inputs):
    def broken(stream):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"), edited_residuals(random_model, {1: broken}):
        random_model(**inputs)
    random_model(**inputs)


def test_layers_are_named_as_transformer_lens_does(random_model):
    assert num_layers(random_model) == 4
    assert [hook_name(random_model, layer) for layer in range(4)] == [
        "blocks.0.hook_resid_pre",
        "blocks.1.hook_resid_pre",
        "blocks.2.hook_resid_pre",
        "blocks.2.hook_resid_post",
    ]


@pytest.mark.parametrize("layer", [-1, 4, 12])
def test_a_layer_that_a_model_does_not_have_is_refused(random_model, inputs, layer):
    message = rf"layer {layer} was asked for, but the model has layers 0 .* to 3"
    with pytest.raises(UsageError, match=message):
        check_layers(random_model, [0, layer])
    with pytest.raises(UsageError, match=message):
        read_residuals(random_model, inputs, [layer])
    with pytest.raises(UsageError, match=message), edited_residuals(random_model, {layer: torch.zeros_like}):
        pass


def test_a_model_without_blocks_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=2))
    with pytest.raises(UsageError, match="Sequential has no list of 2 blocks"):
        blocks(model)


def test_the_outermost_list_is_the_blocks(random_model):
    inner = torch.nn.Module()
    inner.lists = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(3))
    before = blocks(random_model)
    before[0].add_module("experts", inner)
    assert blocks(random_model) is before
