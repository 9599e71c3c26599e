"""What a judge answered, read without trust: a judge may ramble, break JSON, invent quotes or repeat what a trace told it
to say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...players.human import printable
from .evidence import long_enough, occurs
from .rubric import Rubric


# Why a whole answer, or one vote of it, does not count
UNREADABLE = "no readable answer"
CUT = "answer cut at its longest"
NO_VERDICT = "no verdict on the pattern"
NO_QUOTE = "present without a quote"
SHORT_QUOTE = "quote too short"
FOREIGN_QUOTE = "quote not in the trace"

_MOST_CHARS = 200_000
_MOST_BRACES = 300
_SHOWN_QUOTE = 400
_MOST_CANDIDATES = 5
_STRAY_BACKSLASH = re.compile(r'\\(?!["\\/bfnrt]|u[0-9a-fA-F]{4})')
_YES_NO = {"true": True, "yes": True, "false": False, "no": False}


@dataclass(frozen=True)
class Vote:
    """One vote on one pattern.

    Args:
        present (`bool`, *optional*): The verdict; `None` where it does not count.
        quote (`str`): The evidence of a verdict that the pattern is present.
        void (`str`, *optional*): Why it does not count.
    """

    present: bool | None
    quote: str = ""
    void: str | None = None


@dataclass(frozen=True)
class Candidate:
    """A pattern that a judge named in a trace.

    Args:
        name, definition (`str`): In the judge's words, on one line.
        quote (`str`): Where it stands in the trace.
    """

    name: str
    definition: str
    quote: str


@dataclass(frozen=True)
class Merged:
    """A pattern that a judge made of several names.

    Args:
        name, definition (`str`): In the judge's words, on one line.
        members (`tuple[int, ...]`): Numbers of the names.
    """

    name: str
    definition: str
    members: tuple[int, ...]


def find_object(text: str, key: str) -> dict[str, Any] | None:
    """The last JSON object in a text that has `key`, whatever stands around it; `None` if there is none.

    Only what follows the last `</think>` counts where there is one. Backslashes that JSON does not allow, as those of
    LaTeX, are taken as they stand.
    """
    text = text.rpartition("</think>")[2][-_MOST_CHARS:]
    decoder = json.JSONDecoder(strict=False)
    found: dict[str, Any] | None = None
    position = text.find("{")
    for _ in range(_MOST_BRACES):
        if position < 0:
            break
        value, end = _decoded(decoder, text, position)
        if isinstance(value, dict) and key in value:
            found = value
        position = text.find("{", end if isinstance(value, dict) and key in value else position + 1)
    return found


def _decoded(decoder: json.JSONDecoder, text: str, position: int) -> tuple[object, int]:
    """The JSON value at a position and where it ends; `None` where there is none."""
    try:
        return decoder.raw_decode(text, position)
    except (ValueError, RecursionError):
        pass
    rest = text[position:]
    mended = _STRAY_BACKSLASH.sub(r"\\\\", rest)
    if mended == rest:
        return None, position
    try:
        # The end lies elsewhere in the text as it was; the search goes on at the next brace after the beginning
        return decoder.raw_decode(mended)[0], position + 1
    except (ValueError, RecursionError):
        return None, position


def read_votes(answer: str, finish_reason: str, rubric: Rubric, text: str) -> dict[str, Vote]:
    """The vote on each pattern of a rubric in a judge's answer about a trace.

    Args:
        answer (`str`): What the judge wrote.
        finish_reason (`str`): `"length"` where it was cut.
        rubric ([`Rubric`]): What it was asked about.
        text (`str`): The trace: a verdict of presence counts only with a quote that stands in it.
    """
    found = find_object(answer, "patterns")
    verdicts = None if found is None else _by_name(found["patterns"])
    if verdicts is None:
        void = CUT if finish_reason == "length" else UNREADABLE
        return {name: Vote(None, void=void) for name in rubric.names}
    return {name: _vote(verdicts.get(name), text) for name in rubric.names}


def _by_name(value: object) -> Mapping[str, object] | None:
    """Verdicts by the name of their pattern; some judges write a list of objects with names instead."""
    if isinstance(value, list):
        return {
            entry["name"]: entry for entry in value if isinstance(entry, dict) and isinstance(entry.get("name"), str)
        }
    return value if isinstance(value, dict) else None


def _vote(value: object, text: str) -> Vote:
    if not isinstance(value, dict):
        return Vote(None, void=NO_VERDICT)
    present, quote = value.get("present"), value.get("quote")
    if isinstance(present, str):
        present = _YES_NO.get(present.strip().lower())
    if not isinstance(present, bool):
        return Vote(None, void=NO_VERDICT)
    if not present:
        return Vote(False)
    if not isinstance(quote, str) or not quote.strip():
        return Vote(None, void=NO_QUOTE)
    void = quote_fault(quote, text)
    return Vote(True, quote[:_SHOWN_QUOTE]) if void is None else Vote(None, void=void)


def quote_fault(quote: str, text: str) -> str | None:
    """Why a quote is no evidence about a text; `None` where it is."""
    if not long_enough(quote, text):
        return SHORT_QUOTE
    return None if occurs(quote, text) else FOREIGN_QUOTE


def read_candidates(answer: str, text: str) -> tuple[list[Candidate], int] | None:
    """The patterns that an answer names in a trace, and how many more it names without evidence; `None` where it cannot
    be read."""
    found = find_object(answer, "patterns")
    if found is None or not isinstance(found["patterns"], list):
        return None
    kept, void = [], 0
    for entry in found["patterns"][:_MOST_CANDIDATES]:
        name, definition = _named(entry)
        quote = entry.get("quote") if isinstance(entry, dict) else None
        if name and isinstance(quote, str) and quote_fault(quote, text) is None:
            kept.append(Candidate(name, definition, quote[:_SHOWN_QUOTE]))
        else:
            void += 1
    return kept, void


def read_merged(answer: str, count: int) -> list[Merged] | None:
    """The patterns that an answer made of `count` names, each name in the first pattern that has it; `None` where it
    cannot be read."""
    found = find_object(answer, "patterns")
    if found is None or not isinstance(found["patterns"], list):
        return None
    taken: set[int] = set()
    patterns = []
    for entry in found["patterns"]:
        name, definition = _named(entry)
        listed = entry.get("members") if isinstance(entry, dict) else None
        members = [
            number
            for number in dict.fromkeys(n for n in (listed if isinstance(listed, list) else []) if type(n) is int)
            if 0 <= number < count and number not in taken
        ]
        if name and members:
            taken |= set(members)
            patterns.append(Merged(name, definition, tuple(members)))
    return patterns or None


def _named(entry: object) -> tuple[str, str]:
    """Name and definition of an entry, each short and on one line; empty where there is none."""
    if not isinstance(entry, dict):
        return "", ""
    name, definition = entry.get("name"), entry.get("definition")
    if not isinstance(name, str) or not isinstance(definition, str):
        return "", ""
    name, definition = (" ".join(printable(part).split()) for part in (name, definition))
    # A name without a letter could not stand in a rubric
    return (name[:60], definition[:500]) if definition and re.search("[A-Za-z]", name) else ("", "")
