"""`spiral-trl sae train`."""

from __future__ import annotations

import argparse

from ...errors import UsageError, usage_errors
from ...players.frozen_model import model_name
from ..loading import check_file
from ..output import print_table
from .reading import Reading, add_reading_arguments, bar, check_folder, check_least, layers_of, load_for, write_result


HELP = (
    "Train sparse autoencoders on the residual streams of a model, all layers in one pass; saved as SAELens has them."
)
EXAMPLES = """  spiral-trl sae train outputs/kuhn --episodes outputs/kuhn/episodes --output outputs/dictionaries
  spiral-trl sae train openai-community/gpt2 --texts corpus.jsonl --layers 0,4-8 --features 24576 --output gpt2-saes"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model's folder, or its id on the Hub")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the autoencoders go")
    parser.add_argument(
        "--layers", help="layers, as 0,3-5; layer 0 is the stream before the first block (default: all)"
    )
    parser.add_argument("--features", type=int, help="features of each (default: 8 times the width)")
    parser.add_argument("--active", type=int, help="features active for a token (default: an eighth of the width)")
    parser.add_argument("--architecture", default="topk", help="of SAELens (default: topk)")
    parser.add_argument("--tokens", type=int, default=2_000_000, help="tokens to train on (default: 2,000,000)")
    parser.add_argument("--learning-rate", type=float, help="of Adam (default: by the number of features)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
    add_reading_arguments(parser)


def run(options: argparse.Namespace) -> None:
    layers = layers_of(options.layers)
    with usage_errors():
        check_file(options.json, "--json")
    check_folder(options.output, "--output")
    check_least(options, features=1, active=1, tokens=1)
    if options.active is not None and options.features is not None and options.active > options.features:
        raise UsageError(f"--active {options.active} of --features {options.features}: there are not so many")
    if options.learning_rate is not None and not options.learning_rate > 0:
        raise UsageError(f"--learning-rate has to be above 0, not {options.learning_rate}")
    from ...sae.activations import check_layers_of
    from ...sae.sources import load_config
    from ...sae.train import train_dictionaries
    from ...sae.trainers import check_options

    check_options(options.architecture, {})
    check_layers_of(load_config(options.model), layers or ())
    reading = Reading(options)
    model, tokenizer = load_for(options, options.model)
    with bar("training", options.quiet) as progress:
        trained = train_dictionaries(
            model,
            reading.documents(tokenizer),
            options.output,
            model_name=model_name(options.model),
            layers=layers,
            num_features=options.features,
            architecture=options.architecture,
            active=options.active,
            tokens=options.tokens,
            learning_rate=options.learning_rate,
            seed=options.seed,
            source=reading.source,
            progress=progress,
        )
    rows = [
        [layer, *("-" if of[name] is None else f"{of[name]:.4g}" for name in ("unexplained_variance", "l0", "dead"))]
        for layer, of in trained.layers.items()
    ]
    print_table(f"{options.output}", ["layer", "unexplained variance", "active", "dead"], rows)
    write_result(options, trained.to_dict())
