"""What a comparison says: the gate, changes beyond noise with their control, and files that a report and others read."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from game_worlds import World, write_counts
from transformers import AutoModelForCausalLM, AutoTokenizer

from spiral_trl.errors import UsageError
from spiral_trl.sae import compare as module
from spiral_trl.sae.collect import collect
from spiral_trl.sae.compare import CompareSettings, compare
from spiral_trl.sae.discoveries import STATISTICS, benjamini_hochberg, clustered_difference
from spiral_trl.sae.documents import episode_documents
from spiral_trl.sae.game_sums import game_sums
from spiral_trl.sae.gate import GateLimits, open_gate
from spiral_trl.sae.halves import split_store


GOOD = {"unexplained_variance": 0.1, "l0": 10.0, "dead": 0.05, "ce_recovered": 0.98}
FEATURES = 120


def quality(layers=(0, 1), **changes):
    return {layer: {**GOOD, **changes} for layer in layers}


def write_world(folder, seed, factor=None, games=150, layers=(0, 1), **about):
    """A store of a sample of games; `factor` multiplies rates of layer 0."""
    said, sizes = {}, None
    for layer in layers:
        world = World(FEATURES, layer)
        tokens, counts = world.counts(games, 10 * seed, 1.0 if factor is None or layer else factor)
        sizes = tokens if sizes is None else sizes
        said[layer] = (sizes, np.minimum(counts, sizes[:, None]), 1.0)
    return write_counts(folder, said, seed=seed, **about)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Own games of a model before, more of them, and of one after, of which ten features of layer 0 fire three times
    as often; and which those are."""
    folder = tmp_path_factory.mktemp("worlds")
    before = write_world(folder / "before", 1)
    planted = np.flatnonzero((game_sums(before, 0).counts > 0).sum(0) >= 60)[:10]
    factor = np.ones(FEATURES)
    factor[planted] = 3
    return {
        "before": before,
        "control": write_world(folder / "control", 2),
        "after": write_world(folder / "after", 3, factor, model="after", model_fingerprint="after"),
        "planted": planted,
    }


def causal():
    """What playing without features gives."""

    def condition(mean):
        interval = {"estimate": mean, "low": mean - 0.1, "high": mean + 0.1}
        features = {"0": [1, 2], "1": [5]}
        said = dict.fromkeys(("illegal_rate", "exploitability", "policy_shift", "difference"))
        return {"features": features, "mean_return": interval, "win_rate": interval, **said}

    return {
        "game": "kuhn_poker",
        "player": "after",
        "opponent": "random",
        "pairs": 10,
        "seed": 0,
        "p": {"mean_return": 0.3, "exploitability": None, "policy_shift": None},
        "undisturbed": condition(0.3),
        "ablated": condition(0.1),
        "random": [condition(0.3), condition(0.3)],
        "beyond_random": {"estimate": -0.2, "low": -0.3, "high": -0.1},
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"unexplained_variance": 0.12}, None),
        ({"unexplained_variance": 0.126}, "unexplained variance 0.1 before, 0.126 after"),
        ({"l0": 14.9}, None),
        ({"l0": 15.1}, "active features for a token"),
        ({"l0": 6.6}, "active features for a token"),
        ({"l0": 0.0}, "active features for a token"),
        ({"dead": 0.16}, "dead share"),
        ({"ce_recovered": 0.92}, "cross-entropy recovered"),
        ({"ce_recovered": 1.0, "dead": 0.0, "unexplained_variance": 0.01}, None),
    ],
)
def test_gate(changes, reason):
    gate = open_gate(quality([3]), {"3": {**GOOD, **changes}})
    assert gate.transferring == (() if reason else (3,))
    assert gate.failing == ((3,) if reason else ())
    reasons = gate.layers["3"]["reasons"]
    assert (len(reasons) == 1 and reason in reasons[0]) if reason else not reasons
    assert gate.to_dict()["passed"] is (reason is None)


def test_gate_of_a_perfect_dictionary_and_of_other_limits():
    perfect = quality([0], unexplained_variance=0.001)
    assert open_gate(perfect, quality([0], unexplained_variance=0.02)).failing == ()
    assert open_gate(perfect, quality([0], unexplained_variance=0.02), GateLimits(unexplained_floor=0.01)).failing
    gate = open_gate(quality([0], ce_recovered=None), quality([0]))
    assert gate.unmeasured == ("ce_recovered",) and gate.failing == ()
    with pytest.raises(UsageError, match=r"\[0, 1\] before and \[0\] after"):
        open_gate(quality(), quality([0]))


