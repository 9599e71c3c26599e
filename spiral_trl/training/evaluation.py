"""What [`~spiral_trl.SelfPlayTrainer.evaluate`] measures: exploitability, legality, and results against opponents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..evaluation.exploitability import Exploitability, measure_exploitability
from ..evaluation.match import play_match
from ..games.chance import derive_seeds
from ..games.registry import make_game
from ..players.base import Player
from ..players.language_model import LanguageModelPlayer
from ..players.registry import canonical_player_name, make_player
from ..rollout import play
from .checks import can_play


# Keeps the deals of evaluations apart from those of training, whose generations count from 0
_EVALUATION = -1


def evaluate_player(
    player: LanguageModelPlayer,
    game_names: Sequence[str],
    *,
    held_out: Sequence[str] = (),
    games: int,
    opponents: Sequence[str],
    make_opponent: Callable[[str], Player] = make_player,
    samples: int | None,
    illegal: str,
    max_turns: int,
    seed: int,
) -> dict[str, float]:
    """Plays and measures a player. The same seed deals the same games, so figures over training are comparable.

    Args:
        player ([`~spiral_trl.players.language_model.LanguageModelPlayer`]): Who is measured.
        game_names (`Sequence[str]`): Games.
        held_out (`Sequence[str]`, *optional*): More games, which enter no mean.
        games (`int`): Games in self-play, and against each opponent in each game.
        opponents (`Sequence[str]`): Names of players; each game is played against those who can play it.
        make_opponent (`Callable`, *optional*): Makes a player from its name.
        samples (`int`, *optional*): See [`~spiral_trl.evaluation.exploitability.measure_exploitability`].
        illegal (`str`): Illegal-move policy of the games played.
        max_turns (`int`): Turns after which a game is truncated.
        seed (`int`): Deals and replies derive from it.

    Returns:
        `dict[str, float]`: `illegal_rate` in self-play, `exploitability`, `nash_conv`, `exploitability_given_legal` and
        `unexplored_mass` (means over the games that have an exact or sampled figure), `exploitability_lower_bound` of
        games that have no more, and for each game and role, or opponent, `GAME/ROLE/return`, `GAME/OPPONENT/return`
        and `GAME/OPPONENT/win_rate`. With several games, and of those held out, the summary figures are there for each
        as well.
    """
    seeds = derive_seeds(seed, _EVALUATION, np.arange(games))
    metrics: dict[str, float] = {}
    summary: dict[str, list[float]] = {}

    def note(game: str, name: str, value: float | None) -> None:
        if value is None:
            return
        if game in game_names:
            summary.setdefault(name, []).append(value)
        if game in held_out or len(game_names) > 1:
            metrics[f"{game}/{name}"] = value

    for name in (*game_names, *held_out):
        game = make_game(name)
        batch = play(name, [player] * game.num_players, seeds, illegal=illegal, max_turns=max_turns)
        errors = np.array([step.reply.action is None for step in batch.samples], dtype=float)
        illegal_rate = float(errors[batch.turn_sample].mean())
        for seat, role in enumerate(game.roles):
            metrics[f"{name}/{role}/return"] = float(batch.outcomes.returns[:, seat].mean())
        if game.num_players == 2:
            measured = measure_exploitability(player, name, samples=samples, seed=seed, pairs=max(2, games // 2))
            if isinstance(measured, Exploitability):
                illegal_rate = measured.illegal_rate  # from all replies rather than a sample of games
                note(name, "exploitability", measured.exploitability)
                note(name, "nash_conv", measured.nash_conv)
                note(name, "exploitability_given_legal", measured.given_legal.exploitability)
                note(name, "unexplored_mass", measured.unexplored_mass)
            else:
                note(name, "exploitability_lower_bound", measured.lower_bound.estimate)
        note(name, "illegal_rate", illegal_rate)
        for opponent in opponents if game.num_players == 2 else ():
            if not can_play(opponent, name):
                continue
            match = play_match(
                name,
                player,
                make_opponent(opponent),
                pairs=games // 2,
                seed=seed,
                illegal=illegal,
                max_turns=max_turns,
            )
            # Of a model's folder the last part alone
            label = canonical_player_name(opponent)
            metrics[f"{name}/{label}/return"] = match.mean_return.estimate
            metrics[f"{name}/{label}/win_rate"] = match.win_rate.estimate
    return metrics | {name: float(np.mean(values)) for name, values in summary.items()}
