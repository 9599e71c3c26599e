"""Swaps between hands: exact identities with a dictionary that misses nothing, and the whole way on a taught model."""

import numpy as np
import pytest
import torch

from spiral_trl.errors import UsageError
from spiral_trl.players.bots import RandomPlayer
from spiral_trl.players.language_model import LanguageModelPlayer
from spiral_trl.rollout import play
from spiral_trl.sae.collect import collect
from spiral_trl.sae.documents import episode_documents
from spiral_trl.sae.game_features import associations
from spiral_trl.sae.game_variables import game_variables
from spiral_trl.sae.hands import SITES, HandMoves, Swap, find_hands, recovered
from spiral_trl.sae.patch import matched, patch_hands
from spiral_trl.training.tiny import build_tiny_model


GAME = "kuhn_poker(observation=compact)"
LAYERS = (0, 1, 2)


class Coordinates:
    """A dictionary that misses nothing: a feature for each side of each coordinate of the stream."""

    def __init__(self, layer, width):
        self.layer, self.width, self.num_features = layer, width, 2 * width
        self.name, self.fingerprint = f"coordinates {layer}", str(layer)
        self.directions = torch.cat([torch.eye(width), -torch.eye(width)])

    def read(self, stream):
        return stream.float()

    def encode(self, stream):
        return torch.relu(torch.cat([stream, -stream], dim=-1))

    def decode(self, codes):
        return codes @ self.directions

    def error(self, stream, codes):
        return torch.zeros_like(stream)

    def scale(self, stream):
        return torch.ones_like(stream[..., :1])

    def to_dict(self):
        return {"dictionary": self.name, "num_features": self.num_features, "fingerprint": self.fingerprint}


@pytest.fixture(scope="module")
def taught():
    """The embedded model, taught to check and fold with J, to bet and call with K, and to check and call with Q, in nine
    games of ten."""
    model, tokenizer = build_tiny_model(seed=1)
    rows, targets = [], []
    usual = {"J": ("check", "fold"), "Q": ("check", "call"), "K": ("bet", "call")}
    for history, answers in {"none": 0, "check": 0, "bet": 1, "check bet": 1}.items():
        player = 1 if history in ("check", "bet") else 0
        for card, actions in usual.items():
            prompt = f"<|user|> player {player} card {card} history {history} <|assistant|>"
            row = tokenizer(f"{prompt} {card} [{actions[answers]}] <|end|>").input_ids
            other = {"check": "bet", "bet": "check", "fold": "call", "call": "fold"}[actions[answers]]
            target = torch.zeros(len(row), len(tokenizer))
            target[torch.arange(len(row) - 1), torch.tensor(row[1:])] = 1
            target[len(row) - 3] = 0
            for action, share in ((actions[answers], 0.9), (other, 0.1)):
                target[len(row) - 3, tokenizer.convert_tokens_to_ids(f"[{action}]")] = share
            target[: len(row) - 4] = 0
            rows.append(torch.tensor(row))
            targets.append(target)
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    target = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = -(target * model(input_ids=ids).logits.log_softmax(-1)).sum() / target.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return LanguageModelPlayer(model.eval(), tokenizer, max_new_tokens=3)


@pytest.fixture(scope="module")
def episodes(taught):
    return play(GAME, [taught] * 2, np.arange(400)).episodes()


@pytest.fixture(scope="module")
def moves(taught, episodes):
    return HandMoves(taught, find_hands(game_variables(episodes), episodes))


def everything(dictionary):
    return Swap.of(dict.fromkeys((0, 1), np.arange(dictionary.num_features)))


def test_pairs_differ_in_the_card_alone(moves):
    hands = moves.hands
    # Four histories, each with three cards in both directions
    assert len(hands.turns) == 12 and len(hands.pairs) == 24
    for pair in hands.pairs:
        own, other = (hands.turns[place].messages[0]["content"].split() for place in (pair.own, pair.other))
        assert [one for one, two in zip(own, other, strict=True) if one != two] == [own[3]]
        assert hands.roles[pair.own] == hands.turns[pair.own].player
        assert hands.games[pair.own].parse(hands.turns[pair.own].player, "[call]").action == (
            "call" if own[-1] == "bet" else None
        )


