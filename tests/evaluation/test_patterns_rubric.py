"""Rubrics, and the lexical rules of the shipped one on traces that a person labelled."""

import pytest

from spiral_trl.evaluation.reasoning_patterns import HEURISTIC, Trace, label_by_rules, load_rubric, rubric_yaml
from spiral_trl.evaluation.reasoning_patterns.evidence import occurs
from spiral_trl.evaluation.reasoning_patterns.rubric import Pattern


def test_the_shipped_rubric_has_the_three_patterns_of_the_paper():
    rubric = load_rubric()
    assert rubric.names == ["case_by_case_analysis", "expected_value_calculation", "pattern_recognition"]
    assert all(p.counts and p.does_not_count and p.lexical is not None for p in rubric.patterns)


# Written for this test, one way or the other
CASE, VALUE, PATTERN = load_rubric().names
LABELLED = [
    ("If the opponent holds a King, I lose a chip. If they hold a Jack, I win one. So I check.", {CASE}),
    ("Case 1: n is odd, so n^2 is odd. Case 2: n is even, so n^2 is even.", {CASE}),
    (r"If x < 0 then |x| = -x. If x \ge 0 then |x| = x; in the first case there is no root.", {CASE}),
    ("EV(bet) = 0.5 * 2 - 0.5 * 1 = 0.5, more than checking.", {VALUE}),
    ("The expected value of a call is negative.", {VALUE}),
    ("They hold the King with probability 1/2, times the pot of 4, which makes 2.", {VALUE}),
    (r"So \mathbb{E}[X] = 3.5 for one die.", {VALUE}),
    ("The last digits repeat with a cycle of 4, so the pattern gives 7.", {PATTERN}),
    ("By symmetry the other corner is as good; it is the same structure as before.", {PATTERN}),
    ("I like this card, so I bet. [bet]", set()),
    ("In this case I check.", set()),
    ("There is a chance that they fold. Probably they do.", set()),
    ("Every step of it is 3 + 4 = 7. However, the level is even.", set()),
    ("", set()),
]


@pytest.mark.parametrize(("text", "present"), LABELLED)
def test_lexical_rules(text, present):
    labelling = label_by_rules(load_rubric(), [Trace("math", "0", None, text, "g")])
    (labels,) = labelling.labels
    assert {name for name, label in labels.items() if label.present} == present
    for label in labels.values():
        assert bool(label.quote) is label.present and occurs(label.quote, text)


def test_heuristic_labels_say_so():
    labelling = label_by_rules(load_rubric(), [Trace("math", "0", None, "x", "g")])
    assert labelling.heuristic and labelling.labeller == HEURISTIC
    assert [row["annotator"] for row in labelling.rows()] == [HEURISTIC] and "HEURISTIC" in HEURISTIC


def test_a_written_rubric_reads_back(tmp_path):
    patterns = [Pattern("a_b", "A: b", 'Says "no": # and\u00a0\u2028 - [x]'), Pattern("c", "on", "yes")]
    path = tmp_path / "r.yaml"
    path.write_text(rubric_yaml("mine", patterns, "two\nlines"), encoding="utf-8")
    assert path.read_text(encoding="utf-8").startswith("# two\n# lines\n")
    read = load_rubric(path)
    assert read.name == "mine" and [p.name for p in read.patterns] == ["a_b", "c"]
    assert [p.title for p in read.patterns] == ["A: b", "on"]
    assert read.patterns[0].definition == 'Says "no": # and - [x]'
    with pytest.raises(ValueError, match="the rubric mine has no lexical rules for a_b, c"):
        label_by_rules(read, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "r.yaml is no valid YAML"),
        ("a", "r.yaml must be a mapping with name, patterns"),
        ("{name: x, patern: {}}", "unknown key 'patern'; allowed: name, patterns; did you mean 'patterns'"),
        ("{name: x, patterns: {}}", "patterns must be a mapping of 1 to 40 names"),
        ("{patterns: {a: {definition: d}}}", "name must be a text"),
        ("{name: x, patterns: {A-b: {definition: d}}}", "has lower-case letters, digits and _, not 'A-b'"),
        ("{name: x, patterns: {a: {}}}", "a: definition must be a text"),
        ("{name: x, patterns: {a: {definition: d, count: []}}}", "unknown key 'count'.*did you mean 'counts'"),
        ("{name: x, patterns: {a: {definition: d, counts: b}}}", "a: counts must be a list of texts"),
        ("{name: x, patterns: {a: {definition: d, lexical: {rules: []}}}}", "at least one regular expression"),
        ("{name: x, patterns: {a: {definition: d, lexical: {rules: ['(']}}}}", r"'\(' is no regular expression"),
        ("{name: x, patterns: {a: {definition: d, lexical: {rules: ['b*']}}}}", "matches every text"),
        ("{name: x, patterns: {a: {definition: d, lexical: {rules: [b], at_least: 0}}}}", "at_least must be a whole"),
        ("!!python/object/apply:os.getcwd []", "is no valid YAML"),
    ],
)
def test_what_is_no_rubric_is_refused(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_rubric(tmp_path / "r.yaml")


def test_a_rubric_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="there is no rubric file"):
        load_rubric(tmp_path / "r.yaml")
