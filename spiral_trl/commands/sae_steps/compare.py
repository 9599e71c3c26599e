"""`spiral-trl sae compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...errors import UsageError, usage_errors
from ..loading import check_file
from .reading import bar, codes_of, print_tables, write_result


HELP = """What training changed: codes of a model before and after, by the autoencoders of the model before, held against the
noise of resampled games. Says plainly what is beyond it, also when it is nothing."""
EXAMPLES = """  spiral-trl sae compare run --before run/before --after run/after
  spiral-trl sae compare run --before run/before --after run/after --own run/own --control run/control"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", help="the folder that comparison.json and comparison.parquet go to")
    parser.add_argument("--before", metavar="CODES", help="codes of the model before")
    parser.add_argument("--after", metavar="CODES", help="codes of the model after, on the same games")
    parser.add_argument("--own", metavar="CODES", help="codes of the model after, on its own games")
    parser.add_argument("--control", metavar="CODES", help="codes of the model before, on other games of its own")
    parser.add_argument("--graphs", action="store_true", help="compare the graphs of features too")


def run(options: argparse.Namespace) -> None:
    with usage_errors():
        check_file(options.json, "--json")
    if options.before is None or (options.after is None and options.own is None):
        raise UsageError("--before is held against --after, --own or both")
    if options.graphs and options.after is None:
        raise UsageError("--graphs needs --after: graphs are compared on the same games")
    from ...sae.compare import compare
    from ...sae.graph_difference import compare_graphs

    before = codes_of(options.before)
    after, own, control = (
        None if name is None else codes_of(name) for name in (options.after, options.own, options.control)
    )
    graph = None
    if options.graphs and after is not None:
        graph = compare_graphs(before, after, Path(options.output) / "graphs")
    with bar("comparison", options.quiet) as progress:
        comparison = compare(
            options.output,
            same_text=None if after is None else (before, after),
            on_policy=None if own is None else (before, own),
            control=control,
            graph=graph,
            progress=progress,
        )
    print_tables(comparison.data)
    write_result(options, comparison.data)
