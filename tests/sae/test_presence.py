"""Features that disappear: planted ones that are gone, missed or rebuilt at the next layer, and shares by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from torch import nn

from spiral_trl.errors import UsageError
from spiral_trl.sae.collect import collect
from spiral_trl.sae.dictionaries import Dictionary
from spiral_trl.sae.documents import Document
from spiral_trl.sae.presence import measure_presence


WIDTH, VOCABULARY = 10, 30
# What the block and the next dictionary do to the features, which are the axes of the first layer
GONE, MISSED, REBUILT, HALF = 1, 4, 6, 8


class Block(nn.Module):
    def forward(self, hidden_states):
        kept = torch.ones(WIDTH)
        kept[GONE] = 0
        return hidden_states * kept


class Planted(nn.Module):
    def __init__(self):
        super().__init__()
        text = SimpleNamespace(
            num_hidden_layers=1, max_position_embeddings=64, vocab_size=VOCABULARY, hidden_size=WIDTH
        )
        self.config = SimpleNamespace(get_text_config=lambda: text, _name_or_path="")
        generator = torch.Generator().manual_seed(2)
        table = torch.rand(VOCABULARY, WIDTH, generator=generator) + 0.5
        table *= torch.rand(VOCABULARY, WIDTH, generator=generator) < 0.4
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


def axes(layer, weights):
    """One feature for each axis, rebuilt with a weight: 1 whole, 0 not at all."""
    sae = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=WIDTH))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(WIDTH))
        sae.W_dec.copy_(torch.diag(torch.tensor(weights)))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return Dictionary(layer, f"axes-{layer}", sae.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    model = Planted().eval()
    generator = torch.Generator().manual_seed(4)
    documents = [
        Document(tuple(torch.randint(0, VOCABULARY, (11,), generator=generator).tolist()), group, start=group % 2)
        for group in range(70)
    ]
    weights = [1.0] * WIDTH
    weights[MISSED], weights[HALF] = 0.0, 0.75
    dictionaries = {0: axes(0, [1.0] * WIDTH), 1: axes(1, weights)}
    folder = tmp_path_factory.mktemp("planted") / "store"
    store = collect(
        model, dictionaries, documents, folder, model_name="planted", source={}, value_dtype="float32", progress=False
    )
    return model, dictionaries, store, documents


def test_planted_features_are_told_apart(planted, tmp_path):
    model, dictionaries, store, documents = planted
    chosen = [GONE, MISSED, REBUILT, HALF]
    calls = []
    found = measure_presence(
        model,
        dictionaries,
        store,
        documents,
        {0: chosen},
        tmp_path,
        controls=3,
        batch_tokens=100,
        progress=lambda *given: calls.append(given),
    )
    table = found.table
    rows = {int(feature): row for row, feature in enumerate(table["feature"]) if not table["control"][row]}
    assert {feature: table["verdict"][row] for feature, row in rows.items()} == {
        GONE: "gone",
        MISSED: "missed",
        REBUILT: "rebuilt",
        HALF: "rebuilt",
    }
    for feature, (stream, error) in {GONE: (0, 0), MISSED: (1, 1), REBUILT: (1, 0), HALF: (1, 0.25)}.items():
        row = rows[feature]
        assert table["stream"][row] == pytest.approx(stream, abs=1e-6)
        assert table["error"][row] == pytest.approx(error, abs=1e-6)
        assert table["rebuilt"][row] == pytest.approx(stream - error, abs=1e-6)
        assert table["slope"][row] == pytest.approx(error, abs=1e-5)
    assert table["correlation"][rows[MISSED]] == pytest.approx(1, abs=1e-5)
    # Controls are other features, and these are all rebuilt
    controls = table["feature"][table["control"]]
    assert len(controls) == 3
    assert not np.isin(controls, chosen).any()
    (layer,) = found.layers
    assert (layer["layer"], layer["next"], layer["tokens"]) == (0, 1, 70 * 11 - 35)
    assert layer["features"] == {
        "features": 4,
        "gone": 1,
        "missed": 1,
        "rebuilt": 2,
        "unclear": 0,
        "rare": 0,
        "median": {"stream": pytest.approx(1), "error": pytest.approx(0.125), "rebuilt": pytest.approx(0.375)},
        "beyond": 0.5,
    }
    assert layer["controls"]["rebuilt"] == 3
    assert calls[-1] == (70 * 11 - 35, 0, "tokens read")
    assert json.loads((tmp_path / "presence.json").read_text()) == json.loads(json.dumps(found.to_dict()))


def test_shares_by_hand(planted):
    """With directions that are not at right angles, and a dictionary that misses a little of everything."""
    model, _, store, documents = planted
    torch.manual_seed(6)
    made = []
    for layer in (0, 1):
        sae = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=14))
        with torch.no_grad():
            sae.b_enc.fill_(-0.3)
        made.append(Dictionary(layer, f"made-{layer}", sae.eval().requires_grad_(False)))
    folder = store.folder.parent / "hand"
    other = collect(
        model, {0: made[0], 1: made[1]}, documents, folder, model_name="planted", source={}, progress=False
    )
    found = measure_presence(model, {0: made[0], 1: made[1]}, other, documents, {0: range(14)}, controls=0)
    streams = torch.cat([model.embedding(torch.tensor(one.ids[one.start :])) for one in documents])
    after = Block()(streams)
    with torch.no_grad():
        codes, error = made[0].sae.encode(streams).double(), (after - made[1].sae(after)).double()
    groups = np.concatenate([[one.group] * (len(one.ids) - one.start) for one in documents])
    seen = sloped = 0
    for row, feature in enumerate(found.table["feature"]):
        direction = made[0].sae.W_dec[feature].double()
        a = codes[:, feature].numpy()
        fired = a > 0
        if fired.sum() < 20 or fired.all():
            assert found.table["verdict"][row] == "rare"
            continue
        seen += 1

        def share(vectors, kept, direction=direction, a=a, fired=fired):
            y = (vectors @ direction / direction.square().sum()).numpy()
            return (y[fired & kept].mean() - y[~fired & kept].mean()) / a[fired & kept].mean()

        everywhere = np.ones(len(a), bool)
        for name, vectors in (("stream", after.double()), ("error", error)):
            assert found.table[name][row] == pytest.approx(share(vectors, everywhere), abs=1e-5)
            left = np.array([share(vectors, groups % 20 != block) for block in range(20)])
            half = 2.093024 * np.sqrt(19 / 20 * ((left - left.mean()) ** 2).sum())  # Student's t, 19 degrees
            assert found.table[f"{name}_high"][row] - found.table[name][row] == pytest.approx(half, abs=1e-4)
        y = (error @ direction / direction.square().sum()).numpy()[fired]
        if a[fired].std() < 1e-5:
            assert np.isnan(found.table["slope"][row])
            continue
        sloped += 1
        slope, _ = np.polyfit(a[fired], y, 1)
        assert found.table["slope"][row] == pytest.approx(slope, abs=1e-4)
        assert found.table["correlation"][row] == pytest.approx(np.corrcoef(a[fired], y)[0, 1], abs=1e-4)
    assert seen > sloped > 3


def test_rare_features_and_few_tokens(planted):
    model, dictionaries, store, documents = planted
    found = measure_presence(model, dictionaries, store, documents, {0: [MISSED]}, min_tokens=10_000)
    assert found.table["verdict"].tolist() == ["rare"] * len(found.table["verdict"])
    assert found.layers[0]["features"]["median"]["error"] is None
    # One group alone leaves nothing to tell the spread from
    found = measure_presence(
        model, dictionaries, store, documents[:1], {0: [MISSED]}, min_tokens=1, max_tokens=5, batch_tokens=1
    )
    assert set(found.table["verdict"]) <= {"unclear", "rare"}


def test_saved_result_is_taken(planted, tmp_path):
    model, dictionaries, store, documents = planted
    first = measure_presence(model, dictionaries, store, documents, {0: [MISSED]}, tmp_path)
    again = measure_presence(model, dictionaries, store, [], {0: [MISSED]}, tmp_path)
    assert again.to_dict() == json.loads(json.dumps(first.to_dict()))
    for name, values in first.table.items():
        np.testing.assert_array_equal(again.table[name], values)
    with pytest.raises(UsageError, match=r"presence.json is of other settings"):
        measure_presence(model, dictionaries, store, documents, {0: [GONE]}, tmp_path)
    measure_presence(model, dictionaries, store, documents, {0: [GONE]}, tmp_path, resume=False)
    (tmp_path / "presence.json").write_text("{")
    with pytest.raises(UsageError, match=r"presence.json cannot be read"):
        measure_presence(model, dictionaries, store, documents, {0: [GONE]}, tmp_path)


def test_bad_input(planted):
    model, dictionaries, store, documents = planted
    with pytest.raises(UsageError, match="no features to look for"):
        measure_presence(model, dictionaries, store, documents, {0: []})
    with pytest.raises(
        UsageError, match="features of layer 1 are to be looked for, but there is no dictionary of it and of"
    ):
        measure_presence(model, dictionaries, store, documents, {1: [0]})
    with pytest.raises(UsageError, match="layer 0 has features 0 to 9, not 10"):
        measure_presence(model, dictionaries, store, documents, {0: [10]})
    with pytest.raises(UsageError, match="no tokens to look for"):
        measure_presence(model, dictionaries, store, [], {0: [1]})
