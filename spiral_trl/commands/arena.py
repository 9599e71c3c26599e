"""`spiral-trl arena`: a round robin of players, with pay-offs, ratings and a picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import usage_errors
from ..evaluation.arena import ArenaResult, play_arena
from ..evaluation.standings import Table
from ..stats import Interval
from .loading import (
    add_game_arguments,
    check_file,
    check_game_arguments,
    choose,
    load_player,
    player_labels,
    whole_checkpoints,
    why_none,
)
from .output import Progress, end_with_notes, one_line, percent, print_table, with_interval


HELP = "Let every two players meet on paired deals: pay-offs, results by seat, and ratings, per game and over games."
EXAMPLES = """  spiral-trl arena random minimax "mcts(simulations=100)" --games tic_tac_toe connect_four
  spiral-trl arena outputs/kuhn random cfr --games "kuhn_poker(observation=compact)" --plot arena.png
  spiral-trl arena random --checkpoints outputs/kuhn --games "kuhn_poker(observation=compact)" --json arena.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("players", nargs="*", metavar="PLAYER", help="names, models' folders, or ids on the Hub")
    parser.add_argument(
        "--checkpoints", type=Path, metavar="RUN", help="enter every whole checkpoint of this run's folder as well"
    )
    parser.add_argument(
        "--self-play",
        action="store_true",
        help="let players play themselves too: it tells of the seats, not of strength",
    )
    parser.add_argument(
        "--anchor", metavar="PLAYER", help="whose rating is 0, as tables call it (default: random, else the first)"
    )
    parser.add_argument(
        "--replicates", type=int, default=1000, help="resamples for the intervals of ratings (default: 1000)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw pay-offs and ratings")
    add_game_arguments(parser, pairs=128)


def run(options: argparse.Namespace) -> None:
    with usage_errors():
        games = check_game_arguments(options)
        names = [*options.players, *(whole_checkpoints(options.checkpoints) if options.checkpoints else ())]
        for name in names:
            reason = why_none(name, games)
            if reason is not None:
                raise ValueError(reason)
        labels = player_labels(names)
        if len(names) < 2:
            raise ValueError(f"an arena needs at least 2 players, not {len(names)}; name more")
        if options.replicates < 0:
            raise ValueError(f"--replicates has to be at least 0, not {options.replicates}")
        check_file(options.plot, "--plot", (".png",))
        anchor = "random" if "random" in labels else labels[0]
        if options.anchor is not None:
            anchor = choose(options.anchor, labels, "--anchor")
    players = [load_player(name, label, options) for name, label in zip(names, labels, strict=True)]
    progress = Progress(options.quiet)
    result = play_arena(
        games,
        players,
        options.pairs,
        options.seed,
        self_play=options.self_play,
        illegal=options.illegal,
        max_turns=options.max_turns,
        anchor=anchor,
        replicates=options.replicates,
        progress=progress,
    )
    progress.clear()
    if options.json is not None:
        options.json.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    for table in result.tables:
        _show(table, result)
    if not result.tables:
        print("no two players met")
    if options.plot is not None and result.tables:
        from ..hub.arena_figure import arena_picture
        from ..hub.figures import to_png

        to_png(arena_picture(result), options.plot)
    end_with_notes(result.left_out, result.notes)


def _show(table: Table, result: ArenaResult) -> None:
    where = table.game or f"{len(result.games)} games together"
    dealt = f"{result.pairs} deals from both seats"
    print_table(
        f"{where}: score of the row against the column in %, {dealt}, 95% intervals",
        ["", *table.players],
        [
            [name, *("" if i == j else _score(cell) for j, cell in enumerate(row))]
            for i, (name, row) in enumerate(zip(table.players, table.score, strict=True))
        ],
    )
    print()
    columns = [
        "player",
        "rating",
        "score %",
        "first seat %",
        "second seat %",
        "mean return",
        "illegal %",
        "truncated %",
    ]
    order = list(range(len(table.players)))
    if table.ratings is not None:
        rated = table.ratings
        order.sort(key=lambda i: -rated.rating[i])
    rows = []
    for i in order:
        standing = table.standings[i]
        rows.append(
            [
                standing.player,
                _rating(table, i),
                _score(standing.score),
                *(_score(score) for score in standing.seat_scores),
                with_interval(standing.mean_return, sign=True),
                percent(standing.illegal_rate),
                percent(standing.truncated_rate),
            ]
        )
    if table.game is None:
        rows = [[*row[:5], *row[6:]] for row in rows]
        columns.remove("mean return")
    print_table(f"{where}: standings", columns, rows)
    if table.ratings is not None:
        seat = with_interval(table.ratings.seat, digits=0, sign=True)
        print(f"first seat: {seat} Elo; draws: v = {table.ratings.draw:.2f}; anchor: {_anchor(table)}")
        if table.ratings.separated.any():
            print("*: the games put no bound on this rating; it rests on the prior")
    if table.cyclic_share is not None and table.cyclic_floor is not None:
        share, floor = percent(table.cyclic_share), percent(table.cyclic_floor)
        print(f"unexplained by ratings (cyclic): {share}%; noise alone reads {floor}% on average")
    print()


def _score(score: Interval | None) -> str:
    return with_interval(score, 100, 1)


def _rating(table: Table, i: int) -> str:
    ratings = table.ratings
    if ratings is None:
        return "-"
    if i == ratings.anchor:
        return "0"
    star = "*" if ratings.separated[i] else ""
    return f"{ratings.rating[i]:+.0f}{star} [{ratings.low[i]:+.0f}, {ratings.high[i]:+.0f}]"


def _anchor(table: Table) -> str:
    assert table.ratings is not None
    return one_line(table.players[table.ratings.anchor])
