"""Round robins: pay-offs, standings and ratings from games whose results are known, and what is kept when one fails."""

import json
from math import log

import numpy as np
import pytest
from toy_games import Pennies
from toy_players import BETTOR, CALLER, FOLDER, Always

from spiral_trl.errors import PlayerError, PlayError
from spiral_trl.evaluation.arena import play_arena
from spiral_trl.evaluation.match import cannot_play, play_match
from spiral_trl.evaluation.standings import MatchGames, make_table, score_interval
from spiral_trl.games.parsing import parse_action
from spiral_trl.games.table import tabulate
from spiral_trl.players.bots import CFRPlayer, RandomPlayer
from spiral_trl.players.search import MCTSPlayer, MinimaxPlayer
from spiral_trl.records import Ending


KUHN = "kuhn_poker(observation=compact)"


class Hands(Pennies):
    """Rock, paper, scissors, both seats asked at once."""

    legal = ("rock", "paper", "scissors")

    def turns(self):
        from dataclasses import replace

        return tuple(replace(turn, legal_actions=self.legal) for turn in super().turns())

    def parse(self, player, text):
        return parse_action(text, self.legal)

    def step(self, actions):
        self.played.append((actions[0], actions[1]))
        self.ending = Ending.TERMINAL

    def returns(self):
        one, two = (self.legal.index(action) for action in self.played[0])
        value = {0: 0.0, 1: 1.0, 2: -1.0}[(one - two) % 3]
        return (value, -value)


class Fragile(Always):
    """An endpoint that answers so many requests and then never again."""

    speculative = False

    def __init__(self, text, name, requests):
        super().__init__(text, name)
        self.requests = requests

    def _answer(self, turn):
        self.requests -= 1
        if self.requests < 0:
            raise PlayerError(f"{self.name} does not answer")
        return super()._answer(turn)


def cell(table, row, column):
    return table.score[table.players.index(row)][table.players.index(column)]


def test_every_two_players_meet_in_both_seats():
    result = play_arena([KUHN], [BETTOR, FOLDER, CALLER], pairs=30, seed=1)
    assert result.games == (KUHN,) and result.players == ("bettor", "folder", "caller")
    assert [(match.player, match.opponent) for match in result.matches] == [
        ("bettor", "folder"),
        ("folder", "bettor"),
        ("bettor", "caller"),
        ("caller", "bettor"),
        ("folder", "caller"),
        ("caller", "folder"),
    ]
    (table,) = result.tables
    assert table.game == KUHN and result.left_out == () and result.notes == ()
    # Whoever always bets makes the folder fold every hand, and wins a chip each
    won = table.mean_return[0][1]
    assert (won.estimate, won.low, won.high) == (1, 1, 1) and table.mean_return[1][0].estimate == -1
    assert cell(table, "bettor", "folder").estimate == 1
    assert cell(table, "bettor", "folder").low == pytest.approx(30 / (30 + 1.959964**2), abs=1e-6)
    assert cell(table, "folder", "bettor").high == pytest.approx(1 - 30 / (30 + 1.959964**2), abs=1e-6)
    # The caller and the bettor show down every hand: the better card wins, from either seat
    assert cell(table, "bettor", "caller").estimate == 0.5 and table.score[0][0] is None
    # The folder checks, the caller checks: a showdown too
    assert cell(table, "folder", "caller").estimate == 0.5
    bettor = table.standings[0]
    assert (bettor.player, bettor.games, bettor.score.estimate) == ("bettor", 120, 0.75)
    assert bettor.mean_return.estimate == 0.5 and bettor.illegal_rate == 0 and bettor.truncated_rate == 0


def test_a_match_of_the_arena_is_that_of_play_match_whoever_else_plays():
    players = [RandomPlayer(), CALLER, CFRPlayer()]
    result = play_arena([KUHN], players, pairs=40, seed=5)
    for match in result.matches:
        one, two = (next(p for p in players if p.name == name) for name in (match.player, match.opponent))
        assert play_match(KUHN, one, two, pairs=40, seed=match.seed) == match
    alone = play_arena(["kuhn_poker(rounds=2)", KUHN], [CALLER, CFRPlayer()], pairs=40, seed=5)
    assert [match for match in alone.matches if match.game == KUHN] == [
        match for match in result.matches if {match.player, match.opponent} == {"caller", "cfr"}
    ]


