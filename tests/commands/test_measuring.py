"""`spiral-trl evaluate` and `spiral-trl arena`: what they print and write, and how every mistake ends."""

import json
import re
import sys

import pytest
from scripts import run_python
from toy_players import Always

from spiral_trl.commands import loading
from spiral_trl.commands.output import Progress, one_line, print_table, with_interval
from spiral_trl.errors import PlayerError
from spiral_trl.evaluation.match import play_match
from spiral_trl.evaluation.one_player import measure_player
from spiral_trl.players.bots import CFRPlayer, RandomPlayer
from spiral_trl.stats import Interval


KUHN = "kuhn_poker(observation=compact)"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of the embedded model with two whole checkpoints and one that was cut off."""
    from spiral_trl.training.checkpoint import write_state
    from spiral_trl.training.tiny import save_tiny_model

    folder = tmp_path_factory.mktemp("outputs") / "run"
    save_tiny_model(folder, seed=0)
    for step in (8, 16, 24):
        save_tiny_model(folder / f"checkpoint-{step}", seed=step)
        if step < 24:
            write_state(folder / f"checkpoint-{step}", {})
    (folder / "metrics.json").write_text(json.dumps({"training": {"max_completion_length": 3}}))
    return folder


class Broken(Always):
    """An endpoint that never answers."""

    speculative = False

    def _answer(self, turn):
        raise PlayerError("no answer")


# ------------------------------------------------------------------------------------------------------- evaluate


def test_evaluate_prints_and_writes_the_same_figures(run, tmp_path):
    file = tmp_path / "random.json"
    code, out, err = run("evaluate", "random", "--games", KUHN, "--pairs", "40", "--seed", "2", "--json", str(file))
    assert (code, err) == (0, "")
    expected = measure_player(RandomPlayer(), [KUHN], [RandomPlayer(), CFRPlayer()], 40, 2).to_dict()
    assert json.loads(file.read_text()) == json.loads(json.dumps(expected))
    assert f"random in {KUHN}, 40 deals from both seats" in out
    # Uniform play: 11/24 chips
    assert "exploitability: 0.4583 chips (exact" in out
    match = expected["games"][0]["matches"][1]
    low, high = (match["mean_return"][end] for end in ("low", "high"))
    assert f"{match['mean_return']['estimate']:+.2f} [{low:+.2f}, {high:+.2f}]" in out
    assert "\033" not in out and "player 1" in out


def test_evaluate_a_models_folder(run, trained, tmp_path):
    file = tmp_path / "model.json"
    code, out, _ = run("evaluate", str(trained), "--games", KUHN, "--pairs", "8", "--json", str(file))
    assert code == 0
    written = json.loads(file.read_text())
    assert written["player"] == "run" and str(trained) not in out + file.read_text()
    (game,) = written["games"]
    # The run's own longest reply is short enough for the exact method
    assert game["exploitability"]["method"] == "exact"
    # Untrained, it hardly ever answers with a legal action, and forfeits
    assert game["illegal_rate"] > 0.5 and game["matches"][0]["mean_return"]["estimate"] < 0


def test_evaluate_labels_sampled_figures_and_bounds(run, trained):
    code, out, _ = run(
        "evaluate", str(trained), "--games", KUHN, "--opponents", "random", "--pairs", "2", "--samples", "4"
    )
    assert code == 0 and "sampled, 4 replies for each turn; an equilibrium sampled so would read" in out
    code, out, _ = run("evaluate", "random", "--games", "kuhn_poker(rounds=5)", "--pairs", "20")
    assert code == 0 and "(lower bound, won by" in out and "a best response may win more" in out
    code, out, _ = run("evaluate", "random", "--games", KUHN, "--pairs", "2", "--exploitability", "off")
    assert code == 0 and "exploitability: not measured: not asked for" in out


def test_evaluate_by_default_meets_whom_it_can(run):
    code, out, _ = run("evaluate", "random", "--games", "connect_four", "--pairs", "2", "--exploitability", "off")
    assert code == 0 and "cfr" not in out and "random" in out


# ---------------------------------------------------------------------------------------------------------- arena


def test_arena_prints_and_writes_the_same_figures(run, tmp_path):
    file, plot = tmp_path / "arena.json", tmp_path / "arena.png"
    arguments = ["--games", KUHN, "tic_tac_toe", "--pairs", "20", "--json", str(file), "--plot", str(plot)]
    code, out, err = run("arena", "minimax", "cfr", "random", *arguments)
    assert (code, err) == (0, "")
    written = json.loads(file.read_text())
    assert [table["game"] for table in written["tables"]] == [KUHN, "tic_tac_toe", None]
    assert written["tables"][0]["ratings"]["anchor"] == "random"
    table = written["tables"][0]
    estimate = table["mean_return"][table["players"].index("cfr")][table["players"].index("random")]["estimate"]
    match = play_match(KUHN, CFRPlayer(), RandomPlayer(), pairs=20, seed=written["matches"][0]["seed"])
    assert match.mean_return.estimate == pytest.approx(estimate)
    assert f"{estimate:+.2f}" in out and "2 games together: standings" in out
    assert f"minimax is left out of {KUHN}: minimax cannot play" in out
    assert "unexplained by ratings (cyclic)" in out
    assert plot.read_bytes().startswith(b"\x89PNG") and plot.stat().st_size > 10_000


def test_arena_of_a_runs_checkpoints(run, trained, tmp_path):
    file = tmp_path / "arena.json"
    code, out, _ = run(
        "arena", "random", "--checkpoints", str(trained), "--games", KUHN, "--pairs", "4", "--json", str(file)
    )
    assert code == 0
    assert json.loads(file.read_text())["players"] == ["random", "checkpoint-8", "checkpoint-16"]
    assert "checkpoint-24" not in out


def test_arena_marks_ratings_that_rest_on_the_prior(run):
    code, out, _ = run("arena", "random", "minimax", "--games", "tic_tac_toe", "--pairs", "2", "--seed", "1")
    assert code == 0 and "*: the games put no bound on this rating" in out


def test_arena_writes_what_it_has_where_a_player_fails(run, monkeypatch, tmp_path):
    broken = Broken("", "endpoint(model=x)")

    def load(name, label, options):
        return broken if label == "endpoint(model=x)" else {"random": RandomPlayer(), "cfr": CFRPlayer()}[name]

    monkeypatch.setattr("spiral_trl.commands.arena.load_player", load)
    file = tmp_path / "arena.json"
    endpoint = "endpoint(model=x,base_url=http://127.0.0.1:9/v1,api_key_env=none)"
    code, out, err = run("arena", endpoint, "random", "cfr", "--games", KUHN, "--pairs", "4", "--json", str(file))
    assert code == 1
    assert "failed: endpoint(model=x) stopped answering" in err and "no answer" in err
    assert {match["player"] for match in json.loads(file.read_text())["matches"]} == {"random", "cfr"}
    assert "random" in out


def test_players_of_two_runs_are_told_apart(trained, tmp_path):
    from spiral_trl.training.tiny import save_tiny_model

    other = tmp_path / "other"
    save_tiny_model(other / "checkpoint-8", seed=1)
    names = [str(trained / "checkpoint-8"), str(other / "checkpoint-8"), str(trained / "checkpoint-16"), "random"]
    labels = ["run/checkpoint-8", "other/checkpoint-8", "checkpoint-16", "random"]
    assert loading.player_labels(names) == labels
    with pytest.raises(ValueError, match="named twice"):
        loading.player_labels([names[0], names[0] + "/"])


# --------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("arena random cfr --games kuhn_poker kuhn_poker(rounds=1)", "the game kuhn_poker is named twice"),
        ("arena random random --games kuhn_poker", "'random' is named twice"),
        ("arena --games kuhn_poker", "at least 2 players, not 0"),
        ("arena random cfr --games kuhn_poker --pairs 1", "--pairs has to be at least 2, not 1"),
        ("arena random cfr --games kuhn_poker --max-turns 0", "--max-turns has to be at least 1, not 0"),
        ("arena random cfr --games kuhn_poker --temperature 0", "--temperature has to be above 0"),
        ("arena random cfr --games kuhn_poker --replicates -1", "--replicates has to be at least 0"),
        ("arena random cfr --games kuhn_poker --illegal forfiet", "Unknown illegal-move policy 'forfiet'.*'forfeit'"),
        ("arena random cfr --games kuhn_poker --anchor cfx", "--anchor 'cfx' is none of the players.*'cfr'"),
        ("arena random cfr --games kuhn_poker --plot x.pdf", "--plot x.pdf has to end with .png"),
        ("arena random cfr --games kuhn_poker --json nowhere/x.json", "the folder of --json nowhere/x.json does not"),
        ("arena random --checkpoints nowhere --games kuhn_poker", "the folder nowhere does not exist"),
        ("arena random cfr", "the following arguments are required: --games"),
        (
            "evaluate minimax --games kuhn_poker leduc_poker",
            "minimax cannot play kuhn_poker.*minimax cannot play leduc",
        ),
        ("evaluate random --games kuhn_poker --opponents cfr cfr", "'cfr' is named twice"),
        ("evaluate random --games kuhn_poker --samples 0", "--samples has to be at least 1, not 0"),
        ("evaluate random --games kuhn_poker --exploitability maybe", "invalid choice: 'maybe'"),
        ("evaluate random --games kuhn_poker --pairs many", "invalid int value: 'many'"),
    ],
)
def test_mistakes_end_in_one_line_before_any_model_is_loaded(run, no_model, argv, message):
    code, out, err = run(*argv.split())
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert re.search(message, err), err


def test_a_folder_without_a_model_names_the_way_out(run, no_model, trained, tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    code, _, err = run("evaluate", str(tmp_path), "--games", KUHN)
    assert code == 2 and "holds no model" in err
    code, _, err = run("arena", "random", "--checkpoints", str(tmp_path), "--games", KUHN)
    assert code == 2 and "holds no whole checkpoint" in err


def test_help_shows_examples(run):
    for command in ("evaluate", "arena"):
        code, out, _ = run(command, "--help")
        assert code == 0 and f"spiral-trl {command} " in out and "--pairs" in out and "default: None" not in out


def test_as_a_program(tmp_path):
    file = tmp_path / "out.json"
    command = ["-m", "spiral_trl", "arena", "random", "cfr", "--games", KUHN, "--pairs", "4"]
    done = run_python(*command, "--json", file, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(file.read_text())["pairs"] == 4
    done = run_python(*command, "--seed", "x", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


# --------------------------------------------------------------------------------------------------------- output


def test_what_a_model_wrote_cannot_steer_the_terminal(capsys):
    assert one_line("a\x1b[2Jb\nc\u202e") == "a[2Jb c"
    print_table("t", ["player", "x"], [["\x1b[31mred", "1"], ["[bold]", "23"]])
    assert capsys.readouterr().out == "t\nplayer    x\n[31mred   1\n[bold]   23\n"


def test_a_table_on_a_terminal_keeps_brackets(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    print_table("[red]title", ["player", "x"], [["kuhn[/bold]", "0.10 [0.05, 0.15]"]])
    out = capsys.readouterr().out
    assert "[red]title" in out and "kuhn[/bold]" in out and "0.10 [0.05, 0.15]" in out


def test_intervals_as_text():
    assert with_interval(Interval(0.5, 0.25, 0.75), 100, 1) == "50.0 [25.0, 75.0]"
    assert with_interval(Interval(0.5, float("-inf"), float("inf")), sign=True) == "+0.50 [?, ?]"
    assert with_interval(None) == "-"


def test_progress_is_for_people_alone(capsys, monkeypatch):
    Progress(quiet=False)(0, 3, "x")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    Progress(quiet=True)(0, 3, "x")
    assert capsys.readouterr().err == ""
    progress = Progress(quiet=False)
    progress(0, 3, "kuhn\n")
    progress.clear()
    assert capsys.readouterr().err == "\r\033[K[1/3] kuhn\r\033[K"
