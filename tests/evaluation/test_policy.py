import numpy as np
import pytest
from toy_players import Always, TinyLM

from spiral_trl.evaluation.policy import (
    PolicyTable,
    TooManyRepliesError,
    bot_policy,
    exact_policy,
    legal_mask,
    sampled_policy,
)
from spiral_trl.games import parse_action, tabulate
from spiral_trl.players.bots import RandomPlayer
from spiral_trl.players.language_model import LanguageModelPlayer
from spiral_trl.training.tiny import build_tiny_model


@pytest.fixture(scope="module")
def kuhn():
    return tabulate("kuhn_poker(observation=compact)")


def enumerated(player, table):
    """Action probabilities from all V^L token sequences of every turn."""
    probabilities = np.zeros((len(table.turns), len(table.actions)))
    ambiguous = 0.0
    for u, turn in enumerate(table.turns):
        for text, probability in player.all_replies(turn):
            parsed = parse_action(text, turn.legal_actions)
            if parsed.action is not None:
                probabilities[u, table.actions.index(parsed.action)] += probability
            elif "ambiguous" in parsed.error:
                ambiguous += probability
    return probabilities, ambiguous


@pytest.mark.parametrize("length", [1, 2, 3])
def test_exact_policy_against_all_token_sequences(kuhn, length):
    player = TinyLM(max_new_tokens=length)
    expected, ambiguous = enumerated(player, kuhn)
    assert expected.max() > 0.3 and (ambiguous > 0.01 or length == 1)  # the comparison has something to compare
    policy = exact_policy(player, kuhn, tolerance=1e-12)
    np.testing.assert_allclose(policy.probabilities, expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(policy.illegal, 1 - expected.sum(1), rtol=0, atol=1e-11)
    assert policy.samples is None
    policy.check(kuhn)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-2, 0.3])
def test_what_is_not_read_is_within_the_tolerance_and_counted_as_illegal(kuhn, tolerance):
    expected, _ = enumerated(TinyLM(), kuhn)
    player, complete = TinyLM(), TinyLM()
    policy = exact_policy(player, kuhn, tolerance=tolerance)
    exact_policy(complete, kuhn, tolerance=1e-12)
    short = expected - policy.probabilities
    assert (short > -1e-12).all()
    assert (policy.unexplored <= tolerance + 1e-12).all() and policy.unexplored.max() > 0.5 * tolerance
    assert (short.sum(1) <= policy.unexplored + 1e-12).all()
    assert (policy.unexplored <= policy.illegal + 1e-12).all()
    assert player.rows < complete.rows
    policy.check(kuhn)


def test_replies_of_one_token_only():
    # Sharp enough that nearly everything but one sequence per turn is dropped.
    table = tabulate("kuhn_poker(observation=compact)")
    player = TinyLM(max_new_tokens=3, sharpness=60.0)
    policy = exact_policy(player, table)
    expected, _ = enumerated(player, table)
    np.testing.assert_allclose(policy.probabilities, expected, atol=1e-4)
    assert player.rows < 3 * 12 * 2


def test_tokens_past_the_vocabulary_can_be_declared_as_ends(kuhn):
    player = TinyLM(max_new_tokens=2)
    player.eos_token_ids = frozenset({0, 999})
    np.testing.assert_array_equal(
        exact_policy(player, kuhn).probabilities, exact_policy(TinyLM(max_new_tokens=2), kuhn).probabilities
    )


