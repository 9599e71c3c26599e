"""Dictionaries: loaded from folders and releases, with SAELens's codes, and refused where they do not fit."""

import json
import shutil

import pytest
import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    TranscoderConfig,
)
from sae_lens.saes.sae import SAEMetadata

from spiral_trl.errors import UsageError
from spiral_trl.sae.dictionaries import Dictionary, load_dictionaries, load_dictionary
from spiral_trl.sae.dictionary_names import find_sources, layer_of_hook


WIDTH, FEATURES = 32, 48
HOOKS = ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post")


def make(kind, config_kind, hook="blocks.1.hook_resid_pre", seed=0, width=WIDTH, **fields):
    """An autoencoder of SAELens with random weights, biases and thresholds included."""
    metadata = fields.pop("metadata", {})
    config = config_kind(d_in=width, d_sae=FEATURES, metadata=SAEMetadata(hook_name=hook, **metadata), **fields)
    sae = kind(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sae.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
            if name == "threshold":
                weight.abs_()
    return sae


def topk(**fields):
    return make(TopKSAE, TopKSAEConfig, k=5, **fields)


@pytest.fixture
def streams(generator):
    return torch.randn(40, WIDTH, generator=generator) * 2 + 0.5


@pytest.fixture
def folder(tmp_path):
    """Dictionaries of three layers, as training leaves them."""
    for layer, hook in enumerate(HOOKS):
        topk(hook=hook, seed=layer).save_model(tmp_path / "dictionaries" / f"layer_{layer:02d}")
    return tmp_path / "dictionaries"


@pytest.mark.parametrize(
    ("kind", "config", "fields"),
    [
        (StandardSAE, StandardSAEConfig, {}),
        (StandardSAE, StandardSAEConfig, {"apply_b_dec_to_input": False}),
        (StandardSAE, StandardSAEConfig, {"normalize_activations": "layer_norm"}),
        (StandardSAE, StandardSAEConfig, {"normalize_activations": "constant_norm_rescale"}),
        (GatedSAE, GatedSAEConfig, {}),
        (JumpReLUSAE, JumpReLUSAEConfig, {}),
        (TopKSAE, TopKSAEConfig, {"k": 5}),
        (TopKSAE, TopKSAEConfig, {"k": 5, "rescale_acts_by_decoder_norm": True}),
    ],
)
def test_saelens_dictionary_loads_with_its_codes(tmp_path, streams, kind, config, fields):
    sae = make(kind, config, **fields)
    sae.save_model(tmp_path)
    dictionary = load_dictionary(str(tmp_path))
    with torch.no_grad():
        codes, rebuilt = sae.encode(streams), sae(streams)
    assert dictionary.layer == 1
    assert (dictionary.num_features, dictionary.width) == (FEATURES, WIDTH)
    assert codes.count_nonzero() > 40
    torch.testing.assert_close(dictionary.encode(streams), codes, rtol=0, atol=0)
    assert (dictionary.encode(streams) >= 0).all()
    torch.testing.assert_close(dictionary.decode(codes, streams), rebuilt)
    torch.testing.assert_close(dictionary.error(streams), streams - rebuilt)
    # What a code more adds to the stream is its direction, in the stream's own scale
    more = codes.clone()
    more[:, 7] += 1
    added = dictionary.decode(more, streams) - rebuilt
    torch.testing.assert_close(added, dictionary.scale(streams) * dictionary.directions[7], rtol=1e-4, atol=1e-5)


def test_codes_of_streams_in_another_precision(tmp_path, streams):
    topk().save_model(tmp_path)
    dictionary = load_dictionary(str(tmp_path))
    half = streams.to(torch.bfloat16)
    torch.testing.assert_close(dictionary.encode(half), dictionary.encode(half.float()))


def test_batch_topk_loads_as_the_threshold_it_is_saved_with(tmp_path, streams):
    config = BatchTopKTrainingSAEConfig(d_in=WIDTH, d_sae=FEATURES, k=5)
    config.metadata.hook_name = HOOKS[0]
    torch.manual_seed(0)
    sae = BatchTopKTrainingSAE(config)
    sae.topk_threshold = torch.tensor(0.7, dtype=torch.double)
    sae.save_inference_model(tmp_path)
    dictionary = load_dictionary(str(tmp_path))
    assert dictionary.architecture == "jumprelu"
    with torch.no_grad():
        before = ((streams - sae.b_dec) @ sae.W_enc + sae.b_enc) * sae.W_dec.norm(dim=-1)
    torch.testing.assert_close(dictionary.encode(streams), before * (before > 0.7))


@pytest.mark.filterwarnings("ignore:\\nThis SAE has non-empty")
def test_centred_dictionary_reads_streams_without_their_mean(tmp_path, streams):
    sae = topk(metadata={"model_from_pretrained_kwargs": {"center_writing_weights": True}})
    sae.save_model(tmp_path)
    dictionary = load_dictionary(str(tmp_path))
    centred = streams - streams.mean(-1, keepdim=True)
    assert dictionary.centred
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(streams), sae.encode(centred))
        torch.testing.assert_close(dictionary.error(streams), centred - sae(centred))


