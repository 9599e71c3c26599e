import json
import logging
import socket
import threading
import time
import traceback
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from spiral_trl.errors import PlayerError
from spiral_trl.players import endpoint
from spiral_trl.players.endpoint import EndpointPlayer, check_endpoint
from spiral_trl.records import Reply, Turn
from spiral_trl.rollout import play


KEY = "sk-test-Zq81vPw0secretsecret"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def completion(content, finish_reason="stop", **message):
    return {
        "choices": [{"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14},
    }


class Server:
    """Answers the n-th request with `script(n, request)`: a body, or (status, body) or (status, body, headers)."""

    def __init__(self, script):
        self.requests = []
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(server.requests)
                    server.requests.append(dict(path=self.path, headers=dict(self.headers), body=body))
                answer = script(number, body)
                status, content, headers = (*(answer if isinstance(answer, tuple) else (200, answer)), {})[:3]
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                try:
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(content)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    pass  # the player did not wait

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def serve():
    servers = []

    def start(script):
        server = Server(script if callable(script) else lambda number, body: script)
        threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def player_at(url, **settings):
    return EndpointPlayer("some-model", url, **{"backoff": 0.001, "timeout": 5.0, **settings})


def turn(text="your move", index=0):
    messages = ({"role": "system", "content": "rules"}, {"role": "user", "content": text})
    return Turn("some_game", 0, 0, index, 0, "player 0", messages, ("a", "b"))


@contextmanager
def failing(match):
    with pytest.raises(PlayerError, match=match) as caught:
        yield caught
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_turn_is_sent_as_a_chat_and_the_content_is_the_reply(serve):
    server = serve(completion("[a]", reasoning_content="[b] [b]", reasoning="[b]"))
    player = player_at(server.url + "/", temperature=0.5, max_tokens=77)
    assert player.reply([turn("h\u00e9 \ud800")]) == [Reply(text="[a]")]
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["Authorization"] == f"Bearer {KEY}"
    assert request["body"] == {
        "model": "some-model",
        "max_tokens": 77,
        "temperature": 0.5,
        "messages": [{"role": "system", "content": "rules"}, {"role": "user", "content": "h\u00e9 \ud800"}],
    }
    assert (player.calls, player.prompt_tokens, player.completion_tokens) == (1, 11, 3)
    assert player.speculative is False


def test_the_limit_of_tokens_can_have_the_newer_name(serve):
    server = serve(completion("[a]"))
    player_at(server.url, max_tokens_field="max_completion_tokens").reply([turn()])
    assert server.requests[0]["body"].keys() == {"model", "max_completion_tokens", "messages"}


def test_without_a_key_nothing_is_sent_in_its_place(serve, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_stored")
    server = serve(completion("[a]"))
    player_at(server.url, api_key_env="none").reply([turn()])
    assert "Authorization" not in server.requests[0]["headers"]
    assert "hf_stored" not in str(server.requests)


def test_replies_stand_in_the_order_of_the_turns(serve):
    def echo(number, body):
        text = body["messages"][-1]["content"]
        time.sleep(0.02 * (9 - int(text)) / 9)
        return completion(f"[{text}]")

    server = serve(echo)
    player = player_at(server.url)
    turns = [turn(str(i)) for i in range(10)]
    assert [reply.text for reply in player.reply(turns)] == [f"[{i}]" for i in range(10)]
    which = np.array([3, 1, 3])
    replies, of = player.sample(turns, which, np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64))
    assert [replies[i].text for i in of] == ["[3]", "[1]", "[3]"]
    assert (player.calls, player.prompt_tokens, player.completion_tokens) == (13, 143, 39)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_as_many_calls_are_under_way_as_allowed(serve, concurrency):
    lock, under_way, most = threading.Lock(), [0], [0]
    full = threading.Barrier(concurrency)

    def script(number, body):
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        full.wait(timeout=4)  # breaks, and the test fails, unless so many calls are here at once
        with lock:
            under_way[0] -= 1
        return completion("[a]")

    server = serve(script)
    player_at(server.url, concurrency=concurrency, max_retries=0).reply([turn()] * 8)
    assert most[0] == concurrency


def test_a_cut_reply_says_so(serve):
    assert player_at(serve(completion("so I", "length")).url).reply([turn()]) == [
        Reply("so I", finish_reason="length")
    ]
    # The model was cut while it reasoned
    assert player_at(serve(completion(None, "length")).url).reply([turn()]) == [Reply("", finish_reason="length")]


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_server_that_asks_for_a_pause_gets_it(serve, form, caplog):
    header = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
    failures = [(429, {"error": {"message": "slow down"}}, {"Retry-After": header}), completion("[a]")]
    player = player_at(serve(lambda number, body: failures[number]).url)
    started = time.monotonic()
    with caplog.at_level(logging.INFO):
        assert player.reply([turn()])[0].text == "[a]"
    paused = time.monotonic() - started
    assert 1.0 <= paused if form == "seconds" else 0.5 < paused  # a date has whole seconds
    assert "slow down" in caplog.text
    assert player.calls == 2


def test_a_short_pause_is_really_made(serve):
    times = []

    def script(number, body):
        times.append(time.monotonic())
        return (429, {}, {"Retry-After": "1"}) if number == 0 else completion("[a]")

    player_at(serve(script).url).reply([turn()])
    assert times[1] - times[0] >= 1.0


def test_a_pause_of_hours_is_not_made(serve):
    server = serve((429, {"error": "out of quota"}, {"Retry-After": "7200"}))
    with failing(r"some-model.*status 429 \(out of quota\); it asks for a pause of 7200 s"):
        player_at(server.url).reply([turn()])
    assert len(server.requests) == 1


@pytest.mark.parametrize("header", ["soon", "-5", "", "1e9"])
def test_a_malformed_pause_is_none(header):
    assert endpoint._retry_after(header) is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((500, {"error": {"message": "overloaded"}}), r"status 500 \(overloaded\)"),
        ((503, b"<html><body>busy</body></html>"), r"status 503$"),
        ((429, {}), r"status 429"),
        (b"not json", "an answer that is no JSON"),
        (b"\xff\xfe", "an answer that is no JSON"),
        (b"[" * 100_000, "an answer that is no JSON"),
        ({}, "an answer without choices"),
        ([], "an answer without choices"),
        ({"choices": []}, "an answer without choices"),
        ({"choices": None}, "an answer without choices"),
        ({"choices": [{"text": "[a]"}]}, "an answer without choices"),
        ({"choices": [{"message": "[a]"}]}, "an answer without choices"),
        (completion(None), "an answer without content"),
        (completion([{"type": "text"}]), "an answer without content"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:40],
)
def test_what_may_pass_is_tried_again_and_then_an_error(serve, answer, reason):
    server = serve(answer)
    player = player_at(server.url, max_retries=2)
    with failing(rf"^endpoint\(model=some-model\) at http://127.0.0.1:\d+/v1: no answer after 3 calls: {reason}"):
        player.reply([turn()])
    assert len(server.requests) == player.calls == 3

    recovering = serve(lambda number, body: answer if number < 2 else completion("[b]"))
    assert player_at(recovering.url, max_retries=2).reply([turn()])[0].text == "[b]"


@pytest.mark.parametrize("usage", [None, [], {}, {"prompt_tokens": None}, {"prompt_tokens": "many"}])
def test_usage_may_be_missing(serve, usage):
    player = player_at(serve({**completion("[a]"), "usage": usage}).url)
    player.reply([turn()])
    assert (player.calls, player.prompt_tokens, player.completion_tokens) == (1, 0, 0)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, r"status 400 \(no such parameter\)"),
        (404, r"status 404 \(no such parameter\)"),
        (401, "status 401: the key is not accepted; it comes from api_key_env=OPENAI_API_KEY"),
        (307, "status 307"),
    ],
)
def test_what_will_not_pass_is_an_error_at_once(serve, status, reason):
    elsewhere = serve(completion("[a]"))
    server = serve((status, {"error": {"message": "no such parameter"}}, {"Location": elsewhere.url}))
    with failing(reason):
        player_at(server.url).reply([turn()])
    assert len(server.requests) == 1 and elsewhere.requests == []


