"""`spiral-trl sae ablate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError, usage_errors
from ...evaluation.match import check_match
from ...games.registry import canonical_name
from ...players.registry import check_player, make_player
from ..loading import check_file
from .reading import (
    Reading,
    add_reading_arguments,
    bar,
    check_least,
    codes_of,
    dictionaries_of,
    load_for,
    print_tables,
    write_result,
)


if TYPE_CHECKING:
    from ...sae.store import Store


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
    with usage_errors():
        check_file(options.json, "--json")
    if (options.game is None) != (options.features is None):
        raise UsageError("--game and --features go together")
    store = codes_of(options.run)
    if options.game is None:
        _neighbours(options, store)
    else:
        _play(options, store, _features(options.features, store))


def _features(named: list[str], store: Store) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for name in named:
        layer, _, feature = name.partition("/")
        if not layer.isdigit() or not feature.isdigit():
            raise UsageError(f"--features {name!r}: a feature is written as LAYER/NUMBER, such as 3/170")
        if int(feature) >= (count := store.num_features(int(layer))):
            raise UsageError(f"--features {name}: layer {int(layer)} has features 0 to {count - 1}")
        found.setdefault(int(layer), []).append(int(feature))
    return found


def _neighbours(options: argparse.Namespace, store: Store) -> None:
    from ...sae.causal_effects import measure_ablation
    from ...sae.effect_words import describe_effects
    from ...sae.sources import load_config
    from ...sae.store import write_json

    check_least(options, num_features=1)
    dictionaries = dictionaries_of(store, options.dictionaries, load_config(options.model))
    reading = Reading(options)
    model, tokenizer = load_for(options, options.model)
    documents = list(reading.documents(tokenizer))
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


def _play(options: argparse.Namespace, store: Store, features: dict[int, list[int]]) -> None:
    from ...players.frozen_model import ModelSettings, load_model_player
    from ...sae.ablated_play import ablated_play
    from ...sae.effect_words import describe_play
    from ...sae.sources import load_config

    check_least(options, pairs=2, random_sets=1, max_new_tokens=1)
    with usage_errors():
        check_match(canonical_name(options.game), options.pairs)
        check_player(options.opponent, options.game)
    dictionaries = dictionaries_of(store, options.dictionaries, load_config(options.model))
    settings = ModelSettings(max_new_tokens=options.max_new_tokens)
    with usage_errors():
        player, opponent = load_model_player(options.model, settings), make_player(options.opponent, settings)
    with bar("play", options.quiet) as progress:
        found = ablated_play(
            player,
            {layer: dictionaries[layer].to(player.model.device) for layer in features},
            features,
            store,
            options.game,
            opponent,
            pairs=options.pairs,
            random_sets=options.random_sets,
            seed=options.seed,
            progress=progress,
        )
    told = describe_play(found.to_dict())
    print_tables(told)
    write_result(options, told)
