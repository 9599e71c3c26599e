"""`spiral-trl patterns` against a judge behind a real server: what is sent, counted, kept and refused."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from scripts import ROOT

from spiral_trl.commands.patterns import EXAMPLES
from spiral_trl.evaluation.reasoning_patterns import HEURISTIC, load_rubric
from spiral_trl.records import Ending, Episode, Message, Reply, Step, Turn, episodes_to_dataset
from spiral_trl.stats import wilson_interval


KEY = "sk-test-Zq81vPw0secretsecret"
CASE, VALUE, PATTERN = load_rubric().names
# What the judge of these tests takes for a pattern, and quotes
SIGNS = {
    CASE: "Case one holds a King. Case two holds a Jack.",
    VALUE: "Half of the time two chips make one chip.",
    PATTERN: "The same thing repeats in each of the rows.",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("spiral_trl.players.endpoint.random.uniform", lambda low, high: 0.001)
    monkeypatch.chdir(tmp_path)


def trace_in(body):
    """What stands between the two lines of a prompt."""
    user = body["messages"][-1]["content"]
    return re.fullmatch(r"BEGIN (\w+) (\w+)\n(.*)\nEND \1 \2\n\n.*", user, re.DOTALL)[3]


def honest(number, body):
    """Labels, names and merges what stands in a trace by [`SIGNS`]."""
    text = trace_in(body)
    if "You label" in body["messages"][0]["content"]:
        said = {name: {"present": sign in text, "quote": sign if sign in text else ""} for name, sign in SIGNS.items()}
        return "Let me see.\n```json\n" + json.dumps({"patterns": said}) + "\n```"
    if "You find out" in body["messages"][0]["content"]:
        named = [
            {"name": f"{name} {number}", "definition": f"It is {name}.", "quote": sign}
            for name, sign in SIGNS.items()
            if sign in text
        ]
        return json.dumps({"patterns": named})
    members = {}
    for line in map(json.loads, text.splitlines()):
        members.setdefault(line["definition"], []).append(line["number"])
    entries = [{"name": d[6:-1], "definition": d, "members": numbers} for d, numbers in members.items()]
    return json.dumps({"patterns": entries})


class JudgeServer:
    """Answers the n-th request with `script(n, body)`: a content, or (status, content). Counts what it answered."""

    def __init__(self, script):
        self.requests, self.answered = [], []
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(server.requests)
                    server.requests.append({"body": body, "key": self.headers["Authorization"]})
                said = script(number, body)
                if said is None:
                    return  # the process that asked is gone
                status, content = said if isinstance(said, tuple) else (200, said)
                choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
                answer = {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 10}}
                payload = json.dumps(answer if status == 200 else {"error": {"message": content}}).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(payload)))
                    self.end_headers()
                    self.wfile.write(payload)
                except OSError:
                    return
                if status == 200:
                    with lock:
                        server.answered.append(body)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def judge(self, **parameters):
        stated = {"model": "judge", "base_url": self.url, "api_key_env": "none", **parameters}
        return f"endpoint({','.join(f'{key}={value}' for key, value in stated.items())})"


@pytest.fixture
def serve():
    servers = []

    def start(script=honest):
        server = JudgeServer(script)
        threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def episode(number, patterns, seed):
    """A game in which each seat replies once; the first, who wins, uses `patterns`."""
    steps = []
    for player in (0, 1):
        messages = (Message(role="user", content="your move"),)
        turn = Turn("kuhn_poker", 0, seed, player, player, f"player {player}", messages, ("check", "bet"))
        text = f"Game {number}, seat {player}. " + " ".join(SIGNS[name] for name in patterns if player == 0)
        steps.append(Step(turn, Reply(text=text, policy_version=0)))
    return Episode(
        "kuhn_poker", seed, ("model", "model"), ("player 0", "player 1"), tuple(steps), (1.0, -1.0), Ending.TERMINAL
    )


@pytest.fixture
def data():
    """Games and solutions of two checkpoints. Cases: in games 2 -> 6 of 8 winners, in math 1 -> 3 of 5 solutions."""
    for checkpoint, users in (("base", 2), ("trained", 6)):
        games = [episode(i, [CASE] if i < users else [], seed=1000 * users + i) for i in range(8)]
        episodes_to_dataset(games).save_to_disk(Path("outputs", checkpoint, "episodes"))
    rows = [
        {
            "text": f"Solution {i} at {checkpoint}. "
            + (SIGNS[CASE] if i < users else "")
            + (SIGNS[VALUE] if i == 0 else ""),
            "success": i % 2 == 0,
            "checkpoint": checkpoint,
            "group": f"problem {i}",
        }
        for checkpoint, users in ((0, 1), (400, 3))
        for i in range(5)
    ]
    Path("math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--games", "0=outputs/base/episodes", "400=outputs/trained/episodes", "--math", "math.jsonl"]


TEXTS = 2 * 2 * 8 + 2 * 5
# The same at both checkpoints: losing seats, the two winners who use the pattern at both, and the two who never do
DISTINCT = TEXTS - 8 - 2 - 2


def kept(folder="patterns_cache"):
    """Whole lines of a cache."""
    path = Path(folder, "answers.jsonl")
    return (
        [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []
    )


def of(figures, key, pattern=CASE, **where):
    (found,) = [e for e in figures[key] if e["pattern"] == pattern and all(e[k] == v for k, v in where.items())]
    return found


# ---------------------------------------------------------------------------------------------------------- classification


def test_traces_are_labelled_and_counted(run, serve, data, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server = serve()
    judge = server.judge(temperature=0.7, api_key_env="JUDGE_KEY")
    code, out, err = run("patterns", "classify", *data, "--judge", judge, "--json", "p.json", "--labels", "l.jsonl")
    assert code == 0, err
    figures = json.loads(Path("p.json").read_text())
    # Winners and losers of 8 games: 2 of 16 seats, 2 of 8 winners
    games = of(figures, "prevalence", domain="games", checkpoint="0")
    assert (games["all"]["traces"], games["all"]["groups"], games["all"]["method"]) == (16, 8, "cluster bootstrap")
    assert games["all"]["interval"]["estimate"] == 2 / 16
    assert games["successes"]["interval"] == wilson_interval(2, 8).to_dict()
    assert games["failures"]["interval"] == wilson_interval(0, 8).to_dict()
    math = of(figures, "prevalence", domain="math", checkpoint="400")
    assert math["all"]["interval"] == wilson_interval(3, 5).to_dict() and math["undecided"] == 0
    assert of(figures, "changes", domain="games")["successes"]["estimate"] == pytest.approx(4 / 8)
    assert of(figures, "changes", domain="math")["all"]["estimate"] == pytest.approx(2 / 5)
    last = of(figures, "transfer", checkpoint="400")
    assert last["difference"]["estimate"] == pytest.approx(3 / 5 - 6 / 16)
    assert last["games_change"]["estimate"] == pytest.approx(4 / 16)
    assert of(figures, "transfer", VALUE, checkpoint="0")["math"]["estimate"] == 1 / 5
    assert (figures["heuristic"], figures["labeller"]) == (False, "endpoint(model=judge,temperature=0.7), 3 votes")
    assert figures["votes_kappa"][CASE] == 1 and figures["void_votes"] == {} and figures["failed"] is None
    assert figures["usage"] == {
        "calls": 3 * DISTINCT,
        "prompt_tokens": 300 * DISTINCT,
        "completion_tokens": 30 * DISTINCT,
    }

    # Each text three times, the same at another checkpoint included
    asked = Counter(trace_in(request["body"]) for request in server.requests)
    assert len(asked) == DISTINCT and set(asked.values()) == {3}
    assert {request["key"] for request in server.requests} == {f"Bearer {KEY}"}
    assert {request["body"]["temperature"] for request in server.requests} == {0.7}
    assert (
        f"{3 * DISTINCT} calls to make" in err
        and out.count("labels: endpoint(model=judge,temperature=0.7), 3 votes") == 3
    )

    rows = [json.loads(line) for line in Path("l.jsonl").read_text().splitlines()]
    assert len(rows) == TEXTS
    for row in rows:
        assert (row["quotes"].get(CASE) == SIGNS[CASE]) is row["labels"][CASE]
    # Nothing that leaves holds the key, the server or a path
    for text in (out, err, Path("p.json").read_text(), Path("l.jsonl").read_text(), "".join(kept())):
        assert KEY[:12] not in text
    assert "127.0.0.1" not in Path("p.json").read_text() + Path("l.jsonl").read_text() + out

    # Again: the same figures, and no call
    code, out_again, _ = run("patterns", "classify", *data, "--judge", judge, "--json", "again.json")
    again = json.loads(Path("again.json").read_text())
    assert code == 0 and out_again == out and len(server.requests) == 3 * DISTINCT
    assert again["usage"] == {"calls": 0, "prompt_tokens": 0, "completion_tokens": 0}
    assert {**again, "usage": None} == {**figures, "usage": None}
    # Two more votes are two more calls a text; another temperature is another judge
    assert run("patterns", "classify", *data, "--judge", judge, "--votes", 5)[0] == 0
    assert len(server.requests) == 5 * DISTINCT
    other = judge.replace("0.7", "0.6")
    assert run("patterns", "classify", *data, "--judge", other, "--votes", 1)[0] == 0
    assert len(server.requests) == 6 * DISTINCT


def test_nothing_is_told_where_quiet_and_a_dry_run_sends_nothing(run, serve, data):
    server = serve()
    code, out, err = run("patterns", "classify", *data, "--judge", server.judge(), "--dry-run")
    assert (code, err) == (0, "") and out.count("\n") == 1
    assert out.startswith(f"{3 * DISTINCT} calls to make, ") and "0 answers are kept in patterns_cache" in out
    code, out, err = run("patterns", "discover", *data, "--judge", server.judge(), "--output", "f.yaml", "--dry-run")
    assert code == 0 and out.startswith(f"{DISTINCT} calls to make") and not Path("f.yaml").exists()
    assert server.requests == []
    code, _, err = run("patterns", "classify", *data, "--judge", server.judge(), "--quiet")
    assert (code, err) == (0, "")


def test_invented_quotes_and_garbage_do_not_count(run, serve, data):
    def script(number, body):
        text = trace_in(body)
        if "Solution" in text:
            return "As an AI I like cases."
        said = {CASE: {"present": True, "quote": "words that nobody wrote"}, VALUE: {"present": False}}
        return json.dumps({"patterns": said})

    server = serve(script)
    code, out, _ = run("patterns", "classify", *data, "--judge", server.judge(), "--json", "p.json")
    figures = json.loads(Path("p.json").read_text())
    assert code == 0
    assert figures["void_votes"] == {
        "no readable answer": 10 * 3 * 3,
        "no verdict on the pattern": 32 * 3,
        "quote not in the trace": 32 * 3,
    }
    assert "do not count: no readable answer 90, no verdict" in out
    games = of(figures, "prevalence", domain="games", checkpoint="0")
    assert (games["undecided"], games["all"]["traces"], games["all"]["interval"]) == (16, 0, None)
    assert of(figures, "prevalence", VALUE, domain="games", checkpoint="0")["undecided"] == 0
    # Paid for once all the same
    calls = len(server.requests)
    assert run("patterns", "classify", *data, "--judge", server.judge())[0] == 0 and len(server.requests) == calls


def test_a_split_judge(run, serve, data):
    """Two votes of three say present; the third one absent."""
    seen = Counter()

    def script(number, body):
        text = trace_in(body)
        seen[text] += 1
        present = seen[text] < 3
        return json.dumps({"patterns": {n: {"present": present, "quote": text[:40]} for n in SIGNS}})

    run("patterns", "classify", *data, "--judge", serve(script).judge(concurrency=1), "--json", "p.json")
    figures = json.loads(Path("p.json").read_text())
    assert of(figures, "prevalence", domain="math", checkpoint="0")["all"]["interval"]["estimate"] == 1
    # p = 2/3 and every trace split alike: observed 1/3, chance 5/9
    assert figures["votes_kappa"][CASE] == pytest.approx((1 / 3 - 5 / 9) / (1 - 5 / 9))


def test_an_empty_trace_is_not_sent(run, serve):
    rows = [{"text": " \n", "checkpoint": 0}, {"text": SIGNS[CASE], "checkpoint": 0}]
    Path("m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    server = serve()
    run("patterns", "classify", "--math", "m.jsonl", "--judge", server.judge(), "--votes", 1, "--json", "p.json")
    assert len(server.requests) == 1
    found = of(json.loads(Path("p.json").read_text()), "prevalence")
    assert found["all"]["interval"] == wilson_interval(1, 2).to_dict()


def test_a_long_trace_is_shown_in_part_and_that_is_said(run, serve):
    row = {"text": "a" * 500 + SIGNS[CASE] + "b" * 500, "checkpoint": 0}
    Path("m.jsonl").write_text(json.dumps(row))
    server = serve()
    code, out, _ = run(
        *("patterns", "classify", "--math", "m.jsonl", "--judge", server.judge(), "--votes", 1),
        *("--max-chars", 300, "--json", "p.json"),
    )
    assert code == 0 and "1 traces of more than 300 characters were shown in part" in out
    assert json.loads(Path("p.json").read_text())["shown_in_part"] == 1
    assert "a" * 150 + "\n[745 characters left out]\n" + "b" * 150 == trace_in(server.requests[0]["body"])


def test_agreement_with_labelled_traces(run, serve, data):
    server = serve()
    code, out, _ = run("patterns", "sample", *data, "--per-checkpoint", 4, "--output", "s.jsonl")
    rows = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
    assert code == 0 and f"{len(rows)} traces to label: s.jsonl" in out and 8 <= len(rows) <= 16
    for row in rows:
        row["labels"] = {name: SIGNS[name] in row["text"] for name in SIGNS}
    rows[0]["labels"][PATTERN] = True
    rows.append({"id": "of another set", "labels": {CASE: True}})
    Path("s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = ["patterns", "classify", *data, "--labelled", "s.jsonl", "--json", "p.json"]
    code, out, err = run(*told, "--judge", server.judge())
    figures = json.loads(Path("p.json").read_text())
    case, pattern = of(figures, "agreement"), of(figures, "agreement", PATTERN)
    assert code == 0, err
    assert (case["traces"], case["same"]["estimate"], case["precision"], case["recall"]) == (len(rows) - 1, 1, 1, 1)
    assert (pattern["recall"], pattern["precision"], pattern["kappa"]["estimate"]) == (0, None, 0)
    assert "agreement with labels of people" in out and "1 labels of s.jsonl are of no trace here" in out
    # The labels of one labeller are a labelled file for another
    run("patterns", "classify", *data, "--judge", server.judge(), "--labels", "l.jsonl")
    code, out, err = run("patterns", "classify", *data, "--heuristic", "--labelled", "l.jsonl")
    assert code == 0 and "agreement" in out, err


def test_heuristic_labels_are_marked_in_every_output(run, data):
    code, out, err = run("patterns", "classify", *data, "--heuristic", "--json", "p.json", "--labels", "l.jsonl")
    assert (code, err) == (0, "")
    tables = [line for line in out.splitlines() if "95% intervals" in line]
    assert len(tables) == 3 and all(HEURISTIC in line for line in tables)
    figures = json.loads(Path("p.json").read_text())
    assert (figures["heuristic"], figures["labeller"], figures["usage"]) == (True, HEURISTIC, None)
    rows = [json.loads(line) for line in Path("l.jsonl").read_text().splitlines()]
    assert {row["annotator"] for row in rows} == {HEURISTIC} and HEURISTIC.startswith("HEURISTIC")


def test_hostile_text_is_never_printed_as_it_is(run, serve):
    evil = "\x1b]0;owned\x07\x1b[31m"
    rows = [{"text": f"{evil} {SIGNS[CASE]}", "checkpoint": f"{evil}a\nb"}]
    Path("m.jsonl").write_text(json.dumps(rows[0]))
    code, out, err = run(
        "patterns", "classify", "--math", "m.jsonl", "--judge", serve().judge(), "--labels", "l.jsonl"
    )
    assert code == 0 and "\x1b" not in out + err and "\x07" not in out + err
    assert "\x1b" not in Path("l.jsonl").read_text()

    def script(number, body):
        if "You find out" in body["messages"][0]["content"]:
            entry = {"name": f"{evil}cases", "definition": f"split\n# {evil}", "quote": SIGNS[CASE]}
            return json.dumps({"patterns": [entry]})
        return json.dumps({"patterns": [{"name": f"{evil}cases", "definition": f"{evil}d\n- x", "members": [0]}]})

    code, out, err = run(
        *("patterns", "discover", "--math", "m.jsonl", "--judge", serve(script).judge(), "--output", "f.yaml"),
        *("--cache", "other"),
    )
    assert code == 0 and "\x1b" not in out + err + Path("f.yaml").read_text(), err


# -------------------------------------------------------------------------------------------------- what was paid for stays


def start(*argv):
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "spiral_trl", *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
    )


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_killed_run_goes_on_without_paying_twice(run, serve, concurrency):
    rows = [{"text": f"Solution {i}. {SIGNS[CASE] if i % 3 == 0 else ''}", "checkpoint": 0} for i in range(12)]
    Path("m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    needed, deadly = 3 * 12, 20
    process = None
    begun = threading.Event()

    def script(number, body):
        begun.wait(30)
        if number == deadly:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return None
        return honest(number, body)

    server = serve(script)
    told = [
        *("patterns", "classify", "--math", "m.jsonl", "--judge", server.judge(concurrency=concurrency)),
        *("--json", "p.json"),
    ]
    process = start(*told)
    begun.set()
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.communicate()
    assert not Path("p.json").exists()
    saved = len(kept())
    # An answer is kept before its thread asks again: only those under way can be missing
    assert deadly - (concurrency - 1) <= saved < needed
    # The machine may have died within a line, too
    with Path("patterns_cache", "answers.jsonl").open("a") as file:
        file.write('{"key": "torn')

    code, _, err = run(*told)
    assert code == 0, err
    assert json.loads(Path("p.json").read_text())["usage"]["calls"] == needed - saved
    assert f"{needed - saved} calls to make" in err and f"{saved} answers are kept" in err
    assert len(server.answered) <= needed + concurrency - 1
    if concurrency == 1:
        assert len(server.answered) == needed
        assert set(Counter(map(trace_in, server.answered)).values()) == {3}
    found = of(json.loads(Path("p.json").read_text()), "prevalence")
    assert found["all"]["interval"] == wilson_interval(4, 12).to_dict()
    calls = len(server.requests)
    assert run(*told)[0] == 0 and len(server.requests) == calls


def test_a_budget_is_never_exceeded_and_the_next_run_goes_on(run, serve, data):
    server = serve()
    told = ["patterns", "classify", *data, "--judge", server.judge(), "--json", "p.json"]
    code, out, err = run(*told, "--max-calls", 50)
    assert code == 1 and len(server.requests) == 50 == len(kept())
    assert "the budget of this run is 50 calls" in err
    last = err.splitlines()[-1]
    assert re.search(
        f"^failed: endpoint.*: all of its 50 calls are spent, and {3 * DISTINCT - 50} more are needed; \\d+ traces are "
        "without labels; what was answered is kept in patterns_cache, and the same command goes on from there$",
        last,
    )
    figures = json.loads(Path("p.json").read_text())
    assert 0 < figures["traces"] < TEXTS and figures["traces"] + figures["unlabelled"] == TEXTS and figures["failed"]
    assert run(*told, "--max-calls", 0)[0] == 1 and len(server.requests) == 50
    code, _, err = run(*told)
    assert (code, len(server.requests)) == (0, 3 * DISTINCT), err
    assert json.loads(Path("p.json").read_text())["unlabelled"] == 0


def test_calls_that_fail_count_against_the_budget(run, serve, data):
    server = serve(lambda number, body: (500, "busy"))
    code, _, err = run("patterns", "classify", *data, "--judge", server.judge(max_calls=7), "--quiet")
    assert code == 1 and len(server.requests) == 7 and err.startswith("failed: ") and err.count("\n") == 1
    assert "Traceback" not in err and kept() == []


@pytest.mark.parametrize("action", ["classify", "discover"])
def test_an_endpoint_that_dies_midway(run, serve, data, action):
    alive = threading.Event()
    server = serve(lambda n, body: honest(n, body) if n < 10 or alive.is_set() else (503, "going down"))
    told = ["patterns", action, *data, "--judge", server.judge(max_retries=1)]
    told += ["--output", "f.yaml"] if action == "discover" else []
    code, _, err = run(*told)
    assert code == 1 and "status 503 (going down)" in err and "Traceback" not in err
    assert "the same command goes on from there" in err.splitlines()[-1]
    assert len(kept()) == len(server.answered) == 10 and not Path("f.yaml").exists()
    alive.set()
    assert run(*told)[0] == 0
    assert len(server.answered) == len(kept())  # nothing was answered twice


def test_answers_that_cannot_be_kept(run, serve, data, monkeypatch):
    from spiral_trl.evaluation.reasoning_patterns import AnswerCache

    def full(self, key, answer):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(AnswerCache, "put", full)
    server = serve()
    code, _, err = run("patterns", "classify", *data, "--judge", server.judge(concurrency=2), "--quiet")
    assert code == 1 and "answers cannot be kept in patterns_cache: No space left on device" in err
    assert "Traceback" not in err and len(server.requests) < 3 * DISTINCT


def test_a_run_that_is_interrupted_says_how_to_go_on(run, serve, data, monkeypatch):
    from spiral_trl.players.endpoint import EndpointPlayer

    def interrupt(self, turns, keep=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(EndpointPlayer, "reply", interrupt)
    code, _, err = run("patterns", "classify", *data, "--judge", serve().judge(), "--quiet")
    assert (code, err) == (
        130,
        "interrupted; what was answered is kept in patterns_cache, and the same command goes on from there\n",
    )


def test_two_runs_do_not_share_a_cache_at_once(run, serve, data):
    server = serve()
    release = threading.Event()
    slow = serve(lambda number, body: release.wait(30) and honest(number, body))
    process = start("patterns", "classify", "--math", "math.jsonl", "--judge", slow.judge())
    try:
        while not slow.requests:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        code, out, err = run("patterns", "classify", *data, "--judge", server.judge())
        assert (code, out, server.requests) == (2, "", [])
        assert err == "error: patterns_cache is in use by another run, which would pay for the same answers\n"
    finally:
        release.set()
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_damaged_cache_costs_only_what_is_damaged(run, serve, data):
    server = serve()
    told = ["patterns", "classify", *data, "--judge", server.judge(), "--votes", 1]
    assert run(*told)[0] == 0
    path = Path("patterns_cache", "answers.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[0], lines[1], lines[2] = b"\xff\xfe\n", b'{"key": 1, "text": 2, "finish_reason": 3}\n', b"[1]\n"
    path.write_bytes(b"".join(lines))
    assert run(*told)[0] == 0 and len(server.requests) == DISTINCT + 3


# --------------------------------------------------------------------------------------------------------------- discovery


def test_patterns_are_discovered_and_classified_by_the_draft(run, serve, data):
    server = serve()
    code, out, err = run(
        *("patterns", "discover", *data, "--judge", server.judge(), "--output", "f.yaml", "--json", "f.json"),
        *("--per-checkpoint", 100),
    )
    assert code == 0, err
    # Each distinct text once, and one call that merges
    assert len(server.requests) == DISTINCT + 1
    found = json.loads(Path("f.json").read_text())
    case, value = found["patterns"]
    # Winners at 0 and 400: 2 and 6; solutions: 1 and 3
    assert (case["name"], case["traces"]) == (CASE, 12)
    assert case["by_stratum"] == {"games 0": 2, "games 400": 6, "math 0": 1, "math 400": 3}
    assert (value["name"], value["traces"], value["quotes"]) == (VALUE, 2, [SIGNS[VALUE]])
    assert (found["traces"], found["unreadable"], found["unproven"], found["unmerged"]) == (TEXTS, 0, 0, 0)
    draft = Path("f.yaml").read_text()
    assert draft.startswith("# Patterns that endpoint(model=judge) named in 42 traces") and SIGNS[CASE] not in draft
    assert yaml.safe_load(draft)["patterns"][CASE] == {"title": CASE, "definition": f"It is {CASE}."}
    assert f"{CASE}: It is {CASE}." in out

    code, out, err = run(
        *("patterns", "classify", *data, "--judge", server.judge(), "--rubric", "f.yaml", "--votes", 1),
        *("--json", "p.json"),
    )
    figures = json.loads(Path("p.json").read_text())
    assert code == 0 and figures["rubric"]["patterns"] == [CASE, VALUE]
    assert of(figures, "prevalence", domain="math", checkpoint="400")["all"]["interval"]["estimate"] == 3 / 5


def test_many_names_are_merged_in_parts(run, serve):
    rows = [{"text": f"{i} {SIGNS[CASE]} {SIGNS[VALUE]}", "checkpoint": 0} for i in range(70)]
    Path("m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    server = serve()
    told = ["patterns", "discover", "--math", "m.jsonl", "--per-checkpoint", 70, "--judge", server.judge()]
    code, _, err = run(*told, "--output", "f.yaml", "--json", "f.json")
    found = json.loads(Path("f.json").read_text())
    # 140 names: in 3 calls to 6 patterns, in 1 more to 2
    assert code == 0 and len(server.requests) == 70 + 4, err
    assert [(p["name"], p["traces"]) for p in found["patterns"]] == [(CASE, 70), (VALUE, 70)] and not found["unmerged"]


def test_a_judge_that_cannot_merge_is_asked_three_times(run, serve, data):
    def script(number, body):
        return honest(number, body) if "BEGIN TRACE" in body["messages"][-1]["content"] else "I would rather not."

    server = serve(script)
    told = ["patterns", "discover", *data, "--judge", server.judge(), "--output", "f.yaml"]
    code, out, err = run(*told, "--quiet")
    assert (code, out) == (1, "") and err.startswith(
        "error: endpoint(model=judge) gave no readable list of patterns in 3"
    )
    assert sum("BEGIN LIST" in r["body"]["messages"][-1]["content"] for r in server.requests) == 3


def test_a_judge_that_names_nothing_with_evidence(run, serve, data):
    entry = {"name": "n", "definition": "d", "quote": "words that nobody wrote"}
    server = serve(lambda n, body: json.dumps({"patterns": [entry]}) if n % 2 else "no")
    told = ["patterns", "discover", *data, "--judge", server.judge(), "--output", "f.yaml"]
    code, _, err = run(*told, "--quiet")
    assert code == 1 and "named no pattern with evidence in 42 traces" in err and not Path("f.yaml").exists()


# --------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["clasify"], "invalid choice: 'clasify'"),
        (["classify"], "name traces with --games or --math"),
        (["classify", "DATA"], "classify needs either --judge, such as endpoint\\(.*\\), or --heuristic"),
        (["classify", "DATA", "--judge", "JUDGE", "--heuristic"], "classify needs either --judge"),
        (["classify", "DATA", "--judge", "random"], "--judge has to be endpoint\\(.*\\), not 'random'"),
        (
            ["classify", "DATA", "--judge", "endpoint(model=m)"],
            "needs a key in the environment variable OPENAI_API_KEY",
        ),
        (
            ["classify", "DATA", "--judge", "endpoint(model=m,base_url=x,api_key_env=none)"],
            "base_url of endpoint must be",
        ),
        (["classify", "DATA", "--judge", "endpoint(modl=m)"], "unknown parameter of endpoint 'modl'.*'model'"),
        (["classify", "DATA", "--judge", "JUDGE0"], "at temperature 0 the 3 votes on a trace would be one"),
        (["classify", "DATA", "--judge", "JUDGE", "--votes", "0"], "--votes has to be at least 1, not 0"),
        (["classify", "DATA", "--judge", "JUDGE", "--max-calls", "-1"], "--max-calls has to be at least 0"),
        (["classify", "DATA", "--judge", "JUDGE", "--max-chars", "20"], "--max-chars has to be at least 200"),
        (["classify", "DATA", "--judge", "JUDGE", "--per-checkpoint", "0"], "--per-checkpoint has to be at least 1"),
        (
            ["classify", "DATA", "--judge", "JUDGE", "--output", "f.yaml"],
            "--output is for discover and sample, not for",
        ),
        (["classify", "DATA", "--judge", "JUDGE", "--rubric", "none.yaml"], "there is no rubric file none.yaml"),
        (["classify", "DATA", "--judge", "JUDGE", "--rubric", "bad.yaml"], "bad.yaml.* unknown key 'pattern'"),
        (["classify", "DATA", "--judge", "JUDGE", "--labelled", "none.jsonl"], "there is no labelled file none.jsonl"),
        (
            ["classify", "DATA", "--judge", "JUDGE", "--labelled", "other.jsonl"],
            "none of the traces is labelled in other",
        ),
        (["classify", "DATA", "--judge", "JUDGE", "--json", "no/p.json"], "the folder of --json no/p.json does not"),
        (["classify", "DATA", "--judge", "JUDGE", "--labels", "l.csv"], "--labels l.csv has to end with .jsonl"),
        (["classify", "DATA", "--judge", "JUDGE", "--cache", "math.jsonl"], "math.jsonl is a file, not a folder"),
        (
            ["classify", "DATA", "--judge", "JUDGE", "--players", "kun"],
            "holds no trace of kun; it was played by model",
        ),
        (["classify", "--math", "math.jsonl", "--players", "m", "--heuristic"], "there are no --games"),
        (["classify", "--math", "none.jsonl", "--judge", "JUDGE"], "there is no file or folder none.jsonl"),
        (["classify", "--math", "math.jsonl", "math.jsonl", "--judge", "JUDGE"], "math.jsonl is named twice"),
        (
            ["classify", "--math", "bad.yaml", "--judge", "JUDGE"],
            "bad.yaml has to be a folder of a dataset, or end with",
        ),
        (["classify", "DATA", "--heuristic", "--dry-run"], "--heuristic sends nothing"),
        (["classify", "DATA", "--heuristic", "--rubric", "plain.yaml"], "the rubric p has no lexical rules for a"),
        (["discover", "DATA", "--output", "f.yaml"], "discover needs --judge"),
        (["discover", "DATA", "--judge", "JUDGE"], "discover needs --output FILE"),
        (
            ["discover", "DATA", "--judge", "JUDGE", "--output", "f.json"],
            "--output f.json has to end with .yaml or .yml",
        ),
        (["discover", "DATA", "--judge", "JUDGE", "--votes", "3"], "--votes is for classify, not for discover"),
        (["sample", "DATA", "--output", "s.yaml"], "--output s.yaml has to end with .jsonl"),
        (["sample", "DATA", "--judge", "JUDGE"], "--judge is for discover and classify, not for sample"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(run, serve, data, argv, message):
    Path("bad.yaml").write_text("{name: x, pattern: {}}")
    Path("plain.yaml").write_text("{name: p, patterns: {a: {definition: d}}}")
    Path("other.jsonl").write_text(json.dumps({"id": "x", "labels": {CASE: True}}))
    server = serve()
    known = {"DATA": data, "JUDGE": [server.judge()], "JUDGE0": [server.judge(temperature=0)]}
    code, out, err = run("patterns", *(part for word in argv for part in known.get(word, [word])))
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1 and re.search(message, err), err
    assert server.requests == [] and not Path("f.yaml").exists()


def test_a_path_may_hold_an_equals_sign(run):
    Path("a=b.jsonl").write_text(json.dumps({"text": "x", "checkpoint": 3}))
    assert run("patterns", "classify", "--math", "a=b.jsonl", "--heuristic")[0] == 0


# -------------------------------------------------------------------------------------------------------------- what is shown

DOCS = (ROOT / "docs" / "patterns.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCS, re.DOTALL)
COMMANDS = [
    line for kind, block in BLOCKS if kind == "bash" for line in block.replace("\\\n", " ").splitlines() if line
]


def test_every_command_of_the_docs_and_of_help_runs(run, serve, data, capsys):
    server = serve()
    shown = [line.strip() for line in EXAMPLES.splitlines()]
    assert len(COMMANDS) >= 5 and len(shown) == 4
    for line in [*COMMANDS, *shown]:
        program, *argv = shlex.split(line.replace("http://localhost:8000/v1", server.url))
        assert program == "spiral-trl" and argv[0] == "patterns"
        code, _, err = run(*argv)
        assert code == 0, (line, err)
        if "sample" in argv:
            rows = [json.loads(row) for row in Path("to_label.jsonl").read_text().splitlines()]
            for row in rows:
                row["labels"] = {name: SIGNS[name] in row["text"] for name in SIGNS}
            Path("to_label.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert server.requests


def test_the_python_of_the_docs_runs(run, serve, data, capsys):
    server = serve()
    (code,) = (block for kind, block in BLOCKS if kind == "python")
    exec(code.replace("http://localhost:8000/v1", server.url), {})
    assert "case_by_case_analysis games 400" in capsys.readouterr().out and server.requests


def test_other_blocks_of_the_docs():
    assert {kind for kind, _ in BLOCKS} == {"bash", "python", "yaml", "json"}
    for kind, block in BLOCKS:
        if kind == "yaml":
            Path("r.yaml").write_text(block)
            assert load_rubric(Path("r.yaml")).names
        if kind == "json":
            for line in block.splitlines():
                json.loads(line)
