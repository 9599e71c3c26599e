"""Shares with intervals, their changes, games against math, and kappa, against published and hand-worked values."""

import json
from math import inf

import numpy as np
import pytest

from spiral_trl.evaluation.reasoning_patterns import (
    Label,
    Labelling,
    Trace,
    cohen_kappa,
    fleiss_kappa,
    load_rubric,
    measure,
    measure_agreement,
    read_labelled,
    votes_kappa,
    write_sample,
)
from spiral_trl.evaluation.reasoning_patterns.agreement import kappa_interval
from spiral_trl.evaluation.reasoning_patterns.prevalence import Sample, difference
from spiral_trl.stats import wilson_interval


RUBRIC = load_rubric()
CASE, VALUE, PATTERN = RUBRIC.names


def single(present, count, prefix="g"):
    """A sample of one trace a group."""
    return Sample.of([(f"{prefix}{i}", i < present) for i in range(count)])


# Newcombe, Statistics in Medicine 17 (1998), 873-890, table II, method 10, to four digits
@pytest.mark.parametrize(
    ("x1", "n1", "x2", "n2", "low", "high"),
    [
        (56, 70, 48, 80, 0.0524, 0.3339),
        (9, 10, 3, 10, 0.1705, 0.8090),
        (6, 7, 2, 7, 0.0582, 0.8062),
        (5, 56, 0, 29, -0.0381, 0.1926),
        (0, 10, 0, 20, -0.1611, 0.2775),
        (0, 10, 0, 10, -0.2775, 0.2775),
        (10, 10, 0, 20, 0.6791, 1.0000),
        (10, 10, 0, 10, 0.6075, 1.0000),
    ],
)
def test_differences_of_independent_shares_are_newcombes(x1, n1, x2, n2, low, high):
    found = difference(single(x1, n1, "a"), single(x2, n2, "b"), seed=0)
    assert found.estimate == pytest.approx(x1 / n1 - x2 / n2)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


def test_one_trace_a_group_has_wilsons_interval():
    rate = single(3, 10).rate(seed=0)
    assert rate.interval == wilson_interval(3, 10) and (rate.traces, rate.groups, rate.method) == (10, 10, "wilson")


def test_traces_of_one_game_count_as_one():
    """Both seats of 100 games do the same: as much is known as from 100 traces, not from 200."""
    both = Sample.of([(f"g{i}", i < 30) for i in range(100) for _ in range(2)])
    rate = both.rate(seed=0)
    assert (rate.traces, rate.groups, rate.method) == (200, 100, "cluster bootstrap")
    assert rate.interval.estimate == pytest.approx(0.3)
    # Normal theory for 100 trials; for 200 the half-width would be 0.0635
    half = 1.96 * (0.3 * 0.7 / 100) ** 0.5
    assert (rate.interval.high - rate.interval.low) / 2 == pytest.approx(half, rel=0.06)
    # Seats that always differ: the share of every game is one half, so it is known exactly
    opposed = Sample.of([(f"g{i}", seat == 0) for i in range(100) for seat in range(2)])
    assert opposed.rate(seed=0).interval.low == opposed.rate(seed=0).interval.high == 0.5


def test_games_that_all_agree_leave_room_for_doubt():
    rate = Sample.of([(f"g{i}", False) for i in range(10) for _ in range(5)]).rate(seed=0)
    assert rate.interval == wilson_interval(0, 10) and rate.method == "wilson"
    alone = Sample.of([("g", True), ("g", False)]).rate(seed=0)
    assert (alone.interval.low, alone.interval.high, alone.method) == (-inf, inf, None)
    assert Sample.of([]).rate(seed=0).interval is None


def test_the_same_problems_at_two_checkpoints_are_paired():
    """Nine problems in ten keep their pattern: the change is known better than from other problems."""
    before = Sample.of([(f"p{i}", i % 2 == 0) for i in range(200)])
    after = Sample.of([(f"p{i}", i % 2 == 0 or i < 40) for i in range(200)])
    paired = difference(after, before, seed=0)
    other = difference(after, single(100, 200, "q"), seed=0)
    assert paired.estimate == pytest.approx(0.1) == pytest.approx(other.estimate)
    # The differences are 1 in 20 of 200 problems, 0 in the others: standard error sqrt(0.1 * 0.9 / 200)
    half = 1.96 * (0.1 * 0.9 / 200) ** 0.5
    assert (paired.high - paired.low) / 2 == pytest.approx(half, rel=0.08)
    assert other.high - other.low > 2 * (paired.high - paired.low)
    # Nothing changed in any: as if they were others, rather than certain
    same = difference(before, before, seed=0)
    assert same == difference(before, Sample.of([(f"q{i}", i % 2 == 0) for i in range(200)]), seed=0)
    assert same.low < 0 < same.high


def test_samples_that_share_some_groups_only():
    found = difference(single(30, 60), single(3, 10), seed=0)
    assert found.estimate == pytest.approx(0.2) and found.low < 0.2 < found.high
    assert difference(single(3, 10), Sample.of([]), seed=0) is None


