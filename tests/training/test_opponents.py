"""Training against opponents: whom the policy meets, what is trained, and what is reported."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spiral_trl.errors import PlayerError, PlayError
from spiral_trl.players.bots import RandomPlayer
from spiral_trl.players.pool import LEARNER
from spiral_trl.players.registry import _PLAYERS, _Entry
from spiral_trl.records import ENDINGS, Outcomes, Reply
from spiral_trl.training.batch import learner_turns
from spiral_trl.training.opponents import learner_results, others, read_opponents
from spiral_trl.training.schedule import Schedule


GAME = "kuhn_poker(observation=compact)"
BONUS = "kuhn_poker(observation=compact,seat_bonus=1)"


def logs(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {"self": 1.0}),
        ("random", {"random": 1.0}),
        (["self", "random"], {"self": 1.0, "random": 1.0}),
        ({"self": 3, " pool(size=4) ": 0.5}, {"self": 3.0, "pool(size=4)": 0.5}),
        ('{"self": 1, "cfr": 2}', {"self": 1.0, "cfr": 2.0}),
        ('["self", "pool(matchmaking=pfsp,every=2)"]', {"self": 1.0, "pool(matchmaking=pfsp,every=2)": 1.0}),
        ("pool(matchmaking=newest)", {"pool(matchmaking=newest)": 1.0}),
    ],
)
def test_opponents_are_read_from_all_forms(make_args, given, expected):
    assert read_opponents(given) == expected
    assert make_args(opponents=given).opponents == expected
    assert others(expected) == [name for name in expected if name in ("random", "cfr")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "opponents is empty"),
        ([], "opponents is empty"),
        (["self", "self"], "names 'self' twice"),
        ({"self": 0}, "weight of self is 0, but must be a number above 0"),
        ({"self": True}, "weight of self is True"),
        ({"self": float("inf")}, "weight of self is inf"),
        ({"self": "1"}, "weight of self is '1'"),
        ({1: 1.0}, "1 is no name"),
        ([1], "must list names"),
        ("{self: 1}", "no valid JSON"),
        ({"pool": 1, "pool(size=2)": 1}, "has 2 pools, pool and pool\\(size=2\\)"),
        ({"pool(matchmaking=best)": 1}, "unknown value of matchmaking"),
        (["human"], "human cannot be an opponent"),
    ],
)
def test_bad_opponents_are_refused_in_one_line(make_args, given, message):
    with pytest.raises(ValueError, match=message) as raised:
        make_args(opponents=given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"opponents": ["rndom"]}, "opponents: unknown player 'rndom'.*did you mean 'random'"),
        ({"game_weights": [1.0, 2.0]}, "game_weights needs one share for each .* 1 in all, not 2"),
        (
            {"games": [GAME, BONUS], "game_weights": [1.0, 0.001]},
            "a share of 0.001 gives .*seat_bonus=1.* none of the 32 games",
        ),
    ],
)
def test_what_does_not_fit_the_games_is_refused_before_the_model_is_loaded(make_trainer, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(model="./no/such/model", **settings)


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, True], [1, float("nan")]])
def test_bad_shares_of_games_are_refused(make_args, weights):
    with pytest.raises(ValueError, match="game_weights holds .* every share must be a number above 0"):
        make_args(game_weights=weights)


def test_an_opponent_that_cannot_play_a_game_is_refused(make_trainer):
    with pytest.raises(ValueError, match="opponents: cfr cannot play"):
        make_trainer(model="./no/such/model", games="simple_negotiation", opponents=["cfr"])


# ---------------------------------------------------------------------------------------------------- what is trained


def test_only_the_learners_seats_are_trained(make_trainer):
    trainer = make_trainer(opponents={"self": 1, "random": 1}, max_steps=1, log_completions=True)
    trainer.num_completions_to_print = 0
    trainer.train()
    batch = trainer.last_batch
    episodes, learner = batch.episodes(), batch.outcomes.learner
    against = [i for i, episode in enumerate(episodes) if "random" in episode.players]
    assert len(against) == 16
    assert sorted(episodes[i].players.index("random") for i in against) == [0] * 8 + [1] * 8
    for episode, mask in zip(episodes, learner, strict=True):
        assert [name == "model" for name in episode.players] == mask.tolist()

    expected = [
        (e, s)
        for e, episode in enumerate(episodes)
        for s in episode.steps
        if episode.players[s.turn.player] == "model"
    ]
    turns = learner_turns(batch)
    assert turns.episode.tolist() == [e for e, _ in expected]
    assert turns.player.tolist() == [s.turn.player for _, s in expected]
    rows = [step.reply.text for _, step in expected]
    assert [completion[0]["content"] for completion in trainer._logs["completion"]] == rows

    # Games in the order of their index: baselines are of the learner's returns in the role
    generation = trainer.lineup.schedule(0, 32)
    order = np.argsort(trainer.play_generation(0)[1])
    baselines, found = [0.0, 0.0], {}
    for index, e in enumerate(order.tolist()):
        for seat in np.flatnonzero(learner[e]):
            found[e, seat] = episodes[e].returns[seat] - baselines[seat]
        assert (generation.seat[index] < 0) == learner[e].all()
        for seat in np.flatnonzero(learner[e]):
            baselines[seat] = 0.95 * baselines[seat] + 0.05 * episodes[e].returns[seat]
    assert list(trainer._logs["advantages"]) == pytest.approx([found[e, s.turn.player] for e, s in expected])
    assert [trainer.advantage.baselines[GAME, f"player {p}"] for p in (0, 1)] == pytest.approx(baselines)

    logged = logs(trainer)[0]
    mine = [episodes[i].returns[1 - episodes[i].players.index("random")] for i in against]
    assert logged[f"self_play/{GAME}/vs_random/win_rate"] == np.mean([value > 0 for value in mine])
    assert logged[f"self_play/{GAME}/vs_random/return"] == pytest.approx(np.mean(mine))
    assert not any("vs_self" in name or "pool" in name for name in logged)
    seats = [(e, s) for e in range(32) for s in (0, 1) if learner[e, s]]
    for seat in (0, 1):
        returns = [episodes[e].returns[s] for e, s in seats if s == seat]
        assert logged[f"self_play/{GAME}/player {seat}/return"] == pytest.approx(np.mean(returns))
    assert logged["reward"] == pytest.approx(np.mean([episodes[e].returns[s] for e, s in seats]))
    assert logged["self_play/turns"] == len(expected) and logged["self_play/games"] == 32


def test_against_an_opponent_alone_there_is_no_self_play(make_trainer, parameters):
    trainer = make_trainer(opponents="cfr", max_steps=2)
    before = parameters(trainer)
    trainer.train()
    assert {frozenset(e.players) for e in trainer.last_batch.episodes()} == {frozenset({"model", "cfr"})}
    assert any(not torch.equal(value, before[name]) for name, value in parameters(trainer).items())


def test_replies_of_other_models_are_no_training_rows(make_trainer, monkeypatch):
    class Imposter(RandomPlayer):
        """Replies with token ids, as a frozen model does."""

        name = "imposter"

        def sample(self, *args):
            replies, which = super().sample(*args)
            ids = {"prompt_ids": (2, 9), "completion_ids": (5, 6), "logprobs": (-1.0, -1.0)}
            return [Reply(reply.text, **ids) for reply in replies], which

    known(monkeypatch, "imposter", Imposter)
    trainer = make_trainer(opponents="imposter", max_steps=1)
    trainer.train()
    turns = learner_turns(trainer.last_batch)
    seats = trainer.last_batch.players
    assert len(turns) and all(
        seats[trainer.last_batch.seating[e]][p] == "model" for e, p in zip(turns.episode, turns.player, strict=True)
    )
    given = torch.cat([inputs["completion_ids"] for inputs in trainer._buffered_inputs])
    mask = torch.cat([inputs["completion_mask"] for inputs in trainer._buffered_inputs])
    assert not any(row[m.bool()].tolist() == [5, 6] for row, m in zip(given, mask, strict=True))


def known(monkeypatch, name, make):
    """Makes a player known by name for one test."""
    monkeypatch.setitem(_PLAYERS, name, _Entry(lambda values, settings: make(), lambda values: name))


def test_a_generation_without_a_turn_of_the_learner_changes_nothing(make_trainer, monkeypatch, parameters):
    class Fails(RandomPlayer):
        """Ends every game with its first reply."""

        name = "fails"
        speculative = False

        def sample(self, turns, which, seeds, index):
            return [Reply("?") for _ in turns], which

    known(monkeypatch, "fails", Fails)
    trainer = make_trainer(opponents="fails", games_per_generation=1, max_steps=2, learning_rate=1e-2)
    # One game, in which the opponent has the first seat in every other generation
    before = parameters(trainer)
    seats = [trainer.lineup.schedule(g, 1).seat[0] for g in (0, 1)]
    assert sorted(seats) == [0, 1]
    trainer.train()
    logged = logs(trainer)
    silent = logged[seats.index(1)]
    assert silent["loss"] == 0 and silent["grad_norm"] == 0
    assert all(np.isfinite(value) for entry in logged for value in entry.values())
    assert any(not torch.equal(value, before[name]) for name, value in parameters(trainer).items())


def test_an_opponent_that_fails_midway_says_how_to_go_on(make_trainer, monkeypatch, tmp_path):
    class Unreachable(RandomPlayer):
        name = "api"
        calls = 0

        def sample(self, *args):
            Unreachable.calls += 1
            if Unreachable.calls > 3:
                raise PlayerError("no answer in 60 s")
            return super().sample(*args)

    known(monkeypatch, "api", Unreachable)
    settings = {"opponents": ["self", "api"], "num_iterations": 1, "save_strategy": "steps", "save_steps": 2}
    with pytest.raises(PlayError, match="^api could not answer .* no answer in 60 s; moves so far: none") as raised:
        make_trainer(max_steps=6, **settings).train()
    assert raised.value.__notes__ == [
        f"Go on from the last checkpoint with resume_from_checkpoint={tmp_path / 'run' / 'checkpoint-2'}."
    ]
    assert len(raised.value.episodes) == 0  # all games of the generation wait for the same batch
    Unreachable.calls = -100
    trainer = make_trainer(max_steps=6, **settings)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6


def test_shaping_where_the_learner_had_no_turn(make_trainer, monkeypatch):
    class Fails(RandomPlayer):
        name = "fails"
        speculative = False

        def sample(self, turns, which, seeds, index):
            return [Reply("?") for _ in turns], which

    known(monkeypatch, "fails", Fails)
    seen = []

    def reward(completions, **kwargs):
        seen.append(len(completions))
        return [1.0] * len(completions)

    trainer = make_trainer(opponents="fails", games_per_generation=1, max_steps=2, reward_funcs=reward)
    trainer.train()
    assert len(seen) == 2 and min(seen) >= 1


def test_shares_of_games(make_trainer):
    trainer = make_trainer(games=[GAME, BONUS], game_weights=[3, 1], max_steps=1)
    trainer.train()
    outcomes = trainer.last_batch.outcomes
    assert np.bincount(outcomes.game).tolist() == [24, 8] and outcomes.games == (GAME, BONUS)


def test_equal_shares_are_no_shares(make_trainer, parameters):
    runs = []
    for settings in ({}, {"game_weights": [2.0, 2.0]}, {"opponents": {"self": 7}}):
        trainer = make_trainer(games=[GAME, BONUS], **settings)
        trainer.train()
        runs.append(parameters(trainer))
    for other in runs[1:]:
        assert all(torch.equal(value, other[name]) for name, value in runs[0].items())


def test_the_learners_score():
    outcomes = Outcomes(
        games=("two", "three"),
        roles=(("a", "b"), ("a", "b", "c")),
        game=np.array([0, 0, 0, 0, 1, 1, 1]),
        returns=np.array(
            [[1, -1, np.nan], [1, -1, np.nan], [0, 0, np.nan], [2, -2, np.nan], [2, -1, -1], [1, 1, -2], [1, 0, -1]]
        ),
        endings=np.full(7, ENDINGS.index(ENDINGS[0])),
    )
    schedule = Schedule(
        game=outcomes.game, opponent=np.zeros(7), seat=np.array([0, 1, 1, -1, 0, 1, 2]), draw=np.full(7, -1)
    )
    mine, score = learner_results(outcomes, schedule)
    np.testing.assert_array_equal(mine, [1, -1, 0, np.nan, 2, 1, -1])
    np.testing.assert_array_equal(score, [1, 0, 0.5, np.nan, 1, 0.5, 0])


# ------------------------------------------------------------------------------------------------------------ the pool


POOL = {"self": 1, "pool(every=2,size=3)": 1}


def test_members_are_the_policy_as_it_was(make_trainer, parameters, tmp_path):
    seen, members = {}, {}
    trainer = make_trainer(opponents=POOL, max_steps=8, num_iterations=1)
    play = trainer.play_generation

    def noting(generation):
        seen[generation] = parameters(trainer)
        batch, order = play(generation)
        # What was exchanged for a member is back, to the bit
        assert all(torch.equal(value, seen[generation][name]) for name, value in parameters(trainer).items())
        members[generation] = {
            (name, step.reply.policy_version)
            for episode in batch.episodes()
            for name, step in ((episode.players[step.turn.player], step) for step in episode.steps)
        }
        return batch, order

    trainer.play_generation = noting
    trainer.train()
    assert [member.generation for member in trainer.pool.state.members] == [2, 4, 6]
    assert sorted(path.name for path in (tmp_path / "run" / "pool").iterdir()) == [
        f"member-{number}.safetensors" for number in (1, 2, 3)
    ]
    for number, generation in ((1, 2), (2, 4), (3, 6)):
        saved = load_file(tmp_path / "run" / "pool" / f"member-{number}.safetensors")
        assert all(torch.equal(value, seen[generation][name]) for name, value in saved.items())
        assert set(saved) == set(seen[generation])
    # Whom the policy met
    assert members[0] == {("model", 0), ("snapshot of step 0", 0)}
    assert members[3] == {("model", 3), ("snapshot of step 0", 0), ("snapshot of step 2", 2)}
    assert members[7] == {("model", 7)} | {(f"snapshot of step {step}", step) for step in (2, 4, 6)}
    assert all(p.requires_grad for p in trainer.model.parameters())


def test_a_member_replies_as_the_policy_did(make_trainer):
    trainer = make_trainer(opponents="pool(every=100)", max_steps=3)
    seeds, index = np.arange(40), np.zeros(40, dtype=np.int64)
    from spiral_trl.games.table import tabulate

    turns = tabulate(GAME).turns[:4]
    which = np.arange(40) % 4
    with trainer.generation():
        replies, of = trainer.player.sample(turns, which, seeds, index)
    before = [replies[i].text for i in of]
    trainer.train()
    with trainer.generation():
        replies, of = trainer.player.sample(turns, which, seeds, index)
        after = [replies[i].text for i in of]
        replies, of = trainer.pool.player(0).sample(turns, which, seeds, index)
    assert [replies[i].text for i in of] == before != after
    assert trainer.model.training


def test_results_reach_the_pool_and_the_log(make_trainer):
    played = []
    trainer = make_trainer(opponents=POOL, max_steps=3, num_iterations=1)
    record = trainer.lineup.record

    def noting(schedule, generation, outcomes):
        members = trainer.pool.members(trainer.args.seed, generation)
        played.append((schedule, members, outcomes))
        return record(schedule, generation, outcomes)

    trainer.lineup.record = noting
    trainer.train()
    expected = {}
    for schedule, members, outcomes in played[-2:]:  # recent are as many generations as lie between snapshots
        for i in np.flatnonzero(schedule.draw >= 0):
            number, seat = members[schedule.draw[i]], schedule.seat[i]
            pair = (LEARNER, number) if seat == 0 else (number, LEARNER)
            first = outcomes.returns[i, 0]
            counts = expected.setdefault(pair, [0, 0, 0])
            counts[0 if first > 0 else 2 if first < 0 else 1] += 1
    assert {pair: list(counts) for pair, counts in trainer.pool.state._learners().items()} == expected
    assert sum(map(sum, expected.values())) == 2 * 16
    logged = logs(trainer)[-1]
    assert logged["self_play/pool/size"] == 2
    assert logged["self_play/pool/rating"] == trainer.pool.state.ratings()[LEARNER]
    schedule, _, outcomes = played[-1]
    wins = [outcomes.returns[i, schedule.seat[i]] > 0 for i in np.flatnonzero(schedule.draw >= 0)]
    assert logged[f"self_play/{GAME}/vs_pool/win_rate"] == np.mean(wins)


def test_snapshots_of_an_adapter_are_the_adapter(make_trainer, parameters, tmp_path):
    from peft import LoraConfig

    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(peft_config=lora, opponents=POOL, max_steps=4, num_iterations=1)
    trainer.train()
    saved = load_file(tmp_path / "run" / "pool" / "member-1.safetensors")
    assert saved and all("lora_" in name for name in saved)
    assert set(saved) == {name for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_a_new_run_leaves_no_snapshot_of_the_old_one(make_trainer, tmp_path):
    make_trainer(opponents="pool(every=1)", max_steps=4, num_iterations=1, save_strategy="steps", save_steps=4).train()
    trainer = make_trainer(opponents=POOL, max_steps=1, overwrite_output_dir=True)
    trainer.train()
    assert [path.name for path in (tmp_path / "run" / "pool").iterdir()] == ["member-0.safetensors"]


def test_checkpoints_share_the_files_of_snapshots(make_trainer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "num_iterations": 1}
    make_trainer(opponents="pool(every=1,size=2)", **settings).train()
    folder = tmp_path / "run"
    first = {path.name for path in (folder / "checkpoint-2" / "pool").iterdir()}
    last = {path.name for path in (folder / "checkpoint-4" / "pool").iterdir()}
    assert first == {"member-0.safetensors", "member-1.safetensors"}
    assert last == {"member-2.safetensors", "member-3.safetensors"}
    name = "member-3.safetensors"
    assert (folder / "pool" / name).samefile(folder / "checkpoint-4" / "pool" / name)
    state = json.loads((folder / "checkpoint-4" / "pool_state.json").read_text())
    assert [member["number"] for member in state["members"]] == [2, 3]


def test_a_lost_snapshot_changes_the_run(make_trainer, tmp_path, parameters):
    settings = {"save_strategy": "steps", "save_steps": 3, "num_iterations": 1, "opponents": "pool(every=2)"}
    make_trainer(max_steps=3, **settings).train()
    runs = []
    for spoil in (False, True):
        pool = tmp_path / "run" / "checkpoint-3" / "pool"
        if spoil:
            (pool / "member-0.safetensors").write_bytes((pool / "member-1.safetensors").read_bytes())
        trainer = make_trainer(max_steps=6, **settings)
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
        runs.append(parameters(trainer))
    assert not all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


def test_a_run_may_be_resumed_with_a_pool_it_did_not_have(make_trainer):
    settings = {"save_strategy": "steps", "save_steps": 2, "num_iterations": 1}
    make_trainer(max_steps=2, **settings).train()
    trainer = make_trainer(max_steps=4, opponents="pool(every=10)", **settings)
    trainer.train(resume_from_checkpoint=True)
    assert [(m.number, m.generation, m.step) for m in trainer.pool.state.members] == [(0, 2, 2)]


def test_snapshots_of_other_parameters_are_refused_by_name(make_trainer, tmp_path):
    from peft import LoraConfig

    trainer = make_trainer(opponents="pool", max_steps=1)
    trainer.train()
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    other = make_trainer(opponents="pool", peft_config=lora, overwrite_output_dir=True)
    other.pool.state = trainer.pool.state
    from spiral_trl.games.table import tabulate

    with pytest.raises(ValueError, match="member-0.safetensors is a snapshot of other parameters"):
        other.pool.player(0).reply(tabulate(GAME).turns[:1])


@pytest.mark.parametrize("sharded", ["FSDP", "ZeRO-3"])
def test_a_pool_of_sharded_parameters_is_refused(make_trainer, monkeypatch, sharded):
    from spiral_trl import SelfPlayTrainer

    class ZeRO3:
        zero_stage = 3

    init = SelfPlayTrainer.__bases__[0].__init__

    def pretend(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if sharded == "FSDP":
            self.is_fsdp_enabled, self.use_vllm = True, True
        else:
            self.args.deepspeed_plugin = ZeRO3()

    monkeypatch.setattr(SelfPlayTrainer.__bases__[0], "__init__", pretend)
    with pytest.raises(ValueError, match=r"opponents: pool\(size=2\) keeps snapshots of whole parameters"):
        make_trainer(opponents="pool(size=2)")


# ---------------------------------------------------------------------------------------------- YAML and command line


@pytest.mark.parametrize(
    ("yaml", "flags", "expected"),
    [
        (
            "opponents: {self: 0.5, 'pool(matchmaking=pfsp,size=8)': 1}",
            [],
            {"self": 0.5, "pool(matchmaking=pfsp,size=8)": 1},
        ),
        ("opponents:\n  - self\n  - random", [], {"self": 1, "random": 1}),
        ("opponents: random", [], {"random": 1}),
        ("", [], {"self": 1}),
        ("opponents: random", ["--opponents", '{"self": 1, "cfr": 3}'], {"self": 1, "cfr": 3}),
        ("", ["--opponents", '["self", "cfr"]'], {"self": 1, "cfr": 1}),
        ("", ["--opponents", "pool(every=3)"], {"pool(every=3)": 1}),
        ("game_weights: [1, 2.5]", [], {"self": 1}),
        ("", ["--game_weights", "1", "2.5"], {"self": 1}),
    ],
)
def test_opponents_in_a_file_and_on_the_command_line(tmp_path, yaml, flags, expected):
    from spiral_trl import SelfPlayConfig
    from spiral_trl.cli import RecipeParser

    path = tmp_path / "run.yaml"
    path.write_text(f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\nreport_to: none\n{yaml}\n")
    (args,) = RecipeParser((SelfPlayConfig,)).parse_args_and_config(["--config", str(path), *flags])
    assert args.opponents == expected == args.opponent_weights
    if "game_weights" in yaml + " ".join(flags):
        assert args.game_weights == [1.0, 2.5]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("opponents: 3", "opponents: got 3 .int."),
        ("opponents: {self: much}", "opponents: got .*much"),
        ("opponents: {self: -1}", "weight of self is -1"),
        ("game_weights: 2", "game_weights: got 2"),
    ],
)
def test_bad_opponents_in_a_file(tmp_path, yaml, message):
    from spiral_trl import SelfPlayConfig
    from spiral_trl.cli import RecipeParser
    from spiral_trl.errors import UsageError

    path = tmp_path / "run.yaml"
    path.write_text(f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\nreport_to: none\n{yaml}\n")
    with pytest.raises(UsageError, match=message):
        RecipeParser((SelfPlayConfig,)).parse_args_and_config(["--config", str(path)])


# ------------------------------------------------------------------------------------------------- frozen models, text


def test_a_frozen_model_is_an_opponent_and_stays_as_it_was(make_trainer, tiny_model, parameters):
    trainer = make_trainer(opponents={"self": 1, tiny_model: 1}, max_steps=3, num_iterations=1)
    before = parameters(trainer)
    trainer.train()
    opponent = trainer.opponent(tiny_model)
    frozen = dict(opponent.model.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in frozen.items())
    assert not any(torch.equal(value, before[name]) for name, value in parameters(trainer).items())
    # Its replies have token ids as the policy's have, and are told apart by the seat
    batch = trainer.last_batch
    turns = learner_turns(batch)
    names = [batch.players[batch.seating[e]][p] for e, p in zip(turns.episode, turns.player, strict=True)]
    assert set(names) == {"model"} and opponent.name != "model"
    answered = sum(step.reply.completion_ids is not None for e in batch.episodes() for step in e.steps)
    assert 0 < len(turns) < answered
    # No path of the machine in the log
    assert not any(
        "/" in name.split("vs_")[1].split("/win_rate")[0] for name in logs(trainer)[0] if name.endswith("win_rate")
    )


def test_games_as_text_against_several_opponents_at_once(make_trainer, small_qwen):
    trainer = make_trainer(
        model=str(small_qwen),
        games=["simple_negotiation", "kuhn_poker(rounds=2)"],
        opponents={"self": 1, "random": 1, "pool(every=1)": 1},
        illegal_moves="random_legal",
        games_per_generation=12,
        max_completion_length=4,
        max_steps=2,
        num_iterations=1,
    )
    asked = []
    reply = trainer.player.reply
    trainer.player.reply = lambda turns: asked.append({(turn.game, turn.player) for turn in turns}) or reply(turns)
    trainer.train()
    # One call for the turns of both games in all matches
    assert len({game for game, _ in asked[0]}) == 2
    logged = logs(trainer)[-1]
    for game in ("simple_negotiation", "kuhn_poker(rounds=2)"):
        assert {f"self_play/{game}/vs_random/win_rate", f"self_play/{game}/vs_pool/return"} <= set(logged)


def test_three_seats_against_an_opponent(make_trainer, register_game, small_qwen):
    from toy_games import TreeGame

    tree = ("end", (2, -1, -1))
    for player in (2, 1, 0):
        tree = ("turn", player, {"a": tree, "b": ("end", (-1, -1, 2))})
    register_game("three", lambda: TreeGame("three", tree, num_players=3))
    trainer = make_trainer(
        model=str(small_qwen),
        games="three",
        opponents={"self": 1, "random": 1, "pool(every=1)": 1},
        illegal_moves="random_legal",
        games_per_generation=18,
        max_completion_length=4,
        max_steps=2,
        num_iterations=1,
    )
    trainer.train()
    learner = trainer.last_batch.outcomes.learner
    assert sorted(learner.sum(1).tolist()) == [1] * 12 + [3] * 6
    assert (learner[learner.sum(1) == 1].sum(0) == 4).all()
    assert set(trainer.advantage.baselines) == {("three", f"seat {p}") for p in range(3)}
