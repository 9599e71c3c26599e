"""Recorded games played again: sequential and simultaneous, with illegal replies under every policy."""

from dataclasses import replace

import numpy as np
import pytest
from toy_players import Scripted

from spiral_trl.games.solver_state import SolverState
from spiral_trl.players.bots import RandomPlayer
from spiral_trl.records import dataset_to_episodes, episodes_to_dataset
from spiral_trl.rollout import play, replay


def stored(game, players, seeds, **kwargs):
    """Games as they come back from a dataset: without states."""
    return dataset_to_episodes(episodes_to_dataset(play(game, players, seeds, **kwargs).episodes()))


@pytest.mark.parametrize(
    "game",
    [
        "kuhn_poker",
        "kuhn_poker(rounds=3)",
        "leduc_poker",
        "liars_dice",
        "tic_tac_toe",
        "pig",
        "simple_negotiation",
        "openspiel:goofspiel(num_cards=3,imp_info=true)",
        "openspiel:phantom_ttt",
    ],
)
def test_a_stored_game_is_played_again_to_its_end(game):
    for episode in stored(game, [RandomPlayer()] * 2, np.arange(20)):
        last = None
        for number, (standing, turn, step) in enumerate(replay(episode)):
            assert step is episode.steps[number]
            assert (turn.player, turn.messages, turn.infoset) == (
                step.turn.player,
                step.turn.messages,
                step.turn.infoset,
            )
            assert standing.ending is None
            last = standing
        assert number + 1 == len(episode.steps)
        assert (last.ending, last.returns()) == (episode.ending, episode.returns)


def test_turns_get_their_state_back():
    (episode,) = stored("leduc_poker", [RandomPlayer()] * 2, [3])
    for _, turn, step in replay(episode):
        assert step.turn.state is None
        assert isinstance(turn.state, SolverState)
        assert tuple(turn.state.actions) == step.turn.legal_actions


@pytest.mark.parametrize(
    ("illegal", "replies", "actions"),
    [
        ("forfeit", ["[check]", "no"], ["check", None]),
        ("retry(2)", ["no", "no", "[bet]", "no", "[fold]"], [None, None, "bet", None, "fold"]),
        ("retry(1)", ["[bet]", "no", "no"], ["bet", None, None]),
    ],
)
def test_illegal_replies(illegal, replies, actions):
    (episode,) = stored("kuhn_poker", [Scripted(*replies, speculative=False)] * 2, [1], illegal=illegal)
    assert [step.reply.action for _, _, step in replay(episode)] == actions


def test_an_illegal_reply_in_whose_place_a_move_was_drawn():
    (episode,) = stored(
        "tic_tac_toe", [Scripted(*["no"] * 9, speculative=False)] * 2, [7], illegal="random_legal", tabulated=False
    )
    legal = [turn.legal_actions for _, turn, _ in replay(episode)]
    assert [len(actions) for actions in legal] == [9 - i for i in range(len(legal))]
    assert legal == [step.turn.legal_actions for step in episode.steps]


def test_an_episode_of_other_rules_is_refused():
    (episode,) = stored("kuhn_poker", [Scripted("[check]", "[check]", speculative=False)] * 2, [1])
    first, second = episode.steps
    with pytest.raises(ValueError, match="does not follow the game's rules at turn 0"):
        list(replay(replace(episode, steps=(replace(first, turn=replace(first.turn, player=1)), second))))
    with pytest.raises(ValueError, match="does not follow the game's rules"):
        list(replay(replace(episode, steps=(first, second, second))))
