"""The figures a run reports of a player: exploitability, strategy against equilibrium, results by seat."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import PlayError
from ..evaluation.exploitability import (
    Exploitability,
    ExploitabilityBound,
    estimate_policy,
    exploitability,
    exploitability_lower_bound,
)
from ..evaluation.match import play_match
from ..evaluation.policy import TooManyRepliesError
from ..games.kuhn_equilibrium import equilibrium_ranges
from ..games.registry import parse_name
from ..games.sequence_form import solvable_table
from ..games.table import GameTable
from ..players.language_model import LanguageModelPlayer
from ..players.registry import canonical_player_name, make_player


logger = logging.getLogger(__name__)


# The seed of reported games differs from those of training and of evaluation during it
_REPORT = 1_000_003
_MAX_STRATEGY_TURNS = 64


@dataclass(frozen=True)
class Measured:
    """What was measured of a player in one game.

    Args:
        exploitability ([`~spiral_trl.evaluation.exploitability.Exploitability`] or
            [`~spiral_trl.evaluation.exploitability.ExploitabilityBound`]): The record; a bound where there is no table.
        strategy (`dict[str, dict[str, float]]`): Probability of each action by information set; empty for games without
            a table or with too large a one.
    """

    exploitability: Exploitability | ExploitabilityBound
    strategy: dict[str, dict[str, float]]

    @property
    def value(self) -> float | None:
        """The exploitability, or its lower bound."""
        if isinstance(self.exploitability, ExploitabilityBound):
            return self.exploitability.lower_bound.estimate
        return self.exploitability.exploitability

    @property
    def given_legal(self) -> float | None:
        if isinstance(self.exploitability, ExploitabilityBound):
            return None
        return self.exploitability.given_legal.exploitability


def measure(player: LanguageModelPlayer, game: str, samples: int | None, seed: int) -> Measured:
    """Exploitability and strategy of a player in one game."""
    table = solvable_table(game)
    if table is None:
        return Measured(exploitability_lower_bound(player, game, seed=seed + _REPORT), {})
    try:
        policy = estimate_policy(player, table, samples, seed + _REPORT)
    except TooManyRepliesError:
        return Measured(exploitability_lower_bound(player, game, seed=seed + _REPORT), {})
    strategy: dict[str, dict[str, float]] = {}
    if len(table.turns) <= _MAX_STRATEGY_TURNS:
        for u, turn in enumerate(table.turns):
            strategy[_key(table, u)] = {
                action: float(policy.probabilities[u, table.actions.index(action)])
                for action in turn.legal_actions or ()
            }
    return Measured(exploitability(table, policy), strategy)


def _key(table: GameTable, turn: int) -> str:
    return table.turns[turn].infoset or str(turn)


def strategy_rows(game: str, measured: dict[str, Measured]) -> list[dict[str, Any]]:
    """One row per information set: action probabilities at each stage beside the equilibrium family, where it is known.

    Args:
        game (`str`): Name of the game.
        measured (`dict[str, Measured]`): By stage: `start`, `final`, `plain`.

    Returns:
        `list[dict]`: In the schema of `metrics.json`.
    """
    table = solvable_table(game)
    if table is None or not measured["final"].strategy:
        return []
    ranges = equilibrium_ranges() if has_known_equilibrium(game) else {}
    rows = []
    for turn in sorted(table.turns, key=lambda turn: (turn.player, turn.infoset or "")):
        actions = list(turn.legal_actions or ())
        row: dict[str, Any] = {"infoset": turn.infoset, "player": turn.player, "actions": actions}
        if parse_name(game)[0] == "kuhn_poker" and turn.infoset is not None:
            _, row["card"], row["history"] = turn.infoset.split("|")
        for stage, figures in measured.items():
            policy = figures.strategy.get(turn.infoset or "")
            row[stage] = None if policy is None else [policy[action] for action in actions]
        known = ranges.get(turn.infoset or "")
        row["equilibrium"] = None if known is None else [list(known[action]) for action in actions]
        rows.append(row)
    return rows


def has_known_equilibrium(game: str) -> bool:
    """Whether the game is a single hand of Kuhn poker whose equilibria are the known family (a bonus by seat changes
    nothing in them)."""
    name, values = parse_name(game)
    return (
        name == "kuhn_poker"
        and values["rounds"] == 1
        and values["rules"] == "canonical"
        and values["payoff"] == "chips"
        and values["cards"] == 3
    )


def nearest_alpha(strategy: dict[str, dict[str, float]]) -> float:
    """The member of Kuhn poker's equilibrium family nearest to a strategy, by least squares over the first seat's three
    free probabilities (alpha, 3 alpha and alpha + 1/3)."""
    bluff, value, call = strategy["0|J|"]["bet"], strategy["0|K|"]["bet"], strategy["0|Q|check bet"]["call"]
    return float(np.clip((bluff + 3 * value + (call - 1 / 3)) / 11, 0, 1 / 3))


def results_by_seat(
    player: LanguageModelPlayer, game: str, opponents: Sequence[str], pairs: int, seed: int
) -> list[dict[str, Any]]:
    """Win rate and mean return against each opponent, by seat, with 95% intervals.

    An opponent that fails midway is left out, with a warning: what was trained is written all the same.
    """
    rows = []
    for opponent in opponents:
        try:
            match = play_match(game, player, make_player(opponent), pairs=pairs, seed=seed + _REPORT)
        except PlayError as error:
            logger.warning("results in %s are without an opponent: %s", game, error)
            continue
        for seat in match.seats:
            row = {"opponent": canonical_player_name(opponent), **seat.to_dict()}
            for name in ("win_rate", "mean_return"):
                row[name] = list(row[name].values())  # estimate, low, high
            rows.append(row)
    return rows
