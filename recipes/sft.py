"""Supervised fine-tuning on expert decisions: the baseline that self-play is compared with.

    python recipes/sft.py                                                    # the embedded model, CPU, a minute
    spiral-trl experts kuhn_poker --expert Qwen/Qwen3-32B --output outputs/winners
    accelerate launch recipes/sft.py --config recipes/sft_qwen3_4b.yaml      # the paper's baseline, on that set

Every field of TRL's SFTConfig and ModelConfig and of SFTArguments may stand in the YAML or be given as a flag.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from trl import ModelConfig, SFTConfig

from spiral_trl.cli import RecipeParser, run_recipe, with_default_config
from spiral_trl.training.sft import SFTArguments, run_sft
from spiral_trl.training.summary import format_sft_summary


def make_parser() -> RecipeParser:
    return RecipeParser((SFTArguments, SFTConfig, ModelConfig))


def main(argv: Sequence[str] | None = None) -> None:
    argv, _ = with_default_config(argv, Path(__file__).with_name("sft_kuhn_tiny.yaml"))
    script, args, model_args = make_parser().parse_args_and_config(argv)
    told = run_sft(script, args, model_args)
    if args.process_index == 0:
        print(format_sft_summary(told))


if __name__ == "__main__":
    run_recipe(main, sys.argv[1:])