def test_a_server_that_hangs_is_left(serve):
    release = threading.Event()
    server = serve(lambda number, body: release.wait(5) and None)
    start = time.monotonic()
    with failing(r"no answer after 2 calls: no answer within 0\.2 s"):
        player_at(server.url, timeout=0.2, max_retries=1).reply([turn()])
    assert time.monotonic() - start < 2
    release.set()


def test_a_server_that_sends_byte_by_byte_is_left_too():
    """Each byte comes within the timeout, the answer does not."""
    listener = socket.create_server(("127.0.0.1", 0))

    def drip():
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        try:
            for _ in range(100):
                connection.sendall(b" ")
                time.sleep(0.05)
        except OSError:
            pass
        connection.close()

    threading.Thread(target=drip, daemon=True).start()
    start = time.monotonic()
    with listener, failing(r"no answer after 1 call: no answer within 0\.3 s"):
        player_at(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0.3, max_retries=0).reply([turn()])
    assert time.monotonic() - start < 2


def test_an_endless_answer_is_not_read_to_its_end(serve, monkeypatch):
    monkeypatch.setattr(endpoint, "_MOST_BYTES", 1000)
    with failing("an answer of more than 1,000 bytes"):
        player_at(serve(completion("x" * 200_000)).url, max_retries=0).reply([turn()])


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with failing(rf"some-model\) at http://127.0.0.1:{port}: no answer after 3 calls: ConnectError"):
        player_at(f"http://127.0.0.1:{port}", max_retries=2).reply([turn()])


