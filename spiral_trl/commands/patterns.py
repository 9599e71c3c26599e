"""`spiral-trl patterns`: reasoning patterns in traces of games and math, found, labelled and counted over training."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..errors import PlayerError, UsageError, usage_errors
from ..evaluation.reasoning_patterns import (
    DOMAINS,
    AnswerCache,
    Judge,
    Labelled,
    Labelling,
    Request,
    Rubric,
    Trace,
    classification_requests,
    discover,
    discovery_requests,
    label_by_judge,
    label_by_rules,
    load_rubric,
    matched,
    measure,
    measure_agreement,
    read_labelled,
    read_traces,
    rubric_yaml,
    sample_traces,
    votes_kappa,
    write_sample,
)
from ..names import split_name
from ..players.endpoint import EndpointPlayer
from ..players.registry import make_player
from ..version import __version__
from .loading import check_file
from .output import Progress, end_with_notes, one_line
from .patterns_tables import show_discovery, show_labelling


HELP = "Find reasoning patterns in what models wrote, label traces by a rubric, and count them over training."
EXAMPLES = """  spiral-trl patterns discover --games 0=outputs/base/episodes 400=outputs/trained/episodes --judge "endpoint(model=judge,base_url=http://localhost:8000/v1,api_key_env=none)" --output found.yaml
  spiral-trl patterns sample --games 0=outputs/base/episodes 400=outputs/trained/episodes --output to_label.jsonl
  spiral-trl patterns classify --games 0=outputs/base/episodes 400=outputs/trained/episodes --math math.jsonl --heuristic
  spiral-trl patterns classify --games 0=outputs/base/episodes 400=outputs/trained/episodes --math math.jsonl --judge "endpoint(model=judge,base_url=http://localhost:8000/v1,api_key_env=none)" --json patterns.json"""

_ACTIONS = ("discover", "sample", "classify")
# Options that only some actions take, and their defaults there
_OWN: dict[str, dict[str, Any]] = {
    "judge": {"discover": None, "classify": None},
    "heuristic": {"classify": None},
    "rubric": {"sample": None, "classify": None},
    "votes": {"classify": 3},
    "max_calls": {"discover": 1000, "classify": 1000},
    "cache": {"discover": Path("patterns_cache"), "classify": Path("patterns_cache")},
    "max_chars": {"discover": 20_000, "classify": 20_000},
    "per_checkpoint": {"discover": 20, "sample": 50, "classify": None},
    "labelled": {"classify": None},
    "labels": {"classify": None},
    "output": {"discover": None, "sample": None},
    "dry_run": {"discover": None, "classify": None},
    "json": {"discover": None, "classify": None},
}
_LABEL = re.compile(r"([\w.+-]{1,40})=(.+)", re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=_ACTIONS,
        help="discover: a judge names the patterns of sampled traces and drafts a rubric; sample: draws traces for "
        "people to label; classify: labels traces by a rubric and counts them",
    )
    parser.add_argument(
        "--games",
        nargs="+",
        default=[],
        metavar="[CHECKPOINT=]PATH",
        help="episodes: a dataset's folder such as episodes/ of a run, or .jsonl as play --json writes it; or traces",
    )
    parser.add_argument(
        "--math",
        nargs="+",
        default=[],
        metavar="[CHECKPOINT=]PATH",
        help=".jsonl or .parquet, a solution a row: text, success, checkpoint, and group where several solve one problem",
    )
    parser.add_argument("--players", nargs="+", metavar="NAME", help="whose seats (default: everyone's but bots')")
    parser.add_argument("--judge", metavar="ENDPOINT", help="endpoint(model=NAME,base_url=URL,temperature=T,...)")
    parser.add_argument(
        "--heuristic", action="store_true", default=None, help="label by the rubric's lexical rules, without a judge"
    )
    parser.add_argument("--rubric", type=Path, metavar="FILE", help="YAML (default: the three patterns of the paper)")
    parser.add_argument("--votes", type=int, help="votes of the judge on each trace (default: 3)")
    parser.add_argument("--max-calls", type=int, help="most calls of this run, repeated ones included (default: 1000)")
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="where answers are kept (default: patterns_cache)"
    )
    parser.add_argument(
        "--max-chars", type=int, help="longer traces are shown to the judge by beginning and end (default: 20000)"
    )
    parser.add_argument(
        "--per-checkpoint",
        type=int,
        metavar="N",
        help="random traces of each domain and checkpoint (default: 20 in discover, 50 in sample, all in classify)",
    )
    parser.add_argument("--labelled", type=Path, metavar="FILE", help="labels of people, to measure agreement with")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="write the label of every trace as .jsonl")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the drafted rubric, or the sample, goes")
    parser.add_argument(
        "--dry-run", action="store_true", default=None, help="say what would be sent, and send nothing"
    )
    parser.add_argument("--seed", type=int, default=0, help="samples and intervals derive from it (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(options: argparse.Namespace) -> None:
    with ExitStack() as stack:
        # Whatever can be known to be wrong shows before anything is sent
        with usage_errors():
            _check(options)
            rubric = load_rubric(options.rubric)
            traces = _traces(options)
            labelled = None if options.labelled is None else read_labelled(options.labelled, rubric)
            if labelled is not None and not any(trace.id in labelled for trace in traces):
                raise ValueError(f"none of the traces is labelled in {options.labelled}")
            if options.action == "sample":
                count = write_sample(options.output, traces, rubric)
                print(f"{count} traces to label: {options.output}")
                return
            if options.heuristic:
                _report(options, label_by_rules(rubric, traces), labelled, None)
                return
            player = _endpoint(options)
            cache = stack.enter_context(AnswerCache(options.cache))
        progress = Progress(options.quiet)
        judge = Judge(player, cache, lambda done, total, what: progress(done - 1, total, what))
        try:
            if options.action == "discover":
                _discover(options, judge, traces, progress)
            else:
                _classify(options, judge, rubric, traces, labelled, progress)
        except KeyboardInterrupt:
            progress.clear()
            print(f"interrupted; {_goes_on(options)}", file=sys.stderr)
            sys.exit(130)


def _check(options: argparse.Namespace) -> None:
    """Which options there may be and must be, and their values; fills in what depends on the action."""
    action = options.action
    for option, actions in _OWN.items():
        if getattr(options, option) is None:
            setattr(options, option, actions.get(action))
        elif action not in actions:
            raise UsageError(f"--{option.replace('_', '-')} is for {' and '.join(actions)}, not for {action}")
    if not options.games and not options.math:
        raise UsageError("name traces with --games or --math")
    if options.players and not options.games:
        raise UsageError("--players names seats of games; there are no --games")
    if action == "discover" and options.judge is None:
        raise UsageError("discover needs --judge, such as endpoint(model=NAME,base_url=URL)")
    if action == "classify" and (options.judge is None) is (options.heuristic is None):
        raise UsageError("classify needs either --judge, such as endpoint(model=NAME,base_url=URL), or --heuristic")
    if action in _OWN["output"] and options.output is None:
        raise UsageError(f"{action} needs --output FILE")
    if options.heuristic and options.dry_run:
        raise UsageError("--heuristic sends nothing; leave out --dry-run")
    for option, least in (("votes", 1), ("max_calls", 0), ("max_chars", 200), ("per_checkpoint", 1)):
        value = getattr(options, option)
        if value is not None and value < least:
            raise UsageError(f"--{option.replace('_', '-')} has to be at least {least}, not {value}")
    check_file(options.json, "--json")
    check_file(options.labels, "--labels", (".jsonl",))
    check_file(options.output, "--output", (".jsonl",) if action == "sample" else (".yaml", ".yml"))


def _traces(options: argparse.Namespace) -> list[Trace]:
    """The traces that were named, or a sample of them, in a random order."""
    traces: list[Trace] = []
    named = set()
    for domain in DOMAINS:
        for text in getattr(options, domain):
            label, path = _labelled_path(text)
            if path.absolute() in named:
                raise UsageError(f"{path} is named twice")
            named.add(path.absolute())
            traces += read_traces(domain, path, label, options.players or ())
    return sample_traces(traces, options.per_checkpoint, options.seed)


def _labelled_path(text: str) -> tuple[str | None, Path]:
    """Checkpoint and path of `400=outputs/kuhn/episodes`."""
    found = _LABEL.fullmatch(text)
    if found is None or Path(text).exists():
        return None, Path(text)
    return found[1], Path(found[2])


def _endpoint(options: argparse.Namespace) -> EndpointPlayer:
    """The judge's endpoint, with the budget of calls."""
    name, stated = split_name(options.judge, "player")
    if name != "endpoint":
        raise UsageError(f"--judge has to be endpoint(model=NAME,base_url=URL,...), not {options.judge!r}")
    player = make_player(options.judge)
    assert isinstance(player, EndpointPlayer)
    if (options.votes or 1) > 1 and float(stated.get("temperature", 1)) == 0:
        raise UsageError(
            f"at temperature 0 the {options.votes} votes on a trace would be one; state --votes 1 or a temperature"
        )
    player.max_calls = options.max_calls if player.max_calls is None else min(options.max_calls, player.max_calls)
    return player


