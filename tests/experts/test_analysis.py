"""Action values against figures worked out by hand, in closed form, and by playing."""

import math

import numpy as np
import pytest

from spiral_trl.experts.analysis import Analysis, EquilibriumAnalyst, Move
from spiral_trl.experts.collect import ExpertSettings, make_decisions
from spiral_trl.games import make_game, tabulate
from spiral_trl.players.bots import CFRPlayer


TURNS = {turn.infoset: turn for turn in tabulate("kuhn_poker").turns}

# By hand at alpha = 1/5, where player 0 bets J 1/5, K 3/5 of the time and calls with Q 8/15. For example player 1 with Q
# facing a bet: J bets 1/5, K bets 3/5, so it is J with 1/4: a call is worth 1/4 * 2 - 3/4 * 2 = -1, as a fold is.
VALUES = {
    "0|J|": {"check": -1.0, "bet": -1.0},
    "0|Q|": {"check": -1 / 3, "bet": -1 / 2},
    "0|K|": {"check": 7 / 6, "bet": 7 / 6},
    "0|J|check bet": {"fold": -1.0, "call": -2.0},
    "0|Q|check bet": {"fold": -1.0, "call": -1.0},
    "0|K|check bet": {"fold": -1.0, "call": 2.0},
    "1|J|check": {"check": -1.0, "bet": -1.0},
    "1|Q|check": {"check": 1 / 3, "bet": 0.0},
    # Against J (weight 4/5, folds) and Q (weight 1, calls 8/15): (4/5 + 7/15 + 16/15) / (9/5)
    "1|K|check": {"check": 1.0, "bet": (4 / 5 + 7 / 15 + 16 / 15) / (9 / 5)},
    "1|J|bet": {"fold": -1.0, "call": -2.0},
    "1|Q|bet": {"fold": -1.0, "call": -1.0},
    "1|K|bet": {"fold": -1.0, "call": 2.0},
}


def played(analyst, infoset, turn=None):
    """The analysis of an action that is played at an information set."""
    turn = TURNS[infoset] if turn is None else turn
    policy = analyst.player.action_probabilities(turn)
    return analyst.analyse(turn, max(policy, key=policy.get))


@pytest.mark.parametrize("infoset", VALUES)
def test_values_are_those_worked_out_by_hand(infoset, known):
    analysis = played(EquilibriumAnalyst(known), infoset)
    assert analysis.kind == "equilibrium" and analysis.scope == "game"
    assert dict(zip(analysis.actions, analysis.values, strict=True)) == pytest.approx(VALUES[infoset], abs=1e-4)
    assert dict(zip(analysis.actions, analysis.probabilities, strict=True)) == known.policy[infoset]


@pytest.mark.parametrize(
    ("infoset", "action", "line", "ends"),
    [
        ("1|K|bet", "call", [], True),
        ("1|K|check", "bet", ["opponent fold"], True),  # J folds, Q folds 7/15: 4/5 + 7/15 of 9/5
        ("0|K|", "check", ["opponent check"], True),
        ("0|K|", "bet", ["opponent fold"], True),  # J folds, Q folds 2/3
        ("0|Q|", "check", ["opponent bet", "me call"], True),  # K bets, J bets 1/3; 8/15 are calls
    ],
)
def test_lines_follow_the_likeliest_action(infoset, action, line, ends, known):
    analysis = EquilibriumAnalyst(known).analyse(TURNS[infoset], action)
    assert [f"{move.mover} {move.action}" for move in analysis.line] == line
    assert analysis.ends is ends


def test_positions_that_the_equilibrium_never_reaches_have_values(make_known):
    analysis = played(EquilibriumAnalyst(make_known(alpha=0.0)), "1|Q|bet")
    # Nobody bets: if somebody does by mistake, it is J as likely as K
    assert dict(zip(analysis.actions, analysis.values, strict=True)) == pytest.approx({"fold": -1.0, "call": 0.0})


