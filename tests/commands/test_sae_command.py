"""`spiral-trl sae`: every step on the embedded model, what it leaves, that it is not done twice, and its help."""

import contextlib
import io
import json
import re
import shlex
import sys

import numpy as np
import pytest

from spiral_trl.commands import sae
from spiral_trl.commands.main import main
from spiral_trl.sae.relations import open_relations
from spiral_trl.sae.sources import play_to_read
from spiral_trl.sae.store import open_store, read_about


GAME = "kuhn_poker(observation=compact)"
STEPS = tuple(sae.STEPS)
SMALL = ["--features", 32, "--active", 4, "--tokens", 20_000, "--learning-rate", 3e-3]


def call(*argv):
    """What a command prints; its errors are failures."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(part) for part in argv])
    assert ended.value.code == 0, err.getvalue()
    return out.getvalue()


class Made:
    """A run's folder that every step was called in, in turn; `argv` and `printed` of each step."""

    def __init__(self, folder, model):
        from spiral_trl.training.tiny import save_tiny_model

        self.folder, self.model, self.run = folder, model, folder / "run"
        self.other = save_tiny_model(folder / "other", seed=1)
        self.episodes, self.elsewhere = folder / "episodes", folder / "elsewhere"
        play_to_read(model, [GAME], 160, 0, self.episodes, 3)
        play_to_read(model, [GAME], 160, 1, self.elsewhere, 3)
        self.dictionaries = self.run / "dictionaries"
        reading, using = ["--episodes", self.episodes], ["--dictionaries", self.dictionaries]
        self.argv = {
            "train": ["train", model, *reading, "--output", self.dictionaries, *SMALL],
            "collect": ["collect", model, *using, *reading, "--output", self.run / "codes"],
            "relate": ["relate", self.run, *using, "--community-threshold", 0.2],
            "ablate": ["ablate", self.run, "--model", model, *using, *reading, "--num-features", 2],
            "report": ["report", self.run, "--model", model, *using, "--output", self.run / "page.html"],
        }
        for name, which, games in (
            ("before", model, self.episodes),
            ("after", self.other, self.episodes),
            ("own", self.other, self.elsewhere),
            ("control", model, self.elsewhere),
        ):
            self.argv[name] = ["collect", which, *using, "--episodes", games, "--output", folder / name]
        stores = [part for name in ("before", "after", "own", "control") for part in (f"--{name}", folder / name)]
        self.argv["compare"] = ["compare", folder / "compared", *stores, "--graphs"]
        play = ["--game", GAME, "--features", "1/0", "2/1", "--pairs", 8, "--random-sets", 2, "--max-new-tokens", 3]
        self.argv["play"] = ["ablate", self.run, "--model", model, *using, *play]
        self.printed = {name: self.step(name) for name in self.argv}

    def step(self, name):
        return call("sae", *self.argv[name], "--json", self.folder / f"{name}.json", "--quiet")

    def json(self, name):
        return json.loads((self.folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model):
    return Made(tmp_path_factory.mktemp("sae"), tiny_model)


def test_train_saves_dictionaries_of_every_layer(made):
    told = made.json("train")
    assert list(told["layers"]) == ["0", "1", "2"] and told["tokens"] >= 20_000
    assert told["settings"]["num_features"] == 32 and told["settings"]["source"]["games"] == 160
    for layer, of in told["layers"].items():
        assert (made.dictionaries / f"layer_0{layer}" / "sae_weights.safetensors").is_file()
        assert 0 <= of["unexplained_variance"] < 1 and of["l0"] <= 4
    assert [line.split()[0] for line in made.printed["train"].splitlines()[2:]] == ["0", "1", "2"]


def test_collect_keeps_codes_of_every_token_once(made):
    store = open_store(made.run / "codes")
    told = made.json("collect")
    assert told["tokens"] == store.num_tokens > 1000
    assert f"{store.num_tokens:,} tokens" in made.printed["collect"]
    assert len(np.unique(store.tokens["group"])) == 160
    assert store.about["model"] == "model" and store.about["source"]["games"] == 160
    for layer in store.layers:
        # The table's l0 is the mean of active features, which the codes tell too
        l0 = store.rows(layer).indptr[-1] / store.num_tokens
        assert told["quality"][str(layer)]["l0"] == pytest.approx(l0)


def test_relate_writes_relations_labels_and_flow(made):
    relations = open_relations(made.run / "relations")
    assert relations.pairs == ((0, 1), (1, 2))
    edges = relations.edges((0, 1))
    assert len(edges["pearson"]) and not np.isnan(edges["decoder_cosine"]).all()
    told = made.json("relate")
    assert told == json.loads((made.run / "graph.json").read_text())
    for flow in told["flow"]:
        assert flow["passing"] + flow["disappearing"] == flow["of"]
        share = 100 * flow["disappearing"] / flow["of"]
        assert re.search(rf"{flow['layer']} to {flow['next']} +{share:.1f} ", made.printed["relate"])


def test_report_writes_the_page_of_a_run(made):
    page = (made.run / "page.html").read_text()
    data = json.loads((made.run / "page.json").read_text())
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert made.json("report") == {"features": len(data["features"]), "edges": len(data["edges"])}
    assert data["layers"] == [0, 1, 2] and data["edges"] and "decoder_cosine" in data["measures"]
    texts = [token for feature in data["features"] for text in feature["texts"] for token in text["tokens"]]
    assert any("bet" in token or "check" in token for token in texts)
    assert any(feature["promoted"] for feature in data["features"])
    assert data["ablation"]["summary"] == made.json("ablate")["summary"]


def test_a_run_with_features_of_the_game_is_no_folder_of_graphs(made, tmp_path):
    kept = made.run / "game_features.json"
    kept.write_text(json.dumps({"summary": "Made."}))
    try:
        call("sae", "report", made.run, "--output", tmp_path / "page", "--features", 10)
    finally:
        kept.unlink()
    data = json.loads((tmp_path / "page" / "report.json").read_text())
    assert data["games"] == {"summary": "Made."} and len(data["features"]) == 10
    assert (tmp_path / "page" / "index.html").is_file()


def test_a_community_is_exported_and_opens_again(made, tmp_path):
    graph, page = tmp_path / "pearson_community.json", tmp_path / "page.html"
    known = made.json("relate")["communities"]["list"][0]
    call("sae", "report", made.run, "--community", known["id"], "--export", graph, "--json", tmp_path / "told.json")
    told = json.loads((tmp_path / "told.json").read_text())["exported"]
    assert told["nodes"] == known["size"] and told["links"] >= known["size"] - 1
    assert (
        call("sae", "report", graph, "--output", page) == f"{told['nodes']} features, {told['links']} edges: {page}\n"
    )
    assert page.is_file()


def test_a_community_that_is_not_there(made, run, tmp_path):
    argv = ["--community", 999, "--export", tmp_path / "a.json"]
    assert run("sae", "report", made.run, *argv) == (2, "", f"error: {made.run} has no community 999\n")
    assert not (tmp_path / "a.json").exists()


def test_graphs_as_the_papers_authors_publish_them(tmp_path):
    nodes = [{"id": f"{layer}_{layer + 5}", "explanation": f"</script> {layer}"} for layer in range(3)]
    links = [{"source": f"{n}_{n + 5}", "target": f"{n + 1}_{n + 6}", "weight": 0.9 - n / 10} for n in range(2)]
    graph = {"directed": True, "multigraph": False, "graph": {}, "nodes": nodes, "links": links}
    for name in ("pearson_one.json", "pearson_two.json"):
        (tmp_path / name).write_text(json.dumps(graph))
    argv = ["sae", "report", tmp_path, "--output", tmp_path / "out" / "graphs.html", "--title", "Two graphs"]
    call(*argv, "--json", tmp_path / "told.jsonx")
    data = json.loads((tmp_path / "out" / "graphs.json").read_text())
    assert data["title"] == "Two graphs" and data["layers"] == [0, 1, 2]
    assert {(feature["l"], feature["f"]) for feature in data["features"]} == {(0, 5), (1, 6), (2, 7)}
    assert json.loads((tmp_path / "told.jsonx").read_text())["features"] == len(data["features"])
    assert "</script> 0" not in (tmp_path / "out" / "graphs.html").read_text()


def test_compare_says_what_changed(made):
    told = made.json("compare")
    assert told == json.loads((made.folder / "compared" / "comparison.json").read_text())
    assert (made.folder / "compared" / "comparison.parquet").is_file()
    assert " ".join(told["summary"].split()) in made.printed["compare"]
    for table in told["tables"]:
        assert table["title"] in made.printed["compare"]


def test_compare_of_a_model_with_itself_finds_nothing(made, tmp_path):
    call("sae", "compare", tmp_path, "--before", made.folder / "before", "--after", made.run / "codes")
    told = json.loads((tmp_path / "comparison.json").read_text())
    assert re.search(r"On the same texts \(160 games\), 0 of \d+ features changed beyond noise", told["summary"])


def test_ablate_tells_what_becomes_of_neighbours(made):
    told = made.json("ablate")
    assert told == json.loads((made.run / "ablation.json").read_text())
    assert told["settings"]["num_features"] == 2
    assert {path.name for path in (made.run / "ablation").glob("*.parquet")} == {"00-01.parquet", "01-02.parquet"}
    assert " ".join(told["summary"].split()) in made.printed["ablate"]


def test_ablate_in_play(made):
    told = made.json("play")
    assert (told["game"], told["opponent"], told["pairs"]) == (GAME, "random", 8)
    assert told["ablated"]["features"] == {"1": [0], "2": [1]} and len(told["random"]) == 2
    # The embedded model's policy is computed
    assert told["undisturbed"]["exploitability"] > 0 and told["ablated"]["policy_shift"] >= 0
    lines = made.printed["play"].splitlines()
    assert lines[0] == told["summary"] and lines[0].startswith("Without 2 given features the model's mean return")
    assert lines[4].startswith("undisturbed") and f"{told['undisturbed']['exploitability']:.4g}" in lines[4]


@pytest.mark.parametrize(
    ("step", "files"),
    [
        ("train", "run/dictionaries/**/*"),
        ("collect", "run/codes/shards/**/*"),
        ("relate", "run/relations/*/*"),
        ("ablate", "run/ablation/*.parquet"),
    ],
)
def test_what_was_made_is_not_made_again(made, step, files):
    def state():
        return {path: path.stat().st_mtime_ns for path in made.folder.glob(files) if path.is_file()}

    before, told = state(), made.json(step)
    assert before
    assert made.step(step) == made.printed[step]
    assert state() == before and made.json(step) == told


def test_texts_are_read_too(made, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"words": "bet check call fold " * 5}) + "\n" for _ in range(30)))
    reading = ["--texts", file, "--column", "words", "--max-length", 16, "--drop-first"]
    call("sae", "train", made.model, *reading, "--layers", "1-2", "--output", tmp_path / "saes", *SMALL, "--quiet")
    argv = ["sae", "collect", made.model, *reading, "--dictionaries", tmp_path / "saes", "--max-tokens", 50]
    call(*argv, "--output", tmp_path / "codes", "--layers", "2", "--value-dtype", "float32", "--quiet")
    about = read_about(tmp_path / "codes")
    assert list(about["layers"]) == ["2"] and about["value_dtype"] == "float32"
    assert about["source"]["column"] == "words" and about["source"]["tokens"] == 50
    # Whole documents of 16 tokens, position 0 of each left out
    assert 50 <= about["tokens"] < 50 + 15


