"""Pig: against OpenSpiel along the same dice, and by hand."""

import numpy as np
import pyspiel
import pytest
from toy_games import Script

from spiral_trl.games import make_game
from spiral_trl.records import Ending


def play(name, choices, faces):
    """Plays `choices` (`r` and `h`) with `faces`; answers the game, the dice and all turns."""
    game, dice = make_game(name), Script(np.subtract(faces, 1).tolist())
    game.reset(0, chance=dice)
    turns = []
    for choice in choices:
        (turn,) = game.turns()
        turns.append(turn)
        action = game.parse(turn.player, f"so [{'roll' if choice == 'r' else 'hold'}]").action
        game.step({turn.player: action})
    return game, dice, turns


@pytest.mark.parametrize(
    ("name", "spiel"),
    [
        ("pig(target=30)", "pig(winscore=30)"),
        ("pig(target=20,players=3)", "pig(winscore=20,players=3)"),
        ("pig(target=20,horizon=15)", "pig(winscore=20,horizon=15)"),
        ("pig(target=8,players=2,horizon=4)", "pig(winscore=8,horizon=4)"),
    ],
)
@pytest.mark.parametrize("observation", ["words", "latest", "compact"])
def test_random_games_go_as_in_openspiel(name, spiel, observation):
    rng = np.random.default_rng(0)
    endings = set()
    for _ in range(60):
        faces = rng.integers(1, 7, size=2000)
        game, dice = make_game(f"{name[:-1]},observation={observation})"), Script(np.subtract(faces, 1).tolist())
        game.reset(0, chance=dice)
        state = pyspiel.load_game(spiel).new_initial_state()
        index = 0
        while game.turns():
            (turn,) = game.turns()
            assert (turn.player, turn.index) == (state.current_player(), index)
            assert turn.state.actions == {("roll", "hold")[a]: a for a in state.legal_actions()}
            assert turn.legal_actions == tuple(turn.state.actions)
            assert str(turn.state.state) == str(state)
            assert turn.role == f"player {turn.player}"
            action = int(rng.random() < 0.3 or len(turn.legal_actions) == 1)
            state.apply_action(action)
            if state.is_chance_node():
                state.apply_action(int(faces[len(dice.asked)]) - 1)
            game.step({turn.player: ("roll", "hold")[action]})
            index += 1
        assert state.is_terminal()
        assert game.returns() == tuple(state.returns())
        assert game.ending is (Ending.TERMINAL if any(state.returns()) else Ending.TRUNCATED)
        assert min(game.returns()) >= game.worst_returns[0]
        endings.add((game.ending, game.returns().index(max(game.returns()))))
    assert len(endings) > 1
    assert set(dice.asked) == {(1 / 6,) * 6}


def test_a_game_by_hand():
    # player 0 rolls 6 5 and holds (11); player 1 rolls 4 and 1 (0); player 0 rolls 9 more and holds (20)
    game, _, turns = play("pig(target=20)", "rrhrrrrh", [6, 5, 4, 1, 6, 3])
    assert [turn.player for turn in turns] == [0, 0, 0, 1, 1, 0, 0, 0]
    assert [turn.infoset for turn in turns][-1] == "0|65h/41/63"
    assert (game.ending, game.returns()) == (Ending.TERMINAL, (1, -1))
    assert (
        "So far: player 0 rolled 6 5 and held; player 1 rolled 4 1; player 0 rolled 6 3.\n"
        in (turns[-1].messages[0]["content"])
    )
    assert "Scores: you have 11, player 1 has 0. Your turn total is 9.\n" in turns[-1].messages[0]["content"]
    assert "So far: nothing.\n" in turns[0].messages[0]["content"]
    _, _, turns = play("pig(target=20,observation=latest)", "rrhrrrrh", [6, 5, 4, 1, 6, 3])
    assert turns[-1].infoset == "0|11 0|9"
    assert "So far" not in turns[-1].messages[0]["content"]
    _, _, turns = play("pig(observation=compact)", "rrhrrrr", [6, 5, 4, 1, 6, 3])
    assert turns[-1].messages[0]["content"] == "player 0 turn 0 0 6 own 0 1 1 next 0 0 0"
    assert turns[4].messages[0]["content"] == "player 1 turn 0 0 4 own 0 0 0 next 0 1 1"


def test_whoever_reaches_the_target_holds():
    game, _, turns = play("pig(target=10)", "rr", [6, 4])
    assert game.ending is None
    assert turns[-1].legal_actions == ("roll", "hold")
    (turn,) = game.turns()
    assert turn.legal_actions == ("hold",)
    assert "Choose [hold]. End" in turn.messages[0]["content"]
    with pytest.raises(ValueError, match="player 0 may play hold, not"):
        game.step({0: "roll"})
    game.step({0: "hold"})
    assert game.returns() == (1, -1)


def test_three_players_share_the_loss():
    game, _, turns = play("pig(target=5,players=3)", "hrrh", [1, 6])
    assert [turn.player for turn in turns] == [0, 1, 2, 2]
    assert game.returns() == (-0.5, -0.5, 1)
    assert game.worst_returns == (-0.5, -0.5, -0.5)
    assert "-1/2 if another player wins" in turns[0].messages[0]["content"]
    game, _, _ = play("pig(target=50,players=3,observation=compact)", "rhr", [6, 4])
    assert game.turns()[0].messages[0]["content"] == "player 1 turn 0 4 own 0 0 next 0 0 next 0 6"


def test_the_same_position_has_the_same_prompt_without_history():
    for observation in ("latest", "compact"):
        first = play(f"pig(observation={observation})", "rhrhr", [4, 5, 3])[0].turns()[0]
        second = play(f"pig(observation={observation})", "rrhrhr", [2, 2, 5, 3])[0].turns()[0]
        assert first.messages == second.messages
        assert first.infoset == second.infoset == "0|4 5|3"


def test_the_seed_decides_the_dice():
    def rolls(seed):
        game = make_game("pig(target=1000)")
        game.reset(seed)
        for _ in range(40):
            game.step({game.turns()[0].player: "roll"})
        return game.turns()[0].infoset

    assert rolls(1) == rolls(1) != rolls(2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pig(target=1)", "target of pig must be from 2 to 1000, not 1"),
        ("pig(players=1)", "players of pig must be from 2 to 10, not 1"),
        ("pig(winscore=50)", "unknown parameter of pig 'winscore'; allowed: target, players, horizon, observation"),
    ],
)
def test_wrong_names_are_one_line_errors(name, message):
    with pytest.raises(ValueError, match=message):
        make_game(name)
