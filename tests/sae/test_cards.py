"""Cards of features: places found in one pass, windows around them, and the tokens that directions promote."""

import numpy as np
import pytest
import torch

from spiral_trl.errors import UsageError
from spiral_trl.sae.cards import make_cards
from spiral_trl.sae.documents_index import DocumentIndex
from spiral_trl.sae.scan import BINS, row_chunks, scan
from spiral_trl.sae.store import TOKEN, open_store, rows_of, write_shard, write_store


@pytest.fixture
def write_codes(tmp_path):
    """`write_codes(codes, documents)`: a document is `{"ids": ..., "start": 0, "group": ..., "player": -1, ...}`."""

    def write(codes, documents, cuts=(), value_dtype="float32"):
        parts = []
        for number, said in enumerate(documents):
            start = said.get("start", 0)
            tokens = np.zeros(len(said["ids"]) - start, TOKEN)
            tokens["token"] = said["ids"][start:]
            tokens["position"] = np.arange(start, len(said["ids"]))
            tokens["document"], tokens["group"] = number, said.get("group", number)
            tokens["player"], tokens["turn"] = said.get("player", -1), said.get("turn", -1)
            tokens["reply"] = tokens["position"] >= said.get("reply", len(said["ids"]))
            parts.append(tokens)
        tokens = np.concatenate(parts)
        folder = tmp_path / f"store{len(list(tmp_path.iterdir()))}"
        write_store(folder, {"layers": {str(layer): {"num_features": c.shape[1]} for layer, c in codes.items()}})
        for n, at in enumerate(np.split(np.arange(len(tokens)), cuts)):
            write_shard(folder, n, tokens[at], {layer: rows_of(c[at], value_dtype) for layer, c in codes.items()})
        return open_store(folder)

    return write


def random_codes(tokens, features, seed=0, share=0.3):
    rng = np.random.default_rng(seed)
    codes = np.exp(rng.normal(0, 2, (tokens, features))) * (rng.random((tokens, features)) < share)
    return codes.astype(np.float32)


def texts_of(length, count, seed=0):
    rng = np.random.default_rng(seed)
    return [{"ids": rng.integers(0, 1000, length)} for _ in range(count)]


