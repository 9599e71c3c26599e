"""Graphs in the authors' form: read, written, opened as a report, and ours exported to it."""

import json
import os
from pathlib import Path

import networkx
import pytest

from spiral_trl.errors import UsageError
from spiral_trl.sae.neuronpedia import PAPER_RELEASE, neuronpedia_ids
from spiral_trl.sae.node_link import export_graph, read_node_link, report_of_graph, write_node_link
from spiral_trl.sae.report_data import check_report


# Where the authors' graphs lie; they are not ours to keep here
PUBLISHED = os.environ.get("SPIRAL_TRL_PUBLISHED_GRAPHS", "")
published = [pytest.param(path, id=path.stem) for path in sorted(Path(PUBLISHED).glob("*.json"))] if PUBLISHED else []
needs_published = pytest.mark.skipif(not published, reason="SPIRAL_TRL_PUBLISHED_GRAPHS names no folder of graphs")


def node(layer, feature, explanation="words", **more):
    return {"layer": layer, "feature": feature, "explanation": explanation, **more, "id": f"{layer}_{feature}"}


def link(source, target, similarity, **more):
    return {"similarity": similarity, "source": source, "target": target, **more}


def graph(**changes):
    made = {
        "directed": True,
        "multigraph": False,
        "graph": {},
        "nodes": [node(9, 18685, "the language C++"), node(8, 7, "</script><b>words</b>"), node(10, 3)],
        "links": [link("9_18685", "10_3", 0.75), link("8_7", "9_18685", 1.0000255)],
    }
    return {**made, **changes}


@pytest.fixture
def write(tmp_path):
    def write(data, name="pearson_louvain_threshold_0.1_size_12_37.json"):
        path = tmp_path / name
        path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
        return path

    return write


def test_a_graph_survives_whole(write, tmp_path):
    data = graph(
        graph={"name": "é", "nested": {"a": [1, None]}},
        nodes=[node(0, 1, "", community=3, colour="red", id_of_other=[1, 2]), node(1, 0, None)],
        links=[link("0_1", "1_0", 0.25, key="x", weight=2)],
        multigraph=True,
        unknown={"kept": True},
    )
    path = write(data)
    write_node_link(read_node_link(path), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("key", ["links", "edges"])
def test_what_networkx_writes_is_read_and_the_other_way_round(tmp_path, key):
    made = networkx.DiGraph(name="two")
    made.add_node("0_4", layer=0, feature=4, explanation="e", community=1)
    made.add_node("1_5", layer=1, feature=5, explanation="f", community=1)
    made.add_edge("0_4", "1_5", similarity=0.5)
    path = tmp_path / "necessity_x.json"
    path.write_text(json.dumps(networkx.node_link_data(made, edges=key)))
    read = read_node_link(path)
    assert read.places == {"0_4": (0, 4), "1_5": (1, 5)}
    assert [item["similarity"] for item in read.links] == [0.5]
    write_node_link(read, path)
    again = networkx.node_link_graph(json.loads(path.read_text()), edges=key)
    assert networkx.utils.graphs_equal(made, again)


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("jaccard_similarity_louvain_threshold_0.1_size_11_1229", "jaccard"),
        ("mutual_information_louvain_threshold_0.1_size_21_6", "mutual_information"),
        ("necessity_leiden_modularity_threshold_0.1_masked_single_25", "necessity"),
        ("cosine_similarity_x", "cosine"),
        ("sufficiency", "sufficiency"),
    ],
)
def test_the_name_of_the_file_says_the_measure(write, name, measure):
    assert read_node_link(write(graph(), f"{name}.json")).measure == measure


def test_a_measure_that_is_given_or_said_inside_stands_before_the_name(write):
    assert read_node_link(write(graph(), "mine.json"), "cosine_similarity").measure == "cosine"
    assert read_node_link(write(graph(graph={"measure": "jaccard"}), "pearson_1.json")).measure == "jaccard"