def test_own_games_of_one_model_show_nothing(worlds, tmp_path):
    found = compare(tmp_path, on_policy=(worlds["before"], worlds["control"]), quality=(quality(), quality()))
    assert found.data["verdict"] == "nothing beyond noise"
    tested = found.data["counts"]["on_policy"]["tested"]
    assert f"0 of {tested} features changed beyond noise" in found.data["summary"] and tested > 80
    assert json.loads((tmp_path / "comparison.json").read_text()) == found.data


def test_changes_in_own_games_are_found_and_told(worlds, tmp_path):
    calls = []
    found = compare(
        tmp_path,
        on_policy=(worlds["before"], worlds["after"]),
        control=worlds["control"],
        quality=(quality(), quality()),
        causal=causal(),
        progress=lambda *call: calls.append(call),
    )
    data, planted = found.data, worlds["planted"]
    assert calls == [(1, 2, "on_policy, layer 0"), (2, 2, "on_policy, layer 1")]
    rows = pq.read_table(tmp_path / "comparison.parquet").to_pandas()
    assert rows[["layer", "feature"]].to_numpy().tolist() == [[m, f] for m in (0, 1) for f in range(FEATURES)]
    beyond = rows[rows.on_policy_beyond]
    assert np.isin(planted, beyond[beyond.layer == 0].feature).mean() >= 0.9
    assert len(beyond) <= len(planted) + 2
    # Over both layers together
    tested = rows.on_policy_tested.to_numpy()
    p = np.where(tested, rows.on_policy_p, np.nan)
    np.testing.assert_allclose(rows.on_policy_q[tested], benjamini_hochberg(p)[tested])
    assert rows.on_policy_p[~tested].isna().all() and 0 < (~tested).sum()
    counts = data["counts"]["on_policy"]
    assert counts["beyond"] == len(beyond) and counts["tested"] == tested.sum() and counts["up"] >= 9
    assert counts["large"] >= 9 and counts["control"]["beyond"] == 0
    assert data["verdict"] == "changed beyond noise"
    assert f"{len(beyond)} of {tested.sum()} features changed beyond noise" in data["summary"]
    assert "finds 0 of" in data["summary"]
    assert "Without 3 of the changed features" in data["summary"]
    assert "a difference of -0.2 [-0.3, -0.1], which is beyond noise" in data["summary"]
    assert [row[0] for row in data["tables"][-1]["rows"]][2:] == [f"without random features, set {n}" for n in (1, 2)]
    by_layer, by_feature = data["tables"][1:3]
    assert [row[3] for row in by_layer["rows"]] == [counts["layers"]["0"]["beyond"], counts["layers"]["1"]["beyond"]]
    assert len(by_feature["rows"]) == len(beyond)
    listed = [dict(zip(by_feature["columns"], row, strict=True)) for row in by_feature["rows"]]
    assert {f"0/{feature}" for feature in planted} & {row["feature"] for row in listed}
    for row in listed:
        if row["feature"] in {f"0/{feature}" for feature in planted}:
            assert row["from"] < row["ratio"] < row["to"] and row["ratio"] > 1.2
    assert all(len(table["columns"]) == len(row) for table in data["tables"] for row in table["rows"])


def test_the_same_texts(worlds, tmp_path):
    """The model after fires on twice as many of the tokens, for ten features; one is scaled."""
    before = worlds["before"]
    sums = {layer: game_sums(before, layer) for layer in before.layers}
    random = np.random.default_rng(0)
    tokens = sums[0].tokens.astype(int)
    again = {}
    for layer in before.layers:
        counts = sums[layer].counts.toarray().astype(int)
        counts += random.integers(-1, 2, counts.shape) * (counts > 1)
        if layer == 0:
            counts[:, worlds["planted"]] *= 2
        again[layer] = (tokens, np.minimum(counts, tokens[:, None]), 1.0)
    after = write_counts(tmp_path / "again", again, seed=8)
    found = compare(tmp_path / "out", same_text=(before, after), quality=(quality(), quality()))
    rows = pq.read_table(tmp_path / "out" / "comparison.parquet").to_pandas()
    beyond = rows[rows.same_text_beyond & (rows.layer == 0)].feature
    assert np.isin(worlds["planted"], beyond).all() and rows.same_text_beyond.sum() <= 12
    counts = found.data["counts"]["same_text"]
    # Names swapped at random leave nothing
    assert counts["control"]["beyond"] == 0
    assert counts["agreement"] > 0.1 and counts["control"]["agreement"] is None
    assert rows.same_text_correlation.between(-1, 1).sum() > 100
    assert "On the same texts (150 games)" in found.data["summary"]
    itself = compare(tmp_path / "itself", same_text=(before, before), quality=(quality(), quality()))
    assert itself.data["verdict"] == "nothing beyond noise"
    rows = pq.read_table(tmp_path / "itself" / "comparison.parquet").to_pandas()
    active = rows.same_text_games_before > 0
    assert np.allclose(rows.same_text_correlation[active], 1) and (rows.same_text_p[rows.same_text_tested] == 1).all()