def labelling(rows, names=RUBRIC.names):
    """Of rows (domain, checkpoint, success, group, present); the other patterns are absent."""
    traces = [Trace(d, c, s, f"text {i}", g) for i, (d, c, s, g, _) in enumerate(rows)]
    labels = [{**dict.fromkeys(names, Label(False)), CASE: Label(row[4])} for row in rows]
    return Labelling("judge", False, RUBRIC, tuple(traces), tuple(labels))


def test_tables_by_checkpoint_and_success_and_from_games_to_math():
    rows = [("games", "0", i % 2 == 0, f"g{i}", i < 2) for i in range(8)]
    rows += [("games", "400", True, f"h{i}", i < 6) for i in range(8)]
    rows += [("math", "0", False, f"m{i}", i < 1) for i in range(4)]
    rows += [("math", "400", None, f"n{i}", [True, True, False, None][i]) for i in range(4)]
    found = measure(labelling(rows), seed=0)
    table = {(p.domain, p.checkpoint): p for p in found.prevalence if p.pattern == CASE}
    assert list(table) == [("games", "0"), ("games", "400"), ("math", "0"), ("math", "400")]
    assert table["games", "0"].all.interval == wilson_interval(2, 8)
    # Of g0 (won) and g1 (lost) one each
    assert table["games", "0"].successes.interval == table["games", "0"].failures.interval == wilson_interval(1, 4)
    assert table["games", "400"].failures.interval is None
    last = table["math", "400"]
    assert (last.undecided, last.all.interval, last.successes.traces) == (1, wilson_interval(2, 3), 0)

    changes = {(c.domain, c.before, c.after): c for c in found.changes if c.pattern == CASE}
    assert list(changes) == [("games", "0", "400"), ("math", "0", "400")]
    assert changes["games", "0", "400"].all.estimate == pytest.approx(0.5)
    assert changes["games", "0", "400"].successes.estimate == pytest.approx(0.75 - 0.25)
    assert changes["games", "0", "400"].failures is None

    first, last = (t for t in found.transfer if t.pattern == CASE)
    assert (first.checkpoint, first.games_change, first.math_change) == ("0", None, None)
    assert first.difference.estimate == pytest.approx(0.0)
    assert last.difference.estimate == pytest.approx(2 / 3 - 6 / 8)
    assert last.games_change.estimate == pytest.approx(0.5)
    assert last.math_change.estimate == pytest.approx(2 / 3 - 1 / 4)
    json.dumps(found.to_dict(), allow_nan=False)
    assert measure(labelling([row for row in rows if row[0] == "math"]), seed=0).transfer == ()


# ----------------------------------------------------------------------------------------------------------------- kappa


def raters(both, first, second, neither):
    a = [True] * (both + first) + [False] * (second + neither)
    b = [True] * both + [False] * first + [True] * second + [False] * neither
    return np.array(a), np.array(b)


def test_cohens_kappa():
    # 20 both, 5 and 10 one of the two, 15 neither: p_o 0.7, p_e 0.5 * 0.6 + 0.5 * 0.4 = 0.5
    assert cohen_kappa(*raters(20, 5, 10, 15)) == pytest.approx(0.4)
    assert cohen_kappa(*raters(7, 0, 0, 3)) == 1
    assert cohen_kappa(*raters(0, 5, 5, 0)) == pytest.approx(-1)
    assert np.isnan(cohen_kappa(*raters(9, 0, 0, 0)))


def test_the_interval_of_kappa():
    found = kappa_interval(*raters(80, 20, 40, 60), seed=0)
    # The standard error of Fleiss, Cohen and Everitt (1969) at p_o 0.7, kappa 0.4 is 0.0646 for 200 subjects
    assert found.estimate == pytest.approx(0.4)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * 0.0646, rel=0.06)
    assert kappa_interval(*raters(0, 0, 0, 0), seed=0) is None
    assert kappa_interval(*raters(9, 0, 0, 0), seed=0) is None
    # One in four resamples holds no "yes" on either side, and has no kappa
    assert kappa_interval(*raters(0, 1, 0, 1), seed=0).to_dict() == {"estimate": 0.0, "low": 0.0, "high": 0.0}
    assert kappa_interval(*raters(3, 0, 0, 2), seed=0).to_dict() == {"estimate": 1.0, "low": None, "high": 1.0}


def test_fleiss_kappa():
    # Three subjects, three raters: P 1, 1/3, 1, mean 7/9; p = 5/9, chance (25 + 16) / 81
    assert fleiss_kappa([(3, 0), (2, 1), (0, 3)]) == pytest.approx((63 / 81 - 41 / 81) / (1 - 41 / 81))
    assert fleiss_kappa([(2, 0), (0, 2)]) == pytest.approx(1)
    assert fleiss_kappa([(1, 1), (1, 1)]) == pytest.approx(-1)
    # A single rater tells nothing about agreement
    assert fleiss_kappa([(3, 0), (2, 1), (0, 3), (1, 0), (0, 0)]) == fleiss_kappa([(3, 0), (2, 1), (0, 3)])
    assert fleiss_kappa([]) is None and fleiss_kappa([(3, 0), (2, 0)]) is None and fleiss_kappa([(1, 0)]) is None


