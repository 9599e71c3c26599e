"""The tables of `spiral-trl patterns`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..evaluation.reasoning_patterns import Agreement, Discovery, Labelling, Measures, Rate
from ..stats import Interval
from .output import one_line, percent, print_table, with_interval


def show_labelling(
    labelling: Labelling,
    measures: Measures,
    agreement: Sequence[Agreement] | None,
    kappas: Mapping[str, float | None] | None,
) -> None:
    """Prints every table of a labelling; each says who labelled."""
    by = f"labels: {one_line(labelling.labeller)}"
    titles = {pattern.name: pattern.title for pattern in labelling.rubric.patterns}
    print_table(
        f"traces that use a pattern, in %, 95% intervals ({by})",
        ["pattern", "domain", "checkpoint", "traces", "groups", "all", "successes", "failures", "undecided"],
        [
            [
                titles[entry.pattern],
                entry.domain,
                entry.checkpoint,
                str(entry.all.traces),
                str(entry.all.groups),
                *(_rate(rate) for rate in (entry.all, entry.successes, entry.failures)),
                str(entry.undecided),
            ]
            for entry in measures.prevalence
        ],
    )
    if measures.changes:
        print()
        print_table(
            f"change over training, in percentage points, 95% intervals ({by})",
            ["pattern", "domain", "from", "to", "all", "successes", "failures"],
            [
                [
                    titles[entry.pattern],
                    entry.domain,
                    entry.before,
                    entry.after,
                    *(_points(interval) for interval in (entry.all, entry.successes, entry.failures)),
                ]
                for entry in measures.changes
            ],
        )
    if measures.transfer:
        print()
        print_table(
            f"from games to math, 95% intervals ({by})",
            ["pattern", "checkpoint", "games %", "math %", "math - games", "games since first", "math since first"],
            [
                [
                    titles[entry.pattern],
                    entry.checkpoint,
                    _share(entry.games),
                    _share(entry.math),
                    *(_points(i) for i in (entry.difference, entry.games_change, entry.math_change)),
                ]
                for entry in measures.transfer
            ],
        )
    if agreement is not None:
        print()
        _show_agreement(agreement, titles, by)
    if kappas is not None:
        shown = ", ".join(f"{titles[name]} {_number(kappa)}" for name, kappa in kappas.items())
        print(f"\nthe judge with itself, Fleiss' kappa among votes: {shown}")
    if labelling.void:
        listed = ", ".join(f"{reason} {count:,}" for reason, count in labelling.void.items())
        print(f"votes on a pattern that do not count: {listed}")
    if labelling.heuristic:
        print(f"\n{labelling.labeller}: words were matched, nothing was understood")


def _show_agreement(agreement: Sequence[Agreement], titles: Mapping[str, str], by: str) -> None:
    print_table(
        f"agreement with labels of people, 95% intervals ({by})",
        [
            "pattern",
            "traces",
            "Cohen's kappa",
            "same %",
            "precision %",
            "recall %",
            "annotators",
            "their Fleiss' kappa",
        ],
        [
            [
                titles[entry.pattern],
                str(entry.traces),
                with_interval(entry.kappa),
                _share(entry.same),
                *("-" if value is None else percent(value) for value in (entry.precision, entry.recall)),
                str(entry.annotators),
                _number(entry.annotators_kappa),
            ]
            for entry in agreement
        ],
    )


def show_discovery(found: Discovery) -> None:
    """Prints the patterns that were found, and what of the answers did not count."""
    strata = sorted({stratum for entry in found.patterns for stratum in entry.by_stratum})
    print_table(
        f"patterns named by {one_line(found.judge)}, by the traces they are named in (of {found.traces})",
        ["pattern", "traces", *map(one_line, strata)],
        [
            [entry.pattern.name, str(entry.traces), *(str(entry.by_stratum.get(stratum, 0)) for stratum in strata)]
            for entry in found.patterns
        ],
    )
    print()
    for entry in found.patterns:
        print(f"{entry.pattern.name}: {one_line(entry.pattern.definition)}")
    print(
        f"\nnot counted: {found.unreadable} answers that could not be read, {found.unproven} patterns without a quote "
        f"that stands in the trace, {found.unmerged} names put into no pattern"
    )


def _rate(rate: Rate) -> str:
    return _share(rate.interval)


def _share(interval: Interval | None) -> str:
    return with_interval(interval, 100, 1)


def _points(interval: Interval | None) -> str:
    return with_interval(interval, 100, 1, sign=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
