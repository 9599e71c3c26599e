"""recipes/sae_report.py: its files, what a run leaves, a run that is killed, and how bad input ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from scripts import ROOT, load_script

from spiral_trl.cli import run_recipe
from spiral_trl.errors import UsageError
from spiral_trl.sae import arguments
from spiral_trl.sae.arguments import EMBEDDED, SAEReportArguments
from spiral_trl.sae.dictionary_names import find_sources


RECIPES = ROOT / "recipes"
YAMLS = sorted(RECIPES.glob("sae_report*.yaml"))
GAME = "kuhn_poker(observation=compact)"
SMALL = {
    "model_name_or_path": EMBEDDED,
    "self_play_overrides": {
        "embedded_layers": 1, "max_steps": 2, "games_per_generation": 64, "warm_start_steps": 400, "eval_steps": 2,
        "eval_games": 16, "save_steps": 2, "ref_model_sync_steps": 2, "report_pairs": 20, "replays": 5,
        "compare_plain": False,
    },
    "games": [GAME],
    "num_games": 60,
    "max_new_tokens": 3,
    "num_features": 24,
    "active_features": 4,
    "train_tokens": 5000,
    "community_threshold": 0.2,
    "report_features": 40,
}  # fmt: skip


sae_report = load_script("recipes/sae_report.py")


# ------------------------------------------------------------------------------------------------------------ its files


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_every_file_is_read_and_checks(path, keep_environment, monkeypatch):
    from transformers import GPT2Config, Qwen3Config

    # Sizes of the models on the Hub
    configs = {
        "openai-community/gpt2": GPT2Config(n_embd=768, n_layer=12),
        "Qwen/Qwen3-4B-Base": Qwen3Config(hidden_size=2560, num_hidden_layers=36),
    }
    monkeypatch.setattr(arguments, "load_config", configs.__getitem__)
    checked, texts = [], []
    monkeypatch.setattr(arguments, "check_dictionaries", lambda *given, **kwargs: checked.append(given))
    monkeypatch.setattr(arguments.TextSource, "check", lambda self: texts.append(self))
    (args,) = sae_report.make_parser().parse_args_and_config(["--config", str(path)])
    given = yaml.safe_load(path.read_text())
    assert {name: getattr(args, name) for name in given if name != "env"} == {
        name: value for name, value in given.items() if name != "env"
    }
    args.check()
    assert len(texts) == (args.dataset_name is not None)
    for name, config, layers in checked:
        assert config.hidden_size == 768 and set(layers) <= set(find_sources(name, None))
    assert len(checked) == (args.dictionaries is not None)


def test_files_there_are():
    assert [path.stem for path in YAMLS] == ["sae_report_gpt2", "sae_report_kuhn_tiny", "sae_report_qwen3_4b"]


def test_the_embedded_models_file_is_what_runs_by_default(keep_environment, monkeypatch):
    seen = []
    monkeypatch.setattr(sae_report, "train_embedded", lambda args: seen.append(args) or ("before", "after"))
    monkeypatch.setattr(
        sae_report, "run_report", lambda *given: seen.append(given) or {"summaries": {}, "seconds": {}, "page": "p"}
    )
    sae_report.main([])
    args, given = seen
    assert args.output_dir == "outputs/sae" and args.self_play_overrides["embedded_layers"] == 4
    assert given[:3] == (args, "before", "after")
    # Every field that differs is one of the recipe that trains
    from spiral_trl.cli import self_play_parser

    flags = [part for name, value in args.self_play_overrides.items() for part in (f"--{name}", str(value))]
    config = RECIPES / args.self_play
    assert self_play_parser().parse_args_and_config(["--config", str(config), "--use_cpu", "true", *flags])


# ------------------------------------------------------------------------------------------------------------- its runs


def config_for(folder, **changes):
    """A file of the small setting whose run goes to `folder / "out"`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL | {"output_dir": str(folder / "out")} | changes))
    return str(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    sae_report.main(["--config", config_for(folder)])
    return folder / "out"


def test_a_run_leaves_the_page_and_what_it_found(finished):
    told = json.loads((finished / "run.json").read_text())
    assert told["page"] == "report.html" and told["models"] == ["warm_start", "self_play"]
    assert set(told["summaries"]) == {"graph", "ablation", "games", "comparison"}
    assert all(told["summaries"].values()) and all(seconds >= 0 for seconds in told["seconds"].values())
    page, data = (finished / "report.html").read_text(), json.loads((finished / "report.json").read_text())
    assert page.lower().startswith("<!doctype html>") and f"before and after self-play on {GAME}" in page
    assert data["layers"] == [0, 1] and 0 < len(data["features"]) <= 48 and data["edges"]
    for name in ("games", "comparison", "ablation"):
        assert data[name]["summary"] == told["summaries"][name]
    for quality in data["quality"].values():
        assert quality["unexplained_variance"] is not None and quality["ce_recovered"] is not None
    stores = ("codes", "codes_before", *(f"compared/{own}" for own in ("before", "after", "own", "own_shared")))
    assert all((finished / name / "store.json").is_file() for name in stores)


def test_the_page_names_no_folder_of_this_machine(finished):
    for name in ("report.html", "report.json", "run.json"):
        assert str(finished.parent) not in (finished / name).read_text()


def contents(folder, *names):
    """Times of change of what stages leave."""
    files = (file for name in names for file in (folder / name).rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in files}


KEPT = ("self_play", "games", "dictionaries", "shared", "codes/shards", "ablation", "compared/before/shards")


def test_a_finished_run_is_not_made_again(finished, capsys):
    before, told = contents(finished, *KEPT), json.loads((finished / "run.json").read_text())
    results = {
        name: (finished / name).read_bytes() for name in ("graph.json", "game_features.json", "comparison.json")
    }
    sae_report.main(["--config", config_for(finished.parent)])
    assert contents(finished, *KEPT) == before
    assert {name: (finished / name).read_bytes() for name in results} == results
    again = json.loads((finished / "run.json").read_text())
    assert again["summaries"] == told["summaries"] and again["models"] == told["models"]
    assert not {"quality of the autoencoders", "hands swapped", "comparison"} & set(again["seconds"])
    assert "page: report.html" in capsys.readouterr().out


def test_a_run_that_is_killed_goes_on(finished, tmp_path):
    config, out = config_for(tmp_path), tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, str(RECIPES / "sae_report.py"), "--config", config],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    deadline = time.monotonic() + 240
    # Relations have begun, and neither they nor what follows is there
    while not (out / "relations" / "relations.json").exists():
        assert process.poll() is None, process.stderr.read().decode()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "report.html").exists() and not (out / "run.json").exists()
    made = contents(out, "self_play", "games", "shared", "codes/shards")
    assert {name.split("/")[0] for name in made} == {"self_play", "games", "shared", "codes"}

    sae_report.main(["--config", config])
    assert {name: at for name, at in contents(out, *KEPT).items() if name in made} == made
    assert (out / "graph.json").read_bytes() == (finished / "graph.json").read_bytes()
    once, again = (json.loads((folder / "run.json").read_text())["summaries"] for folder in (finished, out))
    assert once == again


