"""A report's data: what goes in, community texts, prompts, and the check of its form."""

import copy
import json
import re
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest

from spiral_trl.errors import UsageError
from spiral_trl.sae.cards import Windows
from spiral_trl.sae.documents_index import DocumentIndex
from spiral_trl.sae.export import export_run
from spiral_trl.sae.node_link import report_of_graph, write_node_link
from spiral_trl.sae.pieces import Pieces
from spiral_trl.sae.prompt_views import choose_documents, read_prompts
from spiral_trl.sae.report import build_report, write_report
from spiral_trl.sae.report_data import check_report
from spiral_trl.sae.run_folder import Run, _of_these
from spiral_trl.sae.selection import Limits, Selection, choose_edges, mentioned, neighbours
from spiral_trl.sae.store import TOKEN, open_store, rows_of, write_shard, write_store
from spiral_trl.sae.telling import telling_texts


REPLY = {"l": 2, "f": 2, "name": "winning", "position": "reply"}
KINDS = ("features", "controls")
FATES = ("features", "gone", "missed", "rebuilt", "unclear", "rare")
TWO = ("pearson", "necessity")


class MadeRelations:
    """Relations that a test writes down: `{(up layer, down layer): [(up, down, pearson, necessity), ...]}`."""

    def __init__(self, edges, features):
        self.pairs = tuple(edges)
        self._edges, self._features = edges, features

    def features(self, layer):
        return self._features[layer]

    def edges(self, pair, rule):
        rows = self._edges[pair]
        columns = {"upstream": [row[0] for row in rows], "downstream": [row[1] for row in rows]}
        for n, name in enumerate(TWO, 2):
            values = np.array([row[n] for row in rows], dtype=np.float64)
            columns[name] = values
            for way, own in (("down", 0), ("up", 1)):
                ranks = np.array(
                    [
                        1 + sum(row[own] == rows[k][own] and row[n] > values[k] for row in rows)
                        for k in range(len(rows))
                    ],
                    dtype=np.float64,
                )
                columns[f"rank_{way}_{name}"] = np.where(ranks <= 2, ranks, np.nan)
        return {name: np.asarray(column) for name, column in columns.items()}


@pytest.fixture
def game_store(tmp_path):
    """Four games of two seats, each asked twice; three layers of six features, of which the last never fires."""
    rng = np.random.default_rng(0)
    parts = []
    for game in range(4):
        for document, (player, turn) in enumerate([(0, 0), (1, 1), (0, 2)]):
            start = 5 if turn == 2 else 0
            tokens = np.zeros(8 if start == 0 else 5, TOKEN)
            tokens["position"] = np.arange(start, start + len(tokens))
            tokens["token"] = 3 + (tokens["position"] + 7 * player + 3 * game) % 17
            tokens["document"], tokens["group"] = 3 * game + document, game
            tokens["player"], tokens["turn"] = player, turn
            tokens["reply"] = tokens["position"] >= start + len(tokens) - 2
            parts.append(tokens)
    tokens = np.concatenate(parts)
    codes = {}
    for layer in (0, 1, 2):
        codes[layer] = rng.gamma(2, 1, (len(tokens), 6)) * (rng.random((len(tokens), 6)) < 0.4)
        codes[layer][:, 5] = 0
    layers = {
        str(layer): {
            "num_features": 6,
            "dictionary": "made",
            "neuronpedia": "made-model/1-res" if layer == 1 else None,
        }
        for layer in codes
    }
    folder = tmp_path / "run"
    write_store(folder, {"model": "made", "source": {"kind": "episodes", "games": 4}, "layers": layers})
    for n, at in enumerate(np.array_split(np.arange(len(tokens)), 3)):
        write_shard(folder, n, tokens[at], {layer: rows_of(dense[at], "float32") for layer, dense in codes.items()})
    return open_store(folder), codes


def relations_of(codes):
    features = {
        layer: {"count": (dense > 0).sum(axis=0), "max": dense.max(axis=0), "feature": np.arange(dense.shape[1])}
        for layer, dense in codes.items()
    }
    rows = [(up, down, (1 + up) / (8 + down), 0.5) for up in range(5) for down in range(5)]
    return MadeRelations({(0, 1): rows, (1, 2): rows}, features)


