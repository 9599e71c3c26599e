import itertools
import re

import numpy as np
import pyspiel
import pytest
from game_checks import (
    beside_openspiel,
    check_information_sets,
    counts,
    play,
    spiel_counts,
)

from spiral_trl.games import canonical_name, make_game, tabulate
from spiral_trl.games.table import TERMINAL
from spiral_trl.records import Ending


STYLES = ("words", "latest", "compact")


def spiel_action(word, numdice, dice_sides):
    if word == "liar":
        return 2 * numdice * dice_sides
    count, face = map(int, word.split(" x "))
    return (count - 1) * dice_sides + face - 1


def side_by_side(numdice, dice_sides, style="words"):
    table = tabulate(f"liars_dice(numdice={numdice},dice_sides={dice_sides},observation={style})")
    spiel = pyspiel.load_game(f"liars_dice(numdice={numdice},dice_sides={dice_sides})")
    return table, spiel, beside_openspiel(table, spiel, lambda word: spiel_action(word, numdice, dice_sides))


# Decisions, chance nodes and ends, as OpenSpiel counts them
@pytest.mark.parametrize(
    ("numdice", "dice_sides", "style", "sizes"),
    [
        (1, 3, "words", (576, 4, 567)),
        (1, 3, "latest", (576, 4, 567)),
        (1, 3, "compact", (576, 4, 567)),
        (1, 4, "words", (4096, 5, 4080)),
        (2, 2, "words", (4096, 15, 4080)),
    ],
)
def test_the_whole_tree_is_openspiels(numdice, dice_sides, style, sizes):
    table, spiel, walk = side_by_side(numdice, dice_sides, style)
    assert counts(table) == spiel_counts(spiel) == sizes
    assert check_information_sets(list(walk)) == len(table.turns)
    totals = table.returns[table.kind == TERMINAL]
    assert not totals.sum(1).any() and set(totals[:, 0]) == {-1, 1}
    assert table.worst_returns == (-1, -1)


def test_prompts_tell_own_die_and_all_bids_and_nothing_of_the_other_die():
    _, _, walk = side_by_side(1, 3)
    for turn, state in walk:
        text = turn.messages[0]["content"]
        own, bids = state.history()[turn.player] + 1, state.history()[2:]
        situation = text.split("\n")[-2]
        told = ", ".join(f"player {i % 2} bid {bid // 3 + 1} x {bid % 3 + 1}" for i, bid in enumerate(bids))
        assert situation == f"Your die shows {own}. Bids so far: {told or 'none'}."
        assert f"You are player {turn.player} in" in text and turn.role == f"player {turn.player}"
        assert turn.infoset == f"{turn.player}|{own}|" + ", ".join(re.findall(r"\d x \d", told))
        assert text.count("\n") == 4


@pytest.mark.parametrize(("numdice", "dice_sides"), [(1, 4), (2, 3), (3, 6)])
def test_a_lie_is_judged_by_the_rules_in_the_prompt(numdice, dice_sides):
    """Counts dice by hand: the highest face is wild. Every bid of random rolls, challenged at once."""
    rng = np.random.default_rng(0)
    name = f"liars_dice(numdice={numdice},dice_sides={dice_sides})"
    wild_decides = 0
    for _ in range(10):
        dice = rng.integers(1, dice_sides + 1, size=2 * numdice).tolist()
        for count, face in itertools.product(range(1, 2 * numdice + 1), range(1, dice_sides + 1)):
            showing = sum(die in (face, dice_sides) for die in dice)
            game = play(name, [die - 1 for die in dice], [f"{count} x {face}", "liar"])
            wins = 1 if showing >= count else -1
            assert game.ending is Ending.TERMINAL and game.turns() == ()
            assert game.returns() == (wins, -wins)
            wild_decides += (dice.count(face) < count) and wins > 0
    assert wild_decides
    rules = make_game(name)
    rules.reset(0)
    text = rules.turns()[0].messages[0]["content"]
    assert f"Face {dice_sides} is wild: it counts as any face." in text


def test_bids_must_be_higher():
    order = [f"{count} x {face}" for count in (1, 2, 3, 4) for face in (1, 2, 3)]
    game = play("liars_dice(numdice=2,dice_sides=3)", [0, 1, 2, 0], [])
    assert game.turns()[0].legal_actions == tuple(order)  # nothing to challenge yet
    assert "Choose a bid from [1 x 1] to [4 x 3]. End" in game.turns()[0].messages[0]["content"]
    for i, bid in enumerate(order):
        game = play("liars_dice(numdice=2,dice_sides=3)", [0, 1, 2, 0], [bid])
        assert game.turns()[0].legal_actions == (*order[i + 1 :], "liar")
        assert game.turns()[0].player == 1
        text = game.turns()[0].messages[0]["content"]
        rest = len(order) - i - 1
        if rest > 1:
            assert f"Choose a bid from [{order[i + 1]}] to [4 x 3] or [liar]." in text
        else:
            assert ("Choose the bid [4 x 3] or [liar]." if rest else "Choose [liar].") in text


