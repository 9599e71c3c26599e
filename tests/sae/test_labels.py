"""Labels against planted truth, at its noise and its number of tokens, and the order in which they exclude each other."""

from itertools import count

import numpy as np
import pytest

from spiral_trl.errors import UsageError
from spiral_trl.sae.labels import LABELS, LabelSettings, consecutive, label_features
from spiral_trl.sae.planted import ENOUGH, main, plant, read_truth, score
from spiral_trl.sae.relations import relate


@pytest.mark.parametrize(("seed", "rules"), [(0, ("absolute", "relative")), (1, ("relative",)), (2, ("absolute",))])
def test_planted_truth_is_found(tmp_path, seed, rules):
    """Of every label, precision and recall are at least 0.95 over features with 200 firings in each decisive cell."""
    store, truth = plant(tmp_path / "store", seed)
    assert store.num_tokens == 1_000_000
    relations = relate(store, tmp_path / "relations", rules=rules, top_k=16)
    for rule in rules:
        layer = label_features(store, relations, LabelSettings(rule=rule))[1]
        pairs = list(zip(layer.partner.tolist(), layer.second.tolist(), strict=True))
        frequent = [item for item in truth if item.decisive >= ENOUGH]
        for name, some in (("frequent", frequent), ("rare", [item for item in truth if item.decisive < ENOUGH])):
            for part in score(some, layer.label, pairs):
                print(f"seed {seed}, {rule}, {name}: {part}, {part.precision:.3f}, {part.recall:.3f}")
        scores = score(frequent, layer.label, pairs)
        assert [part.label for part in scores] == list(LABELS)
        for part in scores:
            assert part.planted >= 80, part
            assert part.precision >= 0.95, part
            assert part.recall >= 0.95, part
        for item in truth:
            # However rare they are
            if item.kind.startswith("chain") or item.kind == "duplicate":
                assert layer.label[item.feature] not in ("and", "or"), item
        crowded = [item for item in frequent if item.kind.startswith("crowded")]
        found = [set(pairs[item.feature]) == set(item.partners) for item in crowded]
        assert len(found) >= 10
        assert np.mean(found) >= 0.95
        subsets = [item for item in frequent if item.kind == "subset" and layer.label[item.feature] == item.label]
        assert all(layer.partner[item.feature] == item.partners[0] for item in subsets)


def test_the_planted_store_says_what_it_is(tmp_path, capsys):
    assert main([str(tmp_path / "one"), "--seed", "3", "--tokens", "60000", "--of-each", "12", "--score"]) == 0
    shown = capsys.readouterr().out
    assert "60000 tokens" in shown
    assert all(label in shown for label in LABELS)
    truth = read_truth(tmp_path / "one")
    store, again = plant(tmp_path / "two", 3, 60_000, 12)
    assert truth == again
    assert [item.feature for item in truth] == list(range(store.num_features(1)))
    other = plant(tmp_path / "three", 4, 60_000, 12)[1]
    assert truth != other


@pytest.fixture
def label(make_store, tmp_path):
    """Labels the downstream features of codes, `label(up, down, **settings)`."""

    numbers = count()

    def run(up, down, **settings):
        name = f"store_{next(numbers)}"
        store = make_store({0: up.astype(np.float32), 1: down.astype(np.float32)}, name=name)
        relations = relate(store, tmp_path / f"{name}_relations", top_k=8)
        return label_features(store, relations, LabelSettings(**settings))

    return run


def columns(tokens, *ranges):
    codes = np.zeros((tokens, len(ranges)))
    for number, places in enumerate(ranges):
        for start, end in places if isinstance(places, list) else [places]:
            codes[start:end, number] = 1
    return codes