def test_the_taught_model_plays_as_it_was_taught(moves):
    assert moves.kind == "actions"
    assert moves.shifts.max() == pytest.approx(0.8, abs=0.05)
    assert moves.own.sum(1) == pytest.approx(np.ones(24))


@pytest.mark.parametrize("layer", LAYERS)
def test_all_of_the_stream_swapped_is_the_other_hand(moves, layer):
    """From the first token that differs on, nothing of the own hand is left, whatever the layer."""
    dictionary = Coordinates(layer, 32)
    nothing = Swap.of(dict.fromkeys((0, 1), np.zeros(0, dtype=np.int64)))
    whole, none = moves.patched(dictionary, "difference", [everything(dictionary), nothing])
    assert np.abs(whole - moves.other).max() < 3e-3
    assert np.abs(none - moves.own).max() < 3e-3
    above, below = recovered(moves.own, moves.other, moves.other)
    assert above == pytest.approx(below)


def test_the_decision_token_holds_nothing_before_the_first_block(moves):
    dictionary = Coordinates(0, 32)
    (patched,) = moves.patched(dictionary, "decision", [everything(dictionary)])
    assert np.abs(patched - moves.own).max() < 3e-3
    sizes = {site: moves.sizes(dictionary, site) for site in SITES}
    assert all((size == 0).all() for size in sizes["decision"].values())
    assert all((size > 0).any() for size in sizes["difference"].values())
    later = moves.sizes(Coordinates(1, 32), "decision")
    assert set(later) == {0, 1} and all((size > 0).any() for size in later.values())


def test_the_size_of_a_change_by_hand(moves, taught):
    """At layer 0 the streams are embeddings, and the card is the one token that differs."""
    weights = taught.model.get_input_embeddings().weight.detach()
    expected = np.zeros(64)
    for pair in moves.hands.pairs:
        if moves.hands.roles[pair.own] == 0:
            own, other = (
                weights[
                    taught.tokenizer.convert_tokens_to_ids(moves.hands.turns[place].messages[0]["content"].split()[3])
                ]
                for place in (pair.own, pair.other)
            )
            expected += torch.cat([(other.relu() - own.relu()).abs(), ((-other).relu() - (-own).relu()).abs()]).numpy()
    assert moves.sizes(Coordinates(0, 32), "difference")[0] == pytest.approx(expected, rel=1e-5)


def test_a_change_may_be_laid_along_other_directions(moves):
    """The codes of all features along the directions of the opposite sides: the change with its sign turned."""
    dictionary = Coordinates(0, 32)
    turned = Coordinates(0, 32)
    turned.directions = -turned.directions
    places = np.arange(64)
    along = Swap(dict.fromkeys((0, 1), places), dict.fromkeys((0, 1), np.roll(places, 32)))
    (one,) = moves.patched(dictionary, "difference", [along])
    moves._newest = None
    (other,) = moves.patched(turned, "difference", [everything(turned)])
    moves._newest = None
    assert np.abs(one - other).max() < 1e-6


