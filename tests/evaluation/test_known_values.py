"""Known values of whole games, measured through the text that a model reads and writes."""

import numpy as np
import pytest

from spiral_trl.evaluation.exploitability import exploitability, measure_exploitability
from spiral_trl.evaluation.policy import PolicyTable
from spiral_trl.games.table import tabulate
from spiral_trl.players.bots import CFRPlayer, RandomPlayer
from spiral_trl.players.search import MinimaxPlayer


def as_text(player, table):
    """What a player replies at each turn of a game, as the game at that turn reads it."""
    probabilities = np.zeros((len(table.turns), len(table.actions)))
    seeds = np.arange(20)
    for row, (turn, game) in enumerate(zip(table.turns, table.games, strict=True)):
        replies, which = player.sample([turn], np.zeros(20, dtype=np.int64), seeds, seeds)
        written = {replies[i].text for i in which}
        for word, probability in player.action_probabilities(turn).items():
            written -= {f"[{word}]"}
            action = game.parse(turn.player, f"[{word}]").action
            probabilities[row, table.actions.index(action)] += probability
        assert not written  # a reply that its probabilities do not tell of
    nothing = np.zeros(len(table.turns))
    return PolicyTable(probabilities, nothing, nothing)


@pytest.mark.parametrize(
    ("name", "player", "nash_conv", "distance"),
    [
        ("kuhn_poker", RandomPlayer, 11 / 12, 1e-9),
        ("kuhn_poker(observation=compact)", RandomPlayer, 11 / 12, 1e-9),
        ("openspiel:kuhn_poker(players=3)", RandomPlayer, 2.0625, 1e-9),
        ("openspiel:kuhn_poker", RandomPlayer, 11 / 12, 1e-9),
        ("leduc_poker", RandomPlayer, 4.747222, 1e-6),
        ("openspiel:leduc_poker", RandomPlayer, 4.747222, 1e-6),
        ("tic_tac_toe(observation=latest)", RandomPlayer, 1.919659, 1e-6),
        ("tic_tac_toe(observation=compact)", RandomPlayer, 1.919659, 1e-6),
        ("openspiel:tic_tac_toe(observation=latest)", RandomPlayer, 1.919659, 1e-6),
        ("kuhn_poker", CFRPlayer, 0, 1e-3),
        ("kuhn_poker(observation=compact)", CFRPlayer, 0, 1e-3),
        ("openspiel:kuhn_poker", CFRPlayer, 0, 1e-3),
        ("leduc_poker", CFRPlayer, 0, 0.02),
        ("tic_tac_toe(observation=latest)", MinimaxPlayer, 0, 1e-9),
        ("tic_tac_toe(observation=compact)", MinimaxPlayer, 0, 1e-9),
    ],
)
def test_nash_conv(name, player, nash_conv, distance):
    measured = measure_exploitability(player(), name)
    read = exploitability(tabulate(name), as_text(player(), tabulate(name)))
    for result in (measured, read):
        assert result.method == "exact" and result.illegal_mass == 0
        assert result.nash_conv == pytest.approx(nash_conv, abs=distance)
