"""`spiral-trl experts`: expert games as a dataset for supervised fine-tuning."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from ..errors import usage_errors
from ..experts.collect import KEEP, ExpertSettings, Progress, begin, collect, seat_players
from ..rollout import MAX_TURNS
from .loading import check_file
from .output import print_table


HELP = "Collect decisions of solvers, or of the winners of a model's self-play, as a dataset for TRL's SFTTrainer."
EXAMPLES = """  spiral-trl experts kuhn_poker --rationale --output outputs/kuhn-experts
  spiral-trl experts "kuhn_poker(rounds=5)" tic_tac_toe --rationale --think --output outputs/experts
  spiral-trl experts tic_tac_toe --expert minimax --opponent random --output outputs/minimax
  spiral-trl experts kuhn_poker --expert Qwen/Qwen3-32B --illegal "retry(2)" --output outputs/winners"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("games", nargs="+", metavar="game", help="games, which share the decisions equally")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the dataset goes")
    parser.add_argument(
        "--expert",
        default="solver",
        help="cfr, minimax, mcts(...), a model's folder or Hub id, endpoint(...); by default the first of cfr, minimax "
        "and mcts that can play the game",
    )
    parser.add_argument("--decisions", type=int, default=25_000, help="rows to collect (default: 25000)")
    parser.add_argument("--opponent", help="who plays the other seats (default: the expert)")
    parser.add_argument(
        "--keep", choices=KEEP, help="whose decisions are kept (default: all of a solver, the winners' of a model)"
    )
    parser.add_argument("--rationale", action="store_true", help="let a solver write its reasons before the action")
    parser.add_argument("--think", action="store_true", help="put the reasons into <think>...</think>")
    parser.add_argument("--boxed", action="store_true", help="write \\boxed{action} instead of [action]")
    parser.add_argument("--illegal", default="forfeit", help="what an illegal reply does (default: forfeit)")
    parser.add_argument(
        "--max-turns", type=int, default=MAX_TURNS, help=f"turns after which a game is dropped (default: {MAX_TURNS})"
    )
    parser.add_argument(
        "--games-per-round",
        type=int,
        help="games played at once and written as one file (default: by the size of the game)",
    )
    parser.add_argument("--seed", type=int, default=0, help="deals and replies derive from it (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was collected as JSON too")


def run(options: argparse.Namespace) -> None:
    with usage_errors():
        settings = ExpertSettings(
            games=tuple(options.games),
            expert=options.expert,
            decisions=options.decisions,
            opponent=options.opponent,
            keep=options.keep,
            rationale=options.rationale,
            think=options.think,
            boxed=options.boxed,
            seed=options.seed,
            illegal=options.illegal,
            max_turns=options.max_turns,
            games_per_round=options.games_per_round,
        )
        # Wrong names, players that cannot play and folders that are taken show before anything is played
        check_file(options.json, "--json")
        begin(settings, options.output)
        seats = seat_players(settings)
    try:
        state = collect(settings, options.output, seats, progress=lambda state: _tell(settings, state))
    except KeyboardInterrupt:
        print(
            f"interrupted; what is in {options.output} stays, and the same command goes on from there", file=sys.stderr
        )
        sys.exit(130)
    from ..hub.dataset_card import write_dataset_card

    card = write_dataset_card(options.output, "spiral-trl " + " ".join(shlex.quote(part) for part in sys.argv[1:]))
    print_table(
        "decisions by game",
        ["game", "expert", "rows", "of games", "games played"],
        [
            [game, state.players[game], f"{n:,}", f"{state.kept_games[game]:,}", f"{state.played[game]:,}"]
            for game, n in state.rows.items()
        ],
    )
    print(f"\n{state.total:,} decisions in {state.seconds:.1f} s: {options.output}    card: {card}")
    if options.json is not None:
        with usage_errors():
            options.json.write_text((options.output / "experts.json").read_text(encoding="utf-8"), encoding="utf-8")


def _tell(settings: ExpertSettings, state: Progress) -> None:
    played = sum(state.played.values())
    print(f"{state.total:,} of {settings.decisions:,} decisions, {played:,} games", file=sys.stderr, flush=True)
