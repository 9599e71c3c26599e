import json

import pytest

from spiral_trl.games import game_names, make_game
from spiral_trl.games.registry import game_source


@pytest.fixture
def games(run):
    """Calls `spiral-trl games`; answers stdout."""

    def call(*argv):
        code, out, err = run("games", *argv)
        assert (code, err) == (0, "")
        return out

    return call


def test_all_games_are_listed(games, tmp_path):
    listed = games("--json", tmp_path / "games.json").split()
    assert listed == [*game_names(), "openspiel:NAME", "textarena:NAME"]
    assert json.loads((tmp_path / "games.json").read_text())["games"] == game_names()
    library = games("--source", "openspiel").split()
    assert library == [f"openspiel:{name}" for name in game_source("openspiel").names()]


def test_a_game_is_shown_as_its_first_seat_reads_it(games, tmp_path):
    shown = games("kuhn_poker(rounds=5)", "--seed", 3, "--json", tmp_path / "game.json")
    game = make_game("kuhn_poker(rounds=5)")
    game.reset(3)
    assert game.turns()[0].messages[0]["content"] in shown
    assert shown.startswith(
        "kuhn_poker(rounds=5): 2 seats (player 0, player 1)\nparameters: rounds=5, rules=canonical, "
    )
    written = json.loads((tmp_path / "game.json").read_text())
    assert written["parameters"]["rounds"] == 5 and written["turns"][0]["legal_actions"] == ["check", "bet"]


def test_seats_that_are_asked_at_once_are_shown_one_by_one(games):
    assert games("openspiel:matrix_rps").count(" reads:\n") == 2


def test_free_text_has_no_list_of_actions(games, tmp_path):
    games("simple_negotiation", "--json", tmp_path / "game.json")
    assert json.loads((tmp_path / "game.json").read_text())["turns"][0]["legal_actions"] is None
