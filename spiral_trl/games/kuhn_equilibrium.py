"""The equilibria of a single hand of Kuhn poker, in closed form.

Kuhn (1950): player 0 has one family of equilibrium strategies, numbered by `alpha` in [0, 1/3]; player 1 has exactly
one. The value is -1/18 chips for player 0. Keys are the information sets of `kuhn_poker`: `player|card|history`.
"""

from __future__ import annotations


GAME_VALUE = -1 / 18


def equilibrium(alpha: float) -> dict[str, dict[str, float]]:
    """The equilibrium at `alpha`: action probabilities for each of the 12 information sets.

    Player 0 bluffs with J with probability `alpha`, bets K with `3 alpha`, never bets Q, and calls with Q with
    `alpha + 1/3`. Player 1 bluffs with J after a check, and calls with Q, with probability 1/3 each.
    """
    if not 0 <= alpha <= 1 / 3:
        raise ValueError(f"alpha must be from 0 to 1/3, not {alpha}")
    aggressive = {
        "0|J|": alpha,
        "0|Q|": 0.0,
        "0|K|": 3 * alpha,
        "0|J|check bet": 0.0,
        "0|Q|check bet": alpha + 1 / 3,
        "0|K|check bet": 1.0,
        "1|J|check": 1 / 3,
        "1|Q|check": 0.0,
        "1|K|check": 1.0,
        "1|J|bet": 0.0,
        "1|Q|bet": 1 / 3,
        "1|K|bet": 1.0,
    }
    return {
        infoset: {"fold": 1.0 - p, "call": p} if infoset.endswith("bet") else {"check": 1.0 - p, "bet": p}
        for infoset, p in aggressive.items()
    }


def equilibrium_ranges() -> dict[str, dict[str, tuple[float, float]]]:
    """Lowest and highest probability of each action over the whole family.

    Within the ranges is necessary for an equilibrium, not sufficient: player 0's three mixed choices share one
    `alpha`.
    """
    low, high = equilibrium(0.0), equilibrium(1 / 3)
    return {
        infoset: {
            action: (min(p, high[infoset][action]), max(p, high[infoset][action])) for action, p in policy.items()
        }
        for infoset, policy in low.items()
    }