def labels_of(codes):
    table = pd.DataFrame([{"layer": layer, "feature": f} for layer in codes for f in range(6)])
    table["label"], table["appears"], table["disappears"] = "none", False, pd.NA
    table["community"] = -1
    table.loc[(table.layer == 1) & (table.feature == 2), ["label", "disappears"]] = ["and", True]
    table.loc[(table.feature == 0) | ((table.layer == 0) & (table.feature == 5)), "community"] = 0
    table.loc[table.feature == 3, "community"] = 1
    return table


@pytest.fixture
def run(game_store):
    store, codes = game_store
    graph = {
        "settings": {"pass_threshold": 0.95},
        "flow": [
            {"layer": 0, "next": 1, "passing": 2, "disappearing": 3, "appearing": 1, "of": 5, "of_next": 5, "more": 0}
        ],
        "gates": [{"kind": "and", "layer": 1, "feature": 2, "upstream_layer": 0, "upstream": [1, 4]}],
        "communities": {
            "measure": "necessity",
            "list": [{"id": 0, "size": 4, "stability": 0.75}, {"id": 1, "size": 3, "stability": None}],
        },
    }
    games = {"summary": "words", "stands_for": [{"l": 2, "f": 1, "name": "card", "value": "K"}, REPLY]}
    return Run(
        store.folder,
        store,
        relations_of(codes),
        graph,
        labels_of(codes),
        {"0": {"unexplained_variance": 0.1, "l0": 2.0, "dead": 0.2}},
        {
            "layers": [{"layer": 0, "next": 1, **{kind: dict.fromkeys(FATES, n) for n, kind in enumerate(KINDS)}}],
            "verdicts": {(1, 2): (2, "missed"), (1, 3): (2, "rare")},
        },
        {"games": games},
    )


def test_a_small_run_goes_in_whole(run, game_store):
    data = build_report(run)
    json.dumps(data, allow_nan=False)
    _, codes = game_store
    places = [(feature["l"], feature["f"]) for feature in data["features"]]
    # All that fire
    assert places == [(layer, f) for layer in range(3) for f in range(5)]
    assert data["measures"] == ["pearson", "necessity"] and data["layers"] == [0, 1, 2]
    assert data["about"]["model"] == "made" and data["about"]["source"] == "kind: episodes, games: 4"
    assert data["about"]["settings"]["measure"] == "necessity"
    for (layer, f), feature in zip(places, data["features"], strict=True):
        active = codes[layer][:, f][codes[layer][:, f] > 0]
        assert feature["count"] == len(active) and feature["mean"] == pytest.approx(active.mean(), rel=1e-3)
    at = places.index((1, 2))
    assert data["features"][at]["label"] == "and"
    assert data["features"][at]["badges"] == [
        "AND of 0/1 and 0/4",
        "in the error of layer 2",
        "disappears",
    ]
    assert data["features"][places.index((1, 3))]["badges"] == []
    assert data["features"][at]["neuronpedia"] == "https://www.neuronpedia.org/made-model/1-res/2"
    assert data["features"][0]["neuronpedia"] is None
    assert data["features"][places.index((2, 1))]["badges"] == ["stands for: card K"]
    assert data["features"][places.index((2, 2))]["badges"] == ["stands for: winning in the reply"]
    assert data["games"]["summary"] == "words" and data["comparison"] is None
    fates = {kind: dict.fromkeys(FATES[1:], n) for n, kind in enumerate(KINDS)}
    assert data["flow"] == [
        {"layer": 0, "next": 1, "passing": 2, "disappearing": 3, "appearing": 1, "of": 5, "of_next": 5, "fates": fates}
    ]
    edges = {(places[up], places[down]): values for up, down, values in data["edges"]}
    assert len(edges) == 50 and edges[(1, 3), (2, 0)] == [0.5, 0.5]


