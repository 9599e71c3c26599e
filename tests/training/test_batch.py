"""Rows of a batch and outcomes in game order, on games written by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from spiral_trl.records import Ending, Episode, EpisodeBatch, Message, Outcomes, Reply, Step, Turn
from spiral_trl.training import batch as module
from spiral_trl.training.batch import gather_outcomes, learner_turns, training_rows


def step(player, prompt, completion, action="a", logprobs=None, finish="stop"):
    turn = Turn(
        game="g",
        episode=0,
        seed=0,
        index=0,
        player=player,
        role=f"role {player}",
        messages=(Message(role="user", content=f"{prompt}"),),
        legal_actions=("a", "b"),
    )
    reply = Reply(
        text="",
        action=action,
        error=None if action else "no",
        prompt_ids=prompt,
        completion_ids=completion,
        logprobs=logprobs,
        finish_reason=finish,
    )
    return Step(turn, reply)


def episode(*steps, returns=(1.0, -1.0)):
    return Episode("g", 0, ("model", "model"), ("role 0", "role 1"), tuple(steps), returns, Ending.TERMINAL)


@pytest.fixture
def played():
    return EpisodeBatch.from_episodes(
        [
            episode(step(0, (5, 6), (7,), logprobs=(-0.5,)), step(1, (5,), (8, 9), logprobs=(-1.0, None))),
            episode(step(0, (5, 6), (7,), logprobs=(-0.5,)), step(1, None, None)),  # seat 1 was a bot
            episode(step(0, (4, 5, 6), (1, 2, 3), action=None, logprobs=(-1.0, -2.0, -3.0), finish="length")),
        ]
    )


def test_the_learners_turns(played):
    turns = learner_turns(played)
    assert len(turns) == 4
    assert turns.episode.tolist() == [0, 0, 1, 2]
    assert turns.player.tolist() == [0, 1, 0, 0]
    assert turns.sample[0] == turns.sample[2] != turns.sample[1]
    assert turns.length[turns.sample].tolist() == [1, 2, 1, 3]
    assert turns.truncated[turns.sample].tolist() == [False, False, False, True]
    assert turns.illegal[turns.sample].tolist() == [False, False, False, True]


def test_turns_of_an_opponent_that_is_a_model_are_not_the_learners(played):
    learner = np.array([[True, False], [False, True], [True, True]])
    batch = replace(played, outcomes=replace(played.outcomes, learner=learner))
    turns = learner_turns(batch)
    assert list(zip(turns.episode.tolist(), turns.player.tolist(), strict=True)) == [(0, 0), (2, 0)]


def test_rows_of_a_process_on_which_the_learner_was_never_asked(played):
    learner = np.zeros((3, 2), dtype=bool)
    batch = replace(played, outcomes=replace(played.outcomes, learner=learner))
    turns = learner_turns(batch)
    settings = {"pad_token_id": 9, "pad_to_multiple_of": None, "mask_truncated": True, "device": torch.device("cpu")}
    rows = training_rows(batch, turns, np.zeros(0), 2, **settings)
    assert rows["completion_mask"].tolist() == [[0], [0]] and rows["prompt_mask"].tolist() == [[1], [1]]
    assert rows["advantages"].tolist() == [0.0, 0.0]


def rows_of(played, num_rows, **changes):
    turns = learner_turns(played)
    settings = {"pad_token_id": 99, "pad_to_multiple_of": None, "mask_truncated": False, "device": torch.device("cpu")}
    return training_rows(played, turns, np.array([0.5, -0.5, 1.5, 2.0]), num_rows, **settings | changes)


def test_rows_are_padded_left_and_right_and_then_with_rows_of_nothing(played):
    rows = rows_of(played, 6)
    assert rows["prompt_ids"].tolist()[:4] == [[99, 5, 6], [99, 99, 5], [99, 5, 6], [4, 5, 6]]
    assert rows["prompt_mask"].tolist()[:4] == [[0, 1, 1], [0, 0, 1], [0, 1, 1], [1, 1, 1]]
    assert rows["completion_ids"].tolist()[:4] == [[7, 99, 99], [8, 9, 99], [7, 99, 99], [1, 2, 3]]
    assert rows["completion_mask"].tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert rows["advantages"].tolist() == [0.5, -0.5, 1.5, 2.0, 0.0, 0.0]
    assert rows["prompt_mask"][4:].any(1).all(), "a row without any token has no attention to compute"
    sampled = rows["sampling_per_token_logps"]
    assert sampled[0].tolist() == [-0.5, 0, 0] and sampled[3].tolist() == [-1, -2, -3]
    assert sampled[1, 0] == -1.0 and sampled[1, 1].isnan()
    assert all(len(column) == 6 for column in rows.values())


def test_truncated_replies_and_multiples(played):
    rows = rows_of(played, 4, mask_truncated=True, pad_to_multiple_of=4)
    assert rows["completion_mask"].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert rows["prompt_ids"].shape == rows["completion_ids"].shape == (4, 4)


def test_no_log_probabilities_where_a_sampler_has_none():
    batch = EpisodeBatch.from_episodes([episode(step(0, (1,), (2,)), step(1, (1,), (3,), logprobs=(-1.0,)))])
    turns = learner_turns(batch)
    assert turns.surprisal[turns.sample][1] == 1.0 and np.isnan(turns.surprisal[turns.sample][0])
    settings = {"pad_token_id": 0, "pad_to_multiple_of": None, "mask_truncated": False, "device": torch.device("cpu")}
    assert "sampling_per_token_logps" not in training_rows(batch, turns, np.zeros(2), 2, **settings)


def outcomes(games, game, returns, endings=None):
    returns = np.array(returns, dtype=float)
    roles = tuple(tuple(f"{name} {p}" for p in range(returns.shape[1])) for name in games)
    endings = np.zeros(len(returns), dtype=int) if endings is None else np.array(endings)
    return Outcomes(games=games, roles=roles, game=np.array(game), returns=returns, endings=endings)


def test_outcomes_of_all_processes_come_in_game_order(monkeypatch):
    # Process 0 played games 0, 2, 4 (all of "b"), process 1 played 3 ("a", three seats) and 1 ("b")
    first = (np.array([0, 2, 4]), outcomes(("b",), [0, 0, 0], [[10, -10], [12, -12], [14, -14]], [0, 1, 2]))
    second = (np.array([3, 1]), outcomes(("a", "b"), [0, 1], [[1, 2, -3], [11, -11, np.nan]], [1, 0]))
    first = (first[0], replace(first[1], learner=np.array([[1, 0], [1, 1], [0, 1]], dtype=bool)))
    monkeypatch.setattr(module, "gather_object", lambda _: [first, second])
    for rank, (order, own) in enumerate((first, second)):
        gathered, position = gather_outcomes(own, order, ["a", "b"])
        assert gathered.games == ("a", "b")
        assert gathered.game.tolist() == [1, 1, 1, 0, 1]
        np.testing.assert_array_equal(
            gathered.returns,
            [[10, -10, np.nan], [11, -11, np.nan], [12, -12, np.nan], [1, 2, -3], [14, -14, np.nan]],
        )
        assert gathered.endings.tolist() == [0, 0, 1, 1, 2]
        assert gathered.learner.astype(int).tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1], [0, 1, 0]]
        assert position.tolist() == [[0, 2, 4], [3, 1]][rank]
        np.testing.assert_array_equal(gathered.returns[position][:, 0], own.returns[:, 0])