def test_fingerprint_tells_weights_and_settings_apart(tmp_path):
    prints = []
    for name, sae in {
        "one": topk(),
        "same": topk(hook=HOOKS[0]),
        "weights": topk(seed=1),
        "k": make(TopKSAE, TopKSAEConfig, k=6),
    }.items():
        sae.save_model(tmp_path / name)
        prints.append(load_dictionary(str(tmp_path / name)).fingerprint)
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_folder_of_layers(folder, embedded):
    model, _ = embedded
    dictionaries = load_dictionaries(str(folder), model)
    assert {layer: one.layer for layer, one in dictionaries.items()} == {0: 0, 1: 1, 2: 2}
    assert dictionaries[2].name == str(folder / "layer_02")
    assert load_dictionary(str(folder), 1).fingerprint == dictionaries[1].fingerprint
    assert list(load_dictionaries([str(folder / "layer_02"), str(folder / "layer_00")])) == [0, 2]
    assert list(load_dictionaries(str(folder), layers=[1])) == [1]


def test_folder_without_a_hook_is_of_the_layer_it_is_called_by(tmp_path):
    sae = topk()
    del sae.cfg.metadata.hook_name
    sae.save_model(tmp_path / "layer_07")
    sae.save_model(tmp_path / "other")
    assert load_dictionary(str(tmp_path / "layer_07")).layer == 7
    assert load_dictionary(str(tmp_path / "other"), 3).layer == 3
    with pytest.raises(UsageError, match=r"does not say which layer it reads"):
        load_dictionary(str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.3.hook_resid_pre", 3),
        ("blocks.3.hook_resid_post", 4),
        ("model.layers.3", 4),
        ("transformer.h.0", 1),
        ("blocks.3.hook_resid_mid", None),
        ("blocks.3.hook_mlp_out", None),
        ("model.layers.3.mlp", None),
        (None, None),
    ],
)
def test_layer_of_hook(hook, layer):
    assert layer_of_hook(hook) == layer


def change_config(folder, **changes):
    path = folder / "cfg.json"
    config = json.loads(path.read_text())
    metadata = changes.pop("metadata", {})
    config.update(changes)
    config["metadata"].update(metadata)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_in": 33}, r"layer_01 reads streams of width 33, but the model's have 32"),
        ({"metadata": {"model_type": "gpt2"}}, r"another model: its model_type is gpt2, this model's qwen3"),
        ({"metadata": {"num_hidden_layers": 12}}, r"another model: its num_hidden_layers is 12, this model's 2"),
        ({"metadata": {"hook_name": "blocks.3.hook_resid_pre"}}, r"layer 3 was asked for, but the model has layers 0"),
        (
            {"metadata": {"hook_name": "blocks.1.hook_mlp_out"}},
            r"trained on blocks.1.hook_mlp_out, which is no residual",
        ),
        ({"architecture": "abstopk"}, r"architecture 'abstopk'; allowed: standard, .*; did you mean 'topk'\?"),
        ({"normalize_activations": "expected_average_only_in"}, r"which its weights do not hold"),
    ],
)
def test_misfit_is_told_before_weights_are_read(folder, embedded, changes, message):
    model, _ = embedded
    for path in folder.glob("*/sae_weights.safetensors"):
        path.unlink()
    change_config(folder / "layer_01", **changes)
    with pytest.raises(UsageError, match=message) as raised:
        load_dictionaries(str(folder), model)
    assert "\n" not in str(raised.value)


