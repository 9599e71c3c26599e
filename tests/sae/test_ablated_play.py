"""Games of a model without some of its features: the ablation holds wherever it reads and writes."""

import json

import numpy as np
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

from spiral_trl.errors import UsageError
from spiral_trl.evaluation.exploitability import measure_exploitability
from spiral_trl.evaluation.match import match_seed, play_match
from spiral_trl.games.sequence_form import solvable_table
from spiral_trl.players.bots import RandomPlayer
from spiral_trl.players.frozen_model import ModelSettings, load_model_player
from spiral_trl.sae.ablate import ablated
from spiral_trl.sae.ablated_play import ablated_play, ablated_player
from spiral_trl.sae.dictionaries import Dictionary
from spiral_trl.training.tiny import save_tiny_model, warm_start


GAME = "kuhn_poker(observation=compact)"
WIDTH, FEATURES = 32, 12
# The feature whose absence leaves no legal move, and one that brings nothing
CRUCIAL = 3


@pytest.fixture(scope="module")
def player(tmp_path_factory):
    folder = save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", seed=0)
    warm_start(folder, GAME, folder, seed=0, steps=80)
    return load_model_player(str(folder), ModelSettings(max_new_tokens=4))


def random_dictionary(layer, seed=0):
    torch.manual_seed(seed)
    sae = TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=FEATURES, k=4))
    return Dictionary(layer, f"random-{layer}", sae.eval().requires_grad_(False))


def crucial_dictionary(player):
    """After the last block: every feature always fires; one of them keeps the model from ending at once, the others are
    nothing."""
    sae = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=FEATURES))
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.b_enc.fill_(5.0)
        sae.W_dec.fill_(1e-9)
        sae.W_dec[CRUCIAL] = -10 * player.model.lm_head.weight[player.tokenizer.eos_token_id]
    return Dictionary(2, "crucial", sae.eval().requires_grad_(False))


@pytest.fixture
def store(make_store):
    return make_store({2: np.full((40, FEATURES), 5.0, np.float32)})


def next_log_probs(player, ids):
    with torch.no_grad():
        return torch.log_softmax(player.model(torch.tensor([ids])).logits[0].float(), -1)


def test_ablation_holds_in_prefill_and_in_every_generated_token(player):
    """Replies' log-probabilities, from a padded batch with a cache, equal those of each row read alone from its start."""
    dictionaries = {layer: random_dictionary(layer, seed=layer) for layer in (0, 1, 2)}
    features = {layer: range(FEATURES) for layer in dictionaries}
    without = ablated_player(player, dictionaries, features, name="without")
    turns = solvable_table(GAME).turns
    assert len({len(player.prompt_ids(turn)) for turn in turns}) > 1
    replies = without.reply(turns)
    assert max(len(reply.completion_ids) for reply in replies) > 1
    moved = 0.0
    for reply in replies:
        ids, begin = [*reply.prompt_ids, *reply.completion_ids], len(reply.prompt_ids)
        with ablated(player.model, dictionaries, features):
            expected = next_log_probs(player, ids)
        plain = next_log_probs(player, ids)
        for place, token in enumerate(reply.completion_ids):
            at = begin + place - 1
            assert reply.logprobs[place] == pytest.approx(float(expected[at, token]), abs=1e-4)
            moved = max(moved, abs(float(plain[at, token] - expected[at, token])))
    assert moved > 0.1
    assert without.name == "without"
    assert player.name != "without"


def test_next_token_probabilities_are_of_the_ablated_model(player):
    dictionaries = {1: random_dictionary(1)}
    without = ablated_player(player, dictionaries, {1: [0, 1, 2, 3, 4, 5]})
    prefixes = [player.prompt_ids(turn) for turn in solvable_table(GAME).turns[:6]]
    found = without.next_token_probs(prefixes)
    for prefix, row in zip(prefixes, found, strict=True):
        with ablated(player.model, dictionaries, {1: [0, 1, 2, 3, 4, 5]}):
            expected = next_log_probs(player, prefix)[-1].exp()
        np.testing.assert_allclose(row, expected.double().numpy(), atol=1e-5)
    # The player itself stays as it was
    for prefix, row in zip(prefixes, player.next_token_probs(prefixes), strict=True):
        np.testing.assert_allclose(row, next_log_probs(player, prefix)[-1].exp().double().numpy(), atol=1e-5)