def test_a_hand_of_a_match_is_analysed_as_a_hand(known):
    game = make_game("kuhn_poker(rounds=3)")
    game.reset(0)
    hands = 0
    while game.ending is None:
        (turn,) = game.turns()
        analysis = EquilibriumAnalyst(known).analyse(turn, _likeliest(known, turn))
        key = f"{turn.state.state.current_player()}|{turn.infoset.split('|', 1)[1].split(' / ')[-1]}"
        assert analysis.scope == "hand"
        assert dict(zip(analysis.actions, analysis.values, strict=True)) == pytest.approx(VALUES[key], abs=1e-4)
        hands += turn.player == 1 and key.startswith("0")
        game.step({turn.player: _likeliest(known, turn)})
    assert hands, "no turn had player 1 open a hand"


def _likeliest(player, turn):
    policy = player.action_probabilities(turn)
    return max(policy, key=policy.get)


def test_values_are_what_play_brings_on_average():
    dataset = make_decisions(ExpertSettings(("kuhn_poker",), decisions=60_000, seed=5))
    analyst = EquilibriumAnalyst(CFRPlayer())
    infosets, actions, rewards = (np.array(dataset[name]) for name in ("infoset", "action", "reward"))
    checked = 0
    for infoset, turn in TURNS.items():
        for action in turn.legal_actions:
            mine = rewards[(infosets == infoset) & (actions == action)]
            if len(mine) > 300:
                analysis = analyst.analyse(turn, action)
                error = max(5 * mine.std() / math.sqrt(len(mine)), 1e-3)
                assert mine.mean() == pytest.approx(analysis.values[analysis.index], abs=error), (infoset, action)
                checked += 1
    assert checked > 14


def test_an_analysis_is_of_an_action_that_is_played():
    with pytest.raises(ValueError, match="'raise' is no action"):
        Analysis("equilibrium", ("fold", "call"), (0.5, 0.5), (0.0, 0.0), "raise", (), True)
    with pytest.raises(ValueError, match="never plays 'call'"):
        Analysis("equilibrium", ("fold", "call"), (1.0, 0.0), (0.0, 0.0), "call", (), True)
    with pytest.raises(ValueError, match="one figure"):
        Analysis("equilibrium", ("fold", "call"), (1.0,), (0.0, 0.0), "fold", (), True)
    assert Move("me", "bet") == Move("me", "bet")


def test_what_a_bet_costs_depends_on_the_rules():
    spiral = next(turn for turn in tabulate("kuhn_poker(rules=spiral)").turns if turn.infoset == "0|K|bet")
    analysis = played(EquilibriumAnalyst(CFRPlayer()), "", spiral)
    # No chips move: the pot is worth 1, called or not
    assert dict(zip(analysis.actions, analysis.values, strict=True)) == pytest.approx({"fold": -1.0, "call": 1.0})


def test_games_without_a_table_are_refused(known):
    for name in ("simple_negotiation", "liars_dice(numdice=2)"):
        game = make_game(name)
        game.reset(0)
        with pytest.raises(ValueError, match="has no table"):
            EquilibriumAnalyst(known).analyse(game.turns()[0], "1 x 1")


def test_leduc_poker_with_its_public_card():
    turn = next(
        turn for turn in tabulate("leduc_poker").turns if turn.infoset == "0|K|raise call|K|"
    )  # a pair of kings, which wins every showdown
    analyst = EquilibriumAnalyst(CFRPlayer())
    analysis = played(analyst, "", turn)
    # 3 chips each are in the pot, so at least as much is won
    assert min(analysis.values) >= 3.0 - 1e-6 and len(analysis.line) >= 1
    # A call ends the first round: the public card comes next
    calls = [
        analyst.analyse(turn, "call")
        for turn in tabulate("leduc_poker").turns
        if turn.infoset.count("|") == 2 and CFRPlayer().action_probabilities(turn).get("call", 0) > 0.1
    ]
    assert len(calls) > 3
    assert all(analysis.line[0] == Move("chance", "") and len(analysis.line) > 1 for analysis in calls)
