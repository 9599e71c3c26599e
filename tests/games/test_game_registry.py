import pytest

from spiral_trl.games import canonical_name, game_names, make_game
from spiral_trl.games.kuhn_poker import KuhnPoker
from spiral_trl.games.registry import parse_name, register


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("kuhn_poker", "kuhn_poker"),
        ("kuhn_poker()", "kuhn_poker"),
        (" kuhn_poker ( rounds = 1 ) ", "kuhn_poker"),
        ("kuhn_poker(payoff=chips)", "kuhn_poker"),
        ("kuhn_poker(payoff=sign)", "kuhn_poker(payoff=sign)"),
        ("kuhn_poker(rounds=5,payoff=sign)", "kuhn_poker(rounds=5)"),
        ("kuhn_poker(payoff=chips, rounds=5)", "kuhn_poker(rounds=5,payoff=chips)"),
        ("kuhn_poker(rules=spiral,payoff=sign)", "kuhn_poker(rules=spiral)"),
        ("kuhn_poker(payoff=chips,rules=spiral)", "kuhn_poker(rules=spiral,payoff=chips)"),
        ("kuhn_poker(seat_bonus=1.0)", "kuhn_poker(seat_bonus=1)"),
        ("kuhn_poker(seat_bonus=0.5)", "kuhn_poker(seat_bonus=0.5)"),
        ("kuhn_poker(seat_bonus=-0.0)", "kuhn_poker"),
        (
            "kuhn_poker(seat_bonus=-1,observation=compact,rounds=1,rules=canonical)",
            "kuhn_poker(observation=compact,seat_bonus=-1)",
        ),
    ],
)
def test_canonical_names(name, canonical):
    assert canonical_name(name) == canonical
    assert canonical_name(canonical) == canonical
    assert make_game(name).name == canonical


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kun_poker", "unknown game 'kun_poker'; allowed: .*kuhn_poker.*; did you mean 'kuhn_poker'?"),
        ("", "unknown game ''"),
        ("zzz", "unknown game 'zzz'"),
        ("kuhn_poker(round=5)", "unknown parameter of kuhn_poker 'round'; allowed: rounds, .*did you mean 'rounds'?"),
        ("kuhn_poker(payoff=chip)", "unknown value of payoff in kuhn_poker 'chip'; .*did you mean 'chips'?"),
        ("kuhn_poker(rounds=two)", "rounds of kuhn_poker must be a whole number, not 'two'"),
        ("kuhn_poker(rounds=2.0)", "whole number"),
        ("kuhn_poker(rounds=)", "whole number"),
        ("kuhn_poker(rounds=0)", "rounds of kuhn_poker must be from 1 to 100, not 0"),
        ("kuhn_poker(rounds=101)", "from 1 to 100"),
        ("kuhn_poker(seat_bonus=nan)", "from -100 to 100, not nan"),
        ("kuhn_poker(seat_bonus=inf)", "from -100 to 100, not inf"),
        ("kuhn_poker(seat_bonus=x)", "must be a number"),
        ("kuhn_poker(rounds=1,rounds=2)", "sets 'rounds' twice"),
        ("kuhn_poker(5)", "'5' is not of the form parameter=value"),
        ("kuhn_poker(rounds=5", r"must end with '\)'"),
        ("kuhn_poker(rounds=2,observation=compact)", "observation=compact is for one hand; rounds is 2"),
        ("kuhn_poker(seat_bonus=1,payoff=sign)", "seat_bonus is in chips"),
        ("kuhn_poker(rounds=5,seat_bonus=1)", "seat_bonus is in chips"),
    ],
)
def test_wrong_names_are_one_line_errors(name, message):
    for function in (canonical_name, make_game, parse_name):
        with pytest.raises(ValueError, match=message) as error:
            function(name)
        assert "\n" not in str(error.value)


def test_parse_name_fills_in_defaults_and_hands_out_copies():
    base, values = parse_name("kuhn_poker(rounds=5)")
    expected = {
        "rounds": 5,
        "rules": "canonical",
        "payoff": "sign",
        "observation": "words",
        "seat_bonus": 0,
        "cards": 3,
    }
    assert (base, values) == ("kuhn_poker", expected)
    values["rounds"] = 7
    assert parse_name("kuhn_poker(rounds=5)")[1] == expected


def test_direct_construction_gives_the_same_names_and_checks():
    assert KuhnPoker().name == "kuhn_poker"
    assert KuhnPoker(rounds=3, payoff="chips").name == "kuhn_poker(rounds=3,payoff=chips)"
    with pytest.raises(ValueError, match="must be from 1 to 100"):
        KuhnPoker(rounds=0)
    with pytest.raises(ValueError, match="unknown value of rules"):
        KuhnPoker(rules="spirals")


def test_games_are_made_anew():
    assert make_game("kuhn_poker") is not make_game("kuhn_poker")


def test_names_are_listed_and_taken_once():
    assert "kuhn_poker" in game_names()
    with pytest.raises(ValueError, match="registered already"):
        register("kuhn_poker", KuhnPoker)
