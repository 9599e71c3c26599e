"""Golden playthroughs: every game with words of its own has one in each of its observation styles, and more."""

import re

import pytest
from playthrough import PLAYTHROUGHS, check_playthrough
from toy_games import TreeGame

from spiral_trl.games import canonical_name, game_names
from spiral_trl.games.registry import _GAMES, parse_name


GOLDEN = [
    ("connect_four.txt", "connect_four", 3),
    ("connect_four_compact.txt", "connect_four(observation=compact)", 3),
    ("connect_four_latest.txt", "connect_four(observation=latest)", 3),
    ("connect_four_small.txt", "connect_four(rows=4,columns=4,line=3)", 1),
    ("kuhn_poker.txt", "kuhn_poker", 3),
    ("kuhn_poker_compact.txt", "kuhn_poker(observation=compact)", 3),
    ("kuhn_poker_five_cards.txt", "kuhn_poker(cards=5)", 0),
    ("kuhn_poker_five_cards_compact.txt", "kuhn_poker(observation=compact,cards=5)", 0),
    ("kuhn_poker_five_cards_match.txt", "kuhn_poker(rounds=2,rules=spiral,cards=5)", 2),
    ("kuhn_poker_latest.txt", "kuhn_poker(rounds=3,observation=latest)", 5),
    ("kuhn_poker_match.txt", "kuhn_poker(rounds=3)", 5),
    ("kuhn_poker_seat_bonus.txt", "kuhn_poker(rounds=2,payoff=chips,seat_bonus=-0.5)", 1),
    ("kuhn_poker_spiral.txt", "kuhn_poker(rounds=3,rules=spiral)", 7),
    ("leduc_poker.txt", "leduc_poker", 7),
    ("leduc_poker_compact.txt", "leduc_poker(observation=compact)", 7),
    ("leduc_poker_latest.txt", "leduc_poker(observation=latest)", 7),
    ("leduc_poker_sign.txt", "leduc_poker(payoff=sign)", 6),
    ("liars_dice.txt", "liars_dice(numdice=5)", 5),
    ("liars_dice_compact.txt", "liars_dice(numdice=2,observation=compact)", 7),
    ("liars_dice_latest.txt", "liars_dice(numdice=2,observation=latest)", 7),
    ("liars_dice_one_die.txt", "liars_dice", 1),
    ("openspiel_dark_hex.txt", "openspiel:dark_hex(board_size=2)", 5),
    ("openspiel_goofspiel.txt", "openspiel:goofspiel(num_cards=3)", 4),
    ("openspiel_latest.txt", "openspiel:pig(winscore=8,observation=latest)", 3),
    ("openspiel_leduc_poker.txt", "openspiel:leduc_poker", 2),
    ("openspiel_tic_tac_toe.txt", "openspiel:tic_tac_toe", 1),
    ("pig.txt", "pig(target=20)", 2),
    ("pig_compact.txt", "pig(target=30,observation=compact)", 3),
    ("pig_latest.txt", "pig(target=15,observation=latest)", 2),
    ("pig_three_players.txt", "pig(target=10,players=3,horizon=12)", 1),
    ("simple_negotiation.txt", "simple_negotiation(max_turns=6)", 4),
    ("simple_negotiation_2.txt", "simple_negotiation(resources=2,max_turns=5,payoff=difference)", 1),
    ("simple_negotiation_8.txt", "simple_negotiation(resources=8,max_turns=4)", 2),
    ("simple_negotiation_compact.txt", "simple_negotiation(resources=2,observation=compact)", 3),
    ("simple_negotiation_latest.txt", "simple_negotiation(max_turns=5,observation=latest)", 4),
    ("simple_negotiation_talk.txt", "simple_negotiation(max_turns=4,talk=shown)", 5),
    ("tic_tac_toe.txt", "tic_tac_toe", 3),
    ("tic_tac_toe_5x5.txt", "tic_tac_toe(size=5)", 1),
    ("tic_tac_toe_compact.txt", "tic_tac_toe(observation=compact)", 0),
    ("tic_tac_toe_latest.txt", "tic_tac_toe(observation=latest)", 1),
]
REPLIES = {
    "simple_negotiation_talk.txt": [
        "I have plenty of Wheat. [Offer: 4 Wheat -> 1 Ore]",
        "<think>Too little.</think>That is too little; what about this? [Offer: 1 Ore -> 6 Wheat]",
        "Agreed. [Accept]",
        "[Pass]",
    ]
}
NAMES = {file: canonical_name(name) for file, name, _ in GOLDEN}


@pytest.mark.parametrize(("file", "name", "seed"), GOLDEN)
def test_golden_playthroughs(file, name, seed):
    check_playthrough(file, name, seed, REPLIES.get(file, ()))


def without_playthrough(names):
    """Names of games, with the observation style where they have several, that are not among `names`."""
    told = {(base, values.get("observation")) for base, values in map(parse_name, names)}
    missing = []
    for game in game_names():
        observation = _GAMES[game].parameters.get("observation")
        for style in observation.choices if observation else (None,):
            if (game, style) not in told:
                missing.append(f"{game}(observation={style})" if style else game)
    return missing


def test_every_game_has_one_in_each_observation_style():
    assert without_playthrough(NAMES.values()) == []
    assert len(game_names()) >= 7


def test_a_game_without_one_is_found(register_game):
    name = register_game("never_written_down", lambda: TreeGame("never_written_down", ("end", (0, 0))))
    assert without_playthrough(NAMES.values()) == [name]
    without_compact = set(NAMES.values()) - {"kuhn_poker(observation=compact)"}
    assert "kuhn_poker(observation=compact)" not in without_playthrough(without_compact)  # five cards are told so too
    without_compact -= {NAMES["kuhn_poker_five_cards_compact.txt"]}
    assert "kuhn_poker(observation=compact)" in without_playthrough(without_compact)


def test_every_file_is_replayed_and_tells_a_whole_game():
    assert {path.name for path in PLAYTHROUGHS.iterdir()} == set(NAMES)
    for file, name in NAMES.items():
        text = (PLAYTHROUGHS / file).read_text(encoding="utf-8")
        assert text.startswith(f"# {name}, seed ")
        assert re.search(r"^## (terminal|truncated), returns \(.*\)\n\Z", text, re.MULTILINE)
        assert text.count("\n-> ") == text.count("\n## turn ") >= 2


def test_the_harder_variants_of_the_paper_are_among_them():
    assert {"tic_tac_toe(size=5)", "kuhn_poker(cards=5)"} <= set(NAMES.values())
    assert any("resources=8" in name for name in NAMES.values())