def test_dictionaries_that_do_not_transfer_stop_it(worlds, tmp_path, monkeypatch):
    pair = (worlds["before"], worlds["after"])
    bad = {0: {**GOOD, "unexplained_variance": 0.5}, 1: GOOD}
    found = compare(tmp_path / "one", on_policy=pair, quality=(quality(), bad))
    assert found.data["verdict"] == "nothing beyond noise"
    assert "left out (layer 0: unexplained variance 0.1 before, 0.5 after)" in found.data["summary"]
    assert set(pq.read_table(tmp_path / "one" / "comparison.parquet")["layer"].to_pylist()) == {1}

    monkeypatch.setattr(module, "game_sums", None)
    found = compare(tmp_path / "all", on_policy=pair, quality=(quality(), quality(l0=40.0)), top=5)
    assert found.data["verdict"] == "the dictionary does not transfer"
    assert "do not transfer" in found.data["summary"] and found.data["counts"] == {}
    assert [table["title"] for table in found.data["tables"]] == ["Do the dictionaries transfer"]
    assert found.data["gate"]["l0"] == {"before": 10, "after": 40}
    assert json.loads((tmp_path / "all" / "comparison.json").read_text()) == found.data
    assert pq.read_table(tmp_path / "all" / "comparison.parquet").num_rows == 0


def test_quality_beside_the_stores_is_read(worlds, tmp_path, monkeypatch):
    before = worlds["before"]
    assert "was not measured" in compare(tmp_path / "1", same_text=(before, before)).data["summary"]
    said = {str(layer): {**GOOD, "ce_recovered": None} for layer in (0, 1)}
    path = before.folder / "quality.json"
    path.write_text(json.dumps(said))
    try:
        data = compare(tmp_path / "1", same_text=(before, before)).data
        assert data["gate"]["passed"] is True and "cross-entropy recovered not measured" in data["summary"]
        path.write_text("[")
        with pytest.raises(UsageError, match="cannot be read"):
            compare(tmp_path / "1", same_text=(before, before))
    finally:
        path.unlink()


def test_goes_on_with_the_layers_it_has(worlds, tmp_path, monkeypatch):
    pair = (worlds["before"], worlds["after"])
    real, layers = game_sums, []

    def stops(store, layer, replies_only):
        layers.append(layer)
        if layer == 1:
            raise KeyboardInterrupt
        return real(store, layer, replies_only)

    monkeypatch.setattr(module, "game_sums", stops)
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path / "stopped", on_policy=pair, quality=(quality(), quality()))
    assert not (tmp_path / "stopped" / "comparison.json").exists()
    monkeypatch.setattr(module, "game_sums", lambda *args: layers.append(args[1]) or real(*args))
    layers.clear()
    resumed = compare(tmp_path / "stopped", on_policy=pair, quality=(quality(), quality()))
    assert set(layers) == {1}
    whole = compare(tmp_path / "whole", on_policy=pair, quality=(quality(), quality()))
    assert resumed.data == whole.data
    one, other = (pq.read_table(tmp_path / name / "comparison.parquet") for name in ("stopped", "whole"))
    assert one.equals(other)
    layers.clear()
    compare(tmp_path / "stopped", on_policy=pair, settings=CompareSettings(min_games=30))
    assert set(layers) == {0, 1}


