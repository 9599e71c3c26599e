"""What stands behind each step: against hand-worked games, the closed form of Kuhn poker, and the games' own keys."""

from dataclasses import replace

import numpy as np
import pytest
from toy_players import Scripted

from spiral_trl.errors import UsageError
from spiral_trl.games.kuhn_equilibrium import equilibrium_ranges
from spiral_trl.players.bots import RandomPlayer
from spiral_trl.records import dataset_to_episodes, episodes_to_dataset
from spiral_trl.rollout import play
from spiral_trl.sae.game_variables import game_variables


def games(name, count=200, players=None, **kwargs):
    players = [RandomPlayer()] * 2 if players is None else players
    return dataset_to_episodes(episodes_to_dataset(play(name, players, np.arange(count), **kwargs).episodes()))


def told(role, name):
    """A variable's value at each step, in words."""
    variable = role.variable(name)
    if variable.categorical:
        return [None if np.isnan(value) else variable.levels[int(value)] for value in variable.values]
    return [None if np.isnan(value) else value for value in variable.values]


def steps_of(episodes, player):
    return [
        (group, place, step)
        for group, episode in enumerate(episodes)
        for place, step in enumerate(episode.steps)
        if step.turn.player == player
    ]


def test_kuhn_poker():
    episodes = games("kuhn_poker(observation=compact)")
    roles = game_variables(episodes)
    assert [role.role for role in roles] == ["player 0", "player 1"]
    ranges = equilibrium_ranges()
    for player, role in enumerate(roles):
        steps = steps_of(episodes, player)
        assert role.group.tolist() == [group for group, _, _ in steps]
        assert role.step.tolist() == [place for _, place, _ in steps]
        assert role.turn.tolist() == [step.turn.index for _, _, step in steps]
        # The prompt says the same: player 0 card J history check bet
        words = [step.turn.messages[0]["content"].split() for _, _, step in steps]
        assert told(role, "card") == [line[3] for line in words]
        assert told(role, "history") == [" ".join(line[5:]) for line in words]
        assert told(role, "move made") == [step.reply.action for _, _, step in steps]
        assert told(role, "return") == [episodes[group].returns[player] for group, _, _ in steps]
        wins = ["win" if episodes[group].returns[player] > 0 else "loss" for group, _, _ in steps]
        assert told(role, "winning") == wins
        # In Kuhn poker the history tells the legal moves, so they are one variable
        assert role.variable("legal moves") is role.variable("history")
        for action in ("bet", "call"):
            for (_, _, step), value in zip(steps, told(role, f"equilibrium: {action}"), strict=True):
                if action not in step.turn.legal_actions:
                    assert value is None
                else:
                    low, high = ranges[step.turn.infoset][action]
                    assert low - 0.02 <= value <= high + 0.02
        assert "equilibrium: fold" in role.variable("equilibrium: call").also
        assert role.notes == ()


def test_what_hands_share_and_what_they_do_not():
    role = game_variables(games("kuhn_poker"))[1]
    found = {}
    for own, rest in zip(role.own, role.rest, strict=True):
        found.setdefault(rest, set()).add(own)
    assert sorted(found.values(), key=len) == [{"J", "Q", "K"}] * 2


@pytest.mark.parametrize("name", ["kuhn_poker(rounds=3)", "kuhn_poker(cards=5)", "kuhn_poker(rules=spiral)"])
def test_variants_of_kuhn_poker_in_the_words_of_their_keys(name):
    """In a match the seats take turns in opening; five cards and the released rules have no state of OpenSpiel."""
    episodes = games(name)
    for player, role in enumerate(game_variables(episodes)):
        keys = [step.turn.infoset.split(" / ")[-1].split("|")[-2:] for _, _, step in steps_of(episodes, player)]
        assert told(role, "card") == [card for card, _ in keys]
        assert told(role, "history") == [history or "none" for _, history in keys]


def test_leduc_poker_tells_the_public_card_in_the_history():
    episodes = games("leduc_poker", 400)
    for player, role in enumerate(game_variables(episodes, min_games=1)):
        for (_, _, step), card, history in zip(
            steps_of(episodes, player), told(role, "card"), told(role, "history"), strict=True
        ):
            _, own, *public = step.turn.infoset.split("|")
            assert card == own
            assert history in (None, " | ".join(part or "none" for part in public))


def test_names_of_the_library_where_a_game_has_no_words():
    role, other = game_variables(games("openspiel:kuhn_poker"))
    assert role.own_name == "card"
    assert set(told(role, "card")) == set(told(other, "card")) == {"Deal:0", "Deal:1", "Deal:2"}
    assert set(told(role, "history")) == {"none", "Pass, Bet"}
    assert set(told(other, "history")) == {"Pass", "Bet"}


