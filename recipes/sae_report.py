"""Features of a model, how they pass, combine and specialise across its layers, and what self-play changed in them.

    python recipes/sae_report.py                                             # the embedded model, CPU, minutes
    python recipes/sae_report.py --config recipes/sae_report_gpt2.yaml       # GPT-2 small with its public dictionaries

Every field of SAEReportArguments may stand in the YAML or be given as a flag. A run that was stopped goes on with what is
in its folder.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from spiral_trl.cli import RecipeParser, run_recipe, self_play_recipe, with_default_config
from spiral_trl.errors import UsageError, usage_errors
from spiral_trl.sae.arguments import EMBEDDED, SAEReportArguments
from spiral_trl.sae.run import format_summary, run_report


RECIPES = Path(__file__).parent


def make_parser() -> RecipeParser:
    return RecipeParser((SAEReportArguments,))


def train_embedded(args: SAEReportArguments) -> tuple[str, str]:
    """Folders of the embedded model before and after self-play, which are made where a run before has not left them."""
    from spiral_trl.training.checkpoint import last_whole_checkpoint
    from spiral_trl.training.tiny import reply_length

    reasoning = bool((args.self_play_overrides or {}).get("embedded_reasoning"))
    for game in args.games or ():
        with usage_errors():
            needed = reply_length(game, reasoning)
        if args.max_new_tokens < needed:
            raise UsageError(
                f"max_new_tokens is {args.max_new_tokens}, but a legal reply of the embedded model in {game} has up to "
                f"{needed} tokens, the end included"
            )
    folder = Path(args.output_dir) / "self_play"
    if not (folder / "metrics.json").is_file():
        config = RECIPES / args.self_play
        if not config.is_file():
            raise UsageError(f"self_play={args.self_play!r}: there is no such file beside this recipe")
        argv = ["--config", str(config), "--output_dir", str(folder), "--seed", str(args.seed)]
        for name, value in (args.self_play_overrides or {}).items():
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        if folder.exists():
            whole = last_whole_checkpoint(folder) is not None
            argv += ["--resume_from_checkpoint" if whole else "--overwrite_output_dir", "true"]
        self_play_recipe(config)(argv)
    return str(folder / "warm_start"), str(folder)


def main(argv: Sequence[str] | None = None) -> None:
    argv, _ = with_default_config(argv, RECIPES / "sae_report_kuhn_tiny.yaml")
    (args,) = make_parser().parse_args_and_config(argv)
    args.check()
    before, after = args.model_name_or_path, args.after
    title = None
    if before == EMBEDDED:
        before, after = train_embedded(args)
        title = f"The embedded model before and after self-play on {', '.join(args.games or ())}"
    print(format_summary(run_report(args, before, after, title)))


if __name__ == "__main__":
    run_recipe(main, sys.argv[1:])