@pytest.mark.parametrize(
    ("data", "name", "said"),
    [
        ("{", "pearson_1.json", "holds no JSON"),
        ("[" * 100_000, "pearson_1.json", "holds no JSON"),
        ('{"nodes": NaN}', "pearson_1.json", "NaN is no finite number"),
        ('{"nodes": [], "links": [], "x": 1e999}', "pearson_1.json", "1e999 is no finite number"),
        ([], "pearson_1.json", "the JSON is no object"),
        ({"nodes": []}, "pearson_1.json", "there is no list of links"),
        ({"nodes": [3], "links": []}, "pearson_1.json", "there is no list of nodes"),
        (graph(graph=[]), "pearson_1.json", "'graph' is no object"),
        (graph(directed="yes"), "pearson_1.json", "'directed' must be true or false, not 'yes'"),
        (graph(nodes=[{"id": "C++"}]), "pearson_1.json", "node 0 has the id 'C++'; it must be LAYER_FEATURE"),
        (graph(nodes=[{"id": 7}]), "pearson_1.json", "node 0 has the id 7"),
        (graph(nodes=[{"layer": 1}]), "pearson_1.json", "node 0 has the id None"),
        (graph(nodes=[node(1, 2), node(1, 2)], links=[]), "pearson_1.json", "the node 1_2 is there twice"),
        (graph(nodes=[{"id": "1_2", "layer": 2}], links=[]), "pearson_1.json", "the node 1_2 says layer 2"),
        (graph(nodes=[{"id": "1_2", "feature": "x"}], links=[]), "pearson_1.json", "the node 1_2 says feature 'x'"),
        (graph(nodes=[node(1, 2, 5)], links=[]), "pearson_1.json", "its explanation must be text, not 5"),
        (graph(nodes=[node(1, 2, community=[])], links=[]), "pearson_1.json", "its community must be a number"),
        (graph(links=[link("9_18685", "9_1", 1)]), "pearson_1.json", "link 0 names the node 9_1, which is missing"),
        (graph(links=[link("9_18685", 3, 1)]), "pearson_1.json", "link 0, target has the id 3"),
        (graph(links=[link("8_7", "10_3", "1")]), "pearson_1.json", "similarity must be a finite number, not '1'"),
        (graph(links=[link("8_7", "10_3", 10**400)]), "pearson_1.json", "similarity must be a finite number"),
        (graph(), "louvain_pearson.json", "begins with no measure, so it must be given: pearson, cosine"),
        (graph(graph={"measure": "pearsn"}), "x.json", "unknown measure 'pearsn'"),
        (graph(graph={"measure": []}), "x.json", "unknown measure '[]'"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(write, data, name, said):
    path = write(data, name)
    with pytest.raises(UsageError) as error:
        read_node_link(path)
    assert said in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_text_or_not_there_is_refused(tmp_path):
    (tmp_path / "pearson_1.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="holds no JSON"):
        read_node_link(tmp_path / "pearson_1.json")
    with pytest.raises(UsageError, match="No such file"):
        read_node_link(tmp_path / "pearson_2.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no \.json file"):
        report_of_graph(tmp_path / "empty")
    with pytest.raises(UsageError, match="no graph was given"):
        report_of_graph([])


def test_a_report_of_a_graph(write):
    data = report_of_graph(write(graph()))
    assert (data["measures"], data["layers"], data["about"]["model"]) == (["pearson"], [8, 9, 10], "gpt2-small")
    first, second, third = data["features"]
    assert (first["l"], first["f"], first["explanation"]) == (9, 18685, "the language C++")
    assert first["neuronpedia"] == "https://www.neuronpedia.org/gpt2-small/9-res-jb/18685"
    assert second["explanation"] == "</script><b>words</b>"
    assert third["neuronpedia"].endswith("/10-res-jb/3")
    assert data["edges"] == [[0, 2, [0.75]], [1, 0, [1.0000255]]]
    assert [(said["size"], said["layers"], said["features"]) for said in data["communities"]] == [
        (3, {"8": 1, "9": 1, "10": 1}, [0, 1, 2])
    ]
    assert {feature["community"] for feature in data["features"]} == {0}


def test_several_graphs_make_one_report(write):
    one = write(graph(nodes=[node(0, 1, "", community=5), node(1, 2, community=4)], links=[link("0_1", "1_2", 0.5)]))
    other = write(graph(nodes=[node(0, 1, "said"), node(1, 2)], links=[link("0_1", "1_2", 0.125)]), "necessity_a.json")
    data = report_of_graph([one, other], title="Both")
    assert data["title"] == "Both"
    assert data["measures"] == ["pearson", "necessity"]
    assert data["edges"] == [[0, 1, [0.5, 0.125]]]
    assert data["features"][0]["explanation"] == "said"
    named = [(said["name"], said["features"]) for said in data["communities"]]
    assert named == [(one.stem, [0, 1]), (f"{one.stem}: 4", [1]), (f"{one.stem}: 5", [0]), ("necessity_a", [0, 1])]
    assert [feature["community"] for feature in data["features"]] == [2, 1]
    assert [said["measure"] for said in data["communities"]] == ["pearson"] * 3 + ["necessity"]
    # The folder of both, in the order of their names
    assert report_of_graph(one.parent)["edges"] == data["edges"]


def test_links_lead_upwards(write):
    links = [link("10_3", "8_7", 0.5)]
    with pytest.raises(UsageError, match="from 10_3 to 8_7 leads to an earlier layer"):
        report_of_graph(write(graph(links=links)))
    undirected = report_of_graph(write(graph(links=links, directed=False)))
    assert undirected["edges"] == [[1, 2, [0.5]]]


def test_text_that_no_page_can_hold_is_mended(write):
    path = write(graph(nodes=[node(0, 1, "half \ud83d of a pair, whole \U0001f600")], links=[]))
    explanation = report_of_graph(path)["features"][0]["explanation"]
    assert explanation == "half � of a pair, whole \U0001f600"
    explanation.encode("utf-8")


def test_links_to_neuronpedia_are_of_the_release_or_none(write):
    path = write(graph())
    assert {feature["neuronpedia"] for feature in report_of_graph(path, release=None)["features"]} == {None}
    elsewhere = write(graph(graph={"neuronpedia": {"9": "gpt2-small/9-x", "10": "../evil?", "8": None}}))
    links = [feature["neuronpedia"] for feature in report_of_graph(elsewhere)["features"]]
    assert links == ["https://www.neuronpedia.org/gpt2-small/9-x/18685", None, None]
    with pytest.raises(UsageError, match="must name an id for each layer"):
        report_of_graph(write(graph(graph={"neuronpedia": 3})))


@pytest.mark.slow
def test_the_ids_of_neuronpedia_are_those_of_saelens():
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    registry = get_pretrained_saes_directory()[PAPER_RELEASE].neuronpedia_id
    ours = neuronpedia_ids(PAPER_RELEASE)
    assert {layer: registry[f"blocks.{layer}.hook_resid_pre"] for layer in range(12)} == {
        layer: ours[layer] for layer in range(12)
    }
    assert ours[12] == registry["blocks.11.hook_resid_post"] and len(ours) == len(registry) == 13
    assert neuronpedia_ids("gpt2-small-res_sce-ajt")[6] == "gpt2-small/6-res_sce-ajt"
    with pytest.raises(UsageError, match="no ids on Neuronpedia that go by"):
        neuronpedia_ids("gpt2-small-res-jb-feature-splitting")
    with pytest.raises(UsageError, match="no release 'gpt2-small-res-jp'; did you mean 'gpt2-small-res-jb'"):
        neuronpedia_ids("gpt2-small-res-jp")


@pytest.fixture
def chain(write):
    """0_0 - 1_0 - 2_0 - 3_0, of two measures, in communities of two."""
    nodes = [node(n, 0, f"e{n}", community=n // 2) for n in range(4)]
    links = [link(f"{n}_0", f"{n + 1}_0", 0.5 + n / 8, necessity=0.25) for n in range(3)]
    return report_of_graph(write(graph(nodes=nodes, links=links)))


def test_a_community_of_ours_opens_again(chain, tmp_path):
    number = chain["features"][2]["community"]
    export = export_graph(chain, "pearson", community=number)
    path = tmp_path / f"{export.name}.json"
    write_node_link(export, path)
    data = json.loads(path.read_text())
    assert networkx.node_link_graph(data, edges="links").edges["2_0", "3_0"]["similarity"] == 0.75
    assert data["nodes"][0] == node(2, 0, "e2", community=number)
    again = report_of_graph(path)
    assert again["measures"] == ["pearson", "necessity"] and again["edges"] == [[0, 1, [0.75, 0.25]]]
    assert [feature["neuronpedia"] for feature in again["features"]] == [
        f"https://www.neuronpedia.org/gpt2-small/{layer}-res-jb/0" for layer in (2, 3)
    ]


def test_features_without_pages_on_neuronpedia_get_none_by_way_of_a_file(chain, tmp_path):
    for said in chain["about"]["dictionaries"].values():
        said["neuronpedia"] = None
    export = export_graph(chain, "pearson", around=(1, 0))
    write_node_link(export, tmp_path / "x.json")
    again = report_of_graph(tmp_path / "x.json")
    assert {feature["neuronpedia"] for feature in again["features"]} == {None}


@pytest.mark.parametrize(
    ("hops", "threshold", "nodes", "links"),
    [
        (1, None, ["0_0", "1_0", "2_0"], 2),
        (2, None, ["0_0", "1_0", "2_0", "3_0"], 3),
        (1, 0.6, ["1_0", "2_0"], 1),
        (0, None, ["1_0"], 0),
    ],
)
def test_a_neighbourhood_reaches_as_far_as_asked(chain, hops, threshold, nodes, links):
    export = export_graph(chain, "pearson", around=(1, 0), hops=hops, threshold=threshold)
    assert export.name == "pearson_neighbourhood_1_0"
    assert [item["id"] for item in export.nodes] == nodes and len(export.links) == links


def test_what_the_report_does_not_have_cannot_be_exported(chain):
    with pytest.raises(UsageError, match="no measure 'cosine'; it has pearson, necessity"):
        export_graph(chain, "cosine", community=0)
    with pytest.raises(UsageError, match="no community 9; it has 3"):
        export_graph(chain, "pearson", community=9)
    with pytest.raises(UsageError, match="no feature 5 of layer 1"):
        export_graph(chain, "pearson", around=(1, 5))
    with pytest.raises(UsageError, match="either a community or"):
        export_graph(chain, "pearson")


@needs_published
@pytest.mark.parametrize("path", published)
def test_the_authors_graphs_survive_a_round_trip_and_open(path, tmp_path):
    read = read_node_link(path)
    write_node_link(read, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    data = json.loads(path.read_text())
    report = check_report(report_of_graph(path))
    shown = {(item["l"], item["f"]): item for item in report["features"]}
    assert len(shown) == len(data["nodes"]) and len(report["edges"]) == len(data["links"])
    for said in data["nodes"]:
        item = shown[said["layer"], said["feature"]]
        assert item["explanation"] == said["explanation"]
        assert item["neuronpedia"].endswith(f"/gpt2-small/{said['layer']}-res-jb/{said['feature']}")
    ids = [f"{item['l']}_{item['f']}" for item in report["features"]]
    values = {(ids[up], ids[down]): value for up, down, (value,) in report["edges"]}
    assert values == {(item["source"], item["target"]): item["similarity"] for item in data["links"]}
    # By way of our export it is the same graph
    export_graph(report, read.measure, community=0)
    again = {item["id"]: item for item in export_graph(report, read.measure, community=0).nodes}
    assert {key: item["explanation"] for key, item in again.items()} == {
        item["id"]: item["explanation"] for item in data["nodes"]
    }


@needs_published
def test_the_authors_graphs_open_together():
    report = check_report(report_of_graph(PUBLISHED))
    assert report["layers"] == list(range(12))
    assert {"pearson", "jaccard", "sufficiency", "necessity", "mutual_information"} == set(report["measures"])
