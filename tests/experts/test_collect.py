"""Sets of decisions: what a row says, whose decisions are kept, and that a set that was cut off goes on."""

import json
import time
from collections import Counter

import pytest
from toy_games import TreeGame
from toy_players import Scripted

from spiral_trl.errors import PlayError
from spiral_trl.experts import collect as module
from spiral_trl.experts.collect import (
    ExpertSettings,
    Progress,
    Seats,
    collect,
    load_decisions,
    make_decisions,
    read_state,
    resolve,
    seat_players,
)
from spiral_trl.experts.decisions import features
from spiral_trl.games import make_game
from spiral_trl.games.kuhn_equilibrium import equilibrium
from spiral_trl.players.bots import CFRPlayer
from spiral_trl.records import Ending


COLUMNS = (
    "prompt completion game episode_id seed player role turn action legal_actions infoset reward returns end valid "
    "policy env_version"
).split()


def seated(settings, player):
    return Seats(dict.fromkeys(settings.games, player), dict.fromkeys(settings.games, player.name), None)


@pytest.fixture(scope="module")
def kuhn():
    """25,000 decisions as the command makes them, and the seconds they took."""
    began = time.perf_counter()
    dataset = make_decisions(ExpertSettings(("kuhn_poker",), rationale=True, think=True))
    return dataset, time.perf_counter() - began


# -------------------------------------------------------------------------------------------------------------- rows


def test_25000_decisions_take_seconds(kuhn):
    dataset, seconds = kuhn
    assert len(dataset) == 25_000
    assert seconds < 30  # 1.5 s on one core, alone


def test_columns(kuhn):
    dataset, _ = kuhn
    assert dataset.column_names == COLUMNS == list(features())
    assert dataset.features == features()
    assert set(dataset["game"]) == {"kuhn_poker"} and set(dataset["policy"]) == {"cfr"}
    assert set(dataset["end"]) == {"terminal"} and set(dataset["valid"]) == {True}
    assert all(version.startswith("spiral_trl ") for version in set(dataset["env_version"]))


def test_rows_are_the_games_that_their_seeds_deal(kuhn):
    rows = kuhn[0].select(range(600)).to_list()
    games = {}
    for row in rows:
        games.setdefault(row["episode_id"], []).append(row)
    complete = [games[episode] for episode in sorted(games)[:-1]]
    assert len(complete) > 200 and len({steps[0]["seed"] for steps in complete}) == len(complete)
    for steps in complete:
        game = make_game("kuhn_poker")
        game.reset(steps[0]["seed"])
        for row in steps:
            (turn,) = game.turns()
            assert row["prompt"] == list(turn.messages) and row["infoset"] == turn.infoset
            assert (row["player"], row["role"], row["turn"]) == (turn.player, turn.role, turn.index)
            assert row["legal_actions"] == list(turn.legal_actions)
            (message,) = row["completion"]
            assert message["role"] == "assistant"
            assert game.parse(turn.player, message["content"]).action == row["action"]
            game.step({turn.player: row["action"]})
        assert game.ending is Ending.TERMINAL
        for row in steps:
            assert row["returns"] == list(game.returns()) and row["reward"] == game.returns()[row["player"]]


def test_actions_come_with_the_equilibriums_shares(kuhn):
    counts = Counter(zip(kuhn[0]["infoset"], kuhn[0]["action"], strict=True))
    totals = Counter(kuhn[0]["infoset"])
    # Player 1 has one equilibrium. A share of n rows has a standard deviation below 0.5 / sqrt(n)
    for infoset, policy in equilibrium(0).items():
        if infoset.startswith("1"):
            for action, probability in policy.items():
                share = counts[infoset, action] / totals[infoset]
                assert share == pytest.approx(probability, abs=0.01 + 5 * 0.5 / totals[infoset] ** 0.5)
    bluff, value = (counts[f"0|{card}|", "bet"] / totals[f"0|{card}|"] for card in "JK")
    assert value == pytest.approx(3 * bluff, abs=0.1) and bluff < 1 / 3 + 0.03


