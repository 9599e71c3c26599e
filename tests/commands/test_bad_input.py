"""Bad input, by every command and by a recipe: one line that says what is wrong, before any model is loaded. And what
fails midway: one line too, and what was made is kept."""

import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from scripts import ROOT, load_script, run_python
from toy_games import TreeGame

from spiral_trl.cli import run_recipe
from spiral_trl.commands import COMMANDS
from spiral_trl.commands.main import main
from spiral_trl.experts.collect import load_decisions
from spiral_trl.players import registry
from spiral_trl.players.bots import RandomPlayer
from spiral_trl.records import Ending, dataset_to_episodes


RECIPES = ROOT / "recipes"
NO_KEY = "endpoint(model=m,base_url=http://127.0.0.1:9/v1)"
# Nobody listens there
UNREACHABLE = "endpoint(model=m,base_url=http://127.0.0.1:9/v1,api_key_env=none,max_retries=1)"


@pytest.fixture(autouse=True)
def environment(keep_environment, monkeypatch, tmp_path):
    """A folder of its own, and no key."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(small_qwen):
    """Name of a model that would load."""
    return str(small_qwen)


# How each command is told of a game that players play
WITH = {
    "play": ["play", "{game}", "--players", "{player}", "{other}"],
    "evaluate": ["evaluate", "{player}", "--games", "{game}", "--opponents", "{other}"],
    "arena": ["arena", "{player}", "{other}", "--games", "{game}"],
    "experts": ["experts", "{game}", "--expert", "{player}", "--opponent", "{other}", "--output", "set"],
}


def told(command, game="kuhn_poker", player="random", other="random"):
    return [part.format(game=game, player=player, other=other) for part in WITH[command]]


def check_line(code, out, err, message):
    assert (code, out) == (2, ""), (code, out, err)
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert re.search(message, err), err
    assert "Traceback" not in err


GAMES = [
    ("kuhn_pokr", "unknown game 'kuhn_pokr'; allowed: .*; did you mean 'kuhn_poker'\\?"),
    ("openspiel:gofspiel", "unknown openspiel game 'gofspiel'; allowed: .*; did you mean 'goofspiel'\\?"),
    ("openspil:goofspiel", "unknown prefix of a game 'openspil'; allowed: .*; did you mean 'openspiel'\\?"),
    ("openspiel:matrix_pd", "not zero-sum"),
    ("kuhn_poker(round=5)", "unknown parameter of kuhn_poker 'round'; allowed: .*; did you mean 'rounds'\\?"),
    ("kuhn_poker(rounds=five)", "rounds of kuhn_poker must be a whole number, not 'five'"),
    ("kuhn_poker(rounds=0)", "rounds of kuhn_poker must be from 1 to 100, not 0"),
    ("kuhn_poker(rules=spirl)", "unknown value of rules in kuhn_poker 'spirl'; .*; did you mean 'spiral'\\?"),
    ("openspiel:goofspiel(num_card=4)", "unknown parameter of openspiel:goofspiel 'num_card'; .*'num_cards'"),
    ("kuhn_poker(rounds=5", "must end with '\\)'"),
]


@pytest.mark.parametrize("command", ["games", *WITH])
@pytest.mark.parametrize(("game", "message"), GAMES)
def test_games(run, no_model, model, command, game, message):
    check_line(*run(*(["games", game] if command == "games" else told(command, game, player=model))), message)
    assert not Path("set").exists()


def test_a_library_and_a_game_at_once(run):
    line = run("games", "leduc_poker", "--source", "openspiel")
    check_line(*line, "to show a game of it, name it openspiel:leduc_poker")


def test_a_game_shows_its_parameters(run):
    code, out, _ = run("games", "kuhn_poker(cards=5)", "--json", "shown.json")
    assert code == 0
    assert "parameters: rounds=1, rules=canonical, payoff=chips, observation=words, seat_bonus=0, cards=5\n" in out
    assert json.loads(Path("shown.json").read_text())["parameters"]["cards"] == 5


def test_output_that_nobody_reads_any_more():
    reading, writing = os.pipe()
    os.close(reading)
    ended = run_python("-m", "spiral_trl", "games", "--source", "openspiel", stdout=writing)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_prompts_that_are_too_long_for_the_model(run, tmp_path):
    from spiral_trl.training.tiny import save_tiny_model

    code, out, err = run("evaluate", save_tiny_model(tmp_path / "tiny", seed=0), "--games", "kuhn_poker")
    assert (code, out) == (2, "") and err.count("error: ") == 1 and "Traceback" not in err
    assert re.search("passes the model's 128 positions. Lower .*max_new_tokens", err), err


def test_games_of_textarena(run, no_model, model):
    pytest.importorskip("textarena")
    for command in WITH:
        line = run(*told(command, "textarena:Snek-v0", player=model))
        check_line(*line, "TextArena has no game 'Snek-v0'; .*; did you mean 'Snake-v0'\\?")


@pytest.mark.parametrize("command", WITH)
@pytest.mark.parametrize(
    ("game", "other", "message"),
    [
        ("kuhn_poker", "minimax", "minimax cannot play kuhn_poker: it has hidden information; use cfr"),
        ("leduc_poker", "minimax", "minimax cannot play leduc_poker: it has hidden information; use cfr"),
        ("connect_four", "cfr", "cfr cannot play connect_four: "),
        ("liars_dice", "minimax", "minimax cannot play liars_dice: it has hidden information"),
        ("simple_negotiation", "mcts", "mcts.* cannot play simple_negotiation: "),
        ("kuhn_poker", "minmax", "unknown player 'minmax'; allowed: .*; did you mean 'minimax'\\?"),
        ("tic_tac_toe", "mcts(simulation=3)", "unknown parameter of mcts 'simulation'.*did you mean 'simulations'\\?"),
        ("kuhn_poker", NO_KEY, "needs a key in the environment variable OPENAI_API_KEY, which is not set"),
        ("kuhn_poker", "endpoint", "player endpoint needs model, as in endpoint\\(model=...\\)"),
        ("kuhn_poker", "endpoint(model=m,base_url=localhost:8000,api_key_env=none)", "base_url of endpoint must be a"),
        ("kuhn_poker", "./no/such/folder", "The model folder ./no/such/folder does not exist"),
        ("kuhn_poker", "no:such/model", "no folder and no id on the Hub"),
    ],
)
def test_players(run, no_model, model, command, game, other, message):
    check_line(*run(*told(command, game, player=model, other=other)), message)
    assert not Path("set").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["play", "kuhn_poker", "--players", "MODEL"], "kuhn_poker has 2 seats, but --players names 1 players"),
        (
            ["play", "pig(players=3)", "--players", "MODEL", "random"],
            "pig\\(players=3\\) has 3 seats, .* names 2 play",
        ),
        (["play", "kuhn_poker", "--opponents", "MODEL", "cfr"], "kuhn_poker has 2 seats, but .* there are 3 players"),
        (
            ["evaluate", "MODEL", "--games", "pig(players=3)"],
            "between two players, but pig\\(players=3\\) has 3 seats",
        ),
        (["arena", "MODEL", "random", "--games", "openspiel:kuhn_poker(players=3)"], "has 3 seats"),
        (["arena", "MODEL", "--games", "kuhn_poker"], "at least 2 players, not 1"),
    ],
)
def test_wrong_numbers_of_players(run, no_model, model, argv, message):
    check_line(*run(*(model if part == "MODEL" else part for part in argv)), message)


@pytest.mark.parametrize("command", WITH)
def test_the_check_of_loading_sees_it(run, no_model, model, command):
    with pytest.raises(AssertionError, match="a model was loaded"):
        main(told(command, player=model))


def test_every_command_is_covered(run):
    assert {"games", *WITH} <= set(COMMANDS)
    for command in COMMANDS:
        check_line(*run(command, "--no-such-option"), f"see spiral-trl {command} --help")
    check_line(*run("evalute"), "unknown command 'evalute'; allowed: .*; did you mean 'evaluate'\\?")


# ------------------------------------------------------------------------------------------------------------- a recipe


@pytest.fixture
def recipe(capsys):
    """Runs recipes/kuhn.py with keys other than those of kuhn_tiny.yaml."""
    kuhn = load_script("recipes/kuhn.py")

    def call(**keys):
        given = yaml.safe_load((RECIPES / "kuhn_tiny.yaml").read_text()) | {"output_dir": "out"} | keys
        Path("changed.yaml").write_text(yaml.safe_dump(given))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_recipe(kuhn.main, ["--config", "changed.yaml"])
        return ended.value.code, *capsys.readouterr()

    return call


@pytest.mark.parametrize(("game", "message"), GAMES)
def test_games_of_a_recipe(recipe, no_model, game, message):
    check_line(*recipe(games=["kuhn_poker(observation=compact)", game]), message)
    assert not Path("out").exists()


@pytest.mark.parametrize("key", ["opponents", "report_opponents", "eval_opponents"])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("minmax", "unknown player 'minmax'; allowed: .*; did you mean 'minimax'\\?"),
        (NO_KEY, "needs a key in the environment variable OPENAI_API_KEY, which is not set"),
        ("./no/such/folder", "The model folder ./no/such/folder does not exist"),
    ],
)
def test_opponents_of_a_recipe(recipe, no_model, key, other, message):
    check_line(*recipe(**{key: ["random", other]}), message)
    assert not Path("out").exists()


# Not eval_opponents: each game is measured against those of them who can play it
@pytest.mark.parametrize("key", ["opponents", "report_opponents"])
def test_opponents_of_a_recipe_that_cannot_play(recipe, no_model, key):
    message = "minimax cannot play kuhn_poker\\(observation=compact\\): it has hidden information; use cfr"
    other = "minimax"
    check_line(*recipe(**{key: ["random", other]}), message)
    assert not Path("out").exists()


# ------------------------------------------------------------------------------------------------------ failures midway


def check_failure(code, err, message):
    """The last line of stderr says what failed; progress may stand before it."""
    last = err.splitlines()[-1]
    assert code == 1 and last.startswith("error: "), err
    assert re.search(message, last), err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", WITH)
def test_an_unreachable_endpoint(run, monkeypatch, command):
    monkeypatch.setattr("spiral_trl.players.endpoint.random.uniform", lambda low, high: 0.001)
    code, out, err = run(*told(command, player="random", other=UNREACHABLE), "--json", "made.json")
    assert code == 1 and "Traceback" not in err
    assert "endpoint(model=m) could not answer" in err and "no answer after 2 calls" in err
    assert "kuhn_poker with seed" in err and "moves so far: " in err


class DyingEndpoint:
    """Plays `[check]`, and `[fold]` once that is asked for; refuses every call after the first `lives`."""

    def __init__(self, lives):
        served = self
        self.calls = 0
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    served.calls += 1
                    alive = served.calls <= lives
                text = "[fold]" if "[fold]" in body["messages"][-1]["content"] else "[check]"
                answer = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
                content = json.dumps(answer if alive else {"error": {"message": "going down"}}).encode()
                self.send_response(200 if alive else 503)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.name = (
            f"endpoint(model=m,base_url=http://127.0.0.1:{self.http.server_port}/v1,api_key_env=none,max_retries=1,"
            "concurrency=1)"
        )
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def dying(monkeypatch):
    monkeypatch.setattr("spiral_trl.players.endpoint.random.uniform", lambda low, high: 0.001)
    servers = []

    def start(lives):
        servers.append(DyingEndpoint(lives))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def test_games_before_an_endpoint_dies_are_kept_by_play(run, dying):
    # Asked once in each of 20 games, then in those that go on
    server = dying(20)
    code, out, err = run(
        *("play", "kuhn_poker(rounds=2)", "--players", "random", server.name, "--games", 20, "--json", "games.jsonl")
    )
    assert code == 1 and err.startswith("error: endpoint(model=m) could not answer ") and err.count("\n") == 1
    assert "status 503 (going down)" in err and "no answer after 2 calls" in err
    kept = dataset_to_episodes([json.loads(line) for line in Path("games.jsonl").read_text().splitlines()])
    assert len(kept) == out.count("\n  result: ")
    assert all(episode.ending is Ending.TERMINAL for episode in kept)


def test_games_before_an_endpoint_dies_are_kept_by_experts(run, dying):
    server = dying(30)
    argv = ["experts", "kuhn_poker", "--expert", server.name, "--decisions", 60, "--games-per-round", 8]
    code, _, err = run(*argv, "--output", "set")
    check_failure(code, err, "endpoint\\(model=m\\) could not answer .* the same command goes on from there")
    kept = load_decisions("set")
    assert 0 < len(kept) < 60 and f"({len(kept)} of 60 decisions are kept in set" in err
    assert set(kept["action"]) <= {"check", "fold"}
    server = dying(1000)
    # Another port is another expert: a set is not mixed
    check_line(*run(*argv[:3], server.name, *argv[4:], "--output", "set"), "set holds a set with expert=")


def test_matches_before_an_endpoint_dies_are_kept_by_arena(run, dying):
    server = dying(70)
    code, out, err = run(
        *("arena", "random", "cfr", server.name, "--games", "kuhn_poker", "--pairs", 40, "--json", "arena.json")
    )
    assert code == 1 and "Traceback" not in err
    assert "endpoint(model=m) stopped answering and is not asked again" in err
    written = json.loads(Path("arena.json").read_text())
    pairs = {frozenset((match["player"], match["opponent"])): match["pairs"] for match in written["matches"]}
    assert pairs[frozenset(("random", "cfr"))] == 40
    cut = [number for names, number in pairs.items() if "endpoint(model=m)" in names]
    assert sum(cut) == 16 and written["notes"]


# ------------------------------------------------------------------------------------------------------------ the games


def long_game(name, kind=TreeGame):
    node = ("end", (1, -1))
    for ply in range(200):
        node = ("turn", ply % 2, {"go": node, "on": node})
    return lambda: kind(name, node)


class Broken(TreeGame):
    """Raises where the third action is played, in games of odd seed."""

    def step(self, actions):
        if len(self.history) == 2 and self.seed % 2:
            raise KeyError("no such square")
        super().step(actions)


class BrokenForAll(TreeGame):
    def step(self, actions):
        if len(self.history) == 2:
            raise KeyError("no such square")
        super().step(actions)


class Undealt(TreeGame):
    def reset(self, seed, chance=None):
        raise RuntimeError("no cards\nleft")


@pytest.fixture
def second(monkeypatch):
    """A second player of games of any kind: an arena takes no name twice."""

    class Second(RandomPlayer):
        name = "second"

    entry = registry._Entry(make=lambda values, settings: Second(), name=lambda values: "second")
    monkeypatch.setitem(registry._PLAYERS, "second", entry)
    return "second"


@pytest.mark.parametrize("command", WITH)
def test_a_game_that_never_ends(run, register_game, second, command):
    name = register_game(f"endless_of_{command}", long_game(f"endless_of_{command}"))
    count = {"play": ["--games", 3], "experts": ["--decisions", 10]}.get(command, ["--pairs", 4])
    code, out, err = run(*told(command, name, other=second), "--max-turns", 6, *count, "--json", "made.json")
    if command == "experts":
        check_failure(code, err, f"games of {name} by random gave no decision to keep .* truncated 1,\\d+$")
        return
    assert (code, err) == (0, "")
    text = Path("made.json").read_text()
    if command == "play":
        assert out.count("result (truncated): seat 0 +0, seat 1 +0") == 3
        for episode in dataset_to_episodes([json.loads(row) for row in text.splitlines()]):
            assert episode.ending is Ending.TRUNCATED and len(episode.steps) == 6 and episode.returns == (0, 0)
    else:
        written = json.loads(text)
        for match in written["matches"] if command == "arena" else written["games"][0]["matches"]:
            # Neither won, nor lost, nor a draw
            assert match["truncated_rate"] == 1 and match["score"] is None
            assert all(seat["draw_rate"] == seat["loss_rate"] == 0 for seat in match["seats"])


@pytest.mark.parametrize("command", WITH)
def test_a_game_whose_code_raises(run, register_game, second, command):
    name = register_game(f"broken_of_{command}", long_game(f"broken_of_{command}", Broken))
    count = {"play": ["--games", 4], "experts": ["--decisions", 50]}.get(command, ["--pairs", 4])
    code, _, err = run(*told(command, name, other=second), *count)
    assert code == 1 and "Traceback" not in err
    found = re.search(f"{name} with seed (\\d+) raised KeyError: 'no such square'; moves so far: ([^;()\n]*)", err)
    assert found and int(found[1]) % 2 == 1
    assert re.fullmatch("seat 1: (go|on), seat 0: (go|on), seat 1: (go|on)", found[2].strip())


def test_a_game_whose_code_raises_where_nobody_comes_is_played(run, register_game):
    tree = ("turn", 0, {"stop": ("end", (1, -1)), "on": ("turn", 1, {"a": ("turn", 0, {"b": ("end", (1, -1))})})})
    name = register_game("mined", lambda: BrokenForAll("mined", tree))
    code, _, err = run("evaluate", "random", "--games", name, "--pairs", 4)
    assert (code, err) == (
        1,
        f"error: {name}, while its positions were listed, raised KeyError: 'no such square'; moves so far: "
        "player 0: on, player 1: a, player 0: b\n",
    )
    # Seed 0 stops, seed 3 goes on
    code, out, err = run("play", name, "--players", "random", "random", "--seed", 0)
    assert (code, err) == (0, "") and "result: seat 0 +1, seat 1 -1" in out
    code, _, err = run("play", name, "--players", "random", "random", "--seed", 3)
    check_failure(code, err, f"^error: {name} with seed 3 raised KeyError: .* seat 0: on, seat 1: a, seat 0: b$")


@pytest.mark.parametrize("command", ["games", *WITH])
def test_a_game_that_cannot_be_dealt(run, register_game, command):
    name = register_game(f"undealt_of_{command}", lambda: Undealt(f"undealt_of_{command}", ("end", (0, 0))))
    code, _, err = run(*(["games", name] if command == "games" else told(command, name, other="cfr")))
    assert (code, err) == (1, f"error: {name} with seed 0 raised RuntimeError: no cards left; moves so far: none\n")