def test_communities_name_their_features_and_tell_texts(run, game_store):
    data = build_report(run)
    _, codes = game_store
    first, second = data["communities"]
    # The dead feature counts, and is not shown
    assert (first["id"], first["size"], first["layers"]) == (0, 4, {"0": 2, "1": 1, "2": 1})
    assert first["measure"] == "necessity"
    assert (first["stability"], second["stability"]) == (0.75, None)
    assert {(data["features"][n]["l"], data["features"][n]["f"]) for n in first["features"]} == {
        (layer, 0) for layer in range(3)
    }
    assert {n for n, feature in enumerate(data["features"]) if feature["community"] == 0} == set(first["features"])
    score = sum(codes[layer][:, 0] / codes[layer][:, 0].max() for layer in range(3)) / 4
    best = first["texts"][0]
    assert best["values"][best["peak"]] == pytest.approx(score.max(), rel=1e-3)


def test_texts_of_communities_are_where_their_features_fire_together(game_store):
    store, codes = game_store
    maxima = {layer: dense.max(axis=0).astype(np.float32) for layer, dense in codes.items()}
    nodes = [np.array([[0, 1], [2, 1], [2, 2]]), np.array([[1, 4]])]
    calls = []
    texts = telling_texts(
        store, nodes, maxima, Windows(store, Pieces(None), 3, 2), 2, lambda *numbers: calls.append(numbers)
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]
    for own, shown in zip(nodes, texts, strict=True):
        score = sum(codes[layer][:, f] / codes[layer][:, f].max() for layer, f in own) / len(own)
        games = store.tokens["group"]
        by_game = sorted(((score[games == game].max()) for game in range(4)), reverse=True)
        assert [text.values[text.peak] for text in shown] == pytest.approx(by_game[:2], rel=1e-3)
        # The other tokens' scores stand around it
        text = shown[0]
        token = int(score.argmax())
        after = len(text.tokens) - 1 - text.peak
        assert text.values[text.peak :] == pytest.approx(score[token : token + after + 1], rel=1e-3)


def test_a_prompt_shows_what_is_active_on_it(run, game_store):
    store, codes = game_store
    data = build_report(run, limits=Limits(prompts=4))
    assert len(data["prompts"]) == 4
    numbers = [re.fullmatch(r"game (\d+)/turn (\d+)", prompt["id"]).groups() for prompt in data["prompts"]]
    documents = {
        3 * int(game) + int(turn): prompt for (game, turn), prompt in zip(numbers, data["prompts"], strict=True)
    }
    players = [int(store.tokens["player"][store.tokens["document"] == number][0]) for number in documents]
    assert sorted(players) == [0, 0, 1, 1]
    index = DocumentIndex(store)
    for number, prompt in documents.items():
        whole = {(data["features"][n]["l"], data["features"][n]["f"], at): value for n, at, value in prompt["active"]}
        own = choose_documents(index, 12, 160)
        match = next(part for part in own if int(store.tokens["document"][part[-1]]) == number)
        assert len(prompt["tokens"]) == len(match)
        wanted = {
            (layer, f, at): codes[layer][token, f]
            for layer in codes
            for f in range(6)
            for at, token in enumerate(match)
            if codes[layer][token, f] > 0
        }
        assert whole == pytest.approx(wanted, rel=1e-3)


def test_prompts_differ_and_are_cut(game_store):
    store, _ = game_store
    index = DocumentIndex(store)
    chosen = choose_documents(index, 100, 6)
    words = [tuple(store.tokens["token"][tokens]) for tokens in chosen]
    assert len(set(words)) == len(words) and max(map(len, words)) == 6
    # The last tokens of a game's documents, with what the seat had read before
    long = choose_documents(index, 12, 160)
    assert {len(tokens) for tokens in long} == {8, 10}
    assert choose_documents(index, 0, 6) == []


def test_places_are_shared_out(run):
    limits = Limits(features=6, edges=4, prompts=2)
    data = build_report(run, limits=limits, wanted=[(0, 5), (2, 4)])
    places = {(feature["l"], feature["f"]) for feature in data["features"]}
    assert len(places) <= 7
    # What was asked for and what results name, even a dead one
    assert {(0, 5), (2, 4), (2, 1)} <= places and len(data["edges"]) <= 4
    dead = next(feature for feature in data["features"] if (feature["l"], feature["f"]) == (0, 5))
    assert (dead["count"], dead["texts"], dead["histogram"]) == (0, [], None)