def test_several_games_share_the_decisions():
    names = ("kuhn_poker", "kuhn_poker(observation=compact)", "kuhn_poker(seat_bonus=1)")
    dataset = make_decisions(ExpertSettings(names, decisions=1001))
    assert Counter(dataset["game"]) == {
        "kuhn_poker": 334,
        "kuhn_poker(observation=compact)": 334,
        "kuhn_poker(seat_bonus=1)": 333,
    }


def test_a_set_depends_on_its_seed_alone():
    one, again, other = (make_decisions(ExpertSettings(("kuhn_poker",), decisions=50, seed=s)) for s in (1, 1, 2))
    assert one.to_list() == again.to_list() != other.to_list()


# --------------------------------------------------------------------------------------------------- what is kept


def test_winners_alone():
    dataset = make_decisions(ExpertSettings(("kuhn_poker",), decisions=2000, keep="winners"))
    assert len(dataset) == 2000
    assert all(row["reward"] == max(row["returns"]) > 0 for row in dataset)
    # Who folds has lost
    assert set(dataset["action"]) == {"check", "bet", "call"}


def test_every_seat_against_an_opponent():
    settings = ExpertSettings(("kuhn_poker",), decisions=2000, opponent="random")
    dataset = make_decisions(settings)
    seats = {}
    for row in dataset:
        seats.setdefault(row["episode_id"], set()).add(row["player"])
    # One seat of each game, and the seats in turn
    assert {frozenset(s) for s in seats.values()} == {frozenset({0}), frozenset({1})}
    assert all(seat == {episode % 2} for episode, seat in seats.items())
    assert list(dataset["episode_id"]) == sorted(dataset["episode_id"])
    # Equilibrium play never folds K, nor calls with J
    assert not any(
        row["action"] == ("fold" if "|K|" in row["infoset"] else "call" if "|J|" in row["infoset"] else None)
        for row in dataset
    )


def leaf(first, ending=Ending.TERMINAL):
    return ("end", (first, -first), ending)


@pytest.fixture
def toy(register_game):
    """`seat 0` chooses how the game ends; `seat 1` has said something before."""
    name = "choose_your_end"
    ends = {"win": leaf(1.0), "draw": leaf(0.0), "lose": leaf(-1.0), "stop": leaf(1.0, Ending.TRUNCATED)}
    tree = ("turn", 1, {"hello": ("turn", 0, ends)})
    return register_game(name, lambda: TreeGame(name, tree))


@pytest.mark.parametrize(
    ("action", "keep", "players"),
    [
        ("win", "winners", {0}),
        ("lose", "winners", {1}),
        ("draw", "winners", set()),
        ("draw", "all", {0, 1}),
        ("lose", "all", {0, 1}),
        ("stop", "all", set()),
        ("nonsense", "all", set()),
    ],
)
def test_whose_decisions_are_kept(toy, action, keep, players):
    settings = ExpertSettings((toy,), expert="scripted", decisions=40, keep=keep, games_per_round=100)
    player = Scripted(lambda turn: "[hello]" if turn.player == 1 else f"[{action}]")
    if players:
        assert set(make_decisions(settings, seated(settings, player))["player"]) == players
    else:
        with pytest.raises(PlayError, match=r"1,000 games of choose_your_end by scripted gave no decision to keep"):
            make_decisions(settings, seated(settings, player))


def test_a_models_winners_are_kept_and_its_refused_replies_are_not(toy):
    settings = ExpertSettings((toy,), expert="scripted", decisions=30, illegal="retry(1)")

    def choose(turn):
        if turn.player == 1:
            return "[hello]"
        return "[win]" if "no legal action" in turn.messages[-1]["content"] else "well"

    dataset = make_decisions(settings, seated(settings, Scripted(choose)))
    assert len(dataset) == 30 and set(dataset["player"]) == {0}
    assert {row[0]["content"] for row in dataset["completion"]} == {"[win]"}
    assert set(dataset["turn"]) == {2}  # after seat 1, and after its own refused reply


# ----------------------------------------------------------------------------------------------- files, and going on


SETTINGS = ExpertSettings(("kuhn_poker", "kuhn_poker(seat_bonus=1)"), decisions=901, games_per_round=100)


