"""Traces from files: which text, which checkpoint, which result, which group."""

import json

import pytest

from spiral_trl.evaluation.reasoning_patterns import Trace, order_checkpoints, read_traces, sample_traces
from spiral_trl.records import Ending, Episode, Message, Reply, Step, Turn, episodes_to_dataset


def episode(texts, returns=(1.0, -1.0), players=("model", "model"), ending=Ending.TERMINAL, seed=7, version=400):
    """A game in which the seats reply in turn."""
    steps = []
    for index, text in enumerate(texts):
        messages = (Message(role="user", content="your move"),)
        turn = Turn("kuhn_poker", 0, seed, index, index % 2, f"player {index % 2}", messages, ("check", "bet"))
        steps.append(Step(turn, Reply(text=text, policy_version=version)))
    return Episode("kuhn_poker", seed, players, ("player 0", "player 1"), tuple(steps), returns, ending)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def saved(path, *episodes):
    """In the form that `play --json` writes."""
    return write(path, list(episodes_to_dataset(episodes)))


def test_a_seat_of_a_game_is_a_trace_and_both_are_of_one_group(tmp_path):
    game = episode(["I check", "I bet", "I fold"], returns=(-1.0, 1.0))
    group = "kuhn_poker, seed 7"
    expected = [
        Trace("games", "400", False, "Reply 1:\nI check\n\nReply 2:\nI fold", group),
        Trace("games", "400", True, "I bet", group),
    ]
    assert read_traces("games", saved(tmp_path / "a.jsonl", game)) == expected
    episodes_to_dataset([game]).save_to_disk(tmp_path / "folder")
    assert read_traces("games", tmp_path / "folder") == expected
    assert {trace.checkpoint for trace in read_traces("games", tmp_path / "folder", "best")} == {"best"}


@pytest.mark.parametrize(
    ("returns", "ending", "success"),
    [
        ((2.0, -2.0), Ending.TERMINAL, [True, False]),
        ((0.0, 0.0), Ending.TERMINAL, [None, None]),
        ((-1.5, 0.5), Ending.ILLEGAL, [False, True]),
        ((1.0, -1.0), Ending.TRUNCATED, [None, None]),
    ],
)
def test_who_won(tmp_path, returns, ending, success):
    path = saved(tmp_path / "a.jsonl", episode(["a", "b"], returns, ending=ending))
    assert [trace.success for trace in read_traces("games", path)] == success


def test_seats_of_bots_are_left_out_unless_they_are_named(tmp_path):
    path = saved(tmp_path / "a.jsonl", episode(["a", "b"], players=("kuhn", "mcts(simulations=50)")))
    assert [trace.text for trace in read_traces("games", path)] == ["a"]
    assert [trace.text for trace in read_traces("games", path, players=["mcts(simulations=50)"])] == ["b"]
    with pytest.raises(ValueError, match=r"holds no trace of kun; it was played by kuhn, mcts\(simulations=50\)$"):
        read_traces("games", path, players=["kun"])


def test_a_seat_that_was_never_asked_has_no_trace(tmp_path):
    assert len(read_traces("games", saved(tmp_path / "a.jsonl", episode(["a"])))) == 1


def test_math_from_lines_and_from_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"text": "so 4", "success": True, "checkpoint": 0, "group": "p1"},
        {"text": "so 5 \ud800", "success": False, "checkpoint": 400, "group": "p1"},
        {"text": "", "success": None, "checkpoint": 400, "group": None},
    ]
    traces = read_traces("math", write(tmp_path / "a.jsonl", rows))
    assert [(t.checkpoint, t.success, t.text) for t in traces] == [
        ("0", True, "so 4"),
        ("400", False, "so 5 \ud800"),
        ("400", None, ""),
    ]
    assert traces[0].group == traces[1].group != traces[2].group
    rows[1]["text"] = "so 5"  # UTF-8 has no lone surrogate
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    again = read_traces("math", tmp_path / "a.parquet")
    assert [(t.checkpoint, t.success) for t in again] == [("0", True), ("400", False), ("400", None)]
    # Groups of games and of math are never the same, whatever they are called
    assert read_traces("games", tmp_path / "a.jsonl")[0].group != traces[0].group


@pytest.mark.parametrize(
    ("domain", "row", "message"),
    [
        ("math", {"checkpoint": 0}, "row 1 needs text, a string; it has checkpoint"),
        ("math", {"text": 3, "checkpoint": 0}, "needs text, a string"),
        ("math", {"text": "a"}, "has no checkpoint; add that column, or name the file as in 400="),
        ("math", {"text": "a", "checkpoint": True}, "has no checkpoint"),
        ("math", {"text": "a", "checkpoint": 0.5}, "has no checkpoint"),
        ("math", {"text": "a", "checkpoint": 0, "success": "yes"}, "success must be true, false or null, not 'yes'"),
        ("math", {"text": "a", "checkpoint": 0, "success": 2}, "success must be true, false or null"),
        ("math", {"steps": []}, "row 1 is an episode; name episodes with --games"),
        ("games", {"steps": []}, r"row 1 is no episode \(KeyError: 'game'\)"),
        ("games", {"steps": 3, "game": "g", "seed": 1}, "row 1 is no episode"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, domain, row, message):
    with pytest.raises(ValueError, match=message):
        read_traces(domain, write(tmp_path / "a.jsonl", [row]))


def test_files_that_are_none(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.jsonl").write_text('{"text": "a", "checkpoint": 0}\n{"text": ')
    (tmp_path / "c.jsonl").write_text("[1]\n")
    (tmp_path / "d.parquet").write_text("x")
    (tmp_path / "e").mkdir()
    (tmp_path / "f.jsonl").write_text("\n")
    for name, message in [
        ("a.txt", "has to be a folder of a dataset, or end with .jsonl or .parquet"),
        ("b.jsonl", "line 2 is no JSON"),
        ("c.jsonl", "line 1 is no JSON object"),
        ("d.parquet", "no readable Parquet file"),
        ("e", "no dataset that save_to_disk wrote"),
        ("f.jsonl", "holds no trace$"),
        ("g", "there is no file or folder"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_traces("math", tmp_path / name)


def test_an_episode_that_does_not_say_its_checkpoint(tmp_path):
    path = saved(tmp_path / "a.jsonl", episode(["a", "b"], version=None))
    with pytest.raises(ValueError, match="row 1 does not say which checkpoint wrote it; name it as in 400="):
        read_traces("games", path)


def test_checkpoints_stand_by_their_number_or_as_they_come():
    def traces(*labels):
        return [Trace("math", label, None, "", label) for label in labels]

    assert order_checkpoints(traces("400", "0", "128", "0")) == ["0", "128", "400"]
    assert order_checkpoints(traces("final", "base", "0")) == ["final", "base", "0"]


def test_a_sample_has_its_number_of_each_checkpoint_and_grows_without_changing():
    traces = [Trace(d, c, None, f"text {i}", f"g{i}") for d in ("games", "math") for c in "01" for i in range(50)]
    small, large = (sample_traces(traces, n, seed=0) for n in (5, 20))
    for domain in ("games", "math"):
        for checkpoint in "01":

            def own(sample, domain=domain, checkpoint=checkpoint):
                return [t for t in sample if (t.domain, t.checkpoint) == (domain, checkpoint)]

            assert len(own(small)) == 5 and own(large)[:5] == own(small)
    assert sample_traces(traces[::-1], 5, seed=0) == small
    assert sample_traces(traces, 5, seed=1) != small
    assert len(sample_traces(traces, None, seed=0)) == 200