def test_the_strongest_neighbours_come_in_and_their_edges(game_store):
    _, codes = game_store
    relations = relations_of(codes)
    selection = Selection({layer: (dense > 0).sum(axis=0) for layer, dense in codes.items()}, 4)
    selection.need([(1, 0), (7, 0), (1, 99)])
    assert len(selection) == 1
    found = neighbours(relations, "absolute", "pearson", selection, ranks=1)
    # Pearson is (1 + up) / (8 + down)
    assert found == [(0, 4), (2, 0)]
    index = {(0, 4): 0, (0, 3): 1, (1, 0): 2}
    assert choose_edges(relations, "absolute", ["pearson"], index, 10) == [[0, 2, [0.625]], [1, 2, [0.5]]]
    assert choose_edges(relations, "absolute", ["pearson"], index, 1) == [[0, 2, [0.625]]]


def test_offers_end_at_the_limit():
    selection = Selection({0: np.array([5, 0, 3, 9]), 1: np.array([1, 1])}, 3)
    selection.offer([(0, 1), (0, 0)], 5)
    assert (0, 1) not in selection and (0, 0) in selection
    selection.offer([(1, 0), (1, 1), (0, 2)], 1)
    assert len(selection) == 2
    selection.offer_most_frequent()
    assert {layer: features.tolist() for layer, features in selection.by_layer.items()} == {0: [0, 3], 1: [0]}


def test_results_name_features_wherever_they_stand():
    value = {"a": [{"l": 1, "f": 2}, {"b": {"layer": 3, "feature": 4, "c": ({"l": 5, "f": 6},)}}], "l": True, "f": 1}
    assert mentioned(value) == [(1, 2), (3, 4), (5, 6)]
    assert mentioned({"tables": [{"rows": [["2/17", 0.5], ["a 1/2", "1/2/3", "-1/2"]]}]}) == [(2, 17)]
    assert mentioned({"l": "1", "f": 2}) == mentioned(None) == []


@pytest.mark.parametrize(("fingerprint", "linked"), [("made", True), ("other", False)])
def test_features_of_other_dictionaries_are_no_links(game_store, fingerprint, linked):
    store, _ = game_store
    for said in store.about["layers"].values():
        said["fingerprint"] = "made"
    comparison = {
        "settings": {"stores": {"same_text": [{"layers": {"0": "made", "1": fingerprint}}, None]}},
        "tables": [
            {"title": "t", "columns": ["feature", "p"], "rows": [["1/3", 0.5]]},
            {"columns": ["p"], "rows": [[1]]},
        ],
    }
    shown = _of_these(comparison, store)
    assert mentioned(shown) == ([(1, 3)] if linked else [])
    assert shown["tables"][0]["rows"] == [["1/3" if linked else "1 · 3", 0.5]]
    assert shown["tables"][0]["title"] == "t" and shown["tables"][1] == comparison["tables"][1]


def test_of_two_dictionaries_those_that_are_not_shown_are_no_links(game_store):
    store, _ = game_store
    for said in store.about["layers"].values():
        said["fingerprint"] = "made"

    def part(fingerprint, cell):
        return {
            "settings": {"stores": {"same_text": [{"layers": {"0": fingerprint}}]}},
            "tables": [{"title": "t", "columns": ["feature", "candidate"], "rows": [[cell, "2/2"]]}],
        }

    before, shared = part("other", "1/3"), part("made", "1/4")
    tables = [{**found["tables"][0], "title": f"{name}: t"} for name, found in (("A", before), ("B", shared))]
    shown = _of_these({"summary": "", "tables": tables, "before": before, "shared": shared}, store)
    assert [table["rows"] for table in shown["tables"]] == [[["1 · 3", "2/2"]], [["1/4", "2/2"]]]
    assert [table["title"] for table in shown["tables"]] == ["A: t", "B: t"]
    assert shown["before"]["tables"][0]["rows"] == [["1 · 3", "2/2"]]
    assert shown["shared"] == shared
    assert set(mentioned(shown)) == {(1, 4), (2, 2)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"measure": "pearsn"}, "no measure 'pearsn'; they have pearson, necessity; did you mean 'pearson'"),
        ({"wanted": [(0, 6)]}, "layer 0 has features 0 to 5, not 6"),
        ({"wanted": [(9, 0)]}, "has layers 0, 1, 2, not 9"),
    ],
)
def test_what_the_run_does_not_have_is_refused(run, options, said):
    with pytest.raises(UsageError, match=said):
        build_report(run, **options)


