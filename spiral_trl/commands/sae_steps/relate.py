"""`spiral-trl sae relate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...errors import UsageError, did_you_mean, usage_errors
from ..loading import check_file
from ..output import percent, print_table
from .reading import check_least, codes_of, dictionaries_of, directions_of, write_result


HELP = """Relate the features of neighbouring layers by every measure of arXiv 2410.08869, and label them: passing through,
gates, specialising; with the flow between layers and communities."""
EXAMPLES = """  spiral-trl sae relate run --dictionaries run/dictionaries
  spiral-trl sae relate gpt2 --dictionaries release:gpt2-small-res-jb --processes 2"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", help="the run's folder, with codes/; relations/, graph.json and labels.parquet go there"
    )
    parser.add_argument("--dictionaries", metavar="NAME", help="for the cosine of decoder directions")
    parser.add_argument("--top-k", type=int, default=16, help="neighbours kept of each feature (default: 16)")
    parser.add_argument("--pass-threshold", type=float, default=0.95, help="similarity of what passes (default: 0.95)")
    parser.add_argument("--gate-threshold", type=float, default=0.95, help="of a gate's inputs (default: 0.95)")
    parser.add_argument("--community-measure", default="pearson", help="(default: pearson)")
    parser.add_argument("--community-threshold", type=float, default=0.5, help="(default: 0.5)")
    parser.add_argument("--processes", type=int, default=1, help="(default: 1)")


def run(options: argparse.Namespace) -> None:
    with usage_errors():
        check_file(options.json, "--json")
    from ...sae.graph import CommunitySettings, build_graph
    from ...sae.labels import LabelSettings
    from ...sae.relations import MEASURES, relate

    if options.community_measure not in MEASURES:
        raise UsageError(
            f"--community-measure {options.community_measure!r}; allowed: {', '.join(MEASURES)}"
            f"{did_you_mean(options.community_measure, MEASURES)}"
        )
    if options.community_measure == "decoder_cosine" and options.dictionaries is None:
        raise UsageError("--community-measure decoder_cosine needs --dictionaries")
    check_least(options, top_k=1, processes=1)
    labels = LabelSettings(pass_threshold=options.pass_threshold, gate_threshold=options.gate_threshold)
    store = codes_of(options.run)
    directions = None if options.dictionaries is None else directions_of(dictionaries_of(store, options.dictionaries))
    relations = relate(
        store,
        Path(options.run) / "relations",
        directions=directions,
        top_k=options.top_k,
        processes=options.processes,
        progress=False if options.quiet else None,
    )
    community = CommunitySettings(measure=options.community_measure, threshold=options.community_threshold)
    graph = build_graph(store, relations, options.run, labels, community=community)
    rows = [
        [
            f"{flow['layer']} to {flow['next']}",
            *(
                "-" if flow[name] is None else percent(flow[name])
                for name in ("disappearing_share", "appearing_share")
            ),
        ]
        for flow in graph.flow
    ]
    title = f"features that fire, %: {len(graph.gates)} gates, {len(graph.communities['list'])} communities"
    print_table(title, ["layers", "disappear", "appear"], rows)
    write_result(options, graph.to_dict())
