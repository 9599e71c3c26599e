"""`spiral-trl sae collect`."""

from __future__ import annotations

import argparse
import json

from ...errors import usage_errors
from ...players.frozen_model import model_name
from ..loading import check_file
from ..output import print_table
from .reading import Reading, add_reading_arguments, check_folder, layers_of, load_for, write_result


HELP = (
    "Run a model once over games or texts and keep the sparse codes of its residual streams; goes on where it stopped."
)
EXAMPLES = """  spiral-trl sae collect outputs/kuhn --dictionaries saes --episodes outputs/kuhn/episodes --output run/codes
  spiral-trl sae collect openai-community/gpt2 --dictionaries release:gpt2-small-res-jb --texts corpus.jsonl \\
      --bos --drop-first --max-tokens 10000000 --output gpt2/codes"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model's folder, or its id on the Hub")
    parser.add_argument("--dictionaries", required=True, metavar="NAME", help="a folder, or release:NAME of SAELens")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the codes go")
    parser.add_argument("--layers", help="layers, as 0,3-5 (default: all there are autoencoders of)")
    parser.add_argument("--any-model", action="store_true", help="take autoencoders of a model of another name")
    parser.add_argument("--value-dtype", choices=("float16", "float32"), default="float16", help="(default: float16)")
    add_reading_arguments(parser)


def run(options: argparse.Namespace) -> None:
    layers = layers_of(options.layers)
    with usage_errors():
        check_file(options.json, "--json")
    check_folder(options.output, "--output")
    from ...sae.collect import collect
    from ...sae.dictionaries import check_dictionaries, load_dictionaries
    from ...sae.sources import load_config

    check_dictionaries(options.dictionaries, load_config(options.model), layers, any_model=options.any_model)
    reading = Reading(options)
    model, tokenizer = load_for(options, options.model)
    dictionaries = load_dictionaries(options.dictionaries, model, layers, any_model=options.any_model)
    store = collect(
        model,
        {layer: dictionary.to(model.device) for layer, dictionary in dictionaries.items()},
        reading.documents(tokenizer),
        options.output,
        model_name=model_name(options.model),
        source=reading.source,
        value_dtype=options.value_dtype,
        progress=False if options.quiet else None,
    )
    quality = json.loads((store.folder / "quality.json").read_text(encoding="utf-8"))
    rows = [
        [layer, *("-" if of[name] is None else f"{of[name]:.4g}" for name in ("unexplained_variance", "l0", "dead"))]
        for layer, of in quality.items()
    ]
    print_table(f"{store.num_tokens:,} tokens", ["layer", "unexplained variance", "active", "dead"], rows)
    write_result(options, {"tokens": store.num_tokens, "quality": quality})