def test_one_pass_finds_what_a_dense_count_does(write_codes):
    codes = {2: random_codes(400, 6), 5: random_codes(400, 3, seed=1)}
    codes[2][:, 4] = 0
    store = write_codes(codes, texts_of(20, 20), cuts=(7, 150, 151))
    calls = []
    found = scan(store, {2: [5, 0, 4], 5: [1]}, top=4, progress=lambda *numbers: calls.append(numbers))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert found[2].features.tolist() == [0, 4, 5] and found[5].features.tolist() == [1]
    for layer, part in found.items():
        for row, feature in enumerate(part.features):
            dense = codes[layer][:, feature]
            active = dense[dense > 0].astype(np.float64)
            assert part.count[row] == len(active)
            assert part.total[row] == pytest.approx(active.sum())
            assert part.maximum[row] == dense.max()
            if not len(active):
                assert not part.histogram[row].any() and len(part.top.best(row)) == 0
                continue
            edges = part.width[row] * np.arange(BINS + 1)
            assert part.histogram[row].tolist() == np.histogram(active, edges)[0].tolist()
            # The range is not much wider than it needs to be
            assert edges[BINS // 2] < active.max() <= edges[-1]
            # The highest token of each document, highest first
            highest = dense.reshape(20, 20).argmax(axis=1) + np.arange(0, 400, 20)
            wanted = highest[np.argsort(-dense[highest])][:4]
            best = part.top.best(row)
            assert part.top.token[row, best].tolist() == wanted.tolist()
            assert part.top.value[row, best].tolist() == dense[wanted].tolist()


def test_a_sample_is_of_firings_alone_and_the_same_for_any_shards(write_codes):
    codes = {0: random_codes(3000, 4, share=0.5)}
    documents = texts_of(5, 600)
    whole = scan(write_codes(codes, documents), {0: range(4)}, sample=16)[0].sample
    cut = scan(write_codes(codes, documents, cuts=(1, 999, 2000)), {0: range(4)}, sample=16)[0].sample
    for row in range(4):
        tokens = whole.token[row, whole.best(row)]
        assert tokens.tolist() == cut.token[row, cut.best(row)].tolist()
        assert len(set(tokens // 5)) == 16 and (codes[0][tokens, row] == whole.value[row, whole.best(row)]).all()
        assert (whole.value[row] > 0).all()


def test_a_sample_favours_no_activation(write_codes):
    # Half of the firings are at 1 and half at 2; tokens that fire at 1 come first
    codes = np.repeat([[1.0], [2.0]], 4000, axis=0).astype(np.float32) * np.ones((1, 40), np.float32)
    store = write_codes({0: codes}, texts_of(1, 8000))
    values = scan(store, {0: range(40)}, sample=16)[0].sample.value
    # 640 draws: five standard deviations of the share are 0.1
    assert abs((values == 2).mean() - 0.5) < 0.1


def test_the_same_words_are_shown_once(write_codes):
    same = [1, 2, 3]
    documents = [{"ids": same} for _ in range(50)] + [{"ids": [1, 9, 3]}, {"ids": [2, 3]}]
    codes = np.ones((155, 1), np.float32)
    codes[2:150:3] = 5  # at 3, behind 1 and 2
    codes[152], codes[154] = 4, 3
    found = scan(write_codes({0: codes}, documents), {0: [0]}, top=6)[0].top
    best = found.best(0)
    assert found.value[0, best].tolist()[:3] == [5, 4, 3]
    assert found.token[0, best].tolist()[1:3] == [152, 154]
    assert len(set(found.context[0, best])) == len(best)


def test_a_window_reads_on_in_the_seats_earlier_document(write_codes):
    documents = [
        {"ids": [1, 2, 3, 4], "group": 0, "player": 0, "turn": 0, "reply": 3},
        {"ids": [9, 9, 9], "group": 0, "player": 1, "turn": 1, "reply": 2},
        {"ids": [1, 2, 3, 4, 5, 6, 7], "start": 4, "group": 0, "player": 0, "turn": 2, "reply": 6},
        {"ids": [1, 2, 8], "start": 2, "group": 1, "player": 0},
    ]
    store = write_codes({0: np.ones((11, 1), np.float32)}, documents)
    index = DocumentIndex(store)
    numbers = index.windows(np.array([7, 9, 0, 10]), 4, 1)
    # Tokens 4 to 6 are the other seat's
    assert numbers.tolist() == [
        [0, 1, 2, 3, 7, 8],
        [2, 3, 7, 8, 9, -1],
        [-1, -1, -1, -1, 0, 1],
        [-1, -1, -1, -1, 10, -1],
    ]
    # The same words before it, though cut into documents elsewhere
    other = write_codes({0: np.ones((7, 1), np.float32)}, [{"ids": [1, 2, 3, 4, 5, 6, 7]}])
    assert index.contexts(7, 3, 3).tolist() == DocumentIndex(other).contexts(4, 3, 3).tolist()
    assert len(set(index.contexts(0, 11, 3).tolist())) == 11


@pytest.mark.parametrize("value_dtype", ["float16", "float32"])
def test_a_card(write_codes, value_dtype):
    # Two games of two documents; feature 1 fires on token 5 most, in the second game's reply
    documents = [
        {"ids": [3, 4, 5], "group": 0, "player": 0, "reply": 2},
        {"ids": [3, 6, 5], "group": 0, "player": 1, "reply": 2},
        {"ids": [3, 5, 5, 5], "group": 1, "player": 1, "turn": 0, "reply": 3},
    ]
    codes = np.zeros((10, 3), np.float32)
    codes[[2, 5, 7, 8, 9], 1] = [1, 0.5, 0.25, 2, 4]
    codes[:, 2] = 1
    store = write_codes({4: codes}, documents, cuts=(8,), value_dtype=value_dtype)
    dead, card = make_cards(store, {4: [1, 0]}, top=2, samples=2, before=2, after=1)
    assert (dead.feature, dead.count, dead.texts, dead.to_dict()["histogram"]) == (0, 0, [], None)
    assert (card.layer, card.feature, card.count, card.density) == (4, 1, 5, 0.5)
    assert (card.maximum, card.mean, sum(card.counts)) == (4, 1.55, 5)
    high, low = card.texts[:2]
    assert (high.tokens, high.values, high.peak) == (["<5>", "<5>", "<5>"], [0.25, 2, 4], 2)
    assert (high.role, high.document, high.kind) == ("player 1 · reply", 2, "top")
    assert (low.tokens, low.values, low.peak) == (["<3>", "<4>", "<5>"], [0, 0, 1], 2)
    assert (low.role, low.document) == ("player 0 · reply", 0)
    # Each game has been shown
    assert card.texts[2:] == []


def test_samples_are_spread_over_lower_activations(write_codes):
    codes = np.arange(100, 0, -1, dtype=np.float32)[:, None]
    store = write_codes({0: codes}, texts_of(1, 100))
    (card,) = make_cards(store, {0: [0]}, top=3, samples=3)
    values = [(text.kind, text.values[text.peak]) for text in card.texts]
    assert values[:3] == [("top", 100), ("top", 99), ("top", 98)]
    assert [kind for kind, _ in values[3:]] == ["sample"] * 3
    lower = [value for _, value in values[3:]]
    assert 98 > lower[0] > lower[1] > lower[2] > 0 and lower[0] - lower[2] > 30


def test_text_outside_games_has_no_role(write_codes):
    store = write_codes({0: np.ones((3, 1), np.float32)}, [{"ids": [1, 2, 3]}])
    (card,) = make_cards(store, {0: [0]})
    assert card.texts[0].role is None


@pytest.mark.parametrize(
    ("chosen", "said"), [({3: [0]}, "has layers 0, not 3"), ({0: [4]}, "0 to 3, not 4"), ({0: [-1]}, "0 to 3, not -1")]
)
def test_what_the_store_does_not_have_is_refused(write_codes, chosen, said):
    store = write_codes({0: random_codes(10, 4)}, texts_of(10, 1))
    with pytest.raises(UsageError, match=said):
        scan(store, chosen)


def test_rows_are_read_in_chunks_that_cover_them():
    indptr = np.array([0, 0, 5, 5, 9, 30, 31])
    for size in (1, 4, 10, 100):
        chunks = row_chunks(indptr, size)
        assert [start for start, _ in chunks] == [0, *(stop for _, stop in chunks[:-1])] and chunks[-1][1] == 6
    assert row_chunks(np.array([0]), 5) == []


def test_cards_of_the_embedded_model(write_codes, embedded):
    model, tokenizer = embedded
    ids = tokenizer("player 0 card K history none [check]")["input_ids"]
    codes = np.zeros((len(ids), 2), np.float32)
    codes[3, 0] = 1
    store = write_codes({1: codes}, [{"ids": ids, "player": 0, "reply": len(ids) - 1}])
    # The direction of a token's own row in the unembedding, which the norm has scaled
    words = tokenizer.convert_tokens_to_ids(["[bet]", "[fold]"])
    rows = model.lm_head.weight[words].detach() / model.model.norm.weight.detach()
    rows = rows - model.lm_head.weight.mean(dim=0).detach()
    (card,) = make_cards(store, {1: [0]}, tokenizer, model, {1: rows.numpy()}, promoted=3)
    text = card.texts[0]
    assert "".join(text.tokens).strip() == "player 0 card K history none [check]"
    assert text.tokens[text.peak] == " K" and text.role == "player 0 · prompt"
    assert card.promoted[0][0].strip() == "[bet]" and len(card.promoted) == len(card.suppressed) == 3
    scores = torch.tensor([score for _, score in card.promoted])
    assert (scores.diff() <= 0).all()