def test_the_first_failure_stops_the_others(serve):
    server = serve((400, {}))
    with failing("status 400"):
        player_at(server.url, concurrency=2).reply([turn()] * 100)
    assert len(server.requests) < 20


def test_pauses_grow_and_are_bounded(serve, monkeypatch):
    pauses = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: pauses.append(timeout) and False)
    monkeypatch.setattr(endpoint.random, "uniform", lambda low, high: high)
    with failing("no answer after 9 calls"):
        player_at(serve((500, {})).url, max_retries=8, backoff=1.0).reply([turn()])
    assert [pause for pause in pauses if pause is not None] == [1.5, 3, 6, 12, 24, 45, 45, 45]


def test_the_budget_of_calls_counts_repeated_ones(serve):
    server = serve((500, {}))
    player = player_at(server.url, max_calls=3)
    with failing("all of max_calls=3 calls are spent"):
        player.reply([turn()])
    assert len(server.requests) == 3


def test_a_batch_that_the_budget_cannot_pay_is_not_begun(serve):
    server = serve(completion("[a]"))
    player = player_at(server.url, max_calls=5)
    player.reply([turn()] * 3)
    with failing("2 of max_calls=5 calls are left, and 3 are needed"):
        player.reply([turn()] * 3)
    assert len(server.requests) == 3
    assert len(player.reply([turn()] * 2)) == 2


def test_replies_are_kept_as_they_come_however_the_batch_ends(serve):
    """The third turn is refused once the second one is kept; few others are then asked for."""
    kept = {}
    server = serve(lambda number, body: completion(f"[{number}]") if number < 2 else (400, {}))
    with failing("status 400"):
        player_at(server.url, concurrency=1).reply([turn(str(i)) for i in range(50)], kept.__setitem__)
    assert kept == {0: Reply("[0]"), 1: Reply("[1]")} and len(server.requests) < 20


def test_replies_under_way_are_kept_when_another_fails(serve):
    failed = threading.Event()

    def script(number, body):
        if body["messages"][-1]["content"] == "bad":
            failed.set()
            return 400, {}
        failed.wait(5)
        time.sleep(0.1)
        return completion("[late]")

    kept = {}
    with failing("status 400"):
        player_at(serve(script).url, concurrency=2).reply([turn("good"), turn("bad")], kept.__setitem__)
    assert kept == {0: Reply("[late]")}


def test_a_reply_that_cannot_be_kept_ends_the_batch(serve):
    def full(index, reply):
        raise OSError("disk full")

    server = serve(completion("[a]"))
    with pytest.raises(OSError, match="disk full"):
        player_at(server.url, concurrency=1).reply([turn()] * 50, full)
    assert len(server.requests) < 50


def test_a_whole_game_is_played(serve):
    server = serve(lambda number, body: completion("I pass. [check]" if number == 0 else "\\boxed{fold}"))
    batch = play("kuhn_poker", [player_at(server.url), player_at(server.url)], seeds=[0])
    (episode,) = batch.episodes()
    assert [step.reply.action for step in episode.steps][0] == "check"
    assert episode.players == ("endpoint(model=some-model)",) * 2


# ------------------------------------------------------------------------------------------------ the key


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "endpoint needs a key in the environment variable SOME_KEY, which is not set; a server without keys"),
        ("  ", "endpoint needs a key in the environment variable SOME_KEY, which is not set"),
        (f"{KEY}\n{KEY}", "the key in the environment variable SOME_KEY holds characters that no key has"),
        (f"{KEY}\u00e9", "the key in the environment variable SOME_KEY holds characters that no key has"),
    ],
)
def test_a_missing_or_malformed_key_is_an_error_before_any_call(serve, monkeypatch, value, message):
    server = serve(completion("[a]"))
    if value is not None:
        monkeypatch.setenv("SOME_KEY", value)
    with pytest.raises(ValueError, match=message) as error:
        player_at(server.url, api_key_env="SOME_KEY")
    assert KEY not in str(error.value) and server.requests == []