def test_relations_of_other_codes_are_refused(run):
    run.relations._features[1] = {"count": np.ones(3), "max": np.ones(3)}
    with pytest.raises(UsageError, match="layer 1 has 3 features there, 6 here"):
        build_report(run)


def test_codes_alone_make_a_report(game_store):
    store, _ = game_store
    data = build_report(Run(store.folder, store), title="Codes")
    assert data["title"] == "Codes" and len(data["features"]) == 15 and data["edges"] == []


def feature(data, n=0):
    return data["features"][n]


BROKEN = {
    "version": (lambda d: d.update(version=2), "version 2 cannot be shown"),
    "missing": (lambda d: d.pop("flow"), "flow is missing"),
    "part missing": (lambda d: feature(d).pop("texts"), r"features\[0\].texts is missing"),
    "no list": (lambda d: d.update(edges={}), "edges must be a list"),
    "nan": (lambda d: feature(d).update(max=float("nan")), r"features\[0\].max must be a finite number, not nan"),
    "bool": (lambda d: feature(d).update(count=True), r"features\[0\].count must be a whole number, not True"),
    "layer": (lambda d: feature(d).update(l=9), r"features\[0\].l must be one of the layers, not 9"),
    "layers": (lambda d: d.update(layers=[1, 0, 2]), "layers must ascend"),
    "twice": (lambda d: feature(d, 1).update(f=0), r"features holds the layer and feature \(0, 0\) twice"),
    "edge": (lambda d: d["edges"][0].__setitem__(1, 99), r"edges\[0\]\[1\] must be a place among the 15 features"),
    "values": (lambda d: d["edges"][0].__setitem__(2, [1.0]), r"edges\[0\]\[2\] must be 2 values"),
    "short edge": (lambda d: d["edges"][0].pop(), r"edges\[0\] must be a list of 3"),
    "backward": (lambda d: d["edges"][0].__setitem__(0, 14), r"edges\[0\] must be an edge from an earlier layer"),
    "community": (lambda d: feature(d).update(community=9), r"community must be the id of a community, not 9"),
    "member": (
        lambda d: d["communities"][0]["features"].append(-1),
        r"communities\[0\].features\[3\] must be a place",
    ),
    "measure": (lambda d: d["communities"][0].update(measure="x"), "measure must be one of the measures, not 'x'"),
    "same id": (lambda d: d["communities"][1].update(id=0), "communities holds the id 0 twice"),
    "link": (lambda d: feature(d).update(neuronpedia="javascript:1"), "neuronpedia must be an https address"),
    "peak": (lambda d: feature(d)["texts"][0].update(peak=99), r"texts\[0\].peak must be a place among the"),
    "text": (lambda d: feature(d)["texts"][0]["values"].pop(), r"texts\[0\].values must be \d+, one a token"),
    "histogram": (lambda d: feature(d)["histogram"]["edges"].pop(), "edges must be one more than there are counts"),
    "prompt": (
        lambda d: d["prompts"][0]["active"].append([0, 99, 1.0]),
        r"\[1\] must be a place among the \d+ tokens",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_no_page_can_show_is_refused_with_its_place(run, case):
    data = build_report(run)
    broken = copy.deepcopy(data)
    change, said = BROKEN[case]
    change(broken)
    with pytest.raises(UsageError, match=said):
        check_report(broken)
    assert check_report(data) is data


def test_readers_of_prompts_find_codes_in_every_shard(game_store):
    store, codes = game_store
    tokens = np.arange(len(store.tokens))
    (prompt,) = read_prompts(store, DocumentIndex(store), [tokens])
    for layer, dense in codes.items():
        own = prompt.layer == layer
        again = np.zeros_like(dense)
        again[prompt.at[own], prompt.feature[own]] = prompt.value[own]
        np.testing.assert_allclose(again, dense, rtol=1e-6)
    maxima = {layer: dense.max(axis=0).astype(np.float32) for layer, dense in codes.items()}
    # On the whole store each is at its highest
    assert prompt.foremost(maxima, 6) == [(layer, f) for layer in range(3) for f in (0, 1)]


def test_a_whole_community_of_a_run_is_written_in_the_authors_form(run, tmp_path):
    graph = export_run(run, "pearson", community=0)
    assert [node["id"] for node in graph.nodes] == ["0_0", "0_5", "1_0", "2_0"]
    assert {(link["source"], link["target"], link["similarity"]) for link in graph.links} == {
        ("0_0", "1_0", 0.125),
        ("1_0", "2_0", 0.125),
    }
    write_node_link(graph, tmp_path / f"{graph.name}.json")
    opened = report_of_graph(tmp_path / f"{graph.name}.json")
    assert opened["about"]["model"] == "made" and opened["measures"] == ["pearson", "necessity"]
    links = {(feature["l"], feature["f"]): feature["neuronpedia"] for feature in opened["features"]}
    assert links[1, 0] == "https://www.neuronpedia.org/made-model/1-res/0" and links[2, 0] is None


def test_a_neighbourhood_of_a_run_is_read_from_its_relations(run):
    graph = export_run(run, "pearson", around=(0, 4), threshold=0.5)
    # Pearson is (1 + up) / (8 + down)
    assert [node["id"] for node in graph.nodes] == ["0_4", "1_0", "1_1", "1_2"] and len(graph.links) == 3
    further = export_run(run, "pearson", around=(0, 4), threshold=0.5, hops=2)
    # Others that lead to these
    assert [node["id"] for node in further.nodes] == ["0_3", "0_4", "1_0", "1_1", "1_2"]
    assert len(export_run(run, "pearson", around=(0, 4)).nodes) == 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"measure": "cosine", "community": 0}, "no measure 'cosine'; it has pearson, necessity"),
        ({"community": 9}, "no community 9"),
        ({"around": (0, 6)}, "layer 0 has features 0 to 5, not 6"),
        ({}, "either a community or"),
    ],
)
def test_what_the_run_does_not_have_cannot_be_exported(run, options, said):
    with pytest.raises(UsageError, match=said):
        export_run(run, **options)


