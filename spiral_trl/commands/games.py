"""`spiral-trl games`: what can be played, and how a game reads."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import UsageError, usage_errors
from ..games import game_names, make_game
from ..games.registry import first_turns, game_source, parse_name, source_names
from .loading import check_file


HELP = "List the games, or show one: seats, parameters and the first turn as a player reads it."
EXAMPLES = """  spiral-trl games
  spiral-trl games "kuhn_poker(rounds=5)"
  spiral-trl games --source openspiel"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("game", nargs="?", help="the game to show, with parameters if wanted")
    parser.add_argument("--source", metavar="PREFIX", help="list the games of a library instead, such as openspiel")
    parser.add_argument("--seed", type=int, default=0, help="seed of the deal that is shown (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what is shown as JSON too")


def run(options: argparse.Namespace) -> None:
    with usage_errors():
        check_file(options.json, "--json")
        if options.game is not None and options.source is not None:
            raise UsageError(
                f"--source lists a library; to show a game of it, name it {options.source}:{options.game}"
            )
        if options.game is not None:
            shown = _show(options.game, options.seed)
        elif options.source is not None:
            shown = {"source": options.source, "games": game_source(options.source).names()}
            print("\n".join(f"{options.source}:{name}" for name in shown["games"]))
        else:
            shown = {"games": game_names(), "sources": source_names()}
            print("\n".join([*shown["games"], *(f"{prefix}:NAME" for prefix in shown["sources"])]))
        if options.json is not None:
            options.json.write_text(json.dumps(shown, indent=2) + "\n", encoding="utf-8")


def _show(name: str, seed: int) -> dict:
    game = make_game(name)
    asked = first_turns(name, seed)
    parameters = parse_name(name)[1]
    print(f"{game.name}: {game.num_players} seats ({', '.join(game.roles)})")
    print(f"parameters: {', '.join(f'{key}={value}' for key, value in parameters.items()) or 'none'}")
    turns = []
    for turn in asked:
        text = turn.messages[-1]["content"]
        print(f"\n--- {turn.role} reads:\n{text}")
        turns.append({"role": turn.role, "messages": list(turn.messages), "legal_actions": turn.legal_actions})
    return {
        "game": game.name,
        "parameters": parameters,
        "roles": list(game.roles),
        "worst_returns": list(game.worst_returns),
        "turns": turns,
    }
