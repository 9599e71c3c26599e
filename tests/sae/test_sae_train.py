"""Training of dictionaries: all layers from one pass, saved as SAELens loads them, stopped and gone on with."""

import json
from dataclasses import replace

import pytest
import torch
from sae_lens import SAE

from spiral_trl.errors import UsageError
from spiral_trl.sae import train
from spiral_trl.sae.activations import read_residuals
from spiral_trl.sae.blocks import Place, batches, blocks
from spiral_trl.sae.dictionaries import load_dictionaries
from spiral_trl.sae.documents import Document
from spiral_trl.sae.train import train_dictionaries


SMALL = {"model_name": "embedded", "num_features": 64, "tokens": 6000, "batch_tokens": 128, "buffer_tokens": 500}


@pytest.fixture(scope="module")
def documents():
    """Sixty documents of eight to fifteen tokens; the later ones keep only a part of theirs."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for group in range(60):
        length = 8 + group % 8
        ids = tuple(torch.randint(2, 20, (length,), generator=generator).tolist())
        made.append(Document(ids, group, start=3 if group > 30 else 0))
    return made


def direct(model, documents, layer):
    """Kept streams of documents, each read by itself."""
    rows = []
    for document in documents:
        stream = read_residuals(model, {"input_ids": torch.tensor([document.ids])}, [layer])[layer]
        rows.append(stream[0, document.start :])
    return torch.cat(rows)


def sorted_rows(rows):
    return rows[rows[:, 0].argsort()]


def test_batches_are_bounded_and_complete(documents):
    found = list(batches(documents, 64))
    assert [document for batch in found for document in batch.documents] == documents
    assert max(batch.ids.numel() for batch in found) <= 64
    assert sum(int(batch.kept.sum()) for batch in found) == sum(len(one.ids) - one.start for one in documents)
    alone = next(batches([Document(tuple(range(2, 20)), 0)], 4))
    assert alone.ids.shape == (1, 18)


def test_blocks_hold_the_streams_of_every_kept_token(embedded, documents):
    model, _ = embedded
    found = []
    read = blocks([model], documents, [0, 2], 200, 100, Place())
    for block in read:
        if block.end.document == 0:
            found.append(block)
            break
        found.append(block)
        assert block.num_tokens >= 200
    assert len(found) > 1
    for layer in (0, 2):
        rows = torch.cat([block.streams[layer] for block in found])
        expected = direct(model, documents, layer)
        torch.testing.assert_close(sorted_rows(rows), sorted_rows(expected), rtol=1e-5, atol=1e-6)
    # From the beginning again
    again = next(read)
    assert again.begin == Place(len(found), 0)
    torch.testing.assert_close(again.streams[2], found[0].streams[2])
    # And from a place in the middle
    middle = next(blocks([model], documents, [2], 200, 100, found[1].begin))
    torch.testing.assert_close(middle.streams[2], found[1].streams[2])


def test_documents_of_one_block_are_read_once(embedded, documents, monkeypatch):
    model, _ = embedded
    calls = []
    real = train.blocks.__globals__["read_kept"]
    monkeypatch.setitem(train.blocks.__globals__, "read_kept", lambda *a: calls.append(1) or real(*a))
    read = blocks([model], documents, [1], 10_000, 10_000, Place())
    first, second, third = next(read), next(read), next(read)
    assert len(calls) == 1
    assert [block.begin.block for block in (first, second, third)] == [0, 1, 2]
    assert third.streams[1] is first.streams[1]


def test_an_iterator_is_read_once(embedded, documents):
    model, _ = embedded
    count = sum(block.num_tokens for block in blocks([model], iter(documents), [1], 200, 100, Place()))
    assert count == sum(len(one.ids) - one.start for one in documents)


@pytest.mark.parametrize("none", [[], [Document((3, 4), 0, start=2)]])
def test_nothing_to_read(embedded, none):
    with pytest.raises(UsageError, match="no tokens to read"):
        next(blocks([embedded[0]], none, [1], 10, 10, Place()))


def test_documents_that_the_model_cannot_read(embedded):
    model, tokenizer = embedded
    with pytest.raises(UsageError, match=r"group 4 has the token 999, but the model has \d+"):
        next(blocks([model], [Document((3, 999), 4)], [1], 10, 10, Place()))
    positions = model.config.max_position_embeddings
    block = next(blocks([model], [Document((3,) * (positions + 5), 0)], [1], 10, 10, Place()))
    assert block.num_tokens == positions


@pytest.mark.parametrize(
    "architecture", ["topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "standard", "gated"]
)
def test_trained_dictionaries_load_in_saelens_and_give_our_codes(embedded, documents, tmp_path, architecture):
    model, _ = embedded
    done = []
    trained = train_dictionaries(
        model,
        documents,
        tmp_path / "out",
        **SMALL,
        architecture=architecture,
        source={"kind": "made"},
        learning_rate=1e-2,
        progress=lambda *given: done.append(given),
    )
    dictionaries = load_dictionaries(str(tmp_path / "out"), model)
    assert list(dictionaries) == [0, 1, 2]
    for layer, dictionary in dictionaries.items():
        streams = direct(model, documents, layer)
        theirs = SAE.load_from_disk(tmp_path / "out" / f"layer_{layer:02d}")
        with torch.no_grad():
            codes, rebuilt = theirs.encode(streams), theirs(streams)
        torch.testing.assert_close(dictionary.encode(streams), codes)
        missed = (rebuilt - streams).square().sum() / (streams - streams.mean(0)).square().sum()
        # Fifty steps suffice for what a wrong scale or bias could not reach
        assert missed < 0.5
        assert theirs.cfg.metadata.model_name == "embedded"
        assert theirs.cfg.metadata.hook_name == (
            "blocks.1.hook_resid_post" if layer == 2 else f"blocks.{layer}.hook_resid_pre"
        )
        assert theirs.cfg.metadata.training_tokens == trained.tokens
        assert theirs.cfg.metadata.seed == 0
        assert theirs.cfg.metadata.source == {"kind": "made"}
        assert theirs.cfg.metadata.context_size == max(len(one.ids) for one in documents)
    assert done[-1][:2] == (6000, 6000)
    assert [given[0] for given in done] == sorted(given[0] for given in done)
    assert not (tmp_path / "out" / "checkpoint").exists()
    if "topk" in architecture:
        # Of topk exactly; of the others at the threshold they are saved with
        assert trained.layers["2"]["l0"] == pytest.approx(4, rel=0.1)


def test_few_contexts_are_learnt_nearly_whole(embedded, tmp_path):
    model, _ = embedded
    generator = torch.Generator().manual_seed(3)
    contexts = [Document(tuple(torch.randint(2, 20, (9,), generator=generator).tolist()), i) for i in range(12)]
    trained = train_dictionaries(
        model, contexts, tmp_path, model_name="embedded", num_features=128, tokens=60_000, batch_tokens=256
    )
    for layer, found in trained.layers.items():
        assert found["unexplained_variance"] < 0.05, layer


def test_one_pass_over_the_model_for_all_layers(embedded, documents, tmp_path, monkeypatch):
    model, _ = embedded
    calls = []
    monkeypatch.setattr(model, "forward", lambda *a, real=model.forward, **k: calls.append(1) or real(*a, **k))
    train_dictionaries(model, documents, tmp_path, **{**SMALL, "buffer_tokens": 10_000})
    assert len(calls) == 1


def weights(folder):
    return {layer: one.sae.state_dict() for layer, one in load_dictionaries(str(folder)).items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for layer, tensors in one.items():
        for name, value in tensors.items():
            assert torch.equal(value, other[layer][name]), (layer, name)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("architecture", ["topk", "matryoshka_batchtopk", "jumprelu", "gated"])
@pytest.mark.parametrize("stop", [5, 23])
def test_stopped_and_resumed_equals_undisturbed(embedded, documents, tmp_path, architecture, stop):
    model, _ = embedded
    settings = {**SMALL, "tokens": 4000, "architecture": architecture, "checkpoint_steps": 4}
    whole = train_dictionaries(model, documents, tmp_path / "whole", **settings)
    steps = []

    def stopping(*_):
        steps.append(1)
        if len(steps) == stop:
            raise Stopped

    with pytest.raises(Stopped):
        train_dictionaries(model, documents, tmp_path / "parts", **settings, progress=stopping)
    after = []
    torch.manual_seed(99)
    parts = train_dictionaries(model, documents, tmp_path / "parts", **settings, progress=lambda *g: after.append(g))
    # The steps since the last checkpoint are done again, no more
    assert len(after) == whole.steps - (stop - 1) // 4 * 4
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert parts.to_dict() == whole.to_dict()


def test_a_checkpoint_holds_no_pickle(embedded, documents, tmp_path):
    def stop(*_, steps=[]):  # noqa: B006
        steps.append(1)
        if len(steps) == 6:
            raise Stopped

    with pytest.raises(Stopped):
        train_dictionaries(embedded[0], documents, tmp_path, **SMALL, checkpoint_steps=2, progress=stop)
    (checkpoint,) = (tmp_path / "checkpoint").iterdir()
    assert checkpoint.name == "000000004"
    assert {path.suffix for path in checkpoint.iterdir()} == {".safetensors", ".json"}


def test_resuming_is_refused_where_it_would_be_another_run(embedded, documents, tmp_path):
    model, _ = embedded

    def stop(*_, steps=[]):  # noqa: B006
        steps.append(1)
        if len(steps) == 6:
            raise Stopped

    with pytest.raises(Stopped):
        train_dictionaries(model, documents, tmp_path, **SMALL, checkpoint_steps=2, progress=stop)
    with pytest.raises(UsageError, match=r"seed is 0 there and 1 here"):
        train_dictionaries(model, documents, tmp_path, **SMALL, seed=1)
    others = [replace(one, ids=one.ids[::-1]) for one in documents]
    with pytest.raises(UsageError, match=r"written with other documents"):
        train_dictionaries(model, others, tmp_path, **SMALL)
    (checkpoint,) = (tmp_path / "checkpoint").iterdir()
    (checkpoint / "layer_01.safetensors").write_bytes(b"short")
    with pytest.raises(UsageError, match=r"cannot be read.*remove it to begin anew"):
        train_dictionaries(model, documents, tmp_path, **SMALL)
    trained = train_dictionaries(model, documents, tmp_path, **SMALL, seed=1, resume=False)
    assert trained.settings["seed"] == 1
    assert not (tmp_path / "checkpoint").exists()


def test_what_was_trained_is_not_trained_again(embedded, documents, tmp_path):
    model, _ = embedded
    first = train_dictionaries(model, documents, tmp_path, **SMALL)
    assert json.loads((tmp_path / "training.json").read_text()) == first.to_dict()

    def never(*_):
        raise AssertionError

    assert train_dictionaries(model, documents, tmp_path, **SMALL, progress=never) == first
    with pytest.raises(UsageError, match=r"is of other settings: tokens is 6000 there and 7000 here"):
        train_dictionaries(model, documents, tmp_path, **{**SMALL, "tokens": 7000})


def test_seeds(embedded, documents, tmp_path):
    model, _ = embedded
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        torch.manual_seed(len(name))
        train_dictionaries(model, documents, tmp_path / name, **{**SMALL, "tokens": 1000}, seed=seed)
    assert_equal(weights(tmp_path / "one"), weights(tmp_path / "same"))
    assert not torch.equal(weights(tmp_path / "one")[1]["W_enc"], weights(tmp_path / "other")[1]["W_enc"])
    # Layers do not share their first weights either
    assert not torch.equal(weights(tmp_path / "one")[0]["W_enc"], weights(tmp_path / "one")[1]["W_enc"])


def test_documents_that_run_out(embedded, documents, tmp_path):
    with pytest.raises(UsageError, match=r"ended after \d+ tokens, but tokens=6000: ask for fewer, or give documents"):
        train_dictionaries(embedded[0], iter(documents), tmp_path, **SMALL)


def test_options_reach_saelens(embedded, documents, tmp_path):
    options = {"l1_coefficient": 0.25, "adam_beta1": 0.5}
    train_dictionaries(
        embedded[0], documents, tmp_path, **{**SMALL, "tokens": 300}, architecture="standard", options=options
    )
    saved = json.loads((tmp_path / "layer_01" / "cfg.json").read_text())
    assert saved["metadata"]["training_architecture_details"]["l1_coefficient"] == 0.25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "topkk"}, r"architecture='topkk'; allowed: topk, .*; did you mean 'topk'\?"),
        ({"options": {"l1_coeficient": 1}, "architecture": "standard"}, r"no 'l1_coeficient'.*mean 'l1_coefficient'"),
        ({"options": {"k": 3}}, r"options: topk has no 'k'"),
        ({"architecture": "gated", "active": 3}, r"made sparse by a penalty: set its option l1_coefficient"),
        ({"active": 65}, r"active=65, but there are 64 features"),
        ({"layers": [3]}, r"layer 3 was asked for, but the model has layers 0"),
        ({"layers": []}, r"no layer was asked for"),
        ({"tokens": 0}, r"tokens=0, but it must be at least 1"),
        ({"buffer_tokens": 100}, r"buffer_tokens=100, but it must be at least 128"),
        ({"learning_rate": 0.0}, r"learning_rate=0.0, but it must be above 0"),
        ({"options": {"matryoshka_widths": [64, 8]}, "architecture": "matryoshka_batchtopk"}, r"strictly increasing"),
    ],
)
def test_bad_settings(embedded, documents, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        train_dictionaries(embedded[0], documents, tmp_path / "out", **{**SMALL, **changes})
    assert not (tmp_path / "out").exists()


def test_a_full_disk_keeps_the_checkpoint_before(embedded, documents, tmp_path, monkeypatch):
    real = train.save_state

    def full(trainer, folder, stem):
        if trainer.n_training_steps >= 6 and stem == "layer_02":
            raise OSError(28, "No space left on device")
        real(trainer, folder, stem)

    monkeypatch.setattr(train, "save_state", full)
    with pytest.raises(OSError, match="No space left"):
        train_dictionaries(embedded[0], documents, tmp_path, **SMALL, checkpoint_steps=3)
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["000000003"]
    monkeypatch.setattr(train, "save_state", real)
    train_dictionaries(embedded[0], documents, tmp_path, **SMALL, checkpoint_steps=3)
    train_dictionaries(embedded[0], documents, tmp_path / "whole", **SMALL, checkpoint_steps=3)
    assert_equal(weights(tmp_path), weights(tmp_path / "whole"))
