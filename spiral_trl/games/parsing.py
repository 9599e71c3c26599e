r"""What all games read of a reply, and the parser that games with listed actions share.

A reply is free text that a model wrote. Exactly one action must be readable in it, in one of two forms: `\boxed{bet}`
or `[bet]`. What a model wrote while it was thinking never counts.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..records import Parsed


# Each pattern starts at a fixed character and stops at the next one, so that scanning is linear in the reply's length.
_THINK_TAG = re.compile(r"</?think>", re.IGNORECASE | re.ASCII)
_BOXED = re.compile(r"\\boxed\s*\{")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_LATEX_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:bf|it|rm|sf|tt)|mbox)\s*\{")

_QUOTED_CHARS = 40
_LISTED_ACTIONS = 12
_UNWRAPPED_LAYERS = 8
_SHORT_CHARS = 32


@dataclass(frozen=True)
class Stated:
    r"""What a reply puts forward as its action.

    Args:
        contents (`tuple[str, ...]`): What stands in the last `\boxed{...}`, or else in each pair of square brackets.
        error (`str`, *optional*): Why there is nothing to read; `contents` is empty then. `None` for a reply without
            a box or brackets too: what to say about it is the game's.
    """

    contents: tuple[str, ...]
    error: str | None = None


def how_to_reply(example: str) -> str:
    """The last sentence of a prompt, for what [`parse_action`] reads."""
    return (
        f"End your reply with exactly one action in square brackets, for example [{example}]; \\boxed{{{example}}} is "
        "accepted too."
    )


def after_reasoning(text: str) -> str | None:
    """What follows the last `</think>`: all of a reply without reasoning, `None` where the reasoning was not
    finished."""
    last_tag = _last(_THINK_TAG, text)
    if last_tag is None:
        return text
    return text[last_tag.end() :] if last_tag.group().startswith("</") else None


def stated(text: str) -> Stated:
    r"""What `text` puts in its last `\boxed{...}`, or without one in square brackets, after its reasoning."""
    answer = after_reasoning(text)
    if answer is None:
        return Stated((), "the reasoning was not finished: <think> has no </think>")
    box = _last(_BOXED, answer)
    if box is None:
        return Stated(tuple(_BRACKETS.findall(answer)))
    content = _balanced(answer, box.end())
    return Stated((), r"the last \boxed{ was not closed") if content is None else Stated((content,))


def outside_of_actions(text: str) -> str:
    r"""What `text` says after its reasoning outside of square brackets and before its last `\boxed{`."""
    answer = after_reasoning(text) or ""
    box = _last(_BOXED, answer)
    return _BRACKETS.sub(" ", answer if box is None else answer[: box.start()])


def unwrapped(content: str) -> Iterator[str]:
    r"""The content of a box or of brackets, ever less wrapped: `[\text{bet}]`, `\text{bet}`, `bet`.

    A layer is one pass over the content; their number is bounded so that deep nesting cannot cost quadratic time.
    """
    for _ in range(_UNWRAPPED_LAYERS):
        content = content.strip().strip("*_`$\"'").strip()
        yield content
        if (content[:1], content[-1:]) in (("[", "]"), ("{", "}")):
            content = content[1:-1]
        elif content.endswith("}") and (command := _LATEX_TEXT.match(content)):
            content = content[command.end() : -1]
        else:
            return


def quoted(text: str) -> str:
    """Model text for an error: short, on one line, printable."""
    shown = "".join(c if c.isprintable() else " " for c in text[: _QUOTED_CHARS + 1]).strip()
    return f"'{shown}'" if len(text) <= _QUOTED_CHARS else f"'{shown[:_QUOTED_CHARS]}...'"


def parse_action(text: str, legal_actions: Sequence[str]) -> Parsed:
    r"""The legal action that `text` names, or why it names none.

    1. Only what follows the last `</think>` is read. A `<think>` that is opened after it, or without it, and never
       closed is an error: the reasoning was not finished.
    2. If there is a `\boxed{...}`, the last one decides, whatever brackets stand beside it. `\boxed{bet}`,
       `\boxed{[bet]}` and `\boxed{\text{bet}}` say the same. Any other content is illegal.
    3. Otherwise the brackets decide. Two different legal actions in brackets are ambiguous, hence illegal; the same
       one twice is not. Brackets that name no legal action are ignored beside exactly one legal action, since models
       put notes and other people's moves in brackets too; where all are of that kind, the reply is illegal.
    4. Neither is an error: an action outside a box or brackets is never guessed.

    Case, surrounding white space and Markdown emphasis do not matter. Where two legal actions differ in case alone,
    only the exact spelling counts. The time taken is linear in the length of `text`.

    Args:
        text (`str`): The reply. Untrusted: errors quote at most 40 characters of it, on one line, unprintable ones
            replaced.
        legal_actions (`Sequence[str]`): The actions that are legal now, as plain words such as `bet`.

    Returns:
        [`~spiral_trl.records.Parsed`]: The action as spelled in `legal_actions`, or the error.
    """
    legal = tuple(legal_actions)
    return _parse_short(text, legal) if len(text) <= _SHORT_CHARS else _parse(text, legal)


def _parse(text: str, legal: tuple[str, ...]) -> Parsed:
    said = stated(text)
    if said.error is not None:
        return Parsed(None, said.error)
    if not said.contents:
        return Parsed(None, f"the reply names no action in brackets; {_legal_list(legal)}")
    found = (_find(content, legal) for content in said.contents)
    named = list(dict.fromkeys(action for action in found if action is not None))
    if len(named) == 1:
        return Parsed(named[0])
    if named:
        return Parsed(None, ambiguous(named))
    return Parsed(None, f"{quoted(said.contents[-1])} is not legal here; {_legal_list(legal)}")


# Replies of bots and small models are short and recur thousands of times
_parse_short = lru_cache(maxsize=16_384)(_parse)


def ambiguous(named: Sequence[str]) -> str:
    """Why a reply that names several actions is illegal."""
    some = ", ".join(f"[{action}]" for action in named[:_LISTED_ACTIONS])
    return f"the reply is ambiguous: it names {len(named)} legal actions, {some}"


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def _balanced(text: str, start: int) -> str | None:
    """What stands between the brace that was opened before `start` and the one that closes it."""
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start : start + brace.start()]
    return None


def _find(content: str, legal: tuple[str, ...]) -> str | None:
    """The legal action that the content of a box or of brackets names."""
    exact, folded = _lookup(legal)
    for inner in unwrapped(content):
        if inner in exact:
            return inner
        if (key := _fold(inner)) in folded:
            return folded[key]
    return None


def _fold(action: str) -> str:
    return " ".join(action.split()).casefold()


@lru_cache(maxsize=4096)
def _lookup(legal: tuple[str, ...]) -> tuple[frozenset[str], dict[str, str]]:
    """The legal actions, and those that are still told apart when case is ignored, by their folded form."""
    folded: dict[str, list[str]] = {}
    for action in legal:
        folded.setdefault(_fold(action), []).append(action)
    return frozenset(legal), {key: actions[0] for key, actions in folded.items() if len(actions) == 1}


def _legal_list(legal: tuple[str, ...]) -> str:
    some = ", ".join(f"[{action}]" for action in legal[:_LISTED_ACTIONS])
    rest = len(legal) - _LISTED_ACTIONS
    return f"legal: {some}" + (f" and {rest} more" if rest > 0 else "")
