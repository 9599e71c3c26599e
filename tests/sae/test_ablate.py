"""Ablation: an identity on the stream, a planted cause found, and measures held against hand-made values."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from torch import nn

from spiral_trl.errors import UsageError
from spiral_trl.sae.ablate import ablated, ablation
from spiral_trl.sae.activations import read_residuals
from spiral_trl.sae.causal_effects import measure_ablation
from spiral_trl.sae.collect import collect
from spiral_trl.sae.dictionaries import Dictionary
from spiral_trl.sae.documents import Document
from spiral_trl.sae.effect_summary import auc, spearman
from spiral_trl.sae.kernels import Features, feature_sums
from spiral_trl.sae.matching import matched_features
from spiral_trl.sae.pair_measures import chosen_measures, joint_sums


WIDTH, VOCABULARY = 16, 40
# Upstream feature 2 makes downstream feature 10. Feature 11 always comes with 3, and 3 does not make it
CAUSE, MADE, COMPANION, SHADOW = 2, 10, 3, 11


def dictionary_of(layer, kind="standard", features=32, seed=0, **fields):
    torch.manual_seed(seed)
    if kind == "topk":
        sae = TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=features, k=4, **fields))
        with torch.no_grad():
            sae.b_dec.normal_()
    else:
        sae = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=features, **fields))
        with torch.no_grad():
            sae.b_enc.normal_()
    return Dictionary(layer, f"made-{layer}", sae.eval().requires_grad_(False))


def axes(layer):
    """One feature for each axis of the stream, nothing missed."""
    sae = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=WIDTH))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(WIDTH))
        sae.W_dec.copy_(torch.eye(WIDTH))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return Dictionary(layer, f"axes-{layer}", sae.eval().requires_grad_(False))


class Block(nn.Module):
    def forward(self, hidden_states):
        made = torch.zeros_like(hidden_states)
        made[..., MADE] = 2 * hidden_states[..., CAUSE].relu()
        return hidden_states + made


class Planted(nn.Module):
    """A model of one block, which writes feature 10 wherever it reads feature 2."""

    def __init__(self):
        super().__init__()
        text = SimpleNamespace(
            num_hidden_layers=1, max_position_embeddings=64, vocab_size=VOCABULARY, hidden_size=WIDTH
        )
        self.config = SimpleNamespace(get_text_config=lambda: text, _name_or_path="")
        generator = torch.Generator().manual_seed(2)
        table = torch.rand(VOCABULARY, WIDTH, generator=generator) + 0.5
        table *= torch.rand(VOCABULARY, WIDTH, generator=generator) < 0.3
        table[:, MADE] = 0
        table[:, SHADOW] = table[:, COMPANION]
        self.embedding = nn.Embedding.from_pretrained(table)
        self.blocks = nn.ModuleList([Block()])
        self.device = torch.device("cpu")

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        stream = self.embedding(input_ids)
        for block in self.blocks:
            stream = block(stream)
        return stream


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    model = Planted().eval()
    generator = torch.Generator().manual_seed(4)
    documents = [
        Document(tuple(torch.randint(0, VOCABULARY, (12,), generator=generator).tolist()), group, start=group % 3)
        for group in range(60)
    ]
    dictionaries = {0: axes(0), 1: axes(1)}
    store = collect(
        model,
        dictionaries,
        documents,
        tmp_path_factory.mktemp("planted") / "store",
        model_name="planted",
        source={},
        shard_tokens=200,
        value_dtype="float32",
        progress=False,
    )
    return model, dictionaries, store, documents


@pytest.mark.parametrize("kind", ["standard", "topk"])
@pytest.mark.parametrize("fields", [{}, {"normalize_activations": "layer_norm"}])
def test_ablation_takes_the_features_part_and_nothing_else(kind, fields, generator):
    dictionary = dictionary_of(0, kind, **fields)
    stream = torch.randn(3, 5, WIDTH, generator=generator)
    flat = stream.reshape(-1, WIDTH)
    codes = dictionary.encode(flat)
    features = ((codes > 0).sum(0) - 4).abs().argsort()[:2].tolist()
    edited = ablation(dictionary, features)(stream)
    assert edited.shape == stream.shape

    # The dictionary's reconstruction without them, and all that it misses
    less = codes.clone()
    less[:, features] = 0
    expected = dictionary.decode(less, flat) + dictionary.error(flat, codes)
    torch.testing.assert_close(edited.reshape(-1, WIDTH), expected, rtol=1e-4, atol=1e-5)
    fired = (codes[:, features] > 0).any(1).reshape(3, 5)
    assert fired.any()
    assert not fired.all()
    assert torch.equal(edited[~fired], stream[~fired])
    assert (edited[fired] != stream[fired]).any(-1).all()


def test_ablation_of_one_feature_by_its_direction(generator):
    dictionary = dictionary_of(0)
    stream = torch.randn(1, 9, WIDTH, generator=generator)
    code = dictionary.encode(stream[0])[:, 7]
    expected = stream[0] - code[:, None] * dictionary.sae.W_dec[7]
    torch.testing.assert_close(ablation(dictionary, [7])(stream)[0], expected)


def test_nothing_to_ablate_and_what_is_not_there(generator):
    dictionary = dictionary_of(0)
    stream = torch.randn(1, 4, WIDTH, generator=generator)
    assert ablation(dictionary, [])(stream) is stream
    with pytest.raises(UsageError, match="has features 0 to 31, not 32"):
        ablation(dictionary, [3, 32])
    with pytest.raises(UsageError, match="has features 0 to 31, not -1"):
        ablation(dictionary, [-1])
    with (
        pytest.raises(
            UsageError, match="features of layer 1 are to be switched off, but the dictionaries are of layers 0"
        ),
        ablated(Planted(), {0: dictionary}, {1: [0]}),
    ):
        pass


def test_the_model_runs_without_a_feature(planted):
    model, dictionaries, _, documents = planted
    inputs = {"input_ids": torch.tensor([documents[0].ids])}
    before = model(**inputs)
    with ablated(model, dictionaries, {0: [CAUSE]}):
        without = model(**inputs)
    assert before[..., CAUSE].any()
    assert not without[..., [CAUSE, MADE]].any()
    others = [axis for axis in range(WIDTH) if axis not in (CAUSE, MADE)]
    assert torch.equal(without[..., others], before[..., others])
    torch.testing.assert_close(model(**inputs), before, rtol=0, atol=0)


def test_several_layers_are_ablated_one_after_the_other(planted):
    model, dictionaries, _, documents = planted
    inputs = {"input_ids": torch.tensor([documents[0].ids])}
    with ablated(model, dictionaries, {0: [CAUSE], 1: [COMPANION]}):
        found = read_residuals(model, inputs, [0, 1])[1]
    assert not found[..., [CAUSE, MADE, COMPANION]].any()
    assert found[..., SHADOW].any()


def test_planted_cause_is_found_and_its_companion_is_not(planted, tmp_path):
    model, dictionaries, store, documents = planted
    calls = []
    result = measure_ablation(
        model,
        dictionaries,
        store,
        documents,
        tmp_path,
        features={0: [CAUSE, COMPANION]},
        num_documents=20,
        progress=lambda *given: calls.append(given),
    )
    table = result.pairs((0, 1))
    effect = {
        (up, down): value
        for up, down, value in zip(table["upstream"], table["downstream"], table["effect"], strict=True)
    }
    assert effect[CAUSE, MADE] == pytest.approx(1)
    assert effect[CAUSE, CAUSE] == pytest.approx(1)
    assert effect[COMPANION, COMPANION] == pytest.approx(1)
    assert effect[COMPANION, SHADOW] == 0
    # Statistics cannot tell the shadow from the feature itself
    row = (table["upstream"] == COMPANION) & (table["downstream"] == SHADOW)
    assert table["pearson"][row] == pytest.approx(1)
    assert table["neighbour"][row].all()
    for (up, down), value in effect.items():
        if (up, down) not in {(CAUSE, MADE), (CAUSE, CAUSE), (COMPANION, COMPANION)}:
            assert value == 0, (up, down)
    # Steps of that length elsewhere leave the planted edge alone, unless they go along its own axis
    row = (table["upstream"] == CAUSE) & (table["downstream"] == MADE)
    assert table["effect_other_0"][row] == pytest.approx(0, abs=1e-6)
    assert not table["neighbour"].all()
    assert calls == [(1, 2, "layers 0 to 1"), (2, 2, "layers 0 to 1")]

    said = json.loads((tmp_path / "ablation.json").read_text())
    assert said == json.loads(json.dumps(result.to_dict()))
    assert said["features"] == 2
    assert said["all"]["neighbours"]["effect"]["estimate"] > said["all"]["random"]["effect"]["estimate"] == 0
    assert said["measures"]["pearson"]["auc"]["estimate"] > 0.8
    # Three of the neighbours are made by the two features; no random feature is
    assert said["all"]["neighbours"]["causal"]["estimate"] == pytest.approx(3 / said["all"]["neighbours"]["pairs"])
    assert said["all"]["random"]["causal"]["estimate"] == 0
    # The best by any measure is the feature itself, or what it makes
    assert said["measures"]["decoder_cosine"]["best"]["estimate"] == pytest.approx(1)
    assert set(said["measures"]) >= {"pearson", "sufficiency", "necessity", "mutual_information"}


def test_effects_count_only_tokens_where_the_feature_fired_and_that_are_kept(planted, tmp_path):
    model, dictionaries, store, documents = planted
    result = measure_ablation(
        model, dictionaries, store, documents, tmp_path, features={0: [CAUSE]}, num_documents=1000, batch_tokens=50
    )
    table = result.pairs((0, 1))
    streams = torch.cat([model.embedding(torch.tensor(one.ids[one.start :])) for one in documents])
    fired = streams[:, CAUSE] > 0
    for row, down in enumerate(table["downstream"]):
        after = streams[fired][:, down] if down != MADE else 2 * streams[fired][:, CAUSE]
        assert table["tokens"][row] == int(fired.sum())
        assert table["together"][row] == int((after > 0).sum())
        assert table["clean"][row] == pytest.approx(float(after.mean()))


def test_ablation_goes_on_where_it_stopped(planted, tmp_path):
    model, dictionaries, store, documents = planted
    whole = measure_ablation(model, dictionaries, store, documents, tmp_path / "whole", num_features=4)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_ablation(model, dictionaries, store, documents, tmp_path / "parts", num_features=4, progress=stop)
    assert not list((tmp_path / "parts").glob("*.parquet"))
    parts = measure_ablation(model, dictionaries, store, documents, tmp_path / "parts", num_features=4)
    assert parts.to_dict() == whole.to_dict()
    again = measure_ablation(model, dictionaries, store, documents, tmp_path / "parts", num_features=4, progress=stop)
    assert again.to_dict() == whole.to_dict()
    with pytest.raises(UsageError, match=r"of other settings: num_features is 4 there and 5 here"):
        measure_ablation(model, dictionaries, store, documents, tmp_path / "parts", num_features=5)
    measure_ablation(model, dictionaries, store, documents, tmp_path / "parts", num_features=5, resume=False)


def test_bad_input(planted, tmp_path):
    model, dictionaries, store, documents = planted
    others = [Document(one.ids[::-1], one.group, start=one.start) for one in documents]
    for changed in (others, documents[:3]):
        with pytest.raises(UsageError, match="documents are not those that"):
            measure_ablation(model, dictionaries, store, changed, tmp_path / "a")
    with pytest.raises(UsageError, match="layer 1 is not upstream of layer 0"):
        measure_ablation(model, dictionaries, store, documents, tmp_path / "b", pairs=[(1, 0)])
    with pytest.raises(UsageError, match="no feature of layer 0 fires on 10000 tokens"):
        measure_ablation(model, dictionaries, store, documents, tmp_path / "c", min_count=10_000)
    with pytest.raises(UsageError, match="layer 0 has features 0 to 15, not 16"):
        measure_ablation(model, dictionaries, store, documents, tmp_path / "d", features={0: [16]})
    with pytest.raises(UsageError, match="collected with another dictionary of layer 1"):
        measure_ablation(model, {0: axes(0), 1: dictionary_of(1)}, store, documents, tmp_path / "e")
    with pytest.raises(UsageError, match=r"there is no pair of layers"):
        measure_ablation(model, {0: axes(0)}, store, documents, tmp_path / "f")


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("rule", ["absolute", "relative"])
def test_measures_equal_dense_ones(make_store, shards, rule):
    generator = np.random.default_rng(0)
    codes = {}
    for layer, size in ((0, 9), (1, 7)):
        dense = generator.gamma(1.0, 1.0, (150, size)) * (generator.random((150, size)) < 0.4)
        dense[:, -1] = 0
        codes[layer] = dense.astype(np.float32)
    store = make_store(codes, shards=shards)
    up, down = feature_sums(store, 0), feature_sums(store, 1)
    chosen = np.array([4, 0, 8])
    directions = generator.normal(size=(3, 5)), generator.normal(size=(7, 5))
    joint = joint_sums(store, (0, 1), chosen, up, down)
    found = chosen_measures(joint, up, down, chosen, 150, *directions, rule=rule)

    limit = 0.2 if rule == "relative" else 0.0
    for row, feature in enumerate(chosen):
        for column in range(7):
            a, b = codes[0][:, feature].astype(np.float64), codes[1][:, column].astype(np.float64)
            one, other = a > limit * a.max(), b > limit * b.max()
            both = (one & other).sum()
            information = 0.0
            for x in (one, ~one):
                for y in (other, ~other):
                    if (x & y).any():
                        information += (x & y).mean() * np.log((x & y).mean() / (x.mean() * y.mean()))
            expected = {
                "pearson": np.corrcoef(a, b)[0, 1] if (a * b).any() else 0,
                "cosine": a @ b / np.sqrt((a @ a) * (b @ b)) if a.any() and b.any() else 0,
                "jaccard": both / (one | other).sum() if (one | other).any() else 0,
                "sufficiency": both / one.sum() if one.any() else 0,
                "necessity": both / other.sum() if other.any() else 0,
                "mutual_information": information,
                "decoder_cosine": directions[0][row]
                @ directions[1][column]
                / np.linalg.norm(directions[0][row])
                / np.linalg.norm(directions[1][column]),
            }
            for name, value in expected.items():
                assert found[name][row, column] == pytest.approx(value, abs=1e-6), name


def test_matched_features_are_of_like_density():
    counts = np.repeat([10, 100, 1000, 10_000], 50)
    features = Features(counts, counts, counts * 2.0, counts * 4.0, np.full(200, 3.0))
    chosen = np.array([3, 60, 120, 190])
    spare = np.setdiff1d(np.arange(200), chosen)
    found = matched_features(features, chosen, spare, seed=1)
    assert (counts[found] == counts[chosen]).all()
    assert not np.isin(found, chosen).any()
    assert len(set(found.tolist())) == 4
    assert (matched_features(features, chosen, spare, seed=1) == found).all()
    drawn = {tuple(matched_features(features, chosen, spare, seed=seed).tolist()) for seed in range(8)}
    assert len(drawn) > 1
    assert (matched_features(features, chosen, spare[:2], seed=0) == -1).sum() == 2


def test_rank_statistics():
    # By hand: ranks 1, 2.5, 2.5, 4 against 2, 1, 3, 4
    assert spearman(np.array([1.0, 5.0, 5.0, 9.0]), np.array([2.0, 1.0, 3.0, 4.0])) == pytest.approx(
        3 / np.sqrt(4.5 * 5)
    )
    assert spearman(np.ones(4), np.arange(4.0)) is None
    # Pairs (positive, negative): 3>1, 3>2, 2>1, 2=2 -> 3.5 of 4
    assert auc(np.array([3.0, 1.0, 2.0, 2.0]), np.array([True, False, True, False])) == pytest.approx(3.5 / 4)
    assert auc(np.array([3.0, 1.0]), np.array([True, True])) is None
