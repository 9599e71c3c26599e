"""An expert of Kuhn poker whose figures are known by hand: the equilibrium at alpha = 1/5."""

import pytest

from spiral_trl.games.kuhn_equilibrium import equilibrium
from spiral_trl.players.bots import CFRPlayer


class KnownEquilibrium(CFRPlayer):
    """A member of Kuhn poker's equilibrium family, exactly."""

    def __init__(self, alpha=0.2):
        super().__init__()
        self.policy = equilibrium(alpha)

    def action_probabilities(self, turn):
        # Of a match the last hand counts, seen from whoever opened it
        player, hand = turn.state.state.current_player(), turn.infoset.split("|", 1)[1].split(" / ")[-1]
        return {action: self.policy[f"{player}|{hand}"][action] for action in turn.legal_actions}


@pytest.fixture
def make_known():
    return KnownEquilibrium


@pytest.fixture
def known():
    return KnownEquilibrium()