def test_standings_are_means_over_deals():
    players = [RandomPlayer(), CALLER, BETTOR]
    (table,) = play_arena([KUHN], players, pairs=50, seed=2).tables
    matches = play_arena([KUHN], players, pairs=50, seed=2).matches
    mine = [match for match in matches if match.player == "random"]
    standing = table.standings[0]
    assert standing.score.estimate == pytest.approx(np.mean([match.score.estimate for match in mine]))
    assert standing.mean_return.estimate == pytest.approx(np.mean([match.mean_return.estimate for match in mine]))
    for seat in (0, 1):
        wins = np.mean([m.seats[seat].win_rate.estimate + m.seats[seat].draw_rate / 2 for m in mine])
        assert standing.seat_scores[seat].estimate == pytest.approx(wins)
    total = np.mean([s.score.estimate for s in table.standings])
    assert total == pytest.approx(0.5)


def test_over_games_scores_are_pooled_and_returns_are_not():
    games = [KUHN, "kuhn_poker(rounds=3)"]
    result = play_arena(games, [BETTOR, FOLDER, CALLER], pairs=20, seed=0)
    assert [table.game for table in result.tables] == [*games, None]
    one, two, both = result.tables
    assert both.mean_return is None and both.standings[0].mean_return is None
    for i in range(3):
        for j in range(3):
            if i != j:
                expected = (one.score[i][j].estimate + two.score[i][j].estimate) / 2
                assert both.score[i][j].estimate == pytest.approx(expected)
    assert both.ratings.games == one.ratings.games + two.ratings.games == 240
    assert both.standings[0].games == 160


def test_ratings_follow_the_results_and_stand_on_the_anchor():
    result = play_arena([KUHN], [RandomPlayer(), CFRPlayer(), FOLDER], pairs=300, seed=3, anchor="cfr")
    (table,) = result.tables
    # In a complete round robin total points are sufficient for the ratings, so that both order players alike
    points = [standing.score.estimate for standing in table.standings]
    assert len(set(points)) == 3
    assert list(np.argsort(table.ratings.rating)) == list(np.argsort(points))
    assert table.ratings.rating[1] == 0 and table.ratings.to_dict(table.players)["anchor"] == "cfr"
    assert (table.ratings.low <= table.ratings.rating).all() and (table.ratings.rating <= table.ratings.high).all()
    assert (table.ratings.high - table.ratings.low)[1] == 0 and table.ratings.games == 1800


def test_rock_paper_scissors_is_explained_by_no_rating(register_game):
    name = register_game("hands", lambda: Hands("hands"))
    assert tabulate(name).simultaneous
    players = [Always(f"[{action}]", action) for action in Hands.legal]
    (table,) = play_arena([name], players, pairs=20).tables
    assert cell(table, "paper", "rock").estimate == 1 and cell(table, "rock", "scissors").estimate == 1
    assert table.ratings.rating == pytest.approx([0, 0, 0], abs=1e-6)
    assert table.cyclic_share == pytest.approx(1) and table.cyclic_floor < 0.7
    # Two players are always explained, so nothing is said of them
    (two,) = play_arena([name], players[:2], pairs=20).tables
    assert two.cyclic_share is None and two.cyclic_floor is None


def coin_games(rng, player, opponent, strength, deals=400):
    """Games without a seat's advantage, won with the odds that `strength` (log-odds) says."""
    p = 1 / (1 + np.exp(strength[opponent] - strength[player]))
    won = np.where(rng.random((2, deals)) < p, 1.0, -1.0)
    zeros = np.zeros((2, 2), dtype=int)
    returns = np.stack([won, -won], axis=-1)
    return MatchGames("coins", player, opponent, returns, np.zeros((2, deals), dtype=bool), zeros, zeros)


def test_where_ratings_are_all_there_is_the_cyclic_share_is_its_floor():
    rng = np.random.default_rng(0)
    strength = [0.0, 0.3, 0.5, 0.9]
    names = ["a", "b", "c", "d"]
    shares, floors = [], []
    for _ in range(20):
        matches = [coin_games(rng, i, j, strength) for i in range(4) for j in range(i)]
        table = make_table("coins", matches, names, 0, 0, 0)
        shares.append(table.cyclic_share)
        floors.append(table.cyclic_floor)
    assert np.mean(shares) == pytest.approx(np.mean(floors), rel=0.3)
    assert np.mean(shares) < 0.05
    assert table.ratings.rating == pytest.approx(np.array(strength) * 400 / log(10), abs=40)