def test_bad_input(worlds, tmp_path):
    before, after, control = (worlds[name] for name in ("before", "after", "control"))
    for arguments, message in (
        ({}, "nothing to compare"),
        ({"same_text": (before, before), "control": control}, "none were given"),
        ({"same_text": (before, control)}, "different tokens"),
        ({"on_policy": (before, control), "control": after}, "of another one"),
        ({"on_policy": (before, after), "control": before}, "the very games"),
        ({"on_policy": (before, after), "quality": (quality([0]), quality([0]))}, "no quality of layer 1"),
    ):
        with pytest.raises(UsageError, match=message):
            compare(tmp_path / "out", **arguments)
    other = write_world(tmp_path / "other", 4, layers=(0,))
    said = json.loads((other.folder / "store.json").read_text())
    said["layers"]["0"]["fingerprint"] = "another"
    (other.folder / "store.json").write_text(json.dumps(said))
    with pytest.raises(UsageError, match="not compared by number"):
        compare(tmp_path / "out", on_policy=(before, module.Store(other.folder, said, other.shards)))
    with pytest.raises(UsageError, match="no layer in common"):
        compare(tmp_path / "out", on_policy=(before, write_world(tmp_path / "two", 5, layers=(2,))))
    with pytest.raises(UsageError, match=r"false_discoveries=2, but it must be between 0 and 1"):
        CompareSettings(false_discoveries=2)
    assert not (tmp_path / "out" / "comparison.json").exists()


def test_halves_have_each_game_once(worlds, tmp_path):
    store = worlds["before"]
    halves = split_store(store, tmp_path, seed=3)
    games = [set(half.tokens["group"].tolist()) for half in halves]
    assert not games[0] & games[1] and len(games[0]) == 75 and games[0] | games[1] == set(range(150))
    for half, kept in zip(halves, games, strict=True):
        for layer in store.layers:
            whole, part = game_sums(store, layer), game_sums(half, layer)
            rows = np.isin(whole.games, list(kept))
            np.testing.assert_allclose(part.totals.toarray(), whole.totals.toarray()[rows])
            assert part.tokens.tolist() == whole.tokens[rows].tolist()
    again = split_store(store, tmp_path, seed=3)
    assert [half.about for half in again] == [half.about for half in halves]
    with pytest.raises(UsageError, match="something else"):
        split_store(store, tmp_path, seed=4)


@pytest.fixture(scope="module")
def kuhn_store(tmp_path_factory, made_dictionary):
    """Codes of the embedded model on games of Kuhn poker against itself."""
    import torch

    from spiral_trl.players.language_model import LanguageModelPlayer
    from spiral_trl.rollout import play
    from spiral_trl.training.tiny import save_tiny_model, warm_start

    class Sparse(made_dictionary):
        """Features active on a few to a third of the tokens."""

        def encode(self, stream):
            stream = self.read(stream)
            codes = stream / (stream.norm(dim=-1, keepdim=True) + 1e-6) * self.width**0.5 @ self.weights
            return torch.relu(codes - torch.linspace(0.3, 2, self.num_features))

    game, folder = "kuhn_poker(observation=compact)", tmp_path_factory.mktemp("kuhn")
    save_tiny_model(folder / "model", seed=0)
    warm_start(folder / "model", game, folder / "model", seed=0, steps=30)
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    player = LanguageModelPlayer(model, tokenizer, max_new_tokens=8)
    episodes = play(game, [player] * 2, range(4000)).episodes()
    dictionaries = {layer: Sparse(layer, model.config.hidden_size, 96) for layer in range(3)}
    documents = episode_documents(episodes, tokenizer)
    about = dict(model_name="embedded", source={"game": game}, progress=False)
    return collect(model, dictionaries, documents, folder / "store", **about)


def test_control_on_games_of_the_embedded_model_finds_nothing(kuhn_store):
    sums = [game_sums(kuhn_store, layer) for layer in kuhn_store.layers]
    assert len(sums[0].games) == 4000
    found = []
    for seed in range(20):
        # No game is in two samples
        before, after = np.split(np.arange(200 * seed, 200 * (seed + 1)), 2)
        tests = [clustered_difference(one.take(before), one.take(after), paired=False, seed=seed) for one in sums]
        assert all(one.tested.sum() > 20 for one in tests)
        q = benjamini_hochberg(np.concatenate([one.combined for one in tests]))
        found.append((np.nan_to_num(q, nan=1) <= 0.05).sum())
    assert np.count_nonzero(found) <= 3


def test_statistics_are_documented_columns(worlds, tmp_path):
    compare(tmp_path, same_text=(worlds["before"],) * 2, on_policy=(worlds["before"], worlds["after"]))
    names = pq.read_schema(tmp_path / "comparison.parquet").names
    common = {f"{kind}_{what}_{name}" for kind in ("same_text", "on_policy") for what in "zp" for name in STATISTICS}
    assert common < set(names) and "same_text_correlation" in names and "on_policy_correlation" not in names
