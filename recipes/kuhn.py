"""Self-play on Kuhn poker.

    accelerate launch recipes/kuhn.py                                          # the embedded model, CPU, minutes
    accelerate launch recipes/kuhn.py --config recipes/kuhn_qwen3_4b.yaml      # the paper's run

Every field of SelfPlayConfig, TRL's ModelConfig and RunArguments may stand in the YAML or be given as a flag.
"""

import sys
from pathlib import Path

from trl import ModelConfig

from spiral_trl.cli import RecipeParser, run_recipe
from spiral_trl.training.config import SelfPlayConfig
from spiral_trl.training.run import RunArguments, run_self_play
from spiral_trl.training.summary import format_summary


DEFAULT_CONFIG = Path(__file__).with_name("kuhn_tiny.yaml")


def make_parser() -> RecipeParser:
    return RecipeParser((RunArguments, SelfPlayConfig, ModelConfig))


def main(argv: list[str]) -> None:
    argv = [part for given in argv for part in (given.split("=", 1) if given.startswith("--config=") else [given])]
    if "--config" not in argv and not {"-h", "--help"} & set(argv):
        argv = ["--config", str(DEFAULT_CONFIG), *argv]
    run_args, training_args, model_args = make_parser().parse_args_and_config(argv)
    recipe = Path(argv[argv.index("--config") + 1]).name
    metrics = run_self_play(run_args, training_args, model_args, recipe=recipe)
    if training_args.process_index == 0:
        print(format_summary(metrics))
        print(f"\nreport: {training_args.output_dir}/report.html    card: {training_args.output_dir}/README.md")


if __name__ == "__main__":
    run_recipe(main, sys.argv[1:])
