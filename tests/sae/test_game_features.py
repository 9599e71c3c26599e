"""Planted features are found where they were planted, and nothing is where nothing was."""

import json

import numpy as np
import pyarrow.parquet
import pytest

from spiral_trl.errors import UsageError
from spiral_trl.players.bots import RandomPlayer
from spiral_trl.rollout import play
from spiral_trl.sae.game_features import associations
from spiral_trl.sae.game_variables import game_variables
from spiral_trl.sae.step_codes import StepCodes
from spiral_trl.sae.store import TOKEN, open_store, rows_of, write_shard, write_store


FEATURES = 24
# Tokens of a step: three that are shown, the last of which is the decision token, and two of the reply
SHOWN, WRITTEN = 3, 2
LENGTH = SHOWN + WRITTEN


@pytest.fixture(scope="module")
def episodes():
    return play("kuhn_poker", [RandomPlayer()] * 2, np.arange(300)).episodes()


def tokens_of(episodes):
    """The tokens of a store of these games, in the order of the documents."""
    steps = [(group, step.turn) for group, episode in enumerate(episodes) for step in episode.steps]
    tokens = np.zeros(len(steps) * LENGTH, TOKEN)
    for number, (group, turn) in enumerate(steps):
        at = slice(number * LENGTH, (number + 1) * LENGTH)
        tokens["group"][at], tokens["document"][at] = group, number
        tokens["player"][at], tokens["turn"][at] = turn.player, turn.index
        tokens["position"][at] = np.arange(LENGTH)
        tokens["reply"][at] = np.arange(LENGTH) >= SHOWN
    return tokens, [turn for _, turn in steps]


def codes_of(turns, seed=0, **planted):
    """Noise in all features; `planted` gives for a place `f{feature}` a function from a turn to what it is at the decision
    token, and `p{feature}` at the first token."""
    random = np.random.default_rng(seed)
    codes = np.maximum(random.normal(size=(len(turns) * LENGTH, FEATURES)), 0)
    for name, function in planted.items():
        place = SHOWN - 1 if name[0] == "f" else 0
        for number, turn in enumerate(turns):
            codes[number * LENGTH : (number + 1) * LENGTH, int(name[1:])] = 0
            codes[number * LENGTH + place, int(name[1:])] = function(turn)
    return codes


@pytest.fixture
def save(tmp_path, episodes):
    def save(codes, name="store", shards=1, fingerprint="made", games=episodes):
        tokens, _ = tokens_of(games)
        folder = tmp_path / name
        about = {"num_features": FEATURES, "dictionary": "made", "fingerprint": fingerprint}
        write_store(folder, {"model": name, "source": {}, "layers": {str(layer): about for layer in codes}})
        for number, at in enumerate(np.array_split(np.arange(len(tokens)), shards)):
            write_shard(
                folder, number, tokens[at], {layer: rows_of(dense[at], "float32") for layer, dense in codes.items()}
            )
        return open_store(folder)

    return save


def card(turn):
    return turn.infoset.split("|")[1]


def best(result, name, role, layer):
    (variable,) = [one for one in result["variables"] if (one["name"], one["role"]) == (name, role)]
    return variable["layers"][layer]


@pytest.fixture
def planted(episodes, save):
    _, turns = tokens_of(episodes)
    return save(
        {
            0: codes_of(turns, p3=lambda turn: float(card(turn) == "K")),
            1: codes_of(
                turns,
                1,
                f5=lambda turn: float(card(turn) == "K"),
                f6=lambda turn: 1.0 if turn.infoset.endswith("bet") else 0.1,
                f7=lambda turn: 2.0 * (card(turn) == "J") * (turn.player == 1),
            ),
        },
        shards=3,
    )


def test_planted_features_are_found(planted, episodes):
    found = associations(planted, episodes)
    result = found.result
    for role in ("player 0", "player 1"):
        assert found.features_for("card", role, 1)[0] == 5
        feature = best(result, "card", role, 1)["features"][0]
        assert (feature["l"], feature["f"], feature["value"]) == (1, 5, "K")
        assert (feature["precision"], feature["recall"]) == (1, 1)
        assert feature["q"] < 1e-9 and best(result, "card", role, 1)["exact"] >= 1
        assert found.features_for("history", role, 1) == [6]
        assert best(result, "history", role, 1)["features"][0]["effect"] == 1
    # The third is of one role alone
    assert found.features_for("card", "player 0", 1) == [5]
    assert found.features_for("card", "player 1", 1) == [5, 7]
    # At layer 0 the card stands in the prompt, and not at the decision token
    assert best(result, "card", "player 0", 0)["stand_for"] == 0
    assert found.features_for("card", "player 0", 0, positions=["decision", "reply"]) == []
    assert found.features_for("card", "player 0", 0, positions=["prompt"]) == [3]
    told = [one for one in result["variables"] if one["name"] == "card"]
    assert [one["arises"] for one in told] == [1, 1]
    assert [one["elsewhere"]["prompt"][0]["features"][0]["f"] for one in told] == [3, 3]
    # Three levels around a feature that tells one: the share is that of an indicator of it
    assert "card (player 0 100% at layer 1, player 1 100% at layer 1)" in result["summary"]
    marked = {(one["l"], one["f"]): one for one in result["stands_for"]}
    assert {key: one["name"] for key, one in marked.items()} == {
        (0, 3): "card", (1, 5): "card", (1, 6): "history", (1, 7): "card"
    }  # fmt: skip
    assert (marked[1, 7]["role"], marked[1, 7]["value"]) == ("player 1", "J")


