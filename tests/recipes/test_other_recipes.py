"""Recipes beside Kuhn poker's: several games in one run, supervised fine-tuning, the comparison."""

import json
import sys

import pytest
from scripts import ROOT, load_script, run_python
from transformers import AutoModelForCausalLM, AutoTokenizer

from spiral_trl.cli import run_recipe
from spiral_trl.hub.schema import check_metrics
from spiral_trl.records import dataset_to_episodes


RECIPES = ROOT / "recipes"
KUHN, LEDUC = "kuhn_poker(observation=compact)", "leduc_poker(observation=compact)"
SHORT = (
    "--max_steps 2 --games_per_generation 12 --warm_start_steps 30 --embedded_hidden_size 16 --eval_steps 2 "
    "--eval_on_start false --eval_games 4 --logging_steps 1 --save_steps 2 --report_pairs 4 --replays 5"
).split()


@pytest.fixture(autouse=True)
def environment(keep_environment):
    """Recipes set variables from their YAML."""


def run(name, *argv):
    """Exit code of a recipe in this process."""
    with pytest.raises(SystemExit) as ended:
        run_recipe(load_script(f"recipes/{name}.py").main, [str(part) for part in argv])
    return ended.value.code


# ------------------------------------------------------------------------------------------------------ several games


@pytest.mark.slow
def test_a_run_on_several_games_reports_each(tmp_path, capsys):
    from datasets import load_from_disk

    folder = tmp_path / "out"
    opponents = ["--report_opponents", "random", "cfr", "--eval_opponents", "random"]
    assert run("multi_game", "--output_dir", folder, "--games", LEDUC, KUHN, *opponents, *SHORT) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    check_metrics(metrics)
    assert metrics["game"] == LEDUC and metrics["games_trained"] == [LEDUC, KUHN] == list(metrics["by_game"])
    for game, figures in metrics["by_game"].items():
        assert figures["exploitability"]["start"] != figures["exploitability"]["final"] >= 0
        assert {row["opponent"] for row in figures["results"]} == {"random", "cfr"}
        (point,) = figures["curves"]["self_play"]
        assert point["exploitability"] == pytest.approx(figures["exploitability"]["final"], rel=0.2), game
        assert set(point["return"]) == {"player 0", "player 1"} and point["reply_length"] > 0
    assert all(metrics[name] == value for name, value in metrics["by_game"][LEDUC].items())
    assert len(metrics["by_game"][KUHN]["strategy"]) == 12

    printed = capsys.readouterr().out
    assert "exploitability before" in printed and printed.count(KUHN) >= 2
    for name in ("README.md", "report.html"):
        text = (folder / name).read_text()
        assert "Every game" in text and text.count("kuhn") > 4
    episodes = dataset_to_episodes(load_from_disk(str(folder / "episodes")))
    assert [episode.game for episode in episodes] == [LEDUC] * 3 + [KUHN] * 2
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert {"first", "[raise]", "history"} <= set(tokenizer.get_vocab())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tic_tac_toe", "negotiation", "multi_game"])
def test_the_default_of_a_recipe_runs(name, tmp_path, capsys):
    # Every reply of so poor a model would have to be followed to its end in each of 4,520 positions
    sampled = ["--exploitability_samples", "2"] if name == "tic_tac_toe" else []
    assert run(name, "--output_dir", tmp_path / "out", *SHORT, *sampled) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["games"] == 24 and metrics["finished"] and metrics["recipe"] == f"{name}_tiny.yaml"
    assert metrics["exploitability"]["final"] is not None and metrics["results"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_an_opponent_that_can_play_none_of_the_games(tmp_path, capsys):
    games = ["--games", "simple_negotiation(resources=2,observation=compact)"]
    assert run("negotiation", "--output_dir", tmp_path / "out", *games, "--report_opponents", "cfr") == 2
    assert "cfr cannot play simple_negotiation" in capsys.readouterr().err


def test_a_learning_rate_of_the_warm_start_that_makes_no_sense(tmp_path, capsys):
    assert run("tic_tac_toe", "--output_dir", tmp_path / "out", "--warm_start_learning_rate", "0") == 2
    assert "warm_start_learning_rate is 0.0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------- supervised


FEW = "--max_steps 60 --decisions 3000 --report_pairs 20 --logging_steps 30 --per_device_train_batch_size 128".split()


def test_the_embedded_model_learns_from_cfr(tmp_path, capsys):
    folder = tmp_path / "out"
    assert run("sft", "--output_dir", folder, *FEW) == 0
    told = json.loads((folder / "measured.json").read_text())
    figures = told["by_game"][KUHN]
    # Uniformly random legal play has 0.458, and an untrained model answers illegally
    assert figures["exploitability"] < 0.35 and figures["illegal_move_rate"] < 0.05 and told["rows"] == 3000
    assert {row["opponent"] for row in figures["results"]} == {"random", "cfr"}
    assert (folder / "README.md").is_file() and not (folder / "training_args.bin").exists()
    AutoModelForCausalLM.from_pretrained(folder)
    assert "3,000 decisions" in capsys.readouterr().out
    assert run("sft", "--output_dir", folder, *FEW) == 2
    assert "holds another run" in capsys.readouterr().err


def test_a_set_that_was_collected_before(tmp_path, small_qwen, capsys):
    from spiral_trl.experts.collect import ExpertSettings, collect

    collect(ExpertSettings(("kuhn_poker",), decisions=40, rationale=True), tmp_path / "set")
    argv = ["--config", RECIPES / "sft_qwen3_4b.yaml", "--model_name_or_path", small_qwen, "--dataset_name"]
    argv += [tmp_path / "set", "--output_dir", tmp_path / "out", "--bf16", "false", "--use_cpu", "true"]
    argv += "--max_steps 2 --gradient_accumulation_steps 2 --gradient_checkpointing false --save_strategy no".split()
    argv += ["--dataloader_pin_memory", "false"]
    assert run("sft", *argv) == 0
    told = json.loads((tmp_path / "out" / "measured.json").read_text())
    assert told["rows"] == 40 and told["by_game"] == {}
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--games", "kuhn_pokr"], ["unknown game 'kuhn_pokr'", "did you mean 'kuhn_poker'"]),
        (["--games", "kuhn_poker"], ["reads only the compact observation"]),
        (["--rationale", "true"], ["knows no words to reason with"]),
        (["--expert", "cfrr"], ["unknown player 'cfrr'"]),
        (["--dataset_name", "./nowhere"], ["dataset_name='./nowhere'"]),
        (["--report_opponents", "rondom"], ["unknown player 'rondom'"]),
        (["--report_pairs", "1"], ["report_pairs is 1"]),
        (["--model_name_or_path", "./nowhere"], ["model_name_or_path='./nowhere'"]),
        (["--embedded_hidden_size", "12"], ["hidden_size=12"]),
        (["--learnin_rate", "1"], ["unknown flag '--learnin_rate'", "--learning_rate"]),
    ],
)
def test_bad_input_of_supervised_training_ends_in_one_line(argv, parts, tmp_path, capsys):
    assert run("sft", "--output_dir", tmp_path / "out", *argv) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and all(part in error[0] for part in parts), error
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------- the comparison


@pytest.mark.slow
def test_the_comparison_runs_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    command = [RECIPES / "compare.py", *"--max_steps 16 --seeds 0 --workers 1 --arms base pool --output_dir".split()]
    done = run_python(*command, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {row["arm"]: row for row in json.loads((tmp_path / "compare.json").read_text())}
    assert set(rows) == {"base", "pool"} and (tmp_path / "compare.png").stat().st_size > 10_000
    start = rows["pool"]["curve"][0]
    assert rows["base"]["final"] == {name: start[name] for name in rows["base"]["final"]}
    assert rows["pool"]["final"]["exploitability"] != start["exploitability"]
    assert done.stdout.count("\n| ") == 2
    # Again in this process, as nothing is trained
    monkeypatch.setattr(sys, "argv", [*map(str, command), str(tmp_path)])
    load_script("recipes/compare.py").main()
    printed = capsys.readouterr()
    assert printed.out == done.stdout and "done" not in printed.err