def test_dice_and_single_moves():
    episodes = games("liars_dice(numdice=2,dice_sides=3)", 300)
    role = game_variables(episodes)[1]
    dice = [step.turn.infoset.split("|")[1] for _, _, step in steps_of(episodes, 1)]
    assert told(role, "dice") == dice
    allowed = ["yes" if "2 x 3" in step.turn.legal_actions else "no" for _, _, step in steps_of(episodes, 1)]
    assert told(role, "legal: 2 x 3") == allowed
    assert "no equilibrium is known" in role.notes[0] and "100,000 histories" in role.notes[0]


def test_perfect_information_has_no_hand_of_its_own():
    episodes = games("tic_tac_toe", 300)
    role = game_variables(episodes)[0]
    with pytest.raises(
        UsageError, match="player 0 of tic_tac_toe has no variable 'card'; it has history, moves so far"
    ):
        role.variable("card")
    assert set(role.own) == {None}
    # Before the first move all are draws under best play, and equally good
    openings = [value for value, step in zip(told(role, "equilibrium: 4"), role.step, strict=True) if step == 0]
    assert openings == [pytest.approx(1 / 9)] * 300


def test_what_another_seat_cannot_see_is_ones_own():
    """In phantom tic-tac-toe a seat sees its own marks alone."""
    episodes = games("openspiel:phantom_ttt", 100)
    for player, role in enumerate(game_variables(episodes, min_games=1)):
        made = {}
        for (group, _, step), own in zip(steps_of(episodes, player), role.own, strict=True):
            mine = made.setdefault(group, [])
            assert own == (", ".join(sorted(mine)) or None)
            mine.append(step.reply.action)


def test_seats_asked_at_once_have_no_public_history():
    roles = game_variables(games("openspiel:goofspiel(num_cards=3,imp_info=true)"))
    assert [role.role for role in roles] == ["player 0", "player 1"]
    for role in roles:
        assert {variable.name for variable in role.variables} >= {"legal moves", "winning", "move made"}
        assert set(role.rest) == {None}


def test_rare_values_are_left_out():
    # K is dealt to player 0 in some of 30 games, but not in 15
    episodes = games("kuhn_poker", 30)
    role = game_variables(episodes, min_games=1)[0]
    cards = [told(role, "card")[number] for number in np.flatnonzero(role.step == 0)]
    common = {card for card in "JQK" if cards.count(card) >= 10}
    assert 0 < len(common) < 3, "the seeds were chosen so"
    (fewer,) = [role for role in game_variables(episodes, min_games=10) if role.player == 0]
    if len(common) > 1:
        assert set(fewer.variable("card").levels) == common
    else:
        assert all(variable.name != "card" for variable in fewer.variables)


def test_illegal_replies_are_no_moves():
    first = Scripted(
        lambda turn: "no" if turn.index == 0 else f"[{turn.legal_actions[turn.seed % 2]}]", speculative=False
    )
    episodes = games("kuhn_poker", 12, [first, RandomPlayer()], illegal="retry(1)")
    role = game_variables(episodes, min_games=1)[0]
    assert role.turn.tolist() == [step.turn.index for _, _, step in steps_of(episodes, 0)]
    made = told(role, "move made")
    assert [move for move, index in zip(made, role.turn, strict=True) if index == 0] == [None] * 12
    assert [move for move, index in zip(made, role.turn, strict=True) if index == 1] == ["check", "bet"] * 6


def test_mixed_games_are_kept_apart():
    episodes = [*games("kuhn_poker", 40), *games("tic_tac_toe", 40)]
    assert [(role.game, role.role) for role in game_variables(episodes)] == [
        ("kuhn_poker", "player 0"),
        ("kuhn_poker", "player 1"),
        ("tic_tac_toe", "player 0"),
        ("tic_tac_toe", "player 1"),
    ]
    assert min(game_variables(episodes)[2].group) == 40


def test_bad_episodes():
    (episode,) = games("kuhn_poker", 1)
    with pytest.raises(UsageError, match="the episodes have no steps"):
        game_variables([])
    step = episode.steps[0]
    wrong = replace(episode, steps=(replace(step, turn=replace(step.turn, infoset="0|A|")),))
    with pytest.raises(UsageError, match="episode 1 cannot be played again: An episode of kuhn_poker"):
        game_variables([episode, wrong])
