"""`spiral-trl experts` as it is called: the set, its card, what it prints, and how bad input ends."""

import json
from functools import partial

import pytest
from huggingface_hub import DatasetCard

from spiral_trl.errors import PlayError
from spiral_trl.experts.collect import load_decisions


@pytest.fixture
def called(run):
    return partial(run, "experts")


def test_a_set_and_its_card(tmp_path, called, monkeypatch):
    folder = tmp_path / "set"
    argv = ["kuhn_poker", "--decisions", 500, "--rationale", "--output", folder, "--json", tmp_path / "told.json"]
    monkeypatch.setattr("sys.argv", ["spiral-trl", "experts", *map(str, argv), "--token", "hf_aBcDeFgHiJkLmNoPqRs"])
    code, printed, progress = called(*argv)
    assert code == 0 and "500 decisions in" in printed and "cfr" in printed
    # The table's columns are told of the games that rows are from: of a hand at most three
    header, row = (line.split() for line in printed.splitlines()[1:3])
    assert header == ["game", "expert", "rows", "of", "games", "games", "played"] and row[:3] == [
        "kuhn_poker",
        "cfr",
        "500",
    ]
    kept = len(set(load_decisions(folder)["episode_id"]))
    assert 500 / 3 <= kept == int(row[3]) <= int(row[4])
    assert "500 of 500 decisions" in progress
    (head,), (row,) = (
        [line for line in printed.splitlines() if word in line] for word in ("games played", "kuhn_poker ")
    )
    # Figures stand under their columns
    assert head.index("rows") + len("rows") == row.index("500") + len("500")
    assert len(load_decisions(folder)) == 500
    assert json.loads((tmp_path / "told.json").read_text())["finished"] is True

    card = DatasetCard.load(folder / "README.md")
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    assert card.data.size_categories == "n<1K" and "kuhn_poker" in card.data.tags
    assert "500 decisions of cfr" in card.text and "spiral_trl" in card.text
    assert "--decisions 500" in card.text
    assert str(tmp_path) not in card.text and "hf_aBc" not in card.text


def test_a_set_of_winners_says_so(tmp_path, called):
    argv = ["kuhn_poker", "--decisions", 50, "--keep", "winners", "--opponent", "random", "--output", tmp_path / "set"]
    assert called(*argv)[0] == 0
    text = DatasetCard.load(tmp_path / "set" / "README.md").text
    assert "only the winner's" in text and "played by random" in text and "a fold never wins" in text


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["kuhn_poker", "--keep", "losers"], ["invalid choice: 'losers'"]),
        (["kuhn_poker", "--think"], ["think needs rationale"]),
        (["kuhn_poker", "--decisions", "0"], ["decisions is 0"]),
        (["kuhn_poker", "--expert", "random", "--rationale"], ["random gives no reasons"]),
    ],
)
def test_bad_input_ends_in_one_line(argv, parts, tmp_path, called):
    code, _, error = called(*argv, "--output", tmp_path / "set")
    assert code == 2 and len(error.splitlines()) == 1 and all(part in error for part in parts), error
    assert not (tmp_path / "set").exists()


def test_a_folder_that_is_taken(tmp_path, called):
    argv = ["kuhn_poker", "--decisions", 20, "--output", tmp_path / "set"]
    assert called(*argv)[0] == 0
    code, _, error = called(*argv)
    assert code == 2 and "holds this set already" in error


def test_an_interruption_says_how_to_go_on(tmp_path, called, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("spiral_trl.experts.collect.play", interrupt)
    code, _, error = called("kuhn_poker", "--decisions", 20, "--output", tmp_path / "set")
    assert code == 130 and "the same command goes on from there" in error and "Traceback" not in error


def test_a_model_is_not_loaded_to_be_told_that_it_writes_its_own_replies(tmp_path, called, monkeypatch, small_qwen):
    monkeypatch.setattr(
        "spiral_trl.players.registry.load_model_player", lambda *args: pytest.fail("a model was loaded")
    )
    argv = ["kuhn_poker", "--expert", small_qwen, "--rationale", "--output", tmp_path / "set"]
    code, _, error = called(*argv)
    assert code == 2 and "writes its own replies" in error


def test_what_cfr_solves_instead_of_a_match_is_said_once(tmp_path, called, caplog):
    argv = ["kuhn_poker(rounds=4)", "--decisions", 20, "--output", tmp_path / "set"]
    assert called(*argv)[0] == 0
    assert caplog.messages.count("cfr plays each hand of kuhn_poker(rounds=4) by the equilibrium of a single one") == 1


def test_a_failure_midway_says_how_to_go_on(tmp_path, called, monkeypatch):
    def fail(*args, **kwargs):
        raise PlayError("the endpoint does not answer")

    monkeypatch.setattr("spiral_trl.experts.collect.play", fail)
    code, _, error = called("kuhn_poker", "--decisions", 20, "--output", tmp_path / "set")
    assert code == 1 and "the same command goes on from there" in error and "Traceback" not in error