def test_exact_policy_refuses_a_changed_distribution(kuhn):
    player = TinyLM()
    player.plain_sampling = False
    with pytest.raises(ValueError, match="'tiny' changes its distribution.*sampled_policy"):
        exact_policy(player, kuhn)


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        ({}, True),
        ({"temperature": 0.6}, False),
        ({"top_k": 5}, False),
        ({"top_p": 0.9}, False),
        ({"min_p": 0.1}, False),
        ({"repetition_penalty": 1.1}, False),
        ({"generation_kwargs": {"bad_words_ids": [[5]]}}, False),
    ],
)
def test_the_embedded_model_is_read_exactly_where_it_samples_plainly(kuhn, settings, plain):
    model, tokenizer = build_tiny_model(0)
    player = LanguageModelPlayer(model, tokenizer, max_new_tokens=1, **settings)
    if not plain:
        with pytest.raises(ValueError, match="changes its distribution"):
            exact_policy(player, kuhn)
        return
    policy = exact_policy(player, kuhn, tolerance=1e-9)
    drawn = sampled_policy(player, kuhn, samples=4000, seed=0)
    # Five standard errors of a frequency are at most 5 * 0.5 / sqrt(4000) = 0.04.
    assert policy.probabilities.max() > 0.02
    assert np.abs(policy.probabilities - drawn.probabilities).max() < 0.04


def test_exact_policy_refuses_replies_that_spread_too_widely(kuhn):
    with pytest.raises(TooManyRepliesError, match="max_rows=100 .*sampled estimate"):
        exact_policy(TinyLM(), kuhn, max_rows=100)
    # 12 prefixes are enough for one token, but 12 x 8 replies are more than 20 x 4.
    with pytest.raises(TooManyRepliesError):
        exact_policy(TinyLM(max_new_tokens=1), kuhn, max_rows=4, tolerance=1e-12)
    with pytest.raises(ValueError, match="tolerance"):
        exact_policy(TinyLM(), kuhn, tolerance=0.0)


def test_large_vocabularies_are_read_in_parts(kuhn, monkeypatch):
    whole = exact_policy(TinyLM(), kuhn)
    monkeypatch.setattr("spiral_trl.evaluation.policy._CHUNK", 40)  # 5 rows of 8 tokens
    parts = exact_policy(TinyLM(), kuhn)
    np.testing.assert_array_equal(whole.probabilities, parts.probabilities)
    np.testing.assert_allclose(whole.unexplored, parts.unexplored, rtol=1e-12)


def test_sampled_policy_converges_and_repeats(kuhn):
    player = TinyLM(max_new_tokens=2)
    expected, _ = enumerated(player, kuhn)
    policy = sampled_policy(player, kuhn, samples=2000, seed=1)
    # Five standard errors of a frequency are at most 5 * 0.5 / sqrt(2000) = 0.056.
    assert np.abs(policy.probabilities - expected).max() < 0.056
    assert np.abs(policy.illegal - (1 - expected.sum(1))).max() < 0.056
    assert policy.samples == 2000 and not policy.unexplored.any()
    policy.check(kuhn)
    again = sampled_policy(player, kuhn, samples=2000, seed=1)
    assert np.array_equal(policy.probabilities, again.probabilities)
    assert not np.array_equal(policy.probabilities, sampled_policy(player, kuhn, 2000, seed=2).probabilities)


def test_sampled_policy_reads_ambiguous_replies_as_illegal(kuhn):
    policy = sampled_policy(Always("[bet] [check] [call] [fold]"), kuhn, samples=3)
    assert (policy.illegal == 1).all() and not policy.probabilities.any()
    with pytest.raises(ValueError, match="at least 1 reply"):
        sampled_policy(Always("[bet]"), kuhn, samples=0)


def test_bot_policy_is_what_the_bot_says(kuhn):
    policy = bot_policy(RandomPlayer(), kuhn)
    assert np.array_equal(policy.probabilities, legal_mask(kuhn) / 2)
    assert not policy.illegal.any()


def test_policies_that_are_none_are_refused(kuhn):
    good = bot_policy(RandomPlayer(), kuhn)
    zero = np.zeros(12)
    with pytest.raises(ValueError, match=r"shape \(12, 4\)"):
        PolicyTable(good.probabilities[:6], zero[:6], zero[:6]).check(kuhn)
    with pytest.raises(ValueError, match="sum to 1"):
        PolicyTable(good.probabilities, zero + 0.1, zero).check(kuhn)
    with pytest.raises(ValueError, match="not legal"):
        PolicyTable(np.full((12, 4), 0.25), zero, zero).check(kuhn)
    with pytest.raises(ValueError, match="non-negative"):
        PolicyTable(good.probabilities * np.nan, zero, zero).check(kuhn)