def test_a_key_that_goes_missing_later_is_an_error_of_the_player(serve, monkeypatch):
    player = player_at(serve(completion("[a]")).url)
    monkeypatch.delenv("OPENAI_API_KEY")
    with failing("needs a key in the environment variable OPENAI_API_KEY"):
        player.reply([turn()])


@pytest.mark.parametrize("secret", [KEY, "gsk_abcdef123"])
def test_a_key_in_place_of_its_variable_is_not_repeated(secret):
    with pytest.raises(ValueError, match="must be the name of an environment variable in capitals") as error:
        check_endpoint("http://localhost:8000", secret)
    assert secret not in str(error.value)


@pytest.mark.parametrize(
    "answer",
    [
        completion("[a]"),
        (401, {"error": {"message": f"Incorrect API key provided: {KEY[:9]}***{KEY[-4:]}"}}),
        (400, {"error": {"message": f"bad header Bearer {KEY}"}}),
        (400, f"got {KEY[3:12]}".encode()),
        (500, {"error": {"message": KEY}}),
        (200, KEY.encode()),
        (429, {"error": KEY}, {"Retry-After": "9999"}),
    ],
    ids=range(7),
)
def test_the_key_shows_nowhere(serve, answer, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    server = serve(answer)
    player = player_at(server.url, max_retries=1)
    shown = [repr(player), str(vars(player))]
    try:
        shown.append(repr(player.reply([turn()])))
    except PlayerError as error:
        shown.append("".join(traceback.format_exception(error)))
    assert server.requests[0]["headers"]["Authorization"] == f"Bearer {KEY}"
    captured = capfd.readouterr()
    shown += [caplog.text, captured.out, captured.err, repr(player), str(vars(player)), player.name]
    for start in range(len(KEY) - 8):
        assert KEY[start : start + 9] not in "\n".join(shown)


def test_what_a_server_says_is_shown_on_one_short_printable_line(serve):
    server = serve((400, {"error": {"message": "\x1b[31mred\x1b[0m\nsecond line\u202e" + "x" * 5000}}))
    with failing(r"status 400 \(\[31mred \[0m second line x+\.\.\.\)") as caught:
        player_at(server.url).reply([turn()])
    assert str(caught.value).isprintable()


# ------------------------------------------------------------------------------------------------ the URL


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://localhost/v1",
        "http://",
        "https:///v1",
        "http://localhost:port/v1",
        "http://localhost:99999/v1",
        "http://localhost:0/v1",
        "http://[::1/v1",
        "http://local host/v1",
        "http://localhost/\n",
    ],
)
def test_a_malformed_url_is_refused(url):
    with pytest.raises(ValueError, match="base_url of endpoint must be a URL such as .*, not ") as error:
        check_endpoint(url)
    assert repr(url) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "url", [f"https://user:{KEY}@host/v1", f"https://host/v1?api_key={KEY}", f"https://host/v1#{KEY}"]
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url):
    with pytest.raises(ValueError, match="without user, password or query") as error:
        check_endpoint(url)
    assert KEY not in str(error.value)


@pytest.mark.parametrize("url", ["http://localhost:8000/v1", "https://api.openai.com/v1", "http://[::1]:8000"])
def test_good_urls(url):
    check_endpoint(url)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "endpoint(model=some-model)"),
        ({"max_calls": 5, "timeout": 1.0, "concurrency": 2}, "endpoint(model=some-model)"),
        (
            {"temperature": 0.5, "top_p": 0.9, "max_tokens": 2_000_000},
            "endpoint(model=some-model,max_tokens=2000000,temperature=0.5,top_p=0.9)",
        ),
    ],
)
def test_the_name_tells_what_plays(settings, name):
    assert player_at("http://localhost:8000/v1", **settings).name == name


def test_progress_is_for_terminals(serve, capfd, monkeypatch):
    monkeypatch.setattr(endpoint.sys.stderr, "isatty", lambda: False, raising=False)
    player_at(serve(completion("[a]")).url).reply([turn()] * 5)
    assert capfd.readouterr() == ("", "")


def test_nothing_is_asked_nothing_is_called(serve):
    server = serve(completion("[a]"))
    assert player_at(server.url).reply([]) == []
    assert server.requests == []
