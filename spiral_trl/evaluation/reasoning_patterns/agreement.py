"""How far labels agree: with those of people, and among votes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...names import unknown
from ...stats import Interval, wilson_interval
from .labelling import Labelling
from .rubric import Rubric
from .traces import Trace


# Labels of people: by id of the trace, annotator and pattern
Labelled = dict[str, dict[str, dict[str, bool]]]


@dataclass(frozen=True)
class Agreement:
    """Of labels with those in a file, on one pattern.

    Args:
        pattern (`str`): Which.
        traces (`int`): How many have both.
        kappa ([`~spiral_trl.stats.Interval`], *optional*): Cohen's, with a 95% bootstrap interval over traces; `None`
            where it is not defined, as where both sides always say the same one thing.
        same ([`~spiral_trl.stats.Interval`], *optional*): Share of equal labels.
        precision, recall (`float`, *optional*): Of "present", against the file.
        annotators (`int`): How many there are in the file.
        annotators_kappa (`float`, *optional*): Fleiss', among them, over traces that two or more labelled.
    """

    pattern: str
    traces: int
    kappa: Interval | None
    same: Interval | None
    precision: float | None
    recall: float | None
    annotators: int
    annotators_kappa: float | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        intervals = {
            key: None if value is None else value.to_dict()
            for key, value in (("kappa", self.kappa), ("same", self.same))
        }
        return {**vars(self), **intervals}


def write_sample(path: Path, traces: Sequence[Trace], rubric: Rubric) -> int:
    """Writes traces for people to label, one a line, and answers how many: their text alone, without checkpoint and
    result, so that nobody labels what they expect. Equal texts come once."""
    distinct = {trace.id: trace.text for trace in traces}
    with path.open("w", encoding="utf-8") as lines:
        for key, text in distinct.items():
            row = {"id": key, "annotator": "", "labels": dict.fromkeys(rubric.names), "text": text}
            lines.write(json.dumps(row) + "\n")
    return len(distinct)


def read_labelled(path: Path, rubric: Rubric) -> Labelled:
    """The labels in a file of lines as [`write_sample`] or [`~.labelling.Labelling.rows`] make them: `id`, `labels`
    (true, false or null by pattern) and, where several people labelled, `annotator`.

    Raises:
        `ValueError`: In one line, where it is no such file or holds no label.
    """
    if not path.is_file():
        raise ValueError(f"there is no labelled file {path}")
    found: Labelled = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}: line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where} is no JSON ({error})") from None
            if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not _is_labels(row.get("labels")):
                raise ValueError(f"{where} needs id, a string, and labels, true, false or null by pattern")
            for name in row["labels"]:
                if name not in rubric.names:
                    raise ValueError(f"{where}: {unknown('pattern', str(name)[:80], rubric.names)}")
            stated = {name: label for name, label in row["labels"].items() if label is not None}
            by_annotator = found.setdefault(row["id"], {})
            annotator = str(row.get("annotator") or "")
            if by_annotator.get(annotator, stated) != stated:
                who = annotator[:80] or "one annotator"
                raise ValueError(f"{where}: {who} labelled {row['id'][:40]} otherwise before")
            by_annotator[annotator] = stated
    if not any(stated for by_annotator in found.values() for stated in by_annotator.values()):
        raise ValueError(f"{path} holds no label; set true or false in labels")
    return found


def _is_labels(value: object) -> bool:
    return isinstance(value, dict) and all(label is None or isinstance(label, bool) for label in value.values())


def measure_agreement(labelling: Labelling, labelled: Labelled, seed: int) -> list[Agreement]:
    """How far a labelling agrees with a labelled file, by pattern. Of several annotators the majority counts; traces on
    which they are split, or whose label is undecided, are left out."""
    by_id = {
        trace.id: labels for trace, labels in zip(labelling.traces, labelling.labels, strict=True)
    }  # equal texts have equal labels
    found = []
    for pattern in labelling.rubric.names:
        own, theirs, ratings = [], [], []
        annotators: set[str] = set()
        for key, by_annotator in labelled.items():
            stated = {who: labels[pattern] for who, labels in by_annotator.items() if pattern in labels}
            annotators |= set(stated)
            yes = sum(stated.values())
            ratings.append((yes, len(stated) - yes))
            label = by_id[key][pattern].present if key in by_id else None
            if label is not None and 2 * yes != len(stated):
                own.append(label)
                theirs.append(2 * yes > len(stated))
        a, b = np.array(own, dtype=bool), np.array(theirs, dtype=bool)
        both = int((a & b).sum())
        found.append(
            Agreement(
                pattern=pattern,
                traces=len(a),
                kappa=kappa_interval(a, b, seed),
                same=wilson_interval(int((a == b).sum()), len(a)) if len(a) else None,
                precision=both / int(a.sum()) if a.any() else None,
                recall=both / int(b.sum()) if b.any() else None,
                annotators=len(annotators),
                annotators_kappa=fleiss_kappa(ratings),
            )
        )
    return found


def votes_kappa(labelling: Labelling) -> dict[str, float | None]:
    """Fleiss' kappa among the votes that count, by pattern: how far a judge agrees with itself. Each text counts once."""
    by_id = {trace.id: labels for trace, labels in zip(labelling.traces, labelling.labels, strict=True)}
    return {
        name: fleiss_kappa([labels[name].votes[:2] for labels in by_id.values()]) for name in labelling.rubric.names
    }


