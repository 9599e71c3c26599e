"""`spiral-trl sae report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...errors import UsageError, usage_errors
from ..loading import check_file
from .reading import check_folder, check_least, codes_of, dictionaries_of, directions_of, load_for, write_result


HELP = "Write the page of a run, or of graphs in the node-link JSON that the authors of arXiv 2410.08869 publish."
EXAMPLES = """  spiral-trl sae report run --model outputs/kuhn --dictionaries run/dictionaries --output run/report.html
  spiral-trl sae report graphs/*.json --output graphs.html
  spiral-trl sae report run --community 3 --export community.json
  spiral-trl sae report run --around 3/18 --hops 2 --threshold 0.5 --export around.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="+", help="the run's folder; or files of graphs, or a folder of them")
    parser.add_argument("--output", metavar="PAGE", help="page.html, or a folder for index.html and shards")
    parser.add_argument("--model", help="for tokens as text and the logit lens")
    parser.add_argument("--dictionaries", metavar="NAME", help="for the logit lens")
    parser.add_argument("--title", help="heading of the page")
    parser.add_argument("--features", type=int, default=2000, help="features shown at most (default: 2000)")
    parser.add_argument("--community", type=int, metavar="ID", help="the community that --export writes")
    parser.add_argument("--around", metavar="LAYER/FEATURE", help="the feature whose neighbourhood --export writes")
    parser.add_argument("--hops", type=int, default=1, help="how many layers around it (default: 1)")
    parser.add_argument("--measure", default="pearson", help="what the export's similarities are (default: pearson)")
    parser.add_argument("--threshold", type=float, help="least similarity of an exported edge")
    parser.add_argument(
        "--export", type=Path, metavar="FILE", help="write a community or a neighbourhood as node-link JSON"
    )


def run(options: argparse.Namespace) -> None:
    with usage_errors():
        check_file(options.json, "--json")
        check_file(options.export, "--export", (".json",))
    if (options.community is not None) + (options.around is not None) != (options.export is not None):
        raise UsageError("--export FILE goes with one of --community ID and --around LAYER/FEATURE")
    if options.hops < 0:
        raise UsageError(f"--hops cannot be below 0, as {options.hops} is")
    if options.output is None and options.export is None:
        raise UsageError("--output says where the page goes")
    if options.output is not None and options.output.endswith(".html"):
        if Path(options.output).is_dir():
            raise UsageError(f"--output {options.output} is a folder")
        check_folder(str(Path(options.output).parent), "the folder of --output")
    else:
        check_folder(options.output, "--output")
    from ...sae.sources import check_dataset

    sources = [Path(source) for source in options.source]
    for source in sources:
        check_dataset(str(source.absolute()))
    runs = [source for source in sources if (source / "codes").is_dir() or (source / "store.json").is_file()]
    if not runs:
        _of_graphs(options, sources)
    elif len(sources) == 1:
        _of_run(options, sources[0])
    else:
        raise UsageError(f"a page is of one run, or of graphs; {runs[0]} is a run and one of {len(sources)} given")


def _of_graphs(options: argparse.Namespace, sources: list[Path]) -> None:
    from ...sae.node_link import report_of_graph
    from ...sae.report import write_data

    for name in ("export", "model", "dictionaries"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name} is for the folder of a run; {sources[0]} is none")
    files = [file for source in sources for file in (sorted(source.glob("*.json")) if source.is_dir() else [source])]
    if not files:
        raise UsageError(f"{sources[0]} holds neither codes of a run nor a .json file of a graph")
    data = report_of_graph(files, **({"title": options.title} if options.title else {}))
    write_data(data, options.output)
    print(f"{len(data['features'])} features, {len(data['edges'])} edges: {options.output}")
    write_result(options, {"features": len(data["features"]), "edges": len(data["edges"])})


def _place(text: str) -> tuple[int, int]:
    layer, _, feature = text.partition("/")
    if not (layer.isdecimal() and feature.isdecimal()):
        raise UsageError(f"--around names a feature as LAYER/FEATURE, such as 3/18, not {text!r}")
    return int(layer), int(feature)


def _of_run(options: argparse.Namespace, folder: Path) -> None:
    from ...sae.report import write_report
    from ...sae.selection import Limits
    from ...sae.sources import load_config

    check_least(options, features=1)
    store = codes_of(folder)
    config = None if options.model is None else load_config(options.model)
    directions = None
    if options.dictionaries is not None:
        directions = directions_of(dictionaries_of(store, options.dictionaries, config))
    told: dict[str, object] = {}
    if options.export is not None:
        from ...sae.export import export_run
        from ...sae.node_link_file import write_node_link

        graph = export_run(
            folder,
            options.measure,
            community=options.community,
            around=None if options.around is None else _place(options.around),
            hops=options.hops,
            threshold=options.threshold,
        )
        write_node_link(graph, options.export)
        told["exported"] = {"nodes": len(graph.nodes), "links": len(graph.links)}
        print(f"{len(graph.nodes)} features, {len(graph.links)} edges: {options.export}")
    if options.output is not None:
        model, tokenizer = (None, None) if options.model is None else load_for(options, options.model)
        limits = Limits(features=options.features)
        data = write_report(folder, options.output, tokenizer, model, directions, title=options.title, limits=limits)
        told |= {"features": len(data["features"]), "edges": len(data["edges"])}
        print(f"{len(data['features'])} features, {len(data['edges'])} edges: {options.output}")
    write_result(options, told)