def test_dictionary_of_a_model_of_another_name(folder, embedded):
    model, _ = embedded
    change_config(folder / "layer_00", metadata={"model_name": "gpt2-small"})
    model.config._name_or_path = "Qwen/Qwen3-4B"
    try:
        with pytest.raises(UsageError, match=r"layer_00 was trained on gpt2-small, but the model is Qwen/Qwen3-4B"):
            load_dictionary(str(folder), 0, model)
        assert load_dictionary(str(folder), 0, model, any_model=True).layer == 0
        # One name of a model and another, and a folder, which may hold any
        for name in ("openai-community/gpt2", "GPT2", "outputs/trained"):
            model.config._name_or_path = name
            load_dictionary(str(folder), 0, model)
    finally:
        model.config._name_or_path = ""


def truncate(path):
    path.write_bytes(path.read_bytes()[:200])


def drop_decoder(path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    del tensors["W_dec"]
    save_file(tensors, path)


def drop_bias(path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    del tensors["b_enc"]
    save_file(tensors, path)


def reshape(path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors["W_dec"] = tensors["W_dec"][:, :-1].contiguous()
    save_file(tensors, path)


def not_a_number(path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors["W_enc"][3, 4] = float("nan")
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"sae_weights.safetensors cannot be read"),
        (drop_decoder, r"sae_weights.safetensors cannot be read.*W_dec"),
        (drop_bias, r"sae_weights.safetensors cannot be read.*b_enc"),
        (reshape, r"is corrupt: its decoder has shape \(48, 31\) where cfg.json says \(48, 32\)"),
        (not_a_number, r"is corrupt: W_enc holds values that are not finite"),
        (lambda path: path.unlink(), r"layer_01 has no sae_weights.safetensors"),
        (lambda path: (path.parent / "cfg.json").write_text("{"), r"cfg.json cannot be read"),
        (lambda path: (path.parent / "cfg.json").write_text('{"d_in": 4}'), r"cfg.json|no dictionary of SAELens"),
    ],
)
def test_corrupt_files(folder, damage, message):
    damage(folder / "layer_01" / "sae_weights.safetensors")
    with pytest.raises(UsageError, match=message) as raised:
        load_dictionary(str(folder / "layer_01"), 1)
    assert "\n" not in str(raised.value)


def test_names_of_folders_that_cannot_be_used(folder, tmp_path):
    with pytest.raises(UsageError, match=r"no folder .*; did you mean 'dictionaries'\?.* release:NAME"):
        load_dictionary(str(tmp_path / "dictionarys"))
    with pytest.raises(UsageError, match=r"holds dictionaries of layers 0, 1, 2: say which one"):
        load_dictionary(str(folder))
    with pytest.raises(UsageError, match=r"has no dictionary of layer 7; it has those of 0, 1, 2"):
        load_dictionary(str(folder), 7)
    with pytest.raises(UsageError, match=r"has no dictionary of layer 7; it has those of 0, 1, 2"):
        load_dictionaries(str(folder), layers=[0, 7])
    with pytest.raises(UsageError, match=r"both read layer 1"):
        load_dictionaries([str(folder), str(folder / "layer_01")])
    shutil.copytree(folder / "layer_01", folder / "layer_02_again")
    with pytest.raises(UsageError, match=r"both read layer 1"):
        load_dictionaries(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no dictionaries"):
        load_dictionaries(str(tmp_path / "empty"))


def test_transcoder_is_refused(tmp_path):
    config = TranscoderConfig(d_in=WIDTH, d_sae=FEATURES, d_out=WIDTH, apply_b_dec_to_input=False)
    config.metadata.hook_name = HOOKS[0]
    SAE.from_dict(config.to_dict()).save_model(tmp_path)
    with pytest.raises(UsageError, match=r"architecture 'transcoder'; allowed: standard"):
        load_dictionary(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("release:gpt2-small-res-jc", r"no release 'gpt2-small-res-jc'; did you mean 'gpt2-small-res-jb'\?"),
        (
            "release:gpt2-small-res-jb/blocks.3.hook_resid_pr",
            r"no 'blocks.3.hook_resid_pr'; did you mean 'blocks.3.hook_resid_pre'\?",
        ),
        ("release:gpt2-small-mlp-tm", r"none that reads a residual stream; it has 'blocks.0.hook_mlp_out'"),
        ("release:gemma-scope-2b-pt-res-canonical", r"has \d+ for layer 1, such as .*: choose by a pattern"),
    ],
)
def test_names_of_releases_are_checked_without_network(monkeypatch, name, message):
    monkeypatch.setattr("huggingface_hub.file_download.http_get", None)
    with pytest.raises(UsageError, match=message):
        load_dictionaries(name)


def test_layers_of_releases():
    gpt2 = find_sources("release:gpt2-small-res-jb", None)
    assert list(gpt2) == list(range(13))
    assert gpt2[6].name == "gpt2-small-res-jb/blocks.6.hook_resid_pre"
    assert gpt2[12].name == "gpt2-small-res-jb/blocks.11.hook_resid_post"
    gemma = find_sources("release:gemma-scope-2b-pt-res-canonical/layer_*/width_16k/canonical", None)
    assert list(gemma) == list(range(1, 27))
    qwen = find_sources("release:qwen-scope-3-1.7b-base-w32k-l50", [5])
    assert [source.id for source in qwen.values()] == ["layer4"]


def test_release_of_another_model_is_told_without_network(embedded, monkeypatch):
    model, _ = embedded
    monkeypatch.setattr(model.config, "_name_or_path", "Qwen/Qwen3-4B")
    with pytest.raises(UsageError, match=r"was trained on gpt2-small, but the model is Qwen/Qwen3-4B"):
        load_dictionaries("release:gpt2-small-res-jb", model)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that has the files of a folder."""
    monkeypatch.setattr(
        "sae_lens.loading.pretrained_sae_loaders.hf_hub_download",
        lambda repo_id, filename, **_: get(tmp_path / "hub" / filename),
    )

    def get(path):
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        if path.name == "sparsity.safetensors":
            raise EntryNotFoundError("none")
        if not path.exists():
            raise LocalEntryNotFoundError("cannot find the file\nsecond line")
        return str(path)

    return tmp_path / "hub"


def test_dictionaries_of_a_release(hub, streams):
    """Its configurations are of SAELens's oldest form; the registry says that streams are centred."""
    for layer in (2, 3):
        sae = make(StandardSAE, StandardSAEConfig, seed=layer)
        folder = hub / f"blocks.{layer}.hook_resid_pre"
        sae.save_model(folder)
        old = {"d_in": WIDTH, "d_sae": FEATURES, "dtype": "torch.float32", "device": "mps", "model_name": "gpt2-small"}
        (folder / "cfg.json").write_text(json.dumps({**old, "hook_point": f"blocks.{layer}.hook_resid_pre"}))
    found = load_dictionaries("release:gpt2-small-res-jb/blocks.*.hook_resid_pre", layers=[2, 3])
    assert list(found) == [2, 3]
    assert found[3].name == "gpt2-small-res-jb/blocks.3.hook_resid_pre"
    assert found[3].neuronpedia == "gpt2-small/3-res-jb"
    assert found[3].centred
    assert found[3].prepend_bos is True
    with torch.no_grad():
        expected = sae.encode(streams - streams.mean(-1, keepdim=True))
    torch.testing.assert_close(found[3].encode(streams), expected)


def test_release_that_cannot_be_downloaded(hub):
    with pytest.raises(
        UsageError, match=r"^gpt2-small-res-jb/blocks.0.hook_resid_pre could not be downloaded"
    ) as raised:
        load_dictionary("release:gpt2-small-res-jb/blocks.0.hook_resid_pre")
    assert "\n" not in str(raised.value)


def test_dictionary_says_what_it_is(folder):
    said = load_dictionary(str(folder), 2).to_dict()
    assert json.loads(json.dumps(said)) == said
    assert said["num_features"] == FEATURES
    # Not where it lies on this machine
    assert said["dictionary"] == f"{folder.name}/layer_02"


def test_moved_dictionary_gives_its_directions_anew(folder):
    dictionary: Dictionary = load_dictionary(str(folder), 0)
    before = dictionary.directions
    assert dictionary.to("cpu") is dictionary
    torch.testing.assert_close(dictionary.directions, before)
