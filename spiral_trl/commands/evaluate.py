"""`spiral-trl evaluate`: one player measured, against opponents and against a best response."""

from __future__ import annotations

import argparse
import json
from statistics import fmean

from ..errors import usage_errors
from ..evaluation.exploitability import ExploitabilityBound
from ..evaluation.one_player import GameMeasures, PlayerMeasures, measure_player
from .loading import add_game_arguments, check_game_arguments, load_player, player_labels, why_none
from .output import Progress, end_with_notes, one_line, percent, print_table, with_interval


HELP = "Measure a player: results by seat against opponents on paired deals, illegal replies, exploitability."
EXAMPLES = """  spiral-trl evaluate outputs/kuhn --games "kuhn_poker(observation=compact)"
  spiral-trl evaluate random --games tic_tac_toe leduc_poker --pairs 1000 --json random.json
  spiral-trl evaluate Qwen/Qwen3-4B --games pig --opponents random "mcts(simulations=200)" --exploitability off"""

_OPPONENTS = ("random", "cfr", "minimax")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("player", help="a name such as random, a model's folder, or its id on the Hub")
    parser.add_argument(
        "--opponents",
        nargs="+",
        metavar="PLAYER",
        help="whom it plays, in the games that they can play (default: random, cfr and minimax)",
    )
    parser.add_argument(
        "--exploitability",
        choices=("auto", "off"),
        default="auto",
        help="auto: exact where that is possible, sampled or a lower bound elsewhere (default: auto)",
    )
    parser.add_argument(
        "--moves",
        choices=("auto", "off"),
        default="auto",
        help="auto: how often it finds a best move, in games that can be solved (default: auto)",
    )
    parser.add_argument(
        "--samples", type=int, metavar="K", help="sample K replies of a model for each turn instead of computing them"
    )
    add_game_arguments(parser, pairs=256)


def run(options: argparse.Namespace) -> None:
    with usage_errors():
        games = check_game_arguments(options)
        if options.samples is not None and options.samples < 1:
            raise ValueError(f"--samples has to be at least 1, not {options.samples}")
        named = options.opponents or [name for name in _OPPONENTS if why_none(name, games) is None]
        for name in [options.player, *(options.opponents or ())]:
            reason = why_none(name, games)
            if reason is not None:
                raise ValueError(reason)
        labels = player_labels(named)
        (label,) = player_labels([options.player])
    player = load_player(options.player, label, options)
    opponents = [load_player(name, its, options) for name, its in zip(named, labels, strict=True)]
    progress = Progress(options.quiet)
    measures = measure_player(
        player,
        games,
        opponents,
        options.pairs,
        options.seed,
        exploitability=options.exploitability == "auto",
        moves=options.moves == "auto",
        samples=options.samples,
        illegal=options.illegal,
        max_turns=options.max_turns,
        progress=progress,
    )
    progress.clear()
    if options.json is not None:
        options.json.write_text(json.dumps(measures.to_dict(), indent=2) + "\n", encoding="utf-8")
    _show(measures)
    # Nobody asked for the default opponents
    asked = [entry for entry in measures.left_out if options.opponents or entry.player == measures.player]
    end_with_notes(asked, measures.notes)


def _show(measures: PlayerMeasures) -> None:
    for game in measures.games:
        rows = []
        for match in game.matches:
            for seat in match.seats:
                rows.append(
                    [
                        match.opponent,
                        seat.role,
                        str(seat.games),
                        with_interval(seat.win_rate, 100, 1),
                        percent(seat.draw_rate),
                        percent(seat.loss_rate),
                        with_interval(seat.mean_return, sign=True),
                        percent(seat.illegal_rate),
                        percent(seat.truncated_rate),
                    ]
                )
            rows.append(
                [
                    match.opponent,
                    "both",
                    str(2 * match.pairs),
                    with_interval(match.win_rate, 100, 1),
                    percent(fmean([seat.draw_rate for seat in match.seats])),
                    percent(fmean([seat.loss_rate for seat in match.seats])),
                    with_interval(match.mean_return, sign=True),
                    percent(match.illegal_rate),
                    percent(match.truncated_rate),
                ]
            )
        print_table(
            f"{one_line(measures.player)} in {game.game}, {measures.pairs} deals from both seats, 95% intervals",
            ["opponent", "seat", "games", "won %", "drawn %", "lost %", "mean return", "illegal %", "truncated %"],
            rows,
        )
        print(f"exploitability: {_exploitability(game)}")
        if game.moves is not None:
            best = with_interval(game.moves.best_move_rate, 100, 1)
            lost = with_interval(game.moves.value_lost_per_move, digits=3)
            print(f"moves: {best}% best of {game.moves.moves} against itself; a move gives away {lost} points")
        print()


def _exploitability(game: GameMeasures) -> str:
    measured = game.exploitability
    if measured is None:
        return f"not measured: {one_line(game.no_exploitability or '')}"
    if isinstance(measured, ExploitabilityBound):
        bound = with_interval(measured.lower_bound)
        by = ", ".join(dict.fromkeys(measured.exploiters))
        return f"at least {bound} {measured.unit} (lower bound, won by {by}; a best response may win more)"
    how = "exact"
    if measured.unexplored_mass > 0:
        how += f", at most {100 * measured.unexplored_mass:.2g}% of the replies to a turn unexplored"
    if measured.method == "sampled":
        floor = "" if measured.floor is None else f"; an equilibrium sampled so would read {measured.floor:.4f}"
        how = f"sampled, {measured.samples} replies for each turn{floor}"
    value = measured.nash_conv if measured.exploitability is None else measured.exploitability
    given_legal = measured.given_legal
    legal = given_legal.nash_conv if given_legal.exploitability is None else given_legal.exploitability
    return f"{value:.4f} {measured.unit} ({how}), {legal:.4f} given legal replies"
