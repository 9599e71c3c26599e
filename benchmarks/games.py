"""How many games of random play a core steps in a second, through the text that players read and write.

    python benchmarks/games.py
    python benchmarks/games.py "tic_tac_toe(size=5)" "connect_four(observation=latest)" --runs 3 --json games.json

Every turn is rendered, answered by the random player, parsed and stepped, as in training, with no model in between.
`arrays` is a game stepped as a table (see spiral_trl/games/table.py), `text` the same game one turn at a time. Building
a table is timed apart: it happens once in a process. Figures are medians over runs, per second of one core's time, so
that other processes disturb them little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median


# Before numpy is imported: one core is measured
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from spiral_trl.errors import UsageError, run_main, usage_errors
from spiral_trl.games import canonical_name, make_game, tabulate
from spiral_trl.games.chance import derive_seeds
from spiral_trl.players.bots import RandomPlayer
from spiral_trl.rollout import play


GAMES = (
    "kuhn_poker",
    "kuhn_poker(rounds=5)",
    "tic_tac_toe",
    "tic_tac_toe(observation=compact)",
    "connect_four",
    "pig",
)
# Games per second that the package means to keep on one core of a current machine
TARGETS = {("kuhn_poker", "arrays"): 40_000, ("tic_tac_toe", "text"): 2_500, ("connect_four", "text"): 800}
# Long enough for a game of Pig, which no default limit fits
MAX_TURNS = 10_000


def measure(game: str, path: str, seconds: float, runs: int, seed: int) -> dict:
    """One row of the table: rates of `runs` runs of about `seconds` each."""
    players = [RandomPlayer()] * make_game(game).num_players
    tabulated = path == "arrays"

    def once(games: int, run: int) -> tuple[float, int]:
        seeds = derive_seeds(seed, run, np.arange(games))
        start = time.process_time()
        batch = play(game, players, seeds, tabulated=tabulated, max_turns=MAX_TURNS)
        return time.process_time() - start, len(batch.turn_sample)

    games = 16
    # The first games warm caches up and tell how many fill a run
    while (taken := once(games, 0)[0]) < seconds / 4 and games < 2**20:
        games *= 2
    games = max(1, round(games * seconds / taken))
    timed = [once(games, 1 + run) for run in range(runs)]
    rates = [games / taken for taken, _ in timed]
    return {
        "game": game,
        "path": path,
        "games_per_second": median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "turns_per_game": sum(turns for _, turns in timed) / (games * runs),
        "microseconds_per_turn": median(1e6 * taken / turns for taken, turns in timed),
        "games": games,
        "runs": runs,
        "target": TARGETS.get((game, path)),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("games", nargs="*", metavar="GAME", help=f"games by name (default: {', '.join(GAMES)})")
    parser.add_argument("--runs", type=int, default=5, help="runs whose median is taken (default: 5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long a run takes (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the games (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON too")
    options = parser.parse_args(argv)
    if options.runs < 1 or not 0 < options.seconds <= 600:
        raise UsageError(
            f"--runs must be at least 1 and --seconds from 0 to 600, not {options.runs}, {options.seconds}"
        )
    with usage_errors():
        names = [canonical_name(name) for name in options.games or GAMES]
    rows = []
    print(
        f"{'game':40} {'path':7} {'games/s':>9} {'slowest':>9} {'turns':>6} {'us/turn':>8} {'target':>7} {'table':>8}"
    )
    for name in names:
        start = time.process_time()
        table = tabulate(name)
        built = time.process_time() - start
        for path in ("arrays", "text") if table is not None else ("text",):
            row = measure(name, path, options.seconds, options.runs, options.seed)
            row["table_seconds"] = built
            rows.append(row)
            print(
                f"{name:40} {path:7} {row['games_per_second']:9,.0f} {row['slowest']:9,.0f} "
                f"{row['turns_per_game']:6.1f} {row['microseconds_per_turn']:8.1f} {row['target'] or '':>7} {built:7.2f}s",
                flush=True,
            )
    if options.json is not None:
        result = {"python": platform.python_version(), "machine": platform.machine(), "rows": rows}
        with usage_errors():
            options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_main(main, sys.argv[1:])
