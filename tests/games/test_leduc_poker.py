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
from spiral_trl.games.sequence_form import sequence_form, solve
from spiral_trl.games.table import TERMINAL
from spiral_trl.records import Ending


STYLES = ("words", "latest", "compact")
SPIEL = pyspiel.load_game("leduc_poker(suit_isomorphism=True)")


def spiel_action(word):
    return {"fold": 0, "check": 1, "call": 1, "raise": 2}[word]


def name_of(style):
    return f"leduc_poker(observation={style})"


@pytest.mark.parametrize("style", STYLES)
def test_the_whole_tree_is_openspiels(style):
    table = tabulate(name_of(style))
    assert counts(table) == spiel_counts(SPIEL) == (774, 49, 1116)
    pairs = list(beside_openspiel(table, SPIEL, spiel_action))
    assert check_information_sets(pairs) == len(table.turns) == 288
    assert set(table.actions) == {"check", "call", "raise", "fold"}
    totals = table.returns[table.kind == TERMINAL]
    assert not totals.sum(1).any()
    assert tuple(totals.min(0)) == table.worst_returns == (-13, -13)
    for turn, state in pairs:
        facing, may_raise = 0 in state.legal_actions(), 2 in state.legal_actions()
        words = [*(["fold", "call"] if facing else ["check"]), *(["raise"] if may_raise else [])]
        assert turn.legal_actions == tuple(words)


def test_prompts_tell_own_card_public_card_moves_and_chips():
    for turn, state in beside_openspiel(tabulate("leduc_poker"), SPIEL, spiel_action):
        text = turn.messages[0]["content"]
        known = state.information_state_string()
        situation = "\n".join(line for line in text.split("\n") if not line.startswith("Rules:"))
        own = "JQK"[int(re.search(r"\[Private: (\d)\]", known)[1])]
        public = re.search(r"\[Public: (\d)\]", known)
        shown = [own, *(["JQK"[int(public[1])]] if public else [])]
        assert re.findall(r"\b[JQK]\b", situation) == shown
        assert f"Your card is {own}." in situation
        money = [int(chips) for chips in re.search(r"\[Money: (\d+) (\d+)\]", known).groups()]
        player = turn.player
        assert (
            f"Chips put in so far: {100 - money[player]} by you, {100 - money[1 - player]} by player {1 - player}."
            in situation
        )
        assert turn.role == f"player {player}" and f"You are player {player} in" in text
        told = re.findall(r"player \d (checked|called|raised)", situation)
        moves = re.findall(r"\[Round[12]: ([\d ]*)\]", known)
        assert [spiel_action(word.removesuffix("ed").replace("rais", "raise")) for word in told] == [
            int(move) for moves_of_round in moves for move in moves_of_round.split()
        ]


@pytest.mark.parametrize(
    ("cards", "public", "line", "chips"),
    [
        ("JQ", "", "raise fold", 1),  # the ante of player 1
        ("JQ", "", "check raise fold", -1),
        ("JQ", "", "raise raise fold", -3),
        ("JQ", "J", "check check check check", 1),  # a pair beats the queen
        ("JQ", "Q", "check check check check", -1),
        ("JQ", "K", "check check check check", -1),  # the higher card
        ("QQ", "K", "raise call raise raise call", 0),  # equal cards split the pot
        ("KJ", "Q", "raise raise call raise raise call", 13),  # 1 + 2 + 2 + 4 + 4
        ("KJ", "J", "raise call check raise call", -7),  # 1 + 2 + 4
        ("KJ", "J", "raise call raise raise fold", -7),
    ],
)
def test_hand_worked_payoffs(cards, public, line, chips):
    left = {"J": 2, "Q": 2, "K": 2}
    outcomes = []
    for card in cards + public:
        outcomes.append([rank for rank in "JQK" if left[rank]].index(card))
        left[card] -= 1
    game = play("leduc_poker", outcomes, line.split())
    assert game.ending is Ending.TERMINAL and game.turns() == ()
    assert game.returns() == (chips, -chips)
    sign = play("leduc_poker(payoff=sign)", outcomes, line.split())
    assert sign.returns() == (np.sign(chips), -np.sign(chips))


