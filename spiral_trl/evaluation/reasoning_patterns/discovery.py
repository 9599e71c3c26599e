"""Which patterns there are, bottom up: a judge names those of sampled traces, then puts what means the same together.

The first half of the SPIRAL paper's analysis (arXiv 2506.24119, section 4.1 and appendix F); the list is a draft that a
person reads before it classifies anything.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import PlayerError
from .answers import Candidate, read_candidates, read_merged
from .judge import Judge, Request
from .prompts import discovery, merging
from .rubric import Pattern
from .traces import Trace


# Names that are merged in one call, and the most patterns that come of it
_MERGED_AT_ONCE = 60
_MOST_PATTERNS = 15
_TRIES = 3
_QUOTES = 3


@dataclass(frozen=True)
class Discovered:
    """A pattern that was found.

    Args:
        pattern ([`Pattern`]): Its name and definition, in the judge's words.
        traces (`int`): In how many traces the judge named it.
        by_stratum (`Mapping[str, int]`): The same by domain and checkpoint, such as `games 400`.
        quotes (`tuple[str, ...]`): Where it stands in some of them; untrusted.
    """

    pattern: Pattern
    traces: int
    by_stratum: Mapping[str, int]
    quotes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        own = {key: getattr(self.pattern, key) for key in ("name", "title", "definition")}
        return {**own, "traces": self.traces, "by_stratum": dict(self.by_stratum), "quotes": list(self.quotes)}


@dataclass(frozen=True)
class Discovery:
    """What a judge found in sampled traces.

    Args:
        judge (`str`): Who looked.
        patterns (`tuple[Discovered, ...]`): Those named in most traces first.
        traces (`int`): How many traces were read.
        unreadable (`int`): Answers that could not be read.
        unproven (`int`): Patterns named without a quote that stands in the trace.
        unmerged (`int`): Names that the judge put into no pattern.
    """

    judge: str
    patterns: tuple[Discovered, ...]
    traces: int
    unreadable: int
    unproven: int
    unmerged: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "patterns": [pattern.to_dict() for pattern in self.patterns]}


@dataclass(frozen=True)
class _Group:
    """Names that mean one pattern."""

    name: str
    definition: str
    members: tuple[int, ...]


def discovery_requests(traces: Sequence[Trace], max_chars: int) -> list[Request]:
    """The first question about each trace; merging asks more, at least once."""

    def request(text: str) -> Request:
        return Request(lambda: discovery(text, max_chars))

    return [request(trace.text) for trace in traces]


def discover(judge: Judge, traces: Sequence[Trace], max_chars: int) -> Discovery:
    """The patterns of traces.

    Args:
        judge ([`Judge`]): Who names and merges them.
        traces (`Sequence[Trace]`): A sample; traces without words are passed over.
        max_chars (`int`): Longer traces are shown by their beginning and end.

    Raises:
        [`~spiral_trl.errors.PlayerError`]: If the endpoint fails, the budget is spent, or the judge's answers cannot be
            read. What was answered is kept.
    """
    traces = [trace for trace in traces if trace.text.strip()]
    keys = judge.ask(discovery_requests(traces, max_chars), "traces read")
    candidates: list[Candidate] = []
    owners: list[int] = []
    unreadable = unproven = 0
    for position, (trace, key) in enumerate(zip(traces, keys, strict=True)):
        answer = judge.cache.get(key)
        read = None if answer is None else read_candidates(answer.text, trace.text)
        if read is None:
            unreadable += 1
            continue
        unproven += read[1]
        candidates += read[0]
        owners += [position] * len(read[0])
    if not candidates:
        raise PlayerError(
            f"{judge.name} named no pattern with evidence in {len(traces)} traces ({unreadable} answers could not be "
            f"read, {unproven} patterns had no quote that stands in the trace)"
        )
    groups = _merge(judge, candidates)
    found = []
    names: set[str] = set()
    for group in groups:
        of = sorted({owners[member] for member in group.members})
        strata = Counter(f"{traces[position].domain} {traces[position].checkpoint}" for position in of)
        quotes = list(dict.fromkeys(candidates[member].quote for member in group.members))[:_QUOTES]
        name = _identifier(group.name, names)
        found.append(
            Discovered(
                Pattern(name, group.name, group.definition), len(of), dict(sorted(strata.items())), tuple(quotes)
            )
        )
    placed = {member for group in groups for member in group.members}
    return Discovery(
        judge=judge.name,
        patterns=tuple(sorted(found, key=lambda pattern: -pattern.traces)),
        traces=len(traces),
        unreadable=unreadable,
        unproven=unproven,
        unmerged=len(candidates) - len(placed),
    )


def _merge(judge: Judge, candidates: Sequence[Candidate]) -> list[_Group]:
    """Patterns of all names. Many are merged in parts, whose patterns are merged again: each call leaves at most a
    quarter."""
    groups = [_Group(each.name, each.definition, (number,)) for number, each in enumerate(candidates)]
    while True:
        parts = [groups[start : start + _MERGED_AT_ONCE] for start in range(0, len(groups), _MERGED_AT_ONCE)]
        groups = [group for part in parts for group in _merge_part(judge, part)]
        if len(parts) == 1:
            return groups


def _merge_part(judge: Judge, part: Sequence[_Group]) -> list[_Group]:
    messages = merging([(group.name, group.definition) for group in part], _MOST_PATTERNS)
    for attempt in range(_TRIES):
        (key,) = judge.ask([Request(lambda: messages, attempt)], "names merged")
        answer = judge.cache.get(key)
        merged = None if answer is None else read_merged(answer.text, len(part))
        if merged is not None:
            groups = [
                _Group(each.name, each.definition, tuple(m for number in each.members for m in part[number].members))
                for each in merged
            ]
            return sorted(groups, key=lambda group: -len(group.members))[:_MOST_PATTERNS]
    raise PlayerError(f"{judge.name} gave no readable list of patterns in {_TRIES} answers; ask another judge")


def _identifier(name: str, taken: set[str]) -> str:
    """A name as a rubric takes it, unlike those in `taken`, to which it is added."""
    own = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    own = re.sub(r"^[0-9_]+", "", own)[:50].rstrip("_") or "pattern"
    unique, number = own, 2
    while unique in taken:
        unique, number = f"{own}_{number}", number + 1
    taken.add(unique)
    return unique
