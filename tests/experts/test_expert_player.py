"""What an expert writes: the reasons, in many words, and one action that games read."""

import math

import numpy as np
import pytest

from spiral_trl.experts.analysis import Analysis, EquilibriumAnalyst, Move
from spiral_trl.experts.player import NEGLIGIBLE, ExpertPlayer
from spiral_trl.experts.words import VARIANTS, rationale
from spiral_trl.games import tabulate
from spiral_trl.players.bots import CFRPlayer, PolicyPlayer, RandomPlayer
from spiral_trl.rollout import play


TABLE = tabulate("kuhn_poker")
TURNS = {turn.infoset: turn for turn in TABLE.turns}


class Slip(PolicyPlayer):
    """Plays its second action one time in a thousand."""

    name = "slip"

    def action_probabilities(self, turn):
        return dict(zip(turn.legal_actions, (0.999, 0.001), strict=True))


def test_a_forced_call_says_what_call_and_fold_are_worth(known):
    analysis = EquilibriumAnalyst(known).analyse(TURNS["1|K|bet"], "call")
    for variant in range(VARIANTS):
        text = rationale(analysis, variant)
        assert "call" in text and "+2.00" in text and "-1.00" in text
        assert "better than anything else by 3.00" in text
        assert "[" not in text and "boxed" not in text


def test_a_mixed_action_says_how_the_equilibrium_mixes(known):
    text = rationale(EquilibriumAnalyst(known).analyse(TURNS["0|J|"], "bet"), 0)
    assert text.count("-1.00") == 2
    assert "check 80%, bet 20%" in text and "This time it is bet." in text


def test_a_likely_course_is_told_move_by_move(known):
    text = rationale(EquilibriumAnalyst(known).analyse(TURNS["0|Q|"], "check"), 0)
    assert "the opponent plays bet, then I play call, and the game ends" in text


def test_variants_read_differently_and_equal_ones_alike(known):
    analysis = EquilibriumAnalyst(known).analyse(TURNS["0|Q|"], "check")
    texts = [rationale(analysis, variant) for variant in range(VARIANTS)]
    assert len(set(texts)) == VARIANTS
    assert rationale(analysis, 7) == texts[7]
    with pytest.raises(ValueError, match="variant must be from 0"):
        rationale(analysis, VARIANTS)


@pytest.mark.parametrize("think", [False, True])
@pytest.mark.parametrize("boxed", [False, True])
def test_every_reply_is_read_as_its_action(think, boxed, known):
    expert = ExpertPlayer(known, rationale=True, think=think, boxed=boxed)
    read = 0
    for turn, game in zip(TABLE.turns, TABLE.games, strict=True):
        for action, probability in expert.player.action_probabilities(turn).items():
            for variant in range(VARIANTS) if probability else ():
                text = expert.text(turn, action, variant)
                assert game.parse(turn.player, text).action == action, text
                assert text.startswith("<think>\n") is think
                assert text.endswith(f"\n\n\\boxed{{{action}}}" if boxed else f"\n\n[{action}]")
                read += 1
    assert read == VARIANTS * 17  # 5 of the 12 information sets are mixed


def test_values_of_best_play_are_told_as_outcomes():
    analysis = Analysis(
        kind="minimax",
        actions=("0", "4", "8"),
        probabilities=(0.0, 1.0, 0.0),
        values=(-1.0, 1.0, 0.0),
        action="4",
        line=(Move("opponent", "8"), Move("me", "0")),
        ends=True,
        forced=1.0,
    )
    text = rationale(analysis, 0)
    assert "- 4: a win\n- 8: a draw\n- 0: a loss\n" in text
    # Beside a figure the number of a cell would read as another
    assert "\n4 is worth a win; 8 is worth a draw; 0 is worth a loss.\n" in rationale(analysis, 2 * 4)
    assert "the opponent plays 8, then I play 0, and the game ends" in text and "the one best move" in text


def test_many_actions_are_told_by_the_best_few_and_the_one_that_is_played():
    actions = tuple(f"bid {i}" for i in range(30))
    analysis = Analysis(
        kind="search",
        actions=actions,
        probabilities=tuple(1.0 if action == "bid 3" else 0.0 for action in actions),
        values=tuple(i / 30 if i else math.nan for i in range(30)),
        action="bid 3",
        line=None,
        ends=False,
        visits=tuple(0.5 if action == "bid 3" else 0.01 for action in actions),
    )
    text = rationale(analysis, 0)
    assert "bid 29: +0.97 on average, with 1% of the visits" in text and "bid 3: +0.10" in text
    assert text.count("bid ") == 9 + 1 and "none of the other 21 is worth more than the best of these" in text
    # Some are worth more than the one that is played
    assert "bid 21:" not in text and analysis.values[21] > analysis.values[3]


def test_play_follows_the_solver_and_writes_what_it_plays():
    expert = ExpertPlayer(CFRPlayer(), rationale=True)
    batch = play("kuhn_poker", [expert, expert], np.arange(400))
    plain = play("kuhn_poker", [expert.player] * 2, np.arange(400))
    assert [[s.reply.action for s in e.steps] for e in batch.episodes()] == [
        [s.reply.action for s in e.steps] for e in plain.episodes()
    ]
    assert all(step.reply.error is None for step in batch.samples)
    # Phrasings derive from the game's seed, whatever is played beside it
    alone = play("kuhn_poker", [expert, expert], [17], tabulated=False).episode(0)
    assert [s.reply.text for s in alone.steps] == [s.reply.text for s in batch.episode(17).steps]


def test_what_a_solver_has_not_converged_on_is_not_played():
    assert NEGLIGIBLE > 0.001
    expert = ExpertPlayer(Slip())
    assert expert.player.action_probabilities(TURNS["0|J|"]) == {"check": 1.0, "bet": 0.0}
    batch = play("kuhn_poker", [expert, expert], np.arange(5000))
    assert {step.reply.action for step in batch.samples} == {"check"}
    assert {s.reply.action for s in play("kuhn_poker", [Slip(), Slip()], np.arange(5000)).samples} > {"check"}


def test_another_form_of_reply(known):
    expert = ExpertPlayer(known, render=lambda turn, action: f"{turn.role} says [{action}]")
    batch = play("kuhn_poker", [expert, expert], np.arange(20))
    assert {step.reply.text for step in batch.samples} == {
        f"{step.turn.role} says [{step.reply.action}]" for step in batch.samples
    }


def test_what_does_not_go_together_is_refused(known):
    with pytest.raises(ValueError, match="think=True needs rationale=True"):
        ExpertPlayer(known, think=True)
    with pytest.raises(ValueError, match="render writes the whole reply"):
        ExpertPlayer(known, rationale=True, render=lambda turn, action: "")
    with pytest.raises(ValueError, match="random gives no reasons"):
        ExpertPlayer(RandomPlayer(), rationale=True)
