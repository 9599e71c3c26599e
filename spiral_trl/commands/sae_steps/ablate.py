"""`spiral-trl sae ablate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...errors import UsageError, usage_errors
from ...players.frozen_model import check_model
from ...players.registry import check_player
from ..loading import check_file
from .reading import Reading, add_reading_arguments, bar, check_reading, codes_of, print_tables, write_result


HELP = """Switch features off, the error of the autoencoder kept. Without --game: upstream features, where they fire, and what
becomes of their downstream neighbours; how well each measure predicts it. With --game: given features in play."""
EXAMPLES = """  spiral-trl sae ablate run --model outputs/kuhn --dictionaries saes --episodes outputs/kuhn/episodes
  spiral-trl sae ablate run --model outputs/kuhn --dictionaries saes --game "kuhn_poker(observation=compact)" \\
      --features 2/17 2/40 --opponent cfr"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="the run's folder, with codes/")
    parser.add_argument("--model", required=True, help="the model that was collected")
    parser.add_argument("--dictionaries", required=True, metavar="NAME", help="those it was collected with")
    parser.add_argument("--num-features", type=int, default=20, help="upstream features of each layer (default: 20)")
    parser.add_argument("--game", help="play this game without the features of --features")
    parser.add_argument("--features", nargs="+", metavar="L/F", help="layer and number of features")
    parser.add_argument("--opponent", default="random", help="whom it plays (default: random)")
    parser.add_argument("--pairs", type=int, default=256, help="deals, each from both seats (default: 256)")
    parser.add_argument("--random-sets", type=int, default=5, help="sets of random features beside (default: 5)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest reply (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
    add_reading_arguments(parser)


def run(options: argparse.Namespace) -> None:
    if (options.game is None) != (options.features is None):
        raise UsageError("--game and --features go together")
    if options.game is None:
        check_reading(options, options.model)
        _neighbours(options)
        return
    with usage_errors():
        check_file(options.json, "--json")
        check_model(options.model)
        check_player(options.opponent, options.game)
    _play(options, _features(options.features))


def _features(named: list[str]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for name in named:
        layer, _, feature = name.partition("/")
        if not layer.isdigit() or not feature.isdigit():
            raise UsageError(f"--features {name!r}: a feature is written as LAYER/NUMBER, such as 3/170")
        found.setdefault(int(layer), []).append(int(feature))
    return found


def _neighbours(options: argparse.Namespace) -> None:
    from ...sae.causal_effects import measure_ablation
    from ...sae.dictionaries import load_dictionaries
    from ...sae.effect_words import describe_effects
    from ...sae.sources import load_model
    from ...sae.store import write_json

    store = codes_of(options.run)
    model, tokenizer = load_model(options.model)
    dictionaries = load_dictionaries(options.dictionaries, model, store.layers, any_model=True)
    documents = list(Reading(options, tokenizer).documents)
    with bar("ablation", options.quiet) as progress:
        found = measure_ablation(
            model,
            {layer: dictionary.to(model.device) for layer, dictionary in dictionaries.items()},
            store,
            documents,
            Path(options.run) / "ablation",
            num_features=options.num_features,
            seed=options.seed,
            progress=progress,
        )
    told = describe_effects(found.to_dict())
    write_json(Path(options.run) / "ablation.json", told)
    print_tables(told)
    write_result(options, told)


def _play(options: argparse.Namespace, features: dict[int, list[int]]) -> None:
    from ...players.frozen_model import ModelSettings, load_model_player
    from ...players.registry import make_player
    from ...sae.ablated_play import ablated_play
    from ...sae.dictionaries import load_dictionaries
    from ...sae.effect_words import describe_play

    store = codes_of(options.run)
    player = load_model_player(options.model, ModelSettings(max_new_tokens=options.max_new_tokens))
    dictionaries = load_dictionaries(options.dictionaries, player.model, sorted(features), any_model=True)
    with bar("play", options.quiet) as progress:
        found = ablated_play(
            player,
            dictionaries,
            features,
            store,
            options.game,
            make_player(options.opponent),
            pairs=options.pairs,
            random_sets=options.random_sets,
            seed=options.seed,
            progress=progress,
        )
    told = describe_play(found.to_dict())
    print_tables(told)
    write_result(options, told)