class Cut(Exception):
    """A kill."""


def test_a_set_that_was_cut_off_goes_on_and_equals_one_that_was_not(tmp_path):
    state = collect(SETTINGS, tmp_path / "once")
    assert state.total == 901 and state.rows == {"kuhn_poker": 451, "kuhn_poker(seat_bonus=1)": 450}

    def cut(state):
        if len(state.files) == 3:
            raise Cut

    with pytest.raises(Cut):
        collect(SETTINGS, tmp_path / "twice", progress=cut)
    state = read_state(tmp_path / "twice")
    assert state["finished"] is False and len(state["files"]) == 3
    kept = load_decisions(tmp_path / "twice").to_list()
    # As a kill between a file and the note of it leaves the folder
    (tmp_path / "twice" / "data" / "train-00003.parquet").write_bytes(b"half")
    collect(SETTINGS, tmp_path / "twice")
    once, twice = load_decisions(tmp_path / "once"), load_decisions(tmp_path / "twice")
    assert twice.to_list()[: len(kept)] == kept
    assert once.to_list() == twice.to_list()
    states = [read_state(tmp_path / name) | {"seconds": None} for name in ("once", "twice")]
    assert states[0] == states[1] and states[0]["finished"] is True
    assert make_decisions(SETTINGS).to_list() == once.to_list()


def test_the_hubs_loader_reads_the_folder(tmp_path):
    from datasets import load_dataset

    collect(SETTINGS, tmp_path / "set")
    dataset = load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset.features == features()
    assert dataset.to_list() == load_decisions(tmp_path / "set").to_list()


def test_games_that_were_finished_before_a_failure_are_kept(tmp_path, monkeypatch):
    real, calls = module.play, []

    def fail_in_the_second_round(game, seated, seeds, **kwargs):
        calls.append(len(seeds))
        if len(calls) == 2:
            raise PlayError("the endpoint does not answer", real(game, seated, seeds[::3], **kwargs))
        return real(game, seated, seeds, **kwargs)

    monkeypatch.setattr(module, "play", fail_in_the_second_round)
    with pytest.raises(PlayError, match=r"does not answer .* of 901 decisions are kept .* same command goes on"):
        collect(SETTINGS, tmp_path / "set")
    kept = load_decisions(tmp_path / "set")
    episodes = set(kept["episode_id"])
    assert set(range(100)) <= episodes and {100, 103, 106} <= episodes and 101 not in episodes
    state = collect(SETTINGS, tmp_path / "set")
    assert state.total == 901
    whole = load_decisions(tmp_path / "set").to_list()
    assert whole[: len(kept)] == kept.to_list() and len(whole) == 901
    for row in whole[::50]:
        game = make_game(row["game"])
        game.reset(row["seed"])
        assert game.roles[row["player"]] == row["role"]


def test_a_failure_before_any_game_keeps_nothing_and_says_so(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise PlayError("no answer")

    monkeypatch.setattr(module, "play", fail)
    with pytest.raises(PlayError, match="0 of 901 decisions"):
        collect(SETTINGS, tmp_path / "set")
    with pytest.raises(ValueError, match="holds no decisions yet"):
        load_decisions(tmp_path / "set")
    with pytest.raises(PlayError, match="no answer"):
        make_decisions(SETTINGS)


def test_folders_that_are_taken(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds no set of expert decisions: there is no experts\.json"):
        collect(SETTINGS, tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]
    collect(SETTINGS, tmp_path / "set")
    with pytest.raises(ValueError, match="holds this set already, with 901 decisions"):
        collect(SETTINGS, tmp_path / "set")
    with pytest.raises(ValueError, match="holds a set with decisions=901, not 900"):
        collect(ExpertSettings(SETTINGS.games, decisions=900, games_per_round=100), tmp_path / "set")
    path = tmp_path / "set" / "experts.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": "0.0.1"}))
    with pytest.raises(ValueError, match=r"begun with version 0\.0\.1"):
        collect(SETTINGS, tmp_path / "set")