# ----------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("step", STEPS)
def test_help_of_a_step(run, step):
    code, out, err = run("sae", step, "--help")
    assert (code, err) == (0, "") and f"spiral-trl sae {step} " in out and "--json FILE" in out
    assert "None" not in out


def test_help_lists_the_steps(run):
    code, out, _ = run("sae", "--help")
    assert code == 0 and all(f"    {step} " in out for step in STEPS)


def examples():
    from importlib import import_module

    texts = [sae.EXAMPLES, *(import_module(f"spiral_trl.commands.sae_steps.{step}").EXAMPLES for step in STEPS)]
    for text in texts:
        for line in text.replace("\\\n", " ").splitlines():
            yield shlex.split(line)


@pytest.mark.parametrize("argv", list(examples()), ids=" ".join)
def test_examples_parse(monkeypatch, run, argv):
    seen = []
    monkeypatch.setattr(sae, "run", seen.append)
    assert argv[:2] == ["spiral-trl", "sae"]
    assert run(*argv[1:]) == (0, "", "")
    assert seen[0].step == argv[2]


def test_every_step_has_examples():
    assert {argv[2] for argv in examples()} == set(STEPS)


def test_help_needs_no_torch():
    from scripts import printed_by

    code = (
        "import sys; from spiral_trl.commands.main import main\n"
        "try: main(['sae', '--help'])\n"
        "except SystemExit: print([name for name in ('torch', 'sae_lens', 'numba') if name in sys.modules])"
    )
    assert printed_by(code).endswith("[]") and "torch" in sys.modules