def test_truncated_games_have_no_score_and_no_rating():
    result = play_arena([KUHN], [CALLER, BETTOR], pairs=10, max_turns=1)
    (table,) = result.tables
    assert table.score[0][1] is None and table.ratings is None and table.cyclic_share is None
    assert table.standings[0].score is None and table.standings[0].truncated_rate == 1
    assert all(match.score is None and match.truncated_rate == 1 for match in result.matches)
    json.dumps(result.to_dict(), allow_nan=False)


def test_half_a_pair_does_not_count():
    returns = np.zeros((2, 3, 2))
    returns[..., 0], returns[..., 1] = 1, -1
    truncated = np.array([[False, False, True], [False, False, False]])
    zeros = np.zeros((2, 2), dtype=int)
    games = MatchGames("x", 0, 1, returns, truncated, zeros, zeros)
    table = make_table("x", [games], ["a", "b"], 0, 0, 0)
    assert table.score[0][1].low == pytest.approx(score_interval(np.ones(2)).low)
    assert table.standings[0].seat_scores[1] == score_interval(np.ones(2))
    assert table.standings[0].truncated_rate == pytest.approx(1 / 6)


def test_players_against_themselves_tell_of_the_seats_alone():
    result = play_arena([KUHN], [RandomPlayer(), CALLER], pairs=25, seed=4, self_play=True)
    own = [match for match in result.matches if match.player == match.opponent]
    assert [match.player for match in own] == ["random", "caller"]
    for match in own:
        assert match.score.estimate == 0.5 and match.mean_return.estimate == 0
        assert match.seats[0].mean_return.estimate == -match.seats[1].mean_return.estimate
    (table,) = result.tables
    assert table.score[0][0] is None and table.standings[0].games == 50
    assert table.ratings.games == 50 + 25 + 25


def test_who_cannot_play_a_game_is_left_out_with_the_reason():
    players = [MinimaxPlayer(), RandomPlayer(), CFRPlayer()]
    result = play_arena([KUHN, "tic_tac_toe"], players, pairs=5)
    assert [(entry.player, entry.game) for entry in result.left_out] == [("minimax", KUHN), ("cfr", "tic_tac_toe")]
    assert all("cannot play" in entry.reason for entry in result.left_out)
    tables = {table.game: table for table in result.tables}
    assert tables[KUHN].players == ("random", "cfr") and tables[None].players == ("minimax", "random", "cfr")
    # The anchor of a game that it is left out of is the first who plays
    assert tables[KUHN].ratings.anchor == 0 and tables["tic_tac_toe"].players == ("minimax", "random")
    # In games together, who never met has no score against each other
    assert cell(tables[None], "minimax", "cfr") is None
    # Where only one of two can play, nobody meets
    result = play_arena([KUHN], [MinimaxPlayer(), CALLER], pairs=5)
    assert result.tables == () and result.matches == ()


def test_tree_search_is_asked_whether_it_can_play_and_not_for_a_reply():
    assert "hidden information" in cannot_play(MCTSPlayer(), KUHN)
    assert cannot_play(MCTSPlayer(), "tic_tac_toe") is None
    # Whoever is paid is not asked for a reply
    assert cannot_play(Fragile("[bet]", "dead", requests=0), KUHN) is None


def test_what_was_played_before_a_player_failed_is_kept():
    # Equal turns are asked once: at most 12 in the two games of a block of 16 deals, and at least 3
    fragile = Fragile({"check": "[check]", "call": "[call]"}, "endpoint", requests=14)
    result = play_arena([KUHN], [fragile, BETTOR, FOLDER], pairs=80, seed=0)
    match = next(match for match in result.matches if match.player == "endpoint")
    assert match.opponent == "bettor" and 0 < match.pairs < 80 and match.pairs % 16 == 0
    assert any("endpoint does not answer" in note and f"{match.pairs} of 80" in note for note in result.notes)
    assert any("endpoint stopped answering" in note for note in result.notes)
    # It meets nobody after that; the others do
    assert {(m.player, m.opponent) for m in result.matches} == {
        ("endpoint", "bettor"),
        ("bettor", "endpoint"),
        ("bettor", "folder"),
        ("folder", "bettor"),
    }
    assert next(m for m in result.matches if m.opponent == "folder").pairs == 80
    # Its pairs are those of a player that does not fail
    whole = play_arena([KUHN], [CALLER, BETTOR], pairs=80, seed=0).matches[0]
    short = play_match(KUHN, CALLER, BETTOR, pairs=match.pairs, seed=whole.seed)
    assert match.score == short.score and match.mean_return == short.mean_return


