"""`spiral-trl sae report`: pages of graphs in the authors' form, and of runs."""

import json

import numpy as np

from spiral_trl.sae.store import TOKEN, rows_of, write_shard, write_store


def write_graph(folder, name):
    nodes = [{"layer": n, "feature": 7, "explanation": f"said of {n}", "id": f"{n}_7"} for n in range(2)]
    links = [{"similarity": 0.5, "source": "0_7", "target": "1_7"}]
    data = {"directed": True, "multigraph": False, "graph": {}, "nodes": nodes, "links": links}
    (folder / name).write_text(json.dumps(data))


def test_graphs_become_one_page(run, tmp_path):
    (tmp_path / "graphs").mkdir()
    for name in ("pearson_louvain_size_2_1.json", "necessity_louvain_size_2_1.json"):
        write_graph(tmp_path / "graphs", name)
    code, out, err = run("sae", "report", tmp_path / "graphs", "--output", tmp_path / "page.html", "--title", "Two")
    assert (code, err) == (0, "") and out.startswith("2 features, 1 edges: ")
    data = json.loads((tmp_path / "page.json").read_text())
    assert (data["title"], data["measures"]) == ("Two", ["pearson", "necessity"])
    assert [feature["explanation"] for feature in data["features"]] == ["said of 0", "said of 1"]
    assert "<title>" in (tmp_path / "page.html").read_text()


def test_a_malformed_graph_is_one_line(run, tmp_path):
    (tmp_path / "pearson_1.json").write_text("{")
    code, out, err = run("sae", "report", tmp_path / "pearson_1.json", "--output", tmp_path / "page.html")
    assert code == 2 and out == "" and "holds no JSON" in err and err.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_a_run_is_told_from_a_folder_of_graphs(run, tmp_path):
    folder = tmp_path / "run"
    write_store(folder / "codes", {"model": "made", "source": "made", "layers": {"0": {"num_features": 3}}})
    tokens = np.zeros(4, TOKEN)
    tokens["position"], tokens["player"] = np.arange(4), -1
    write_shard(folder / "codes", 0, tokens, {0: rows_of(np.eye(4, 3))})
    # Its name is one that graphs have too
    (folder / "game_features.json").write_text('{"summary": "What they stand for.", "stands_for": []}')
    code, out, err = run("sae", "report", folder, "--output", tmp_path / "page.html")
    assert (code, err) == (0, "")
    data = json.loads((tmp_path / "page.json").read_text())
    assert len(data["features"]) == 3 and data["games"]["summary"] == "What they stand for."


def test_what_is_exported_has_to_be_one_thing(run, tmp_path):
    for argv, said in (
        (["--export", "x.json"], "--export FILE goes with one of --community ID and --around LAYER/FEATURE"),
        (["--export", "x.json", "--community", 1, "--around", "1/2"], "goes with one of"),
        (["--around", "1/2"], "--export FILE goes with one of"),
        (["--export", "x.json", "--around", "1/2", "--hops", -1], "--hops cannot be below 0"),
    ):
        code, _, err = run("sae", "report", tmp_path, *argv)
        assert code == 2 and said in err and err.count("\n") == 1
