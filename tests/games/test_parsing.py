import time

import pytest

from spiral_trl.games.parsing import parse_action


LEGAL = ("check", "bet")

GOOD = [
    ("[bet]", "bet"),
    ("I will bet. [bet]", "bet"),
    ("[ BET ]", "bet"),
    ("[**bet**]", "bet"),
    ("**[bet]**", "bet"),
    ("[bet], so [bet] it is", "bet"),
    ("[Bet] [bEt]", "bet"),
    ("[note] I hold a king [bet] [fold]", "bet"),  # neither a note nor an action of another position counts
    ("[[bet]]", "bet"),
    (r"\boxed{bet}", "bet"),
    (r"\boxed{[bet]}", "bet"),
    (r"\boxed{ \text{ Bet } }", "bet"),
    (r"\boxed{\text{[bet]}}", "bet"),
    (r"\boxed{\textbf{bet}}", "bet"),
    (r"\boxed{{bet}}", "bet"),
    (r"\boxed {bet}", "bet"),
    (r"$\boxed{\mathrm{bet}}$.", "bet"),
    (r"\boxed{check} no: \boxed{bet}", "bet"),
    (r"[check] \boxed{bet} [check]", "bet"),
    (r"\boxed{\boxed{bet}}", "bet"),
    (r"\[ \boxed{bet} \]", "bet"),
    ("<think>[check] or [bet]?</think>[bet]", "bet"),
    ("[check] or [bet]?</think>\n[bet]", "bet"),  # the template opened the reasoning
    ("<think>a</think> [check] <think>b</think> [bet]", "bet"),
    ("<think> I write <think> twice </think>[bet]", "bet"),
    (r"<think>\boxed{check}</think>[bet]", "bet"),
    ("<THINK>[check]</THINK>[bet]", "bet"),
]

BAD = [
    ("", "names no action"),
    ("bet", "names no action"),
    ("I bet (not check).", "names no action"),
    ("[bet", "names no action"),
    ("bet]", "names no action"),
    ("[check] or [bet]", "ambiguous"),
    ("[bet] [check] [bet]", "ambiguous"),
    ("[fold]", "'fold' is not legal here; legal: [check], [bet]"),
    ("[]", "'' is not legal"),
    ("[check or bet]", "'check or bet' is not legal"),
    ("[check, bet]", "is not legal"),
    ("[raise] [fold]", "'fold' is not legal"),
    (r"\boxed{fold}", "'fold' is not legal"),
    (r"\boxed{}", "'' is not legal"),
    (r"\boxed{check or bet}", "is not legal"),
    (r"\boxed{[check] [bet]}", "is not legal"),
    (r"[bet] \boxed{5}", "'5' is not legal"),
    (r"\boxed{bet", "was not closed"),
    (r"\boxed{bet} \boxed{{bet}", "was not closed"),
    ("<think>[bet]", "the reasoning was not finished"),
    ("<think>a</think>[bet]<think>[bet]", "the reasoning was not finished"),
    ("<think>[bet]</think>", "names no action"),
    (r"<think>\boxed{bet}</think>I bet", "names no action"),
]


@pytest.mark.parametrize(("text", "action"), GOOD)
def test_good_replies(text, action):
    parsed = parse_action(text, LEGAL)
    assert (parsed.action, parsed.error) == (action, None)


@pytest.mark.parametrize(("text", "reason"), BAD)
def test_bad_replies_have_a_reason(text, reason):
    parsed = parse_action(text, LEGAL)
    assert parsed.action is None
    assert reason in parsed.error


def test_the_games_spelling_is_returned():
    assert parse_action("[offer:  3 SHEEP]", ["Offer: 3 Sheep", "Deny"]).action == "Offer: 3 Sheep"


def test_actions_that_differ_in_case_alone_need_the_exact_spelling():
    legal = ["bxc3", "Bxc3", "e4"]
    assert parse_action("[Bxc3]", legal).action == "Bxc3"
    assert parse_action("[bxc3]", legal).action == "bxc3"
    assert parse_action("[BXC3]", legal).action is None
    assert parse_action("[E4]", legal).action == "e4"


def test_no_legal_action_is_no_crash():
    assert parse_action("[bet]", []).action is None


def test_errors_quote_little_and_nothing_unprintable():
    error = parse_action("[\x1b[31m\n\u202e" + "x" * 10_000 + "]", LEGAL).error
    assert error.isprintable()
    assert len(error) < 120
    assert "x" * 30 in error and "x" * 41 not in error
    many = parse_action("[x]", [f"move {i}" for i in range(500)]).error
    assert "and 488 more" in many and len(many) < 250
    ambiguous = parse_action(" ".join(f"[move {i}]" for i in range(500)), [f"move {i}" for i in range(500)]).error
    assert "ambiguous" in ambiguous and len(ambiguous) < 250


HOSTILE = {
    "open brackets": "[",
    "open brackets with text": "[bet",
    "nested brackets": "[[bet]",
    "boxes": r"\boxed{",
    "boxes and spaces": "\\boxed ",
    "spaces": " ",
    "braces": r"\boxed{bet}{",
    "think tags": "<think>",
    "half tags": "</thin",
    "latex": r"\text{",
    "pairs": "[x]",
}


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("wrap", ["{}", r"\boxed{{{}}}", "[{}]"])
def test_time_is_linear_in_the_reply(piece, wrap):
    text = wrap.format(piece * (1_000_000 // len(piece)))
    start = time.process_time()
    parse_action(text, LEGAL)
    assert time.process_time() - start < 3.0  # a quadratic scan of a million characters takes minutes


def test_deep_nesting_is_bounded():
    text = r"\boxed{" + "{" * 300_000 + "bet" + "}" * 300_000 + "}"
    start = time.process_time()
    assert parse_action(text, LEGAL).action is None
    assert time.process_time() - start < 3.0