# ------------------------------------------------------------------------------------------------------------ bad input


def report_error(capsys, config):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_recipe(sae_report.main, ["--config", config])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: "), err
    return err


BAD = {
    "an unknown key": ({"num_game": 30}, "unknown key 'num_game', did you mean|did you mean 'num_games'"),
    "an unknown recipe": ({"self_play": "kuhn_tinny.yaml"}, "there is no such file beside this recipe"),
    "an unknown field of it": ({"self_play_overrides": {"max_step": 3}}, "'--max_step'; did you mean '--max_steps'"),
    "a wrong value of it": ({"self_play_overrides": {"max_steps": "few"}}, "--max_steps.*: invalid int value: 'few'"),
    "a game it cannot read": ({"games": ["tic_tac_toe"]}, "reads only the compact observation"),
    "replies that are too short": ({"max_new_tokens": 1}, "max_new_tokens is 1, but .* up to 3 tokens"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line(case, tmp_path, capsys, keep_environment, monkeypatch):
    import re

    from spiral_trl.training import run

    def fail(*args, **kwargs):
        raise AssertionError("a model was loaded")

    for name in ("SelfPlayTrainer", "save_tiny_model", "warm_start"):
        monkeypatch.setattr(run, name, fail)
    keys, message = BAD[case]
    assert re.search(message, report_error(capsys, config_for(tmp_path, **keys)))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def model(small_qwen):
    return str(small_qwen)


def refused(**fields):
    with pytest.raises(UsageError) as caught:
        SAEReportArguments(**fields).check()
    return str(caught.value)


REFUSED = [
    ({"model_name_or_path": "./no/such"}, "The model folder ./no/such does not exist"),
    ({"after": "./no/such"}, "The model folder ./no/such does not exist"),
    ({"model_name_or_path": EMBEDDED, "after": "MODEL"}, "after is made by self-play"),
    ({"games": ["kuhn_pokr"]}, "unknown game 'kuhn_pokr'"),
    ({"games": None}, "one of games, episodes and dataset_name says what is read; given: none"),
    ({"games": []}, "given: none"),
    ({"dataset_name": "texts.jsonl"}, "given: games, dataset_name"),
    ({"games": None, "episodes": "./no/such"}, "./no/such does not exist"),
    ({"games": None, "dataset_name": "./texts.jsnl"}, "./texts.jsnl does not exist; did you mean 'texts.jsonl'?"),
    ({"games": None, "dataset_name": "texts.jsonl", "dataset_text_field": "texts"}, "did you mean 'text'?"),
    ({"episodes_after": "episodes"}, "episodes_after needs episodes"),
    ({"num_games": 19}, "num_games has to be at least 20, not 19"),
    ({"max_new_tokens": 0}, "max_new_tokens has to be at least 1, not 0"),
    ({"max_length": 1}, "max_length has to be at least 2, not 1"),
    ({"num_tokens": 0}, "num_tokens has to be at least 1, not 0"),
    ({"train_tokens": 0}, "train_tokens has to be at least 1, not 0"),
    ({"top_k": 0}, "top_k has to be at least 1, not 0"),
    ({"report_features": 0}, "report_features has to be at least 1, not 0"),
    ({"processes": 0}, "processes has to be at least 1, not 0"),
    ({"num_features": 0}, "num_features has to be at least 1, not 0"),
    ({"active_features": 0}, "active_features has to be at least 1, not 0"),
    ({"num_features": 4, "active_features": 5}, "active_features=5, but there are 4 features"),
    ({"learning_rate": 0.0}, "learning_rate has to be above 0, not 0.0"),
    ({"pass_threshold": 0.0}, "pass_threshold has to be above 0 and at most 1, not 0.0"),
    ({"gate_threshold": float("nan")}, "gate_threshold has to be above 0 and at most 1, not nan"),
    ({"community_measure": "pearsn"}, "did you mean 'pearson'?"),
    ({"architecture": "topkk"}, "did you mean 'topk'?"),
    ({"layers": [0, 2]}, "layer 2 was asked for, but the model has layers 0 (before the first block) to 1"),
    ({"dictionaries": "./no/such"}, "there is no folder"),
    ({"dictionaries": "release:gpt2-small-res-jbb"}, "did you mean 'gpt2-small-res-jb'?"),
    ({"output_dir": "texts.jsonl"}, "output_dir texts.jsonl is a file"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=lambda part: str(part) if isinstance(part, dict) else "")
def test_arguments_are_refused(fields, message, model, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text('{"text": "bet"}\n')
    given = {"model_name_or_path": model, "games": ["kuhn_poker"]} | fields
    said = refused(**{name: model if value == "MODEL" else value for name, value in given.items()})
    assert message in said and "\n" not in said


def test_arguments_that_are_right(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text('{"text": "bet"}\n')
    SAEReportArguments(model, games=["kuhn_poker"], layers=[0, 1], after=model).check()
    SAEReportArguments(model, dataset_name="texts.jsonl").check()
    SAEReportArguments(EMBEDDED, games=[GAME]).check()


def test_settings_name_no_folder(model):
    said = SAEReportArguments(model, after=model, games=["kuhn_poker"], episodes_after=model).settings()
    assert said["games"] == ["kuhn_poker"] and model not in json.dumps(said)
