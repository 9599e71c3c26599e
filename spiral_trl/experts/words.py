r"""A solver's analysis in words: values, the likely line, the reason, and the action in the asked format.

Each sentence has a few phrasings, chosen by a number, so that thousands of rationales do not all read alike and equal
numbers read alike. Nothing in a rationale stands in brackets but the final action, as the parser of replies demands.
"""

from __future__ import annotations

import math

from .analysis import Analysis, Move


_OPENINGS = {
    "equilibrium": (
        "I compare what each action is worth on average, with equilibrium play by both of us from here on.",
        "First the expected return of each action, against an opponent who plays the equilibrium.",
        "What does each action earn in the long run, if the opponent plays the equilibrium?",
        "Let me work out the expected values, weighing what the opponent may hold by how the equilibrium plays.",
    ),
    "minimax": (
        "I look ahead: what does each move lead to, if both of us play as well as possible?",
        "Nothing is hidden here, so I can work out each move to the end of the game.",
        "Let me check every move against the opponent's best reply.",
        "I compare the moves by how the game ends under best play.",
    ),
    "search": (
        "I try out the moves by playing on from each many times.",
        "Let me search: how do games go on average after each move?",
        "I compare the moves by a search over many continuations.",
        "Which moves hold up best when I play them out?",
    ),
}
_LINES = (
    "After {action}, the likeliest course is: {line}.",
    "If I play {action}, I expect this: {line}.",
    "Playing {action}, it would probably go on so: {line}.",
)
_LINES_BEST = (
    "After {action}, best play goes on: {line}.",
    "If I play {action}, the main line is: {line}.",
    "Playing {action}, I expect: {line}.",
)
_ENDS = (
    "{action} ends the {scope}.",
    "After {action} the {scope} is over.",
    "With {action} the {scope} ends at once.",
)
_CONCLUSIONS = ("So I choose {action}.", "I play {action}.", "My decision: {action}.")

LAYOUTS = 3
# How many rationales there are for one action of one turn
VARIANTS = len(_OPENINGS["equilibrium"]) * LAYOUTS * len(_LINES) * len(_CONCLUSIONS)
# More actions than this are listed by their best few
MAX_LISTED = 9
# Values closer than this are the same to a reader
_SAME = 0.005
_UNTRIED = "not tried"


def rationale(analysis: Analysis, variant: int = 0) -> str:
    """Why the action is played, in a few sentences.

    Args:
        analysis ([`~spiral_trl.experts.analysis.Analysis`]): What the solver knows.
        variant (`int`, *optional*, defaults to `0`): Which phrasing, from 0 to [`VARIANTS`] - 1.
    """
    if not 0 <= variant < VARIANTS:
        raise ValueError(f"variant must be from 0 to {VARIANTS - 1}, not {variant}")
    openings = _OPENINGS[analysis.kind]
    variant, opening = divmod(variant, len(openings))
    variant, layout = divmod(variant, LAYOUTS)
    conclusion, line = divmod(variant, len(_LINES))
    sentences = [_line(analysis, line), _reason(analysis), _CONCLUSIONS[conclusion].format(action=analysis.action)]
    return "\n".join(
        [openings[opening], _values(analysis, layout), " ".join(sentence for sentence in sentences if sentence)]
    )


def answer(action: str, boxed: bool = False) -> str:
    r"""The action as the game asks for it: `[bet]`, or `\boxed{bet}`."""
    return f"\\boxed{{{action}}}" if boxed else f"[{action}]"


def _number(value: float) -> str:
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def _value(analysis: Analysis, index: int) -> str:
    value = analysis.values[index]
    if math.isnan(value):
        return _UNTRIED
    if analysis.kind == "minimax" and analysis.forced is not None:
        outcomes = {analysis.forced: "a win", 0.0: "a draw", -analysis.forced: "a loss"}
        return outcomes.get(value, _number(value))
    if analysis.kind == "search":
        return f"{_number(value)} on average, with {analysis.visits[index]:.0%} of the visits"
    return _number(value)


def _worth(analysis: Analysis, index: int) -> float:
    value = analysis.values[index]
    return -math.inf if math.isnan(value) else value


def _values(analysis: Analysis, layout: int) -> str:
    """The value of every action, best first; of many actions only the best few, and the one that is played."""
    order = sorted(range(len(analysis.actions)), key=lambda i: -_worth(analysis, i))
    shown = order[:MAX_LISTED]
    if analysis.index not in shown:
        shown[-1] = analysis.index
    listed = [(analysis.actions[i], _value(analysis, i)) for i in shown]
    rest = len(order) - len(shown)
    tail = [f"none of the other {rest} is worth more than the best of these"] if rest else []
    if layout == 0:
        return "\n".join(f"- {line}" for line in [*(f"{name}: {value}" for name, value in listed), *tail])
    if layout == 1:
        return "; ".join([*(f"{name}: {value}" for name, value in listed), *tail]) + "."
    # Actions may be numbers, so they do not stand beside their values
    told = (f"{name} {'is' if value == _UNTRIED else 'is worth'} {value}" for name, value in listed)
    return "; ".join([*told, *tail]) + "."


def _line(analysis: Analysis, phrasing: int) -> str:
    if analysis.line is None:
        return ""
    if not analysis.line:
        return _ENDS[phrasing].format(action=analysis.action, scope=analysis.scope)
    # Only minimax knows best play
    templates = _LINES_BEST if analysis.kind == "minimax" else _LINES
    words = ", then ".join(_move(move) for move in analysis.line)
    return templates[phrasing].format(
        action=analysis.action, line=words + (f", and the {analysis.scope} ends" if analysis.ends else "")
    )


def _move(move: Move) -> str:
    if move.mover == "chance":
        return "chance decides"
    return f"{'I play' if move.mover == 'me' else 'the opponent plays'} {move.action}"


def _reason(analysis: Analysis) -> str:
    index = analysis.index
    used = [i for i, p in enumerate(analysis.probabilities) if p > 0]
    if len(analysis.actions) == 1:
        return "It is the only legal action."
    if analysis.kind == "search":
        most = max(analysis.visits) == analysis.visits[index]
        return "It has most visits." if most else "It has fewer visits than another, but how it ends is proven."
    if analysis.kind == "minimax":
        return (
            f"{len(used)} moves are equally good, and this is one of them."
            if len(used) > 1
            else "It is the one best move."
        )
    if len(used) == 1:
        gap = analysis.values[index] - max(value for i, value in enumerate(analysis.values) if i != index)
        if gap < _SAME:
            return "Nothing else is worth more, and the equilibrium always plays it."
        return f"It is better than anything else by {gap:.2f}, so it is always played."
    mix = ", ".join(f"{analysis.actions[i]} {analysis.probabilities[i]:.0%}" for i in used)
    spread = max(analysis.values[i] for i in used) - min(analysis.values[i] for i in used)
    why = "are worth the same" if spread < _SAME else f"are worth the same to within {spread:.2f}"
    return (
        f"These actions {why}, and being predictable would cost: the equilibrium mixes {mix}. This time it is "
        f"{analysis.action}."
    )
