"""Quality of dictionaries, against sums written out for one document at a time."""

import math

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata

from spiral_trl.errors import UsageError
from spiral_trl.sae.dictionaries import Dictionary
from spiral_trl.sae.documents import Document
from spiral_trl.sae.quality import Reconstruction, measure_quality
from spiral_trl.training.tiny import build_tiny_model


WIDTH = 32


def dictionary(layer, k=6, features=40, seed=0, **fields):
    config = TopKSAEConfig(d_in=WIDTH, d_sae=features, k=k, metadata=SAEMetadata(), **fields)
    sae = TopKSAE(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sae.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * (0.2 if name.startswith("W") else 0.05))
    return Dictionary(layer, f"made-{layer}", sae.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def documents():
    """Texts, one of which begins late, and games, whose earlier tokens are spliced too."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for group, (length, start, step) in enumerate(
        [(9, 0, -1), (14, 1, -1), (6, 0, 0), (13, 6, 1), (4, 3, 2), (5, 5, -1), (12, 2, 3)]
    ):
        ids = tuple(torch.randint(2, 20, (length,), generator=generator).tolist())
        # The last is of a game, and its reply begins at 7: its first token is predicted at 6
        made.append(Document(ids, group, start=start, step=step, reply=7 if step == 3 else None))
    return made


@pytest.fixture(scope="module")
def model(documents):
    """An embedded model that knows the documents well enough to lose by what is done to its streams."""
    model, _ = build_tiny_model(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(15):
        for document in documents:
            ids = torch.tensor([document.ids])
            model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def by_hand(model, one, layer, documents):
    """Of one document after the other, without padding, by a hook of its own."""
    module = model.model.layers[min(layer, 1)]
    kept, codes = [], []
    totals = {"clean": 0.0, "spliced": 0.0, "zero": 0.0}
    predictions = 0
    for document in documents:
        ids = torch.tensor([document.ids])
        begin = 0 if document.step >= 0 else document.start
        for kind in totals:

            def edit(stream, kind=kind, document=document, begin=begin):
                if kind == "clean":
                    kept.append(stream[0, document.start :].clone())
                    codes.append(one.sae.encode(kept[-1]))
                    return stream
                stream = stream.clone()
                stream[:, begin:] = one.sae(stream[:, begin:]) if kind == "spliced" else 0
                return stream

            if layer == 2:
                hook = module.register_forward_hook(lambda _, __, output, edit=edit: edit(output))
            else:
                hook = module.register_forward_pre_hook(
                    lambda _, args, kwargs, edit=edit: ((edit(args[0]), *args[1:]), kwargs), with_kwargs=True
                )
            try:
                with torch.no_grad():
                    logits = model(ids).logits[0]
            finally:
                hook.remove()
            begin_reply = 0 if document.reply is None else document.reply - 1
            for place in range(max(document.start, begin_reply), len(document.ids) - 1):
                totals[kind] -= float(torch.log_softmax(logits[place].double(), -1)[ids[0, place + 1]])
                predictions += kind == "clean"
    streams, codes = torch.cat(kept).double(), torch.cat(codes)
    rebuilt = one.sae(streams.float()).double()
    return {
        "tokens": len(streams),
        "unexplained_variance": float((streams - rebuilt).square().sum() / (streams - streams.mean(0)).square().sum()),
        "l0": float((codes > 0).sum(1).double().mean()),
        "dead": float(((codes > 0).sum(0) == 0).double().mean()),
        "predictions": predictions,
        **{f"ce_{kind}": total / predictions for kind, total in totals.items()},
        "ce_recovered": (totals["zero"] - totals["spliced"]) / (totals["zero"] - totals["clean"]),
    }


@pytest.mark.parametrize("batch_tokens", [8, 30, 1000])
def test_quality_equals_sums_by_hand(model, documents, batch_tokens):
    dictionaries = {layer: dictionary(layer, seed=layer) for layer in (0, 1, 2)}
    found = measure_quality(model, dictionaries, documents, batch_tokens=batch_tokens)
    for layer, one in dictionaries.items():
        expected = by_hand(model, one, layer, documents)
        assert found[layer].to_dict() == pytest.approx({"layer": layer, **expected}, rel=1e-4)
    assert expected["predictions"] == 8 + 12 + 5 + 6 + 0 + 0 + 5


def test_a_perfect_dictionary_recovers_all_and_an_empty_one_some(model, documents):
    """A dictionary of plus and minus the axes rebuilds every stream; one whose codes are 0 always gives its bias."""
    perfect = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=2 * WIDTH))
    axes = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    with torch.no_grad():
        perfect.W_dec.copy_(axes)
        perfect.W_enc.copy_(axes.T)
    found = measure_quality(model, {1: Dictionary(1, "axes", perfect)}, documents)[1]
    assert found.unexplained_variance == pytest.approx(0, abs=1e-9)
    assert found.ce_recovered == pytest.approx(1, abs=1e-4)
    assert found.l0 == pytest.approx(WIDTH)

    with torch.no_grad():
        perfect.b_enc.fill_(-1e9)
    empty = measure_quality(model, {1: Dictionary(1, "empty", perfect)}, documents)[1]
    # Zeros in the stream's place: nothing is recovered
    assert (empty.l0, empty.dead) == (0, 1)
    assert empty.ce_spliced == pytest.approx(empty.ce_zero)
    assert empty.ce_recovered == pytest.approx(0, abs=1e-6)


def test_centred_dictionary_is_measured_without_the_mean(generator):
    streams = torch.randn(30, WIDTH, generator=generator) + torch.randn(30, 1, generator=generator) * 5
    made = dictionary(0)
    centred = Dictionary(0, "centred", made.sae, centred=True)
    sums = Reconstruction(centred)
    sums.add(streams[:10])
    sums.add(streams[10:])
    read = streams - streams.mean(-1, keepdim=True)
    with torch.no_grad():
        missed = (read - made.sae(read)).square().sum()
    assert sums.unexplained_variance == pytest.approx(float(missed / (read - read.mean(0)).square().sum()), rel=1e-5)


def test_streams_that_do_not_vary_have_no_variance_to_explain():
    sums = Reconstruction(dictionary(0))
    sums.add(torch.full((20, WIDTH), 0.1))
    assert sums.unexplained_variance is None
    assert math.isclose(sums.to_dict()["l0"], 6)


def test_max_tokens_and_progress(model, documents):
    calls = []
    found = measure_quality(
        model,
        {1: dictionary(1)},
        documents,
        max_tokens=20,
        batch_tokens=1,
        progress=lambda *given: calls.append(given),
    )
    assert found[1].tokens == 9 + 13
    assert calls == [(1, 0, "9 tokens"), (2, 0, "22 tokens")]


def test_nothing_to_measure(model):
    with pytest.raises(UsageError, match="no tokens to measure"):
        measure_quality(model, {1: dictionary(1)}, [])
    with pytest.raises(UsageError, match="layer 3 was asked for"):
        measure_quality(model, {3: dictionary(3)}, [Document((3, 4), 0)])


def test_the_model_stays_as_it_was(model, documents):
    ids = torch.tensor([documents[0].ids])
    before = model(ids).logits
    measure_quality(model, {0: dictionary(0), 2: dictionary(2)}, documents)
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=0)