def test_fleiss_kappa_of_two_raters_is_scotts_pi():
    # Scott's pi of 20, 5, 10, 15: p_o 0.7, p = 55 / 100
    ratings = [(2, 0)] * 20 + [(1, 1)] * 15 + [(0, 2)] * 15
    chance = 0.55**2 + 0.45**2
    assert fleiss_kappa(ratings) == pytest.approx((0.7 - chance) / (1 - chance))


def test_random_raters_of_differing_number_have_kappa_zero():
    rng = np.random.default_rng(0)
    m = rng.integers(2, 6, 20_000)
    x = rng.binomial(m, 0.3)
    assert abs(fleiss_kappa(np.stack([x, m - x], 1).tolist())) < 0.01


# ------------------------------------------------------------------------------------------------------ labels of people


def people(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_labelled(path, RUBRIC)


def test_agreement_with_people(tmp_path):
    own = labelling([("math", "0", None, f"m{i}", i < 4) for i in range(8)])
    ids = [trace.id for trace in own.traces]
    rows = [{"id": key, "annotator": "a", "labels": {CASE: i < 3, VALUE: None}} for i, key in enumerate(ids)]
    # The second one disagrees on the last: that trace is split, and left out
    rows += [{"id": key, "annotator": "b", "labels": {CASE: i < 3 or i == 7}} for i, key in enumerate(ids)]
    rows.append({"id": "elsewhere", "labels": {CASE: True}})
    case, value, _ = measure_agreement(own, people(tmp_path / "l.jsonl", rows), seed=0)
    # 3 both, 1 the judge alone, 3 neither: p_o 6/7, p_e (4 * 3 + 3 * 4) / 49
    assert case.traces == 7 and case.kappa.estimate == pytest.approx((6 / 7 - 24 / 49) / (1 - 24 / 49))
    assert case.same == wilson_interval(6, 7) and (case.precision, case.recall) == (0.75, 1.0)
    assert case.annotators == 3
    # Eight subjects of two raters: 3 yes, 4 no, 1 split; p = 7/16
    chance = (7 / 16) ** 2 + (9 / 16) ** 2
    assert case.annotators_kappa == pytest.approx((7 / 8 - chance) / (1 - chance))
    assert (value.traces, value.kappa, value.same, value.precision, value.annotators_kappa) == (
        0,
        None,
        None,
        None,
        None,
    )
    json.dumps([entry.to_dict() for entry in (case, value)], allow_nan=False)


def test_a_sample_is_blind_and_reads_back_once_it_is_labelled(tmp_path):
    traces = [Trace("games", "400", True, text, "secret") for text in ("one", "two", "one")]
    path = tmp_path / "s.jsonl"
    assert write_sample(path, traces, RUBRIC) == 2
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [set(row) for row in rows] == [{"id", "annotator", "labels", "text"}] * 2
    with pytest.raises(ValueError, match="holds no label; set true or false in labels"):
        read_labelled(path, RUBRIC)
    rows[0]["labels"][CASE] = True
    assert people(path, rows)[traces[0].id] == {"": {CASE: True}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 3, "labels": {}}, "line 1 needs id, a string, and labels"),
        ({"id": "a", "labels": {CASE: "yes"}}, "line 1 needs id, a string, and labels, true, false or null"),
        ({"id": "a"}, "line 1 needs id"),
        ([], "line 1 needs id"),
        (
            {"id": "a", "labels": {"case_by_case": True}},
            "unknown pattern 'case_by_case'.*did you mean 'case_by_case_an",
        ),
    ],
)
def test_a_malformed_labelled_file_is_refused(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        people(tmp_path / "l.jsonl", [row])


def test_an_annotator_who_says_both(tmp_path):
    rows = [{"id": "a", "annotator": "p", "labels": {CASE: label}} for label in (True, True, False)]
    with pytest.raises(ValueError, match="line 3: p labelled a otherwise before"):
        people(tmp_path / "l.jsonl", rows)


def test_how_far_votes_agree():
    traces = tuple(Trace("math", "0", None, f"t{i}", f"g{i}") for i in range(3))
    votes = [(3, 0, 0), (2, 1, 0), (0, 3, 0)]
    labels = tuple({**dict.fromkeys(RUBRIC.names, Label(False)), CASE: Label(None, votes=v)} for v in votes)
    # The same text again is the same answer, not another one
    found = votes_kappa(Labelling("j", False, RUBRIC, traces + traces[:1], labels + labels[:1]))
    assert found == {CASE: pytest.approx(fleiss_kappa([(3, 0), (2, 1), (0, 3)])), VALUE: None, PATTERN: None}