def _goes_on(options: argparse.Namespace) -> str:
    return f"what was answered is kept in {options.cache}, and the same command goes on from there"


def _planned(options: argparse.Namespace, judge: Judge, requests: Sequence[Request], what: str) -> bool:
    """Says what will be sent; answers whether it shall be."""
    plan = judge.plan(requests)
    line = (
        f"{plan.calls:,} calls to make, {plan.characters:,} characters to send: {what}; {plan.kept:,} answers are kept "
        f"in {options.cache}"
    )
    budget = judge.player.max_calls
    if budget is not None and plan.calls > budget:
        line += f"; the budget of this run is {budget:,} calls"
    if options.dry_run:
        print(line)
        return False
    if not options.quiet:
        print(line, file=sys.stderr, flush=True)
    return True


def _classify(
    options: argparse.Namespace,
    judge: Judge,
    rubric: Rubric,
    traces: Sequence[Trace],
    labelled: Labelled | None,
    progress: Progress,
) -> None:
    wanted = classification_requests(rubric, traces, options.votes, options.max_chars)
    what = f"votes on {len(traces):,} traces, {options.votes} each, equal texts once"
    if _planned(options, judge, [request for requests in wanted for request in requests], what):
        labelling = label_by_judge(judge, rubric, traces, options.votes, options.max_chars)
        progress.clear()
        _report(options, labelling, labelled, judge)


