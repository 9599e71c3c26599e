"""How many traces use a pattern: at each checkpoint, over training, and in games against math."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import numpy as np

from ...stats import Interval, bootstrap_interval, wilson_interval
from .labelling import Labelling
from .traces import DOMAINS, order_checkpoints


@dataclass(frozen=True)
class Rate:
    """A share of traces.

    Args:
        traces (`int`): How many there are.
        groups (`int`): How many games or problems they are from; traces of one are not independent.
        interval ([`~spiral_trl.stats.Interval`], *optional*): The share with its 95% interval; `None` without traces.
        method (`str`, *optional*): `"wilson"` where every group has one trace, or all groups agree; else
            `"cluster bootstrap"` over groups.
    """

    traces: int
    groups: int
    interval: Interval | None
    method: str | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "interval": None if self.interval is None else self.interval.to_dict()}


@dataclass(frozen=True)
class Prevalence:
    """Of one pattern, domain and checkpoint.

    Args:
        pattern, domain, checkpoint (`str`): Which.
        all, successes, failures ([`Rate`]): Among all traces, those that succeeded and those that failed.
        undecided (`int`): Traces without a majority, which none of the shares counts.
    """

    pattern: str
    domain: str
    checkpoint: str
    all: Rate
    successes: Rate
    failures: Rate
    undecided: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), **{key: getattr(self, key).to_dict() for key in ("all", "successes", "failures")}}


@dataclass(frozen=True)
class Change:
    """Of the prevalence in one domain from one checkpoint to a later one.

    Args:
        pattern, domain, before, after (`str`): Which pattern, domain and checkpoints.
        all, successes, failures ([`~spiral_trl.stats.Interval`], *optional*): Difference of shares with its interval.
    """

    pattern: str
    domain: str
    before: str
    after: str
    all: Interval | None
    successes: Interval | None
    failures: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), **{key: _json(getattr(self, key)) for key in ("all", "successes", "failures")}}


@dataclass(frozen=True)
class Transfer:
    """Of one pattern from games to math.

    Args:
        pattern, checkpoint (`str`): Which.
        games, math ([`~spiral_trl.stats.Interval`], *optional*): Prevalence in each.
        difference ([`~spiral_trl.stats.Interval`], *optional*): Prevalence in math less that in games.
        games_change, math_change ([`~spiral_trl.stats.Interval`], *optional*): Change since the first checkpoint.
    """

    pattern: str
    checkpoint: str
    games: Interval | None
    math: Interval | None
    difference: Interval | None
    games_change: Interval | None
    math_change: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        keys = ("games", "math", "difference", "games_change", "math_change")
        return {**vars(self), **{key: _json(getattr(self, key)) for key in keys}}


@dataclass(frozen=True)
class Measures:
    """All figures of a labelling.

    Args:
        prevalence (`tuple[Prevalence, ...]`): By pattern, domain and checkpoint.
        changes (`tuple[Change, ...]`): From the first checkpoint to each later one, by pattern and domain.
        transfer (`tuple[Transfer, ...]`): By pattern and checkpoint; empty without both domains.
    """

    prevalence: tuple[Prevalence, ...]
    changes: tuple[Change, ...]
    transfer: tuple[Transfer, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {key: [entry.to_dict() for entry in entries] for key, entries in vars(self).items()}


@dataclass(frozen=True)
class Sample:
    """Traces of one stratum, added up by group.

    Args:
        groups (`tuple[str, ...]`): `[C]` names of the games or problems.
        present, traces (`np.ndarray`): `[C]` how many traces of each use the pattern, and how many there are.
    """

    groups: tuple[str, ...]
    present: np.ndarray
    traces: np.ndarray

    @classmethod
    def of(cls, traces: Sequence[tuple[str, bool]]) -> Sample:
        """From the group of each trace and whether it uses the pattern."""
        sums: dict[str, list[int]] = {}
        for group, present in traces:
            entry = sums.setdefault(group, [0, 0])
            entry[0] += present
            entry[1] += 1
        columns = np.array(list(sums.values()), dtype=np.int64).reshape(-1, 2)
        return cls(tuple(sums), columns[:, 0], columns[:, 1])

    def rate(self, seed: int) -> Rate:
        """The share of traces that use the pattern, with its interval.

        Groups that all agree would give a bootstrap interval of width 0; they count as one trial each instead. Of a
        single group that does not agree nothing is known.
        """
        count, groups = int(self.traces.sum()), len(self.groups)
        if not groups:
            return Rate(0, 0, None, None)
        present = int(self.present.sum())
        if count == groups or present in (0, count):
            return Rate(count, groups, wilson_interval(present * groups // count, groups), "wilson")
        if groups == 1:
            return Rate(count, 1, Interval(present / count, -inf, inf), None)
        interval = bootstrap_interval(np.arange(groups), seed, self._of_drawn)
        return Rate(count, groups, interval, "cluster bootstrap")

    def _of_drawn(self, drawn: np.ndarray, axis: int) -> np.ndarray:
        index = drawn.astype(np.int64)
        return self.present[index].sum(axis) / self.traces[index].sum(axis)


def difference(after: Sample, before: Sample, seed: int) -> Interval | None:
    """The share in one sample less that in another, with its 95% interval; `None` where one is empty.

    Samples without a common group are independent: the interval is put together from those of the two shares, as
    Newcombe (1998, method 10) does with Wilson's and Zou and Donner (2008) with any. Samples of the same games or
    problems are paired: groups are resampled together.
    """
    first, second = before.rate(seed).interval, after.rate(seed).interval
    if first is None or second is None:
        return None
    estimate = second.estimate - first.estimate
    common = sorted(set(after.groups) & set(before.groups))
    if common:
        names = list(dict.fromkeys([*after.groups, *before.groups]))
        x, n = _aligned(after, names)
        y, m = _aligned(before, names)

        def drawn_difference(drawn: np.ndarray, axis: int) -> np.ndarray:
            index = drawn.astype(np.int64)
            ends = []
            for sample, present, traces in ((second, x, n), (first, y, m)):
                of = traces[index].sum(axis)
                # A resample that misses a sample altogether tells nothing about it
                ends.append(np.where(of > 0, present[index].sum(axis) / np.maximum(of, 1), sample.estimate))
            return ends[0] - ends[1]

        paired = bootstrap_interval(np.arange(len(names)), seed, drawn_difference)
        if paired.low < paired.high:
            return Interval(estimate, paired.low, paired.high)
    low = estimate - sqrt((second.estimate - second.low) ** 2 + (first.high - first.estimate) ** 2)
    high = estimate + sqrt((second.high - second.estimate) ** 2 + (first.estimate - first.low) ** 2)
    return Interval(estimate, low, high)


def _aligned(sample: Sample, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """`[C]` sums of a sample at the places of `names`, 0 where it has none."""
    place = {name: index for index, name in enumerate(names)}
    index = [place[group] for group in sample.groups]
    present, traces = np.zeros(len(names), dtype=np.int64), np.zeros(len(names), dtype=np.int64)
    present[index], traces[index] = sample.present, sample.traces
    return present, traces


_STRATA = {"all": (True, False, None), "successes": (True,), "failures": (False,)}
_EMPTY = Sample.of([])


class _PatternTable:
    """Samples of one pattern by domain, checkpoint and stratum."""

    def __init__(self, labelling: Labelling, pattern: str, seed: int):
        self.pattern = pattern
        self.seed = seed
        self.undecided: Counter[tuple[str, str]] = Counter()
        self.seen: set[tuple[str, str]] = set()
        traces: dict[tuple[str, str, str], list[tuple[str, bool]]] = {}
        for trace, labels in zip(labelling.traces, labelling.labels, strict=True):
            at = (trace.domain, trace.checkpoint)
            self.seen.add(at)
            present = labels[pattern].present
            if present is None:
                self.undecided[at] += 1
                continue
            for stratum, results in _STRATA.items():
                if trace.success in results:
                    traces.setdefault((*at, stratum), []).append((trace.group, present))
        self._samples = {key: Sample.of(value) for key, value in traces.items()}

    def sample(self, domain: str, checkpoint: str, stratum: str = "all") -> Sample:
        return self._samples.get((domain, checkpoint, stratum), _EMPTY)

    def prevalence(self, domain: str, checkpoint: str) -> Prevalence:
        rates = {stratum: self.sample(domain, checkpoint, stratum).rate(self.seed) for stratum in _STRATA}
        undecided = self.undecided[domain, checkpoint]
        return Prevalence(self.pattern, domain, checkpoint, **rates, undecided=undecided)

    def change(self, domain: str, before: str, after: str) -> Change:
        rises = {
            stratum: difference(self.sample(domain, after, stratum), self.sample(domain, before, stratum), self.seed)
            for stratum in _STRATA
        }
        return Change(self.pattern, domain, before, after, **rises)

    def transfer(self, checkpoint: str, first: str) -> Transfer:
        games, math = (self.sample(domain, checkpoint) for domain in DOMAINS)
        since = [
            None
            if checkpoint == first
            else difference(self.sample(domain, checkpoint), self.sample(domain, first), self.seed)
            for domain in DOMAINS
        ]
        return Transfer(
            self.pattern,
            checkpoint,
            games.rate(self.seed).interval,
            math.rate(self.seed).interval,
            difference(math, games, self.seed),
            *since,
        )


def measure(labelling: Labelling, seed: int) -> Measures:
    """Every figure of a labelling. Equal seeds give equal intervals."""
    checkpoints = order_checkpoints(labelling.traces)
    prevalence: list[Prevalence] = []
    changes: list[Change] = []
    transfer: list[Transfer] = []
    for pattern in labelling.rubric.names:
        table = _PatternTable(labelling, pattern, seed)
        for domain in DOMAINS:
            own = [checkpoint for checkpoint in checkpoints if (domain, checkpoint) in table.seen]
            prevalence += [table.prevalence(domain, checkpoint) for checkpoint in own]
            changes += [table.change(domain, own[0], after) for after in own[1:]]
        if {domain for domain, _ in table.seen} == set(DOMAINS):
            transfer += [table.transfer(checkpoint, checkpoints[0]) for checkpoint in checkpoints]
    return Measures(tuple(prevalence), tuple(changes), tuple(transfer))


def _json(interval: Interval | None) -> dict[str, float | None] | None:
    return None if interval is None else interval.to_dict()