def test_a_crucial_feature_tells_and_random_ones_do_not(player, store):
    opponent = RandomPlayer()
    calls = []
    result = ablated_play(
        player,
        {2: crucial_dictionary(player)},
        {2: [CRUCIAL]},
        store,
        GAME,
        opponent,
        pairs=40,
        random_sets=4,
        seed=7,
        progress=lambda *given: calls.append(given),
    )
    plain = play_match(GAME, player, opponent, 40, match_seed(GAME, 7))
    assert result.undisturbed.mean_return == plain.mean_return
    assert result.undisturbed.win_rate == plain.win_rate
    exact = measure_exploitability(player, GAME)
    assert result.undisturbed.exploitability == pytest.approx(exact.exploitability)

    assert result.ablated.features == {"2": [CRUCIAL]}
    assert result.ablated.illegal_rate > 0.99
    assert result.ablated.policy_shift == pytest.approx(1 - exact.illegal_mass, abs=0.02)
    assert result.ablated.difference.high < 0
    assert result.beyond_random.high < 0
    assert len(result.random) == 4
    assert len({tuple(one.features["2"]) for one in result.random}) == 4
    for one in result.random:
        assert CRUCIAL not in one.features["2"]
        assert len(one.features["2"]) == 1
        assert one.policy_shift == pytest.approx(0, abs=1e-4)
        assert one.difference.estimate == 0
    assert result.p == {"mean_return": 1 / 5, "exploitability": 1 / 5, "policy_shift": 1 / 5}
    # Means over the same deals, by hand
    random = np.mean([one.mean_return.estimate for one in result.random])
    assert result.beyond_random.estimate == pytest.approx(result.ablated.mean_return.estimate - random)
    assert [call[:2] for call in calls] == [(number, 6) for number in range(6)]
    assert json.loads(json.dumps(result.to_dict()))["ablated"]["difference"]["high"] < 0


def test_a_harmless_feature_is_no_worse_than_random_ones(player, store):
    result = ablated_play(
        player,
        {2: crucial_dictionary(player)},
        {2: [5]},
        store,
        GAME,
        RandomPlayer(),
        pairs=10,
        exclude={2: [CRUCIAL]},
    )
    assert result.p["mean_return"] == 1
    assert result.beyond_random.estimate == 0
    assert all(one.features["2"] != [CRUCIAL] for one in result.random)


def test_a_sampling_player_has_no_exact_policy(player, store):
    warm = load_model_player(str(player.model.config._name_or_path))
    warm.plain_sampling = False
    result = ablated_play(
        warm, {2: crucial_dictionary(player)}, {2: [CRUCIAL]}, store, GAME, RandomPlayer(), pairs=3, random_sets=1
    )
    assert result.ablated.exploitability is None
    assert result.ablated.policy_shift is None
    assert result.p["exploitability"] is None
    assert result.p["mean_return"] in (1 / 2, 1)


def test_bad_input(player, store):
    dictionaries = {2: crucial_dictionary(player)}

    def run(features, game=GAME, **changes):
        return ablated_play(player, dictionaries, features, store, game, RandomPlayer(), **changes)

    with pytest.raises(UsageError, match="no features to switch off"):
        run({2: []})
    with pytest.raises(UsageError, match="layer 2 has features 0 to 11, not 12"):
        run({2: [12]})
    with pytest.raises(UsageError, match="has layers 2, not 1"):
        run({1: [0]})
    with pytest.raises(UsageError, match="layer 2 has 5 other features that fire, too few to match 7"):
        run({2: range(7)})
    with pytest.raises(UsageError, match="pairs=1 and random_sets=5"):
        run({2: [0]}, pairs=1)
    with pytest.raises(UsageError, match="kuhn_pokr.*did you mean"):
        run({2: [0]}, game="kuhn_pokr")
    player.engine = object()
    try:
        with pytest.raises(UsageError, match="engine of its own"):
            ablated_player(player, dictionaries, {2: [0]})
    finally:
        player.engine = None