def test_a_models_own_games_and_no_path_of_the_machine(tmp_path):
    from spiral_trl.training.tiny import save_tiny_model, warm_start

    game = "kuhn_poker(observation=compact)"
    folder = save_tiny_model(tmp_path / "models" / "mine", 0)
    warm_start(folder, game, folder, seed=0, steps=40)
    settings = ExpertSettings((game,), expert=str(folder), decisions=60)
    dataset = make_decisions(settings)
    assert len(dataset) == 60 and set(dataset["policy"]) == {"mine"}
    assert all(row["reward"] > 0 for row in dataset) and "fold" not in set(dataset["action"])
    with pytest.raises(ValueError, match="writes its own replies"):
        make_decisions(ExpertSettings((game,), expert=str(folder), decisions=60, boxed=True))


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"games": ()}, "name at least one game"),
        ({"games": ("kuhn_pokr",)}, "did you mean 'kuhn_poker'"),
        ({"games": ("kuhn_poker", "kuhn_poker(rounds=1)")}, "named twice"),
        ({"decisions": 0}, "decisions is 0"),
        ({"keep": "losers"}, "keep is 'losers'; allowed: all, winners"),
        ({"games_per_round": 0}, "games_per_round is 0"),
        ({"think": True}, "think needs rationale"),
        ({"illegal": "forgive"}, "Unknown illegal-move policy 'forgive'"),
    ],
)
def test_settings_that_make_no_sense(given, message):
    with pytest.raises(ValueError, match=message):
        ExpertSettings(**{"games": ("kuhn_poker",), **given})


def test_players_are_checked_before_anything_is_played():
    def refused(**given):
        return pytest.raises(ValueError, match=given.pop("match"))

    with refused(match="unknown player 'cfrr'"):
        seat_players(ExpertSettings(("kuhn_poker",), expert="cfrr"))
    with refused(match="cfr cannot play simple_negotiation"):
        seat_players(ExpertSettings(("simple_negotiation",), expert="cfr"))
    with refused(match="unknown player 'rondom'"):
        seat_players(ExpertSettings(("kuhn_poker",), opponent="rondom"))
    with refused(match="random gives no reasons"):
        seat_players(ExpertSettings(("kuhn_poker",), expert="random", rationale=True))
    own = {"own": Scripted(lambda turn: "")}
    with refused(match="own writes its own replies"):
        seat_players(ExpertSettings(("kuhn_poker",), expert="own", boxed=True), own)


def test_the_solver_of_a_game():
    assert resolve("solver", "kuhn_poker") == "cfr"
    assert resolve("random", "kuhn_poker") == "random"
    with pytest.raises(ValueError, match=r"no solver plays simple_negotiation: cfr cannot play"):
        resolve("solver", "simple_negotiation")


def test_progress_counts_all_games():
    assert Progress(rows={"a": 2, "b": 3}).total == 5


# ---------------------------------------------------------------------------------------------------------------- TRL


@pytest.mark.parametrize("model", ["words", "embedded"])
def test_trl_trains_on_a_set_as_it_is(model, tmp_path, small_qwen, kuhn):
    import torch
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    if model == "words":
        folder, dataset = str(small_qwen), kuhn[0].select(range(16))
    else:
        from spiral_trl.training.tiny import completion_text, save_tiny_model

        folder = str(save_tiny_model(tmp_path / "tiny", 0))
        settings = ExpertSettings(("kuhn_poker(observation=compact)",), decisions=16)
        dataset = make_decisions(settings, seat_players(settings, {"cfr": CFRPlayer()}, render=completion_text))
        assert dataset[0]["completion"][0]["content"].split()[0] in "JQK"
    args = SFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    before = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    trainer = SFTTrainer(folder, args=args, train_dataset=dataset)
    assert trainer.train().global_step == 2
    # The loss is on the completion alone
    labels = next(iter(trainer.get_train_dataloader()))["labels"][0]
    text = trainer.processing_class.decode(labels[labels >= 0], skip_special_tokens=True)
    assert text.strip() in {message["content"].strip() for (message,) in dataset["completion"]}
    assert any(not torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