def test_a_player_that_never_answers_leaves_the_others_results():
    dead = Fragile("[check]", "dead", requests=0)
    result = play_arena([KUHN], [dead, BETTOR, FOLDER], pairs=4)
    assert {match.player for match in result.matches} == {"bettor", "folder"} and len(result.notes) == 2
    assert result.tables[0].players == ("bettor", "folder") and result.tables[0].ratings.anchor == 0
    with pytest.raises(PlayError, match="dead does not answer"):
        play_match(KUHN, dead, BETTOR, pairs=4, seed=0)


def test_a_game_that_breaks_is_not_its_players_fault(register_game):
    class Broken(Hands):
        def step(self, actions):
            raise PlayError("broken at seed 1")

    name = register_game("broken", lambda: Broken("broken"))
    slow = Fragile("[rock]", "slow", 10**6)
    result = play_arena([name, KUHN], [slow, Always("[rock]", "rock")], pairs=4)
    assert len(result.notes) == 1 and "broken at seed 1" in result.notes[0]
    assert {match.game for match in result.matches} == {KUHN}


def test_progress_is_told_before_each_match():
    told = []
    play_arena([KUHN], [BETTOR, FOLDER, CALLER], pairs=2, progress=lambda *event: told.append(event))
    assert [(done, of) for done, of, _ in told] == [(0, 3), (1, 3), (2, 3)]
    assert told[0][2] == f"{KUHN}: bettor against folder"


def test_the_result_is_json():
    result = play_arena([KUHN, "kuhn_poker(rounds=2)"], [BETTOR, FOLDER, CALLER], pairs=2, seed=9)
    loaded = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert loaded["tables"][2]["game"] is None and loaded["tables"][0]["score"][0][0] is None
    assert loaded["tables"][0]["ratings"]["anchor"] == "bettor"
    assert loaded["matches"][0]["player"] == "bettor" and loaded["pairs"] == 2
    assert [row["player"] for row in loaded["tables"][0]["standings"]] == ["bettor", "folder", "caller"]


@pytest.mark.parametrize(
    ("games", "players", "more", "message"),
    [
        ([], [BETTOR, FOLDER], {}, "at least 1 game"),
        ([KUHN, KUHN], [BETTOR, FOLDER], {}, "two games named"),
        (["kun_poker"], [BETTOR, FOLDER], {}, "did you mean 'kuhn_poker'"),
        ([KUHN], [BETTOR], {}, "at least 2 players, not 1"),
        ([KUHN], [BETTOR, Always("[bet]", "bettor")], {}, "two players named 'bettor'"),
        ([KUHN], [BETTOR, FOLDER], {"pairs": 1}, "at least 2 deals"),
        ([KUHN], [BETTOR, FOLDER], {"anchor": "cfr"}, "'cfr' is none of the players: bettor, folder"),
    ],
)
def test_bad_arenas_are_refused(games, players, more, message):
    with pytest.raises(ValueError, match=message):
        play_arena(games, players, **{"pairs": 4, **more})


def test_games_of_three_are_refused(register_game):
    class Three(Hands):
        num_players = 3
        roles = ("a", "b", "c")

    name = register_game("three", lambda: Three("three"))
    with pytest.raises(ValueError, match="between two players, but three has 3 seats"):
        play_arena([name], [BETTOR, FOLDER], pairs=4)


def test_score_intervals():
    assert score_interval(np.array([np.nan])) is None
    certain = score_interval(np.array([1.0, 1.0, np.nan]))
    assert certain.estimate == 1 and certain.low == pytest.approx(2 / (2 + 3.841459), abs=1e-5)
    # t over (0, 1/2, 1) would pass both ends
    assert (score_interval(np.array([0, 0.5, 1])).low, score_interval(np.array([0, 0.5, 1])).high) == (0, 1)
