"""The benchmarks run, and write what they print."""

import json

import pytest
from scripts import ROOT, load_script

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


@pytest.fixture
def chain(monkeypatch):
    pytest.importorskip("sae_lens", reason="needs the extra sae")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return load_script("benchmarks/sae_chain.py")


def test_a_model_of_the_shape_of_gpt2_goes_all_the_way_to_the_page(chain, tmp_path, capsys):
    sizes = {"layers": 3, "features": 512, "active": 20, "width": 64, "vocabulary": 400, "tokens": 2048, "shown": 300}
    arguments = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    file, page = tmp_path / "chain.json", tmp_path / "page"
    chain.main([*arguments, "--processes", "1", "--json", str(file), "--page", str(page)])
    result = json.loads(file.read_text())
    stages = [row["stage"] for row in result["stages"]]
    assert stages[2:] == ["collect", "quality", "relate", "labels, flow and communities", "ablation", "page"]
    for row in result["stages"]:
        assert row["seconds"] > 0 and row["processor_seconds"] >= 0 and row["peak_bytes"] > 1e7
    assert result["seconds"] == pytest.approx(sum(row["seconds"] for row in result["stages"]))
    printed = capsys.readouterr().out
    assert all(stage in printed for stage in stages) and "20.0 active" in printed
    data = json.loads((page / "report.json").read_text())
    assert data["about"]["tokens"] == result["tokens"] == 2048 and data["layers"] == [0, 1, 2]
    assert len(data["features"]) == 300 == result["shown"]["features"]
    # A half of each layer's directions come from the layer before: some of its features pass
    assert all(flow["passing"] > 0 for flow in data["flow"]) and len(data["flow"]) == 2
    assert result["communities"] == len(data["communities"]) > 0
    assert data["ablation"]["summary"] and all(feature["promoted"] for feature in data["features"])
    assert all(data["quality"][str(layer)]["l0"] == pytest.approx(20) for layer in range(3))
    assert (page / "index.html").stat().st_size < result["page"]["bytes"] and result["page"]["shards"] >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "1"], "--layers must be at least 2"),
        (["--features", "199"], "--features at least four times --active"),
        (["--width", "100"], "--width above 64 must be a multiple of it"),
        (["--tokens", "10"], "--tokens must be at least 1000"),
    ],
)
def test_sizes_that_make_no_chain_are_refused(chain, arguments, message):
    with pytest.raises(UsageError, match=message):
        chain.main(arguments)
