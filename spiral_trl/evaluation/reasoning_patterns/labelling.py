"""Which patterns each trace uses: by the votes of a judge, or by lexical rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import PlayerError
from .answers import Vote, read_votes
from .judge import Judge, Request
from .prompts import classification
from .rubric import Pattern, Rubric
from .traces import Trace


HEURISTIC = "HEURISTIC lexical rules, no judge"
_CONTEXT = 60


@dataclass(frozen=True)
class Label:
    """Whether a trace uses a pattern.

    Args:
        present (`bool`, *optional*): `None` where no verdict has more than half of the votes.
        quote (`str`): Evidence where it does; of the trace, so untrusted.
        votes (`tuple[int, int, int]`): How many said present, absent, and do not count.
    """

    present: bool | None
    quote: str = ""
    votes: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Labelling:
    """Traces with their labels.

    Args:
        labeller (`str`): Who labelled: the judge with its votes, or [`HEURISTIC`].
        heuristic (`bool`): Whether no judge read the traces.
        rubric ([`Rubric`]): The patterns.
        traces (`tuple[Trace, ...]`): Those that are labelled.
        labels (`tuple[Mapping[str, Label], ...]`): For each of them, by name of the pattern.
        unlabelled (`int`): Traces without all their votes, where a run ended early.
        void (`Mapping[str, int]`): Votes on a pattern that do not count, by the reason.
        note (`str`, *optional*): What failed.
    """

    labeller: str
    heuristic: bool
    rubric: Rubric
    traces: tuple[Trace, ...]
    labels: tuple[Mapping[str, Label], ...]
    unlabelled: int = 0
    void: Mapping[str, int] = field(default_factory=dict)
    note: str | None = None

    def rows(self) -> list[dict[str, Any]]:
        """One row a trace, in the form of a labelled file; see [`~.agreement.read_labelled`]."""
        return [
            {
                "id": trace.id,
                "annotator": self.labeller,
                "domain": trace.domain,
                "checkpoint": trace.checkpoint,
                "success": trace.success,
                "group": trace.group,
                "labels": {name: label.present for name, label in labels.items()},
                "quotes": {name: label.quote for name, label in labels.items() if label.quote},
                "votes": {name: list(label.votes) for name, label in labels.items()},
            }
            for trace, labels in zip(self.traces, self.labels, strict=True)
        ]


def classification_requests(
    rubric: Rubric, traces: Sequence[Trace], votes: int, max_chars: int
) -> list[list[Request]]:
    """The votes on each trace; none on one without words, which uses no pattern."""

    def requests(text: str) -> list[Request]:
        return [Request(lambda: classification(rubric, text, max_chars), vote) for vote in range(votes)]

    return [requests(trace.text) if trace.text.strip() else [] for trace in traces]


def label_by_judge(judge: Judge, rubric: Rubric, traces: Sequence[Trace], votes: int, max_chars: int) -> Labelling:
    """Labels by the majority of several votes of a judge.

    A label needs more than half of the votes that were asked for: votes that do not count, as those whose quote is not
    in the trace, support neither side. Where the endpoint fails or the budget ends, the traces that have all their votes
    are labelled; asked in a random order they are a random sample.

    Args:
        judge ([`Judge`]): Who votes.
        rubric ([`Rubric`]): The patterns.
        traces (`Sequence[Trace]`): In a random order; see [`~.traces.shuffled`].
        votes (`int`): Votes on each trace.
        max_chars (`int`): Longer traces are shown by their beginning and end.
    """
    wanted = classification_requests(rubric, traces, votes, max_chars)
    note = None
    try:
        judge.ask([request for requests in wanted for request in requests], "votes")
    except PlayerError as error:
        note = str(error)
    kept: list[Trace] = []
    labels: list[Mapping[str, Label]] = []
    void: Counter[str] = Counter()
    for trace, requests in zip(traces, wanted, strict=True):
        answers = [judge.cache.get(judge.key(request)) for request in requests]
        ballots = [read_votes(a.text, a.finish_reason, rubric, trace.text) for a in answers if a is not None]
        if len(ballots) < len(answers):
            continue
        kept.append(trace)
        labels.append({name: majority([ballot[name] for ballot in ballots]) for name in rubric.names})
        void.update(vote.void for ballot in ballots for vote in ballot.values() if vote.void is not None)
    return Labelling(
        labeller=f"{judge.name}, {votes} {'vote' if votes == 1 else 'votes'}",
        heuristic=False,
        rubric=rubric,
        traces=tuple(kept),
        labels=tuple(labels),
        unlabelled=len(traces) - len(kept),
        void=dict(sorted(void.items())),
        note=note,
    )


def majority(votes: Sequence[Vote]) -> Label:
    """The label that several votes on one pattern give; without votes, as on an empty trace, it is absent."""
    quotes = [vote.quote for vote in votes if vote.present]
    absent = sum(vote.present is False for vote in votes)
    counts = (len(quotes), absent, len(votes) - len(quotes) - absent)
    if not votes or 2 * absent > len(votes):
        return Label(False, votes=counts)
    if 2 * len(quotes) > len(votes):
        return Label(True, quotes[0], counts)
    return Label(None, votes=counts)


def label_by_rules(rubric: Rubric, traces: Sequence[Trace]) -> Labelling:
    """Labels by the lexical rules of a rubric: cheap, offline, and blind to meaning.

    Raises:
        `ValueError`: If a pattern has no rules.
    """
    without = [pattern.name for pattern in rubric.patterns if pattern.lexical is None]
    if without:
        raise ValueError(f"the rubric {rubric.name} has no lexical rules for {', '.join(without)}")
    return Labelling(
        labeller=HEURISTIC,
        heuristic=True,
        rubric=rubric,
        traces=tuple(traces),
        labels=tuple(
            {pattern.name: _by_rules(pattern, trace.text) for pattern in rubric.patterns} for trace in traces
        ),
    )


def _by_rules(pattern: Pattern, text: str) -> Label:
    assert pattern.lexical is not None
    spans = sorted(match.span() for rule in pattern.lexical.rules for match in rule.finditer(text))
    if len(spans) < pattern.lexical.at_least:
        return Label(False)
    start, end = spans[0]
    return Label(True, text[max(0, start - _CONTEXT) : end + _CONTEXT])
