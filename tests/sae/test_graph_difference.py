"""Graphs of features before and after, held against halves of the games."""

import numpy as np
import pytest

from spiral_trl.errors import UsageError
from spiral_trl.sae.comparison_tables import _graph_tables, _graph_words
from spiral_trl.sae.graph_difference import feature_graph, graph_difference, likeness


class Made:
    """Relations with given edges `(upstream, downstream, pearson)` of layers 0 and 1."""

    def __init__(self, edges, alive=10, pairs=((0, 1),)):
        self.pairs, self.given, self.alive = list(pairs), np.array(edges, float).reshape(-1, 3), alive

    def features(self, layer):
        return {"count": np.r_[np.ones(self.alive), 0, 0]}

    def edges(self, pair, rule):
        assert rule == "absolute"
        up, down, values = self.given.T
        return {
            "upstream_layer": np.full(len(up), pair[0]),
            "upstream": up.astype(np.int32),
            "downstream_layer": np.full(len(up), pair[1]),
            "downstream": down.astype(np.int32),
            "pearson": values.astype(np.float32),
        }


# Two triples, and a pair that passes through
BASE = [(0, 0, 0.7), (0, 1, 0.6), (1, 1, 0.7), (2, 2, 0.8), (3, 2, 0.6), (3, 3, 0.7), (5, 5, 0.99), (6, 6, 0.3)]


def test_graph_and_likeness_by_hand():
    graph = feature_graph(Made(BASE))
    assert len(graph.edges) == 7 and graph.share == {(0, 1): 0.1}
    assert graph.forward[0, 1].tolist() == [5]
    assert likeness(graph, graph) == {"edges": 1, "pass_through": 1, "communities": 1}
    # One edge gone, one new; another one passes through besides
    other = feature_graph(Made([*BASE[1:7], (7, 7, 0.96)]))
    found = likeness(graph, other)
    assert found["edges"] == 6 / 8 and found["pass_through"] == 1 / 2
    assert found["communities"] == 1
    empty = feature_graph(Made([]))
    assert likeness(empty, empty) == {"edges": None, "pass_through": None, "communities": None}
    assert feature_graph(Made([], alive=0)).share == {(0, 1): None}


def noisy(edges, seed):
    """Each edge gone with a chance of a tenth, and a few that are not there."""
    random = np.random.default_rng(seed)
    kept = [edge for edge in edges if random.random() > 0.1]
    return Made([*kept, *((up, up + 20, 0.55) for up in random.integers(10, 30, 3))], alive=40)


def many(moved=0):
    """Forty edges; the first ones `moved` elsewhere, and there they do not pass through."""
    return [(f, f + (5 if f < moved else 0), 0.6 if f < moved else 0.97) for f in range(40)]


def test_only_what_is_beyond_halves_is_called_so():
    def cuts(before, after):
        return [
            ((noisy(before, 4 * n), noisy(before, 4 * n + 1)), (noisy(after, 4 * n + 2), noisy(after, 4 * n + 3)))
            for n in range(3)
        ]

    same = graph_difference(Made(many(), 40), Made(many(), 40), cuts(many(), many()))
    assert [said["beyond"] for said in same["floor"].values()] == [False] * 3
    assert same["flow"][0]["beyond"] is False and same["edges"]["gained"] == same["edges"]["lost"] == 0
    changed = graph_difference(Made(many(), 40), Made(many(20), 40), cuts(many(), many(20)))
    assert changed["edges"] == {"before": 40, "after": 40, "gained": 20, "lost": 20}
    assert changed["floor"]["edges"]["beyond"] and changed["floor"]["pass_through"]["beyond"]
    (flow,) = changed["flow"]
    assert (flow["before"], flow["after"], flow["beyond"]) == (1.0, 0.5, True)
    assert len(flow["within"]) == len(flow["across"]) == 6
    words = " ".join(_graph_words(changed))
    assert "Of 40 edges between features 20 are gone, and 20 are new." in words and "Beyond what halves" in words
    for table in _graph_tables(changed):
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
    alone = graph_difference(Made(many(), 40), Made(many(20), 40), [])
    assert alone["floor"]["edges"]["beyond"] is None and "may be noise" in " ".join(_graph_words(alone))


def test_bad_input():
    with pytest.raises(UsageError, match="different pairs"):
        graph_difference(Made(BASE), Made(BASE, pairs=[(1, 2)]), [])
    with pytest.raises(UsageError, match="no measure 'jaccard'"):
        feature_graph(Made(BASE), measure="jaccard")


def test_graphs_of_stores_and_their_halves(make_store, tmp_path):
    """Half of the features pass through before; after, half of those do no more."""
    pytest.importorskip("spiral_trl.sae.relations")
    from spiral_trl.sae.graph_difference import compare_graphs

    random = np.random.default_rng(0)
    upper = random.exponential(1, (4000, 40)) * (random.random((4000, 40)) < 0.1)
    other = random.permuted(upper, axis=0)
    before = np.where(np.arange(40) < 20, upper, other)
    after = np.where(np.arange(40) < 10, upper, other)
    stores = [make_store({0: upper, 1: lower}, name=name, shards=2) for name, lower in (("b", before), ("a", after))]
    options = {"relate_options": {"progress": False}, "threshold": 0.9, "cuts": 2}
    found = compare_graphs(*stores, tmp_path / "graphs", **options)
    assert found["edges"] == {"before": 20, "after": 10, "gained": 0, "lost": 10}
    (flow,) = found["flow"]
    assert (flow["before"], flow["after"], flow["beyond"]) == (0.5, 0.25, True)
    assert found["floor"]["edges"] == {"within": [1.0] * 4, "across": [0.5] * 4, "beyond": True}
    assert compare_graphs(*stores, tmp_path / "graphs", **options) == found
    same = compare_graphs(stores[0], stores[0], tmp_path / "same", **options)
    assert same["floor"]["edges"]["beyond"] is False and same["flow"][0]["beyond"] is False
