"""The benchmarks run, and write what they print."""

import json

import pytest
from scripts import load_script

from spiral_trl.errors import UsageError


@pytest.fixture
def games():
    return load_script("benchmarks/games.py")


def test_games_are_timed_by_both_paths(games, tmp_path, capsys):
    file = tmp_path / "games.json"
    names = ["kuhn_poker(payoff=chips)", "pig(target=20,players=3)"]
    games.main([*names, "--runs", "3", "--seconds", "0.01", "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    assert [(row["game"], row["path"]) for row in rows] == [
        ("kuhn_poker", "arrays"),
        ("kuhn_poker", "text"),
        ("pig(target=20,players=3)", "text"),
    ]
    for row in rows:
        assert 0 < row["slowest"] <= row["games_per_second"] <= row["fastest"]
        assert row["runs"] == 3 and row["games"] >= 1
    # A hand of Kuhn poker has 2 or 3 turns: random play bets at once in half of the hands, or after a check in a quarter
    assert rows[0]["turns_per_game"] == pytest.approx(2.25, abs=0.1)
    assert rows[0]["target"] == 40_000 and rows[2]["target"] is None
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["game", *(row["game"] for row in rows)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kuhn_pokr"], "unknown game 'kuhn_pokr'.*did you mean 'kuhn_poker'"),
        (["--runs", "0"], "--runs must be at least 1"),
        (["--seconds", "0"], "--seconds from 0 to 600"),
    ],
)
def test_bad_arguments_end_in_one_line(games, arguments, message):
    with pytest.raises(UsageError, match=message):
        games.main(arguments)