def test_a_report_is_a_page_or_a_folder_and_its_data(run, tmp_path):
    data = write_report(run, tmp_path / "new" / "page.html", limits=Limits(prompts=2))
    assert json.loads((tmp_path / "new" / "page.json").read_text()) == json.loads(json.dumps(data))
    assert "<title>" in (tmp_path / "new" / "page.html").read_text()
    write_report(run, tmp_path / "site")
    assert {"index.html", "data", "report.json"} == {path.name for path in (tmp_path / "site").iterdir()}


@pytest.mark.browser
def test_every_view_of_a_run_opens(run, tmp_path, browser):
    from selenium.webdriver.support.ui import WebDriverWait

    data = write_report(run, tmp_path / "page.html", limits=Limits(prompts=2))
    browser.get("about:blank")
    browser.get_log("browser")
    prompt = data["prompts"][0]["id"]
    for link, words in {
        "": "Features of made",
        "#/flow": "Are they gone?",
        "#/communities": "of the largest activation, on average",
        "#/community/0": "Most telling texts",
        f"#/prompt/{quote(prompt, safe='')}": prompt,
        "#/1/2": "AND of 0/1 and 0/4",
        "#/games": "words",
    }.items():
        browser.get((tmp_path / "page.html").as_uri() + link)
        WebDriverWait(browser, 10).until(
            lambda driver, words=words: words in driver.find_element("id", "main").text, f"{link}: no {words}"
        )
    assert browser.get_log("browser") == []
