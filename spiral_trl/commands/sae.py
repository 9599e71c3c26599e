"""`spiral-trl sae`: features of sparse autoencoders, from a model's streams to the page, one step at a time."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from ..sae.extra import require_extra


HELP = (
    "Features of sparse autoencoders: how they pass, combine and specialise across layers, and what training changed."
)
EXAMPLES = """  spiral-trl sae train MODEL --episodes MODEL/episodes --output run/dictionaries
  spiral-trl sae collect MODEL --dictionaries run/dictionaries --episodes MODEL/episodes --output run/codes
  spiral-trl sae relate run
  spiral-trl sae report run --model MODEL --dictionaries run/dictionaries --output run/report.html
  spiral-trl sae compare run --before run/before --after run/after
  spiral-trl sae ablate run --model MODEL --dictionaries run/dictionaries --episodes MODEL/episodes
  spiral-trl sae report graphs/*.json --output graphs.html"""

STEPS = {
    "train": "train autoencoders on the residual streams of a model, all layers at once",
    "collect": "run a model once and keep the sparse codes of its streams",
    "relate": "relate the features of neighbouring layers; labels, flow and communities",
    "report": "write the page of a run, or of published graphs",
    "compare": "what training changed, against the noise floor",
    "ablate": "switch features off: what becomes of their neighbours, or of the model's play",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True, parser_class=type(parser))
    for name, does in STEPS.items():
        module = import_module(f"..sae_steps.{name}", __name__)
        step = steps.add_parser(
            name,
            help=does,
            description=module.HELP,
            epilog=f"examples:\n{module.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(step)
        step.add_argument("--json", type=Path, metavar="FILE", help="write what was found as JSON")
        step.add_argument("--quiet", action="store_true", help="show no progress")
        step.set_defaults(run_step=module.run)


def run(options: argparse.Namespace) -> None:
    require_extra()
    options.run_step(options)
