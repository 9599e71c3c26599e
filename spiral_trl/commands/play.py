"""`spiral-trl play`: games between players, or of a person at the terminal against them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import PlayerError, PlayError, UsageError, usage_errors
from ..games import make_game
from ..games.registry import first_turns
from ..players.base import Player
from ..players.bots import CFRPlayer, PolicyPlayer
from ..players.human import HumanPlayer, PersonLeft, printable
from ..players.registry import check_player, make_player
from ..players.search import MinimaxPlayer
from ..records import Ending, Episode, EpisodeBatch, Turn, episodes_to_dataset
from ..rollout import MAX_TURNS, IllegalMoves, play
from .loading import check_file


HELP = "Play a game at the terminal, or let players play and print what they did."
EXAMPLES = """  spiral-trl play kuhn_poker --opponents cfr
  spiral-trl play kuhn_poker --opponents cfr --seat 1 --games 3 --json games.jsonl
  spiral-trl play kuhn_poker --players random cfr --seed 7
  spiral-trl play "kuhn_poker(observation=compact)" --players outputs/kuhn cfr"""

# A person who mistypes free text is told and asked again
_RETRIES = "retry(20)"
_SHOWN_CHARS = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("game", help="the game, with parameters if wanted; see `spiral-trl games`")
    parser.add_argument(
        "--opponents",
        nargs="+",
        metavar="PLAYER",
        help="who sits in the other seats, in their order; one name takes them all (default: random)",
    )
    parser.add_argument("--seat", type=int, metavar="N", help="your seat, from 0 (default: 0)")
    parser.add_argument(
        "--players", nargs="+", metavar="PLAYER", help="who sits in every seat, instead; nobody need be human"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first game; each next one is 1 more")
    parser.add_argument("--games", type=int, default=1, metavar="N", help="how many games (default: 1)")
    parser.add_argument("--prompts", action="store_true", help="print what each player was shown, too")
    parser.add_argument(
        "--illegal",
        metavar="POLICY",
        help="what an illegal reply does: forfeit (default), spiral, retry(k) or random_legal",
    )
    parser.add_argument(
        "--max-turns", type=int, default=MAX_TURNS, help=f"games are truncated there (default: {MAX_TURNS})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the games, one JSON object a line")


def run(options: argparse.Namespace) -> None:
    with usage_errors():
        names, illegal = _check(options)
        made = {name: make_player(name) for name in dict.fromkeys(names)}
    players = [made[name] for name in names]
    with_person = any(isinstance(player, HumanPlayer) for player in players)
    episodes: list[Episode] = []
    failure: Exception | None = None
    # A person sees how each game ended before the next begins
    parts = [[seed] for seed in _seeds(options)] if with_person else [_seeds(options)]
    try:
        for seeds in parts:
            batch = play(options.game, players, seeds, illegal=illegal, max_turns=options.max_turns)
            episodes += _show(batch, players, options.prompts)
    except (PlayerError, PlayError) as error:
        failure = error
        if isinstance(error, PlayError) and error.episodes is not None:
            episodes += _show(error.episodes, players, options.prompts)
    if len(episodes) > 1:
        print(f"\n{len(episodes)} games, mean return: {_means(episodes)}")
    if options.json is not None:
        _save(episodes, options.json)
    if failure is not None:
        if isinstance(failure, PersonLeft) or isinstance(failure.__cause__, PersonLeft):
            print("\nYou left the game.")
        else:
            print(f"error: {' '.join(str(failure).split())}", file=sys.stderr)
            sys.exit(1)


def _seeds(options: argparse.Namespace) -> list[int]:
    return list(range(options.seed, options.seed + options.games))


def _check(options: argparse.Namespace) -> tuple[list[str], str]:
    """The player of every seat and the illegal-move policy, once all that can be checked is."""
    game = make_game(options.game)
    for option in ("games", "max_turns"):
        if getattr(options, option) < 1:
            raise UsageError(f"--{option.replace('_', '-')} must be at least 1, not {getattr(options, option)}")
    if options.players is not None:
        if options.opponents is not None or options.seat is not None:
            raise UsageError("--players names every seat; leave out --opponents and --seat")
        names = list(options.players)
    else:
        seat = options.seat or 0
        if not 0 <= seat < game.num_players:
            raise UsageError(f"--seat must be from 0 to {game.num_players - 1} in {game.name}, not {seat}")
        others = options.opponents or ["random"]
        if len(others) == 1:
            others = others * (game.num_players - 1)
        names = [*others[:seat], "human", *others[seat:]]
    if len(names) != game.num_players:
        stated = "--players names" if options.players is not None else "with --opponents there are"
        raise UsageError(f"{game.name} has {game.num_players} seats, but {stated} {len(names)} players")
    for name in dict.fromkeys(names):
        check_player(name, options.game)
    check_file(options.json, "--json")
    if options.illegal is not None:
        IllegalMoves.parse(options.illegal).returns(0, game.worst_returns)
        return names, options.illegal
    free_text = any(turn.legal_actions is None for turn in first_turns(options.game, options.seed))
    return names, _RETRIES if free_text and "human" in names else "forfeit"


def _show(batch: EpisodeBatch, players: Sequence[Player], prompts: bool) -> list[Episode]:
    """Prints the games of a batch, and answers them."""
    episodes = batch.episodes()
    for episode in episodes:
        _print_game(episode, players, prompts)
    return episodes


def _print_game(episode: Episode, players: Sequence[Player], prompts: bool) -> None:
    seats = [f"{role}: {name}" for role, name in zip(episode.roles, episode.players, strict=True)]
    print(f"\n{episode.game}, seed {episode.seed} ({', '.join(seats)})")
    solvers: list[PolicyPlayer] = [MinimaxPlayer(), CFRPlayer()]
    for turn, reply in ((step.turn, step.reply) for step in episode.steps):
        if prompts:
            print(_indented("\n\n".join(message["content"] for message in turn.messages), "  > "))
        said = _short(reply.action) if reply.action is not None else f"no legal action: {_short(reply.error or '')}"
        print(f"  {turn.role}: {said}")
        if reply.text.strip() not in (said, f"[{said}]", f"\\boxed{{{said}}}"):
            print(_indented(reply.text, "    | "))
        if isinstance(players[turn.player], HumanPlayer):
            best = _best(turn, solvers)
            if best:
                print(f"    {best}")
    how = "" if episode.ending is Ending.TERMINAL else f" ({episode.ending.value})"
    results = [f"{role} {value:+g}" for role, value in zip(episode.roles, episode.returns, strict=True)]
    print(f"  result{how}: {', '.join(results)}")


def _short(text: str) -> str:
    """Untrusted text on one line, so that it cannot pass for lines of the transcript."""
    line = " ".join(printable(text).split())
    return line if len(line) <= _SHOWN_CHARS else f"{line[:_SHOWN_CHARS]}..."


def _indented(text: str, prefix: str) -> str:
    return "\n".join(f"{prefix}{line}" for line in printable(text).strip().split("\n"))


def _best(turn: Turn, solvers: list[PolicyPlayer]) -> str:
    """What the first solver that can play the game would do; others are dropped from `solvers`."""
    while solvers:
        try:
            policy = solvers[0].action_probabilities(turn)
        except ValueError:
            solvers.pop(0)
            continue
        likely = sorted(((p, action) for action, p in policy.items() if p >= 0.005), key=lambda item: -item[0])
        return f"{solvers[0].name} plays " + ", ".join(f"{action} ({p:.0%})" for p, action in likely)
    return ""


def _means(episodes: Sequence[Episode]) -> str:
    means = np.mean([episode.returns for episode in episodes], axis=0)
    roles = episodes[0].roles
    return ", ".join(f"{role} {mean:+.3f}" for role, mean in zip(roles, means, strict=True))


def _save(episodes: Sequence[Episode], file: Path) -> None:
    with usage_errors("--json"), file.open("w", encoding="utf-8") as lines:
        for row in episodes_to_dataset(episodes):
            lines.write(json.dumps(row) + "\n")
    print(f"\nsaved in {file}: {len(episodes)} {'game' if len(episodes) == 1 else 'games'}")