def test_the_control_discovers_nothing(planted, episodes):
    control = associations(planted, episodes, permutations=10).result["control"]
    assert control["tests"] > 200 and len(control["discoveries"]) == 10
    assert sum(found > 0 for found in control["discoveries"]) <= 2
    chance = best(associations(planted, episodes).result, "card", "player 0", 1)["chance"]
    assert 0 < chance < 0.1


def test_nothing_is_found_in_noise(episodes, save):
    _, turns = tokens_of(episodes)
    result = associations(save({0: codes_of(turns), 1: codes_of(turns, 1)}), episodes).result
    assert result["discoveries"] <= 1 and result["stands_for"] == []
    assert "No feature stands for: card (player 0)" in result["summary"]


def test_before_and_after(episodes, save):
    _, turns = tokens_of(episodes)
    before = save({1: codes_of(turns, f5=lambda turn: float(card(turn) == "K"))}, "before")
    after = save(
        {
            1: codes_of(
                turns,
                f5=lambda turn: float(card(turn) == "K"),
                f8=lambda turn: float(card(turn) == "J") if turn.player == 0 else 0.5 + 0.5 * (turn.seed % 2),
            )
        },
        "after",
    )
    result = associations(before, episodes, after=after).result
    layer = best(result, "card", "player 0", 0)
    features = {one["f"]: one for one in layer["features"]}
    assert set(features) >= {5, 8}
    assert (features[5]["before"], features[5]["after"], features[5]["change"]["estimate"]) == (1, 1, 0)
    new = features[8]
    assert new["before"] < 0.05 and new["after"] == new["effect"] == 1
    assert 0.9 < new["change"]["low"] <= new["change"]["estimate"] <= new["change"]["high"] <= 1
    assert 8 not in {one["f"] for one in best(result, "card", "player 1", 0)["features"]}
    assert "100% before training" in result["summary"]
    with pytest.raises(UsageError, match="by different dictionaries at layer 1"):
        associations(before, episodes, after=save({1: codes_of(turns)}, "other", fingerprint="another"))


def test_saved_and_read_again(planted, episodes, tmp_path):
    found = associations(planted, episodes, layers=[1], positions=["decision"], permutations=0)
    found.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "game_features.json").read_text()) == found.to_dict()
    rows = pyarrow.parquet.read_table(tmp_path / "out" / "game_features.parquet").to_pylist()
    assert len(rows) == found.result["tests"]
    (row,) = [row for row in rows if (row["variable"], row["role"], row["feature"]) == ("card", "player 1", 7)]
    assert (row["value"], row["layer"], row["position"], row["precision"]) == ("J", 1, "decision", 1)
    (row,) = [row for row in rows if (row["variable"], row["role"], row["feature"]) == ("return", "player 1", 7)]
    assert row["value"] is None and row["precision"] is None and row["sign"] == -1


def test_steps_of_a_store_by_hand(episodes, save):
    """Two steps over three shards, cut within a step: the largest activation of each part of the step."""
    (game,) = [episode for episode in episodes if len(episode.steps) == 2][:1]
    codes = np.zeros((2 * LENGTH, FEATURES))
    codes[0, 0], codes[1, 0], codes[2, 0], codes[3, 1], codes[4, 1] = 1, 5, 2, 3, 4
    codes[LENGTH + 2, 2], codes[LENGTH + 4, 2] = 6, 7
    steps = StepCodes.of(save({0: codes}, shards=3, games=[game]))
    assert len(steps) == 2
    assert steps.find(np.array([0, 0, 1]), np.array([1, 0, 0]), 0).tolist() == [-1, 0, -1]
    assert steps.find(np.array([0]), np.array([1]), 1).tolist() == [1]
    found = {
        position: steps.codes(0, position).toarray()[:, :3].tolist() for position in ("decision", "prompt", "reply")
    }
    assert found == {
        "decision": [[2, 0, 0], [0, 0, 6]],
        "prompt": [[5, 0, 0], [0, 0, 6]],
        "reply": [[0, 4, 0], [0, 0, 7]],
    }


def test_a_store_of_other_games_is_refused(episodes, planted, make_store):
    with pytest.raises(UsageError, match="steps in .* are not in the episodes: the codes are of other games"):
        associations(planted, episodes[:200])
    with pytest.raises(UsageError, match="other games"):
        associations(planted, episodes[1:])
    with pytest.raises(UsageError, match="holds codes of texts, not of games"):
        associations(make_store({0: np.ones((16, 4))}, name="texts"), episodes)
    with pytest.raises(UsageError, match="has layers 0, 1, not 5"):
        associations(planted, episodes, layers=[5])
    with pytest.raises(UsageError, match="positions are of decision, prompt, reply, not end"):
        associations(planted, episodes, positions=["end"])


def test_part_of_the_games_is_enough(episodes, save):
    _, turns = tokens_of(episodes[:150])
    store = save({0: codes_of(turns, f5=lambda turn: float(card(turn) == "K"))}, games=episodes[:150])
    found = associations(store, episodes)
    assert found.features_for("card", "player 0", 0) == [5]
    assert sum(len(role.group) for role in found.roles) == len(turns)
    assert sum(len(role.group) for role in game_variables(episodes)) > len(turns)


def test_too_few_games(episodes, save):
    few = episodes[:4]
    _, turns = tokens_of(few)
    with pytest.raises(UsageError, match="no role has steps in 10 games"):
        associations(save({0: codes_of(turns)}, games=few), few)