def _report(options: argparse.Namespace, labelling: Labelling, labelled: Labelled | None, judge: Judge | None) -> None:
    """Writes and prints all figures of a labelling."""
    measures = measure(labelling, options.seed)
    found = None if labelled is None else measure_agreement(labelling, labelled, options.seed)
    kappas = None if judge is None else votes_kappa(labelling)
    cut = sum(len(trace.text) > options.max_chars for trace in labelling.traces) if judge is not None else 0
    figures = {
        "version": __version__,
        "labeller": labelling.labeller,
        "heuristic": labelling.heuristic,
        "rubric": {
            "name": labelling.rubric.name,
            "sha256": labelling.rubric.sha256,
            "patterns": labelling.rubric.names,
        },
        "seed": options.seed,
        "traces": len(labelling.traces),
        "unlabelled": labelling.unlabelled,
        "shown_in_part": cut,
        "void_votes": dict(labelling.void),
        "votes_kappa": kappas,
        "usage": None if judge is None else judge.usage(),
        **measures.to_dict(),
        "agreement": None if found is None else [entry.to_dict() for entry in found],
        "failed": labelling.note,
    }
    with usage_errors():
        if options.json is not None:
            options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        if options.labels is not None:
            with options.labels.open("w", encoding="utf-8") as lines:
                for row in labelling.rows():
                    lines.write(json.dumps(row) + "\n")
    show_labelling(labelling, measures, found, kappas)
    if labelled is not None and len(labelled) > matched(labelling, labelled):
        print(f"{len(labelled) - matched(labelling, labelled)} labels of {options.labelled} are of no trace here")
    if cut:
        print(f"{cut} traces of more than {options.max_chars:,} characters were shown in part")
    notes = []
    if labelling.note is not None:
        notes = [f"{labelling.note}; {labelling.unlabelled:,} traces are without labels; {_goes_on(options)}"]
    end_with_notes((), notes)


def _discover(options: argparse.Namespace, judge: Judge, traces: Sequence[Trace], progress: Progress) -> None:
    what = f"patterns of {len(traces):,} traces, equal texts once, before they are merged"
    if not _planned(options, judge, discovery_requests(traces, options.max_chars), what):
        return
    try:
        found = discover(judge, traces, options.max_chars)
    except PlayerError as error:
        progress.clear()
        raise PlayerError(f"{error}; {_goes_on(options)}") from None
    progress.clear()
    comment = (
        f"Patterns that {one_line(found.judge)} named in {found.traces} traces: a draft, in a judge's words, which may\n"
        "repeat what the traces say. Read and edit it before classify --rubric reads it."
    )
    with usage_errors():
        text = rubric_yaml("discovered", [entry.pattern for entry in found.patterns], comment)
        options.output.write_text(text, encoding="utf-8")
        if options.json is not None:
            figures = {"version": __version__, "seed": options.seed, "usage": judge.usage(), **found.to_dict()}
            options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    show_discovery(found)
    print(f"rubric: {options.output}; read it before classify --rubric {options.output}")
