"""The graph: flow worked by hand, planted communities of codes, and files that say what was found."""

import json

import numpy as np
import pytest

from spiral_trl.errors import UsageError
from spiral_trl.sae.communities import adjusted_rand_index
from spiral_trl.sae.flow import best_similarity
from spiral_trl.sae.graph import CommunitySettings, build_graph, graph_from_edges, open_graph
from spiral_trl.sae.labels import LabelSettings
from spiral_trl.sae.planted import plant_communities
from spiral_trl.sae.relations import relate


def ranges(tokens, *places):
    codes = np.zeros((tokens, len(places)), np.float32)
    for number, (start, end) in enumerate(places):
        codes[start:end, number] = 1
    return codes


@pytest.fixture
def three_layers(make_store, tmp_path):
    """In layer 0 one feature passes, one half passes, one never fires; and so on."""
    codes = {
        0: ranges(1000, (0, 100), (200, 300), (0, 0)),
        1: ranges(1000, (0, 100), (250, 350), (500, 600), (600, 700)),
        2: ranges(1000, (500, 600), (600, 690), (800, 900), (0, 0)),
    }
    store = make_store(codes, groups=np.arange(1000) // 10)
    return store, relate(store, tmp_path / "relations", top_k=4)


def test_flow_between_layers(three_layers, tmp_path):
    graph = build_graph(*three_layers, tmp_path / "graph")
    assert graph.flow == [
        {
            "layer": 0,
            "next": 1,
            "of": 2,
            "of_next": 4,
            "silent": 1,
            "silent_next": 0,
            "passing": 1,
            "disappearing": 1,
            "reached": 1,
            "appearing": 3,
            "disappearing_share": 0.5,
            "appearing_share": 0.75,
        },
        {
            "layer": 1,
            "next": 2,
            "of": 4,
            "of_next": 3,
            "silent": 0,
            "silent_next": 1,
            # 90 of 100 firings: a correlation of 0.94
            "passing": 1,
            "disappearing": 3,
            "reached": 1,
            "appearing": 2,
            "disappearing_share": 0.75,
            "appearing_share": 2 / 3,
        },
    ]
    lower = build_graph(*three_layers, tmp_path / "lower", flow_threshold=0.4)
    assert [flow["passing"] for flow in lower.flow] == [2, 2]
    one = graph.layer(1)
    assert one["label"].tolist() == ["pass-through", "none", "none", "none"]
    assert one["backward"] == pytest.approx([1, (1000 * 50 - 1e4) / (1000 * 100 - 1e4), 0, 0], abs=1e-6)
    exact = np.corrcoef(ranges(1000, (600, 700), (600, 690)).T)[0, 1]
    assert one["forward"] == pytest.approx([0, 0, 1, exact], abs=1e-6)
    assert one["appears"].tolist() == [False, True, True, True]
    assert one["disappears"].tolist() == [True, True, False, True]
    first, last = graph.layer(0), graph.layer(2)
    # The first layer has nothing before it, the last nothing after, and what never fires does neither
    assert not first["appears"].any()
    assert first["disappears"].tolist() == [False, True, False]
    assert np.isnan(first["backward"]).all()
    assert not last["disappears"].any()
    assert last["appears"].tolist() == [False, True, True, False]
    assert one["count"].tolist() == [100] * 4
    assert one["density"].tolist() == [0.1] * 4


def test_files_are_read_back(three_layers, tmp_path):
    built = build_graph(
        *three_layers, tmp_path / "graph", LabelSettings(rule="absolute"), community=CommunitySettings(min_size=2)
    )
    assert sorted(path.name for path in (tmp_path / "graph").iterdir()) == ["graph.json", "labels.parquet"]
    graph = open_graph(tmp_path / "graph")
    assert graph.to_dict() == json.loads((tmp_path / "graph" / "graph.json").read_text()) == built.to_dict()
    assert graph.layers == (0, 1, 2)
    assert set(graph.table) == set(built.table)
    for name, column in built.table.items():
        assert np.array_equal(graph.table[name], column, equal_nan=column.dtype.kind == "f"), name
    assert graph.about["settings"]["labels"]["rule"] == "absolute"
    assert graph.about["labels"][1] == {
        "layer": 1,
        "upstream_layer": 0,
        "duplicate": 0,
        "pass-through": 1,
        "and": 0,
        "or": 0,
        "specialising": 0,
        "none": 3,
    }
    assert {entry["size"] for entry in graph.communities["list"]} == {2}
    assert graph.layer(0)["community"][0] == graph.layer(1)["community"][0] >= 0
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "graph" / "labels.parquet")
    assert table["backward"].null_count == 3
    assert table["upstream_layer"].null_count == 3
    with pytest.raises(UsageError, match="layers 0, 1, 2, not 7"):
        graph.layer(7)
    (tmp_path / "graph" / "labels.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="cannot be read"):
        open_graph(tmp_path / "graph")
    with pytest.raises(UsageError, match="holds no graph"):
        open_graph(tmp_path)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_communities_are_recovered(tmp_path, seed):
    """Through codes and relations, over all features of a community and all of none."""
    store, truth = plant_communities(tmp_path / "store", seed)
    relations = relate(store, tmp_path / "relations", top_k=16)
    graph = build_graph(store, relations, tmp_path / "graph", community=CommunitySettings(threshold=0.2, bootstraps=3))
    planted = np.array(
        [truth[layer, feature] for layer in store.layers for feature in range(store.num_features(layer))]
    )
    found = graph.table["community"]
    own = planted >= 0
    assert adjusted_rand_index(planted[own], found[own]) >= 0.95
    assert (found[~own] == -1).mean() > 0.95
    assert graph.communities["adjusted_rand_index"] > 0.9
    entry = graph.communities["list"][0]
    members = graph.table["community"] == 0
    assert entry["size"] == members.sum() == sum(entry["layers"].values())
    assert entry["layers"]["2"] == (graph.layer(2)["community"] == 0).sum()


def test_edges_without_codes(tmp_path):
    edges = {
        "upstream_layer": np.array([0, 0, 1, 3]),
        "upstream": np.array([5, 6, 7, 1]),
        "downstream_layer": np.array([1, 1, 2, 4]),
        "downstream": np.array([7, 7, 9, 2]),
        "similarity": np.array([0.9, 0.3, 0.5, 0.99]),
    }
    graph = graph_from_edges(
        edges, "similarity", 0.5, CommunitySettings(threshold=0.2), np.array([[0, 40]]), tmp_path / "graph"
    )
    assert [(f["layer"], f["next"], f["of"], f["passing"], f["appearing"]) for f in graph.flow] == [
        (0, 1, 3, 1, 0),
        (1, 2, 1, 1, 0),
        (2, 3, 1, 0, 1),
        (3, 4, 1, 1, 0),
    ]
    assert graph.layer(0)["feature"].tolist() == [5, 6, 40]
    assert graph.layer(0)["forward"].tolist() == [0.9, 0.3, 0]
    assert graph.layer(0)["disappears"].tolist() == [False, True, True]
    assert graph.layer(0)["community"].tolist() == [0, 0, -1]
    assert [entry["size"] for entry in graph.communities["list"]] == [4]
    assert open_graph(tmp_path / "graph").to_dict() == graph.to_dict()


def test_what_is_no_number_counts_as_none():
    edges = {"upstream": np.array([0, 0, 1]), "downstream": np.array([0, 1, 1]), "r": np.array([np.nan, 0.5, 0.7])}
    forward, backward = best_similarity(edges, "r", 3, 2)
    assert forward.tolist() == [0.5, 0.7, 0]
    assert backward.tolist() == [0, 0.7]