def test_first_tokens_where_replies_are_too_many(episodes):
    model, tokenizer = build_tiny_model(seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3
    player = LanguageModelPlayer(model.eval(), tokenizer, max_new_tokens=12)
    moves = HandMoves(player, find_hands(game_variables(episodes), episodes))
    assert moves.kind == "first token" and moves.own.sum(1) == pytest.approx(np.ones(24))
    dictionary = Coordinates(1, 32)
    (patched,) = moves.patched(dictionary, "difference", [everything(dictionary)])
    assert patched == pytest.approx(moves.other, abs=1e-5)
    assert np.abs(moves.other - moves.own).max() > 1e-3


def test_hands_of_a_game(episodes):
    mixed = [*play("tic_tac_toe", [RandomPlayer()] * 2, range(20)).episodes(), *episodes]
    roles = game_variables(mixed)
    assert {turn.game for turn in find_hands(roles, mixed).turns} == {GAME}
    assert len(find_hands(roles, mixed, max_pairs=5).pairs) == 5
    with pytest.raises(UsageError, match="no two situations of the episodes of tic_tac_toe differ"):
        find_hands(roles, mixed, "tic_tac_toe")


def test_random_features_are_matched():
    density = np.array([0.1, 0.5, 0.1, 0.11, 0.5, 0.001, *[0.1] * 20])
    mean = np.array([1.0, 3.0, 1.0, 1.1, 3.2, 50.0, *[90.0] * 20])
    random = np.random.default_rng(0)
    spare = np.arange(2, 26)
    drawn = [matched(np.array([0, 1]), spare, density, mean, random) for _ in range(200)]
    assert all(len(set(pair.tolist())) == 2 and set(pair.tolist()) <= set(spare.tolist()) for pair in drawn)
    few = [matched(np.array([0]), np.array([2, 5]), density, mean, random)[0] for _ in range(50)]
    assert set(few) <= {2, 5}
    # Of 24 candidates one of the nearest eight is drawn: never the twelve that are farthest in activation
    nearest = {pair[0] for pair in drawn}
    assert {2, 3} <= nearest and len(nearest) <= 9


@pytest.fixture(scope="module")
def collected(taught, episodes, tmp_path_factory):
    dictionaries = {layer: Coordinates(layer, 32) for layer in LAYERS}
    documents = list(episode_documents(episodes, taught.tokenizer))
    folder = tmp_path_factory.mktemp("patch") / "store"
    store = collect(
        taught.model,
        dictionaries,
        documents,
        folder,
        model_name="taught",
        source={},
        value_dtype="float32",
        progress=False,
    )
    return dictionaries, store, associations(store, episodes, permutations=0)


@pytest.mark.slow
def test_the_card_is_found_and_moves_the_action(taught, episodes, tmp_path):
    """The whole way, with trained dictionaries: the features that stand for the card at the token before the reply, where
    no card is shown, move the action more than random ones."""
    pytest.importorskip("sae_lens")
    from spiral_trl.sae.dictionaries import load_dictionaries
    from spiral_trl.sae.train import train_dictionaries

    documents = list(episode_documents(episodes, taught.tokenizer))
    settings = dict(model_name="taught", num_features=128, active=4, tokens=60_000, batch_tokens=512)
    train_dictionaries(taught.model, documents, tmp_path / "dictionaries", learning_rate=1e-2, **settings)
    dictionaries = load_dictionaries(str(tmp_path / "dictionaries"))
    store = collect(
        taught.model, dictionaries, documents, tmp_path / "store", model_name="taught", source={}, progress=False
    )
    found = associations(store, episodes)
    variables = {(one["name"], one["role"]): one for one in found.result["variables"]}
    for role in ("player 0", "player 1"):
        assert variables["card", role]["arises"] == 1
        assert max(layer["stand_for"] for layer in variables["card", role]["layers"]) > 0
        assert variables["card", role]["layers"][0]["discoveries"] == 0
        history = variables["history", role]
        assert max(layer["stand_for"] for layer in history["layers"] + history["elsewhere"]["reply"]) > 0
    told = patch_hands(taught, dictionaries, found, store, episodes, draws=60, layers=[1, 2])
    best = told["best"]
    assert best["site"] == "decision" and best["set"] == "group"
    assert best["recovered"]["low"] > best["random"]["high"]
    assert best["recovered"]["estimate"] > best["same_size"]["high"]
    assert best["q"] <= 0.05 and best["difference"]["low"] > 0.1
    assert "more than matched random features do" in told["summary"]


def test_a_model_that_plays_hands_alike_has_nothing_to_move(episodes, collected):
    dictionaries, store, found = collected
    model, tokenizer = build_tiny_model(seed=0)
    with torch.no_grad():
        model.lm_head.weight *= 0.01
    player = LanguageModelPlayer(model.eval(), tokenizer, max_new_tokens=12)
    told = patch_hands(player, dictionaries, found, store, episodes)
    assert told["tests"] == [] and told["best"] is None
    assert "plays hands that differ in the card alike" in told["summary"]


def test_a_changed_distribution_is_refused(taught, episodes, collected):
    dictionaries, store, found = collected
    player = LanguageModelPlayer(taught.model, taught.tokenizer, max_new_tokens=3, temperature=0.5)
    with pytest.raises(UsageError, match="leave out temperature"):
        patch_hands(player, dictionaries, found, store, episodes)
    with pytest.raises(UsageError, match="sites are of difference, decision, not reply"):
        patch_hands(taught, dictionaries, found, store, episodes, sites=["reply"])