def cohen_kappa(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    r"""Cohen's kappa (1960) of two raters on yes and no, `(p_o - p_e) / (1 - p_e)`, along the last axis.

    Args:
        a, b (`np.ndarray`): `[..., n]` what each said.

    Returns:
        `np.ndarray`: `[...]` kappa; NaN where both always say the same one thing.
    """
    same = (a == b).mean(-1)
    p, q = a.mean(-1), b.mean(-1)
    chance = p * q + (1 - p) * (1 - q)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance < 1, (same - chance) / (1 - chance), np.nan)


def kappa_interval(a: np.ndarray, b: np.ndarray, seed: int, replicates: int = 2000) -> Interval | None:
    """Cohen's kappa with a 95% percentile bootstrap interval over what was rated; `None` where it is not defined.

    Resamples for which it is not defined do not count. Where the raters always agree, resamples do too and bound nothing:
    the lower end is infinite.

    Args:
        a, b (`np.ndarray`): `[n]` what each rater said.
        seed (`int`): Seed of the resampling.
        replicates (`int`, *optional*, defaults to `2000`): How many resamples.
    """
    estimate = float(cohen_kappa(a, b)) if len(a) else float("nan")
    if np.isnan(estimate):
        return None
    if (a == b).all():
        return Interval(estimate, float("-inf"), estimate)
    index = np.random.default_rng(seed).integers(0, len(a), (replicates, len(a)))
    drawn = cohen_kappa(a[index], b[index])
    low, high = np.quantile(drawn[~np.isnan(drawn)], [0.025, 0.975])
    return Interval(estimate, float(low), float(high))


def fleiss_kappa(ratings: Sequence[Sequence[int]]) -> float | None:
    r"""Fleiss' kappa of several raters on yes and no, whose number may differ between subjects.

    With $x_i$ of $m_i$ raters saying yes, N subjects, mean number of raters m and mean share p of yes,
    $1 - \sum_i x_i (m_i - x_i) / m_i \,/\, (N (m - 1) p (1 - p))$ (Fleiss and Cuzick, 1979); for equal $m_i$ it is the
    kappa of Fleiss (1971).

    Args:
        ratings (`Sequence[Sequence[int]]`): How many said yes, and no, of each subject. Those with fewer than two
            raters do not count.

    Returns:
        `float`, *optional*: Kappa; `None` where it is not defined: no subject, or all ratings alike.
    """
    counted = np.array([(yes, no) for yes, no in ratings if yes + no >= 2], dtype=np.float64).reshape(-1, 2)
    raters = counted.sum(1)
    p = counted[:, 0].sum() / raters.sum() if len(counted) else 0.0
    if p in (0.0, 1.0):
        return None
    split = (counted.prod(1) / raters).sum()
    return float(1 - split / (len(counted) * (raters.mean() - 1) * p * (1 - p)))


def matched(labelling: Labelling, labelled: Mapping[str, object]) -> int:
    """How many labelled traces are among those of a labelling."""
    return len({trace.id for trace in labelling.traces} & set(labelled))