def test_each_label_by_hand(label):
    a, b, c = (0, 400), (300, 700), (1000, 1200)
    up = columns(3000, a, b, c, c, (2000, 2300))
    down = columns(3000, a, (300, 400), (0, 700), c, (2000, 2100), (2500, 2600), (2500, 2600))
    first, second = label(up, down)
    assert first.upstream is None
    assert first.label.tolist() == ["none", "none", "duplicate", "duplicate", "none"]
    assert first.twin.tolist() == [-1, -1, 3, 2, -1]
    expected = ["pass-through", "and", "or", "duplicate", "specialising", "duplicate", "duplicate"]
    assert second.label.tolist() == expected
    assert (second.layer, second.upstream) == (1, 0)
    assert second.partner.tolist() == [0, 0, 0, 2, 4, -1, -1]
    assert second.second.tolist() == [-1, 1, 1, 3, -1, -1, -1]
    assert second.twin.tolist() == [-1, -1, -1, -1, -1, 6, 5]
    both, either = second.gates
    assert (both.kind, both.feature, both.upstream, both.up, both.both, both.down_both) == (
        "and",
        1,
        (0, 1),
        (400, 400),
        100,
        100,
    )
    assert (either.kind, either.feature, either.down, either.down_up) == ("or", 2, 700, (400, 400))


def test_one_that_becomes_two_is_a_duplicate(label):
    up = columns(1000, (0, 200))
    # Neither of the two is the other to the threshold, but each is the one
    down = columns(1000, (4, 200), (0, 196))
    assert label(up, down, pass_threshold=0.985)[1].label.tolist() == ["duplicate"] * 2
    assert label(up, down, pass_threshold=0.97)[1].label.tolist() == ["duplicate"] * 2


def test_what_specialises(label):
    rng = np.random.default_rng(0)
    everywhere, half, wide = (0, 3000), (0, 1500), (0, 1000)
    # The fixture's token ids are the positions modulo 17
    narrow = np.zeros((3000, 1))
    narrow[:1700:17] = 1
    spread = np.zeros((3000, 1))
    spread[rng.permutation(1500)[:80]] = 1
    few = columns(3000, (0, 60))
    up = np.concatenate([columns(3000, everywhere, half, wide), narrow], axis=1)
    down = np.concatenate([columns(3000, (0, 400), (0, 900), (0, 72)), spread, narrow * 0, few], axis=1)
    labels = label(up, down)[1]
    # The narrowest feature that holds it and fires at least twice as often
    assert (labels.label[0], labels.partner[0]) == ("specialising", 2)
    # Nine tenths of the narrowest, but 0.6 of the next: everything is a subset of what always fires, and it tells nothing
    assert labels.label[1] == "none"
    # 72 firings of 72 leave the lower end under 0.95
    assert labels.label[2] == "none"
    assert (labels.label[3], labels.partner[3]) == ("specialising", 1)
    # What never fires, and what is too rare
    assert labels.label[4:].tolist() == ["none", "none"]
    assert labels.token_entropy[0] == pytest.approx(np.log(17), abs=0.01)


def test_a_subset_on_more_tokens_of_the_vocabulary_does_not_specialise(label):
    up, down = np.zeros((34_000, 1)), np.zeros((34_000, 1))
    # One token of the vocabulary, and a few firings on all others, of which the lower layer has half
    up[::17] = 1
    up[:600] = 1
    down[:300] = 1
    assert label(up, down)[1].label.tolist() == ["none"]
    assert label(up, down, entropy_slack=3.0)[1].label.tolist() == ["specialising"]


def test_settings_are_checked():
    with pytest.raises(
        UsageError, match="measure must be one of pearson, cosine, jaccard, not 'pearsen'.*did you mean"
    ):
        LabelSettings(measure="pearsen")
    with pytest.raises(UsageError, match="rule must be one of absolute, relative"):
        LabelSettings(rule="both")
    with pytest.raises(UsageError, match="gate_threshold must be above 0.5 and at most 1, not 0.3"):
        LabelSettings(gate_threshold=0.3)
    with pytest.raises(UsageError, match="max_density_ratio"):
        LabelSettings(max_density_ratio=1.5)


def test_pairs_of_consecutive_layers():
    assert consecutive([(2, 3), (0, 1), (1, 2), (0, 3)]) == [(0, 1), (1, 2), (2, 3)]
    assert consecutive([(0, 4), (4, 8)]) == [(0, 4), (4, 8)]
    with pytest.raises(UsageError, match="no pair of consecutive layers"):
        consecutive([])