def test_the_value_of_the_game():
    table = tabulate("leduc_poker")
    form = sequence_form(table)
    nobody = np.zeros(len(table.turns))
    value, best = form.evaluate(solve(table), nobody)
    # The value of the game lies between what player 0 gets against a best response and what it gets by one
    assert -best[1] <= -0.0856 <= best[0] and best.sum() < 0.006
    assert value[0] == pytest.approx(-0.0859, abs=0.002)


def test_the_sign_payoff():
    chips, sign = tabulate("leduc_poker"), tabulate("leduc_poker(payoff=sign)")
    assert np.array_equal(np.sign(chips.returns), sign.returns, equal_nan=True)
    assert sign.worst_returns == (-1, -1)
    assert all(turn.state is None for turn in sign.turns)
    assert "+1 if you win the pot" in sign.turns[0].messages[0]["content"]


def test_compact_prompts():
    game = play(name_of("compact"), [0, 2, 1], [])
    prompts = [game.turns()[0].messages[0]["content"]]
    for action in ("raise", "call", "check"):
        game.step({game.turns()[0].player: action})
        prompts.append(game.turns()[0].messages[0]["content"])
    assert prompts == [
        "player 0 card J first none public none second none",
        "player 1 card K first raise public none second none",
        "player 0 card J first raise call public Q second none",
        "player 1 card K first raise call public Q second check",
    ]
    assert game.turns()[0].infoset == "1|K|raise call|Q|check"


def test_the_solver_state_stands_where_the_turn_stands():
    for turn, state in beside_openspiel(tabulate("leduc_poker"), SPIEL, spiel_action):
        attached = turn.state
        assert attached.part is None and attached.state.current_player() == turn.player
        assert attached.state.information_state_string() == state.information_state_string()
        assert dict(attached.actions) == {word: spiel_action(word) for word in turn.legal_actions}


def test_a_solver_state_is_never_changed_by_the_game():
    game = play("leduc_poker", [0, 2, 1], [])
    attached = game.turns()[0].state
    before = (str(attached.state), dict(attached.actions))
    game.step({0: "raise"})
    assert (str(attached.state), dict(attached.actions)) == before


def test_latest_reads_as_words():
    words, latest = tabulate("leduc_poker"), tabulate(name_of("latest"))
    assert [t.messages for t in words.turns] == [t.messages for t in latest.turns]


def test_deals_have_their_weights():
    game = make_game("leduc_poker")
    dealt = np.zeros((3, 3))
    for seed in range(3000):
        game.reset(seed)
        cards = [int(c) for c in re.findall(r"Private: (\d)", game.turns()[0].state.state.information_state_string(0))]
        cards += [
            int(c) for c in re.findall(r"Private: (\d)", game.turns()[0].state.state.information_state_string(1))
        ]
        dealt[tuple(cards)] += 1
    weights = np.where(np.eye(3), 1 / 15, 2 / 15)  # 2 of 30 ordered pairs of cards, or 4
    chi_square = ((dealt - 3000 * weights) ** 2 / (3000 * weights)).sum()
    assert chi_square < 26.1  # upper 0.1% point with 8 degrees of freedom


def test_names():
    assert canonical_name("leduc_poker(observation=words,payoff=chips)") == "leduc_poker"
    assert make_game("leduc_poker(payoff=sign,observation=compact)").name == (
        "leduc_poker(payoff=sign,observation=compact)"
    )
    with pytest.raises(ValueError, match=r"unknown value of payoff in leduc_poker 'chip'.*did you mean 'chips'\?"):
        make_game("leduc_poker(payoff=chip)")