def test_dice_are_shown_sorted_so_that_order_tells_nothing():
    one = play("liars_dice(numdice=3)", [5, 0, 2, 1, 1, 4], [])
    other = play("liars_dice(numdice=3)", [0, 2, 5, 4, 1, 1], [])
    assert one.turns()[0].messages == other.turns()[0].messages
    assert "Your dice show 1 3 6." in one.turns()[0].messages[0]["content"]
    one.step({0: "2 x 6"})
    assert one.turns()[0].infoset == "1|2 2 5|2 x 6"


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("[2 x 3]", "2 x 3"),
        ("[2x3]", "2 x 3"),
        ("[2 X 3]", "2 x 3"),
        ("[ 2*3 ]", "2 x 3"),
        (r"\boxed{2 × 3}", "2 x 3"),
        ("player 0 bid [1 x 4], so [2x3]", "2 x 3"),
        ("[LIAR]", "liar"),
        ("<think>[5 x 1]</think>[liar]", "liar"),
        ("[1 x 4]", None),  # not higher
        ("[2 x 7]", None),
        ("[12 x 3]", None),
        ("2 x 3", None),
        ("[2 x 3] or [liar]", None),
        ("[2 3]", None),
    ],
)
def test_spellings_of_a_reply(text, action):
    game = play("liars_dice(numdice=2)", [0, 1, 2, 3], ["1 x 4"])
    parsed = game.parse(1, text)
    assert parsed.action == action
    assert (parsed.error is None) == (action is not None)


def test_reading_a_reply_takes_linear_time():
    import time

    game = play("liars_dice(numdice=2)", [0, 1, 2, 3], [])
    for piece in ("1 ", "1x", "1" + " " * 999, "1 x" + " " * 997):
        start = time.process_time()
        game.parse(0, piece * (1_000_000 // len(piece)))
        assert time.process_time() - start < 2


def test_compact_prompts():
    game = play("liars_dice(numdice=2,observation=compact)", [5, 0, 2, 1], ["1 x 5"])
    assert game.turns()[0].messages[0]["content"] == "player 1 dice 2 3 bids 1 x 5"
    game.step({1: "2 x 2"})
    assert game.turns()[0].messages[0]["content"] == "player 0 dice 1 6 bids 1 x 5 2 x 2"
    game.reset(0)
    assert game.turns()[0].messages[0]["content"].endswith(" bids none")


def test_the_papers_held_out_variant_is_played_to_its_end():
    name = "liars_dice(numdice=5)"
    assert tabulate(name) is None
    winners = set()
    for seed in range(20):
        game = make_game(name)
        game.reset(seed)
        assert len(game.turns()[0].legal_actions) == 60
        own = re.search(r"Your dice show ([\d ]+)\.", game.turns()[0].messages[0]["content"])[1].split()
        assert len(own) == 5 and own == sorted(own)
        while game.turns():
            (turn,) = game.turns()
            game.step({turn.player: turn.legal_actions[seed % len(turn.legal_actions)]})
        winners.add(game.returns())
    assert winners == {(1, -1), (-1, 1)}


def test_the_solver_state_stands_where_the_turn_stands():
    _, _, walk = side_by_side(1, 3)
    for turn, state in walk:
        assert turn.state.part is None
        assert turn.state.state.information_state_string() == state.information_state_string()
        assert dict(turn.state.actions) == {word: spiel_action(word, 1, 3) for word in turn.legal_actions}


def test_latest_reads_as_words():
    words, latest = (tabulate(f"liars_dice(dice_sides=3,observation={style})") for style in ("words", "latest"))
    assert [t.messages for t in words.turns] == [t.messages for t in latest.turns]


def test_names():
    assert canonical_name("liars_dice(dice_sides=6,numdice=1)") == "liars_dice"
    assert make_game("liars_dice(dice_sides=3,numdice=2)").name == "liars_dice(numdice=2,dice_sides=3)"
    for name, message in (
        ("liars_dice(numdice=0)", "numdice of liars_dice must be from 1 to 10, not 0"),
        ("liars_dice(dice_sides=1)", "dice_sides of liars_dice must be from 2 to 20, not 1"),
        ("liars_dice(dice=2)", "unknown parameter of liars_dice 'dice'; allowed: numdice"),
        ("liar_dice", "did you mean 'liars_dice'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_game(name)
