"""The adapter of OpenSpiel's games: names, words, what each seat reads, and all zero-sum games played to their end."""

import random
import re
from collections import Counter

import numpy as np
import pyspiel
import pytest

from spiral_trl.games import canonical_name, make_game
from spiral_trl.games.base import CopyableGame, Game
from spiral_trl.games.chance import SeededChance, derive_seeds
from spiral_trl.games.openspiel import _FORGETFUL, _change, _plain, _words
from spiral_trl.games.parsing import parse_action
from spiral_trl.games.registry import game_source, parse_name
from spiral_trl.games.solver_state import SolverState
from spiral_trl.players.bots import RandomPlayer
from spiral_trl.records import Ending
from spiral_trl.rollout import play


NAMES = game_source("openspiel").names()
TURN_BASED = "turn_based_simultaneous_game(game=goofspiel(num_cards=4))"
# Information sets that OpenSpiel does not describe, or forgets
LOGS = (
    "dark_chess",
    "dou_dizhu",
    "gin_rummy",
    "phantom_go",
    "rbc",
    "skat",
    "go_fish",
    "repeated_leduc_poker",
    "dark_hex",
)


def walk(name, seed):
    """Plays one game at random; yields the game, its turns and what is played at each point, then the game at its end."""
    rng = random.Random(seed)
    game = make_game(f"openspiel:{name}")
    game.reset(seed)
    while turns := game.turns():
        chosen = {turn.player: rng.choice(turn.legal_actions) for turn in turns}
        yield game, turns, chosen
        game.step(chosen)
    yield game, (), {}


# --------------------------------------------------------------------------------------------------- the whole library


def test_the_list_is_that_of_the_library():
    zero_sum = pyspiel.GameType.Utility.ZERO_SUM
    listed = [g.short_name for g in pyspiel.registered_games() if g.utility == zero_sum and g.default_loadable]
    # Other tests import games that are written in Python
    assert sorted(name for name in listed if not name.startswith("python_")) == NAMES and len(NAMES) == 69


@pytest.mark.parametrize("name", NAMES)
def test_every_game_is_played_to_its_end(name):
    """At full size, without a limit of turns: about 3 s for all 69."""
    full = f"openspiel:{name}"
    game = make_game(full)
    assert isinstance(game, Game) and isinstance(game, CopyableGame)
    assert game.num_players == len(game.roles) == pyspiel.load_game(name).num_players()
    first, again = (
        play(full, [RandomPlayer()] * game.num_players, [5], max_turns=10**6, tabulated=False).episode(0)
        for _ in range(2)
    )
    # Byte-equal transcripts: every prompt, legal action, key and reply.
    assert first == again
    assert first.ending is Ending.TERMINAL
    assert sum(first.returns) == pytest.approx(0, abs=1e-9)
    assert all(worst <= value for worst, value in zip(game.worst_returns, first.returns, strict=True))
    assert {step.turn.player for step in first.steps} <= set(range(game.num_players))
    assert all(step.reply.action in step.turn.legal_actions for step in first.steps)

    # The words lead OpenSpiel itself to the same end, with the chance of the seed.
    state = pyspiel.load_game(name).new_initial_state()
    chance, steps = SeededChance(5), list(first.steps)
    while not state.is_terminal():
        if state.is_chance_node():
            outcomes = state.chance_outcomes()
            state.apply_action(outcomes[chance.choose([p for _, p in outcomes])][0])
            continue
        seats = range(game.num_players) if state.is_simultaneous_node() else [state.current_player()]
        joint = []
        for seat in seats:
            step = steps.pop(0)
            assert step.turn.player == seat
            words, ids = step.turn.legal_actions, state.legal_actions(seat)
            assert len(set(words)) == len(words) == len(ids)
            joint.append(ids[words.index(step.reply.action)])
        state.apply_actions(joint) if state.is_simultaneous_node() else state.apply_action(joint[0])
    assert steps == [] and tuple(state.returns()) == first.returns


@pytest.mark.parametrize("name", NAMES)
def test_prompts_and_words(name):
    kind = pyspiel.load_game(name).get_type()
    for (game, turns, _), _ in zip(walk(name, 3), range(25), strict=False):
        assert len(turns) <= 1 or kind.dynamics == pyspiel.GameType.Dynamics.SIMULTANEOUS
        for turn in turns:
            (message,) = turn.messages
            text = message["content"]
            assert message["role"] == "user" and text.startswith(f"You are {turn.role} in {kind.long_name}")
            assert f"It is {name} of the OpenSpiel library" in text and "\x1b" not in text
            assert turn.infoset.startswith(f"{turn.player}|") and len(turn.infoset) < 170
            for word in turn.legal_actions:
                # As a reply would name it, in any of the accepted forms.
                for reply in (
                    f"I take [{word}].",
                    f"\\boxed{{{word}}}",
                    f"<think>[x]</think>[ {word} ]",
                    f"**[{word}]**",
                ):
                    assert game.parse(turn.player, reply).action == word
            assert all(f"[{word}]" in text for word in turn.legal_actions[:40])
            if len(turns) == 1 and kind.dynamics == pyspiel.GameType.Dynamics.SEQUENTIAL:
                assert isinstance(turn.state, SolverState)
                assert turn.state.state.current_player() == turn.player
                assert list(turn.state.actions.values()) == turn.state.state.legal_actions()
                assert tuple(turn.state.actions) == turn.legal_actions


def test_a_turns_solver_state_does_not_move_on():
    states = [(turns[0].state.state, str(turns[0].state.state)) for _, turns, _ in walk("chess", 0) if turns]
    assert len({text for _, text in states}) > 20
    assert all(str(state) == text for state, text in states)


def test_other_seeds_give_other_deals():
    deals = {next(walk("leduc_poker", seed))[1][0].infoset for seed in range(60)}
    assert len(deals) == 6  # six cards


# ------------------------------------------------------------------------------------------- what a seat knows and reads


def own_pasts(name, games):
    """What random games show: for each prompt, key and information state of the library, what else came with it. A
    seat's past is all its (key, action) pairs."""
    by_prompt, by_key, by_library = {}, {}, {}
    for seed in range(games):
        own = {}
        for game, turns, chosen in walk(name, seed):
            for turn in turns:
                past = own.get(turn.player, ())
                text, key = turn.messages[0]["content"], turn.infoset
                by_prompt.setdefault(text, set()).add((key, past))
                by_key.setdefault(key, set()).add((text, past))
                if turn.state is not None and game._setup.has_information_state:
                    library = turn.state.state.information_state_string(turn.player)
                    by_library.setdefault((turn.player, library), set()).add((text, past))
                own[turn.player] = (*past, (key, chosen[turn.player]))
    return by_prompt, by_key, by_library


@pytest.mark.parametrize(
    ("name", "games"),
    [
        ("coordinated_mp", 30),
        ("kuhn_poker(players=3)", 200),
        ("leduc_poker", 300),
        ("liars_dice", 100),
        ("latent_ttt", 60),
        ("phantom_ttt", 60),
        ("dark_hex(board_size=2)", 200),
        ("tiny_bridge_4p", 100),
        ("universal_poker", 200),
        ("kriegspiel", 3),
        ("goofspiel(imp_info=true,num_cards=3)", 100),
        ("go_fish", 5),
        ("dark_hex", 40),
        ("repeated_leduc_poker", 100),
        (TURN_BASED, 60),
        *((name, 2) for name in LOGS[:6]),
    ],
)
def test_a_key_a_prompt_and_a_past_are_one(name, games):
    """A seat's prompt and key tell the same, and tell its whole past: perfect recall, in text too."""
    by_prompt, by_key, by_library = own_pasts(name, games)
    assert len(by_key) > 2
    assert {len(values) for values in by_prompt.values()} == {1}
    assert {len(values) for values in by_key.values()} == {1}
    if not set(re.findall(r"\w+", name)) & set(_FORGETFUL):
        # What OpenSpiel says a seat cannot tell apart reads alike: nothing private shows.
        assert {len(values) for values in by_library.values()} <= {1}


@pytest.mark.parametrize("name", ["dark_hex", "repeated_leduc_poker", TURN_BASED, "go_fish"])
def test_the_library_forgets_where_the_adapter_keeps_a_log(name):
    *_, by_library = own_pasts(name, 150)
    assert max(len({past for _, past in values}) for values in by_library.values()) > 1


@pytest.mark.parametrize("name", LOGS)
def test_logs_hold_nothing_but_what_the_library_shows_the_seat(name):
    """Every line of a prompt is one of the seat's own observations, or its own move."""
    game = pyspiel.load_game(name)
    for _, turns, _ in walk(name, 1):
        for turn in turns:
            text = turn.messages[0]["content"].split("What you know, in the library's notation:\n")[1]
            lines = text.split("\nIt is your turn. ")[0].split("\n")
            seen = {"You saw:", "You saw a change:", "You see now:"}
            state = game.new_initial_state()
            for action in [None, *turn.state.state.history()]:
                if action is not None:
                    if state.current_player() == turn.player:
                        words = _words(state, turn.player, state.legal_actions())
                        seen.add(f"You played [{words[state.legal_actions().index(action)]}].")
                    state.apply_action(action)
                if not state.is_chance_node():
                    seen |= {line.rstrip() for line in state.observation_string(turn.player).split("\n")}
                    if name in _FORGETFUL and state.current_player() == turn.player:
                        seen |= {line.rstrip() for line in state.information_state_string().split("\n")}
            assert {re.sub(r"^line \d+: ", "", line) for line in lines} <= seen
        if turns and turns[0].index > 40:
            break


def test_with_perfect_information_every_move_is_told():
    game = make_game("openspiel:pig(winscore=6,diceoutcomes=3)")
    game.reset(4)
    told = []
    while game.ending is None:
        (turn,) = game.turns()
        moves = turn.messages[0]["content"].split("Moves so far: ")[1].split(".\n")[0]
        assert moves == ("; ".join(told) or "none")
        history = turn.state.state.history()
        action = "roll" if len(told) % 3 else "stop"
        game.step({turn.player: action})
        told.append(f"{turn.role} {action}")
        if action == "roll" and game.ending is None:
            drawn = game.turns()[0].state.state.history()[len(history) + 1]
            told.append(f"chance Roll {drawn + 1}")
    assert any(move.startswith("chance") for move in told)


def test_latest_reads_the_position_alone():
    def after(name, *moves):
        game = make_game(name)
        game.reset(0)
        for move in moves:
            game.step({game.turns()[0].player: move})
        return game.turns()[0]

    one = ("x(0,0)", "o(1,1)", "x(2,2)")
    other = ("x(2,2)", "o(1,1)", "x(0,0)")
    words = [after("openspiel:tic_tac_toe", *moves) for moves in (one, other)]
    latest = [after("openspiel:tic_tac_toe(observation=latest)", *moves) for moves in (one, other)]
    assert latest[0].messages == latest[1].messages and latest[0].infoset == latest[1].infoset
    assert words[0].messages != words[1].messages and words[0].infoset != words[1].infoset
    assert "Moves so far" in words[0].messages[0]["content"] and "x(0,0)" not in latest[0].messages[0]["content"]
    # With imperfect information, the key stays that of the information set: a best response may remember.
    keys = {
        after(f"openspiel:leduc_poker{option}", "Call", "Raise").infoset for option in ("", "(observation=latest)")
    }
    assert len(keys) == 1


def test_small_one_shot_games_tell_their_payoffs():
    game = make_game("openspiel:matrix_brps")
    game.reset(0)
    texts = [turn.messages[0]["content"] for turn in game.turns()]
    assert all("\nRock, Paper: -25, 25\n" in text and text.count(": 0, 0\n") == 3 for text in texts)
    assert [turn.player for turn in game.turns()] == [0, 1]


# --------------------------------------------------------------------------------------------------------- simultaneous


def test_seats_that_are_asked_at_once_do_not_learn_of_each_other():
    game = make_game("openspiel:goofspiel(num_cards=4,points_order=descending)")
    game.reset(0)
    assert [turn.player for turn in game.turns()] == [0, 1]
    assert [turn.index for turn in game.turns()] == [0, 1] and all(turn.state is None for turn in game.turns())
    with pytest.raises(ValueError, match="player 1 cannot play None here"):
        game.step({0: "Bid: 4"})
    game.step({1: "Bid: 1", 0: "Bid: 4"})
    assert [turn.index for turn in game.turns()] == [2, 3]
    for turn in game.turns():
        assert "Moves so far: player 0 Bid: 4; player 1 Bid: 1.\n" in turn.messages[0]["content"]
    assert game.turns()[0].legal_actions == ("Bid: 1", "Bid: 2", "Bid: 3")


def test_a_copy_goes_its_own_way():
    for name in ("openspiel:backgammon", "openspiel:phantom_go", "openspiel:goofspiel"):
        game = make_game(name)
        game.reset(1)
        copy = game.copy(SeededChance(2))
        before = game.turns()
        copy.step({turn.player: turn.legal_actions[0] for turn in copy.turns()})
        assert game.turns() == before and copy.turns() != before
        game.step({turn.player: turn.legal_actions[0] for turn in before})
        if name == "openspiel:phantom_go":
            assert game.turns() == copy.turns()


# ---------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "action", "word"),
    [
        ("[P0]Bid: 1", 0, "Bid: 1"),
        ("[P1] Bid: 12", 11, "Bid: 12"),
        ("P1: pass", 0, "pass"),
        ("P1(v,0,2)", 3, "P1(v,0,2)"),
        ("Player: 0 Action: Draw stock", 53, "Draw stock"),
        ("player=1 move=Bet300", 4, "Bet300"),
        ("1092 - 24/23* 8/2*", 1092, "24/23 8/2"),
        ("12 - 24/23", 1, "12 - 24/23"),
        ("[3,3,4]", 5, "3,3,4"),
        ("a[1]{2}", 5, "a(1)(2)"),
        ("B1-diag*", 7, "B1-diag"),
        (" pile:1,  take:1; ", 0, "pile:1, take:1"),
        ("wG2 wP\\", 0, "wG2 wP\\"),
    ],
)
def test_words_of_actions(text, action, word):
    assert _plain(text, action) == word
    assert parse_action(f"[{word}]", [word, "other"]).action == word


def test_equal_words_get_their_number():
    class State:
        names = {3: "roll", 5: "[P0]roll", 8: "keep", 9: "**"}

        def action_to_string(self, player, action):
            return self.names[action]

    assert _words(State(), 0, [3, 5, 8, 9]) == ["3: roll", "5: roll", "keep", "9: "]


def test_what_changed_is_told_by_lines():
    assert _change(None, "a\nb") == "You saw:\na\nb"
    assert _change("a\nb\nc", "a\nx\nc") == "You saw a change:\nline 2: x"
    assert _change("a\nb", "a\nb\nc") == "You saw:\na\nb\nc"
    assert _change("a", "b") == "You saw:\nb"


def test_long_lists_are_cut():
    game = make_game("openspiel:hex(board_size=8)")
    game.reset(0)
    text = game.turns()[0].messages[0]["content"]
    assert "There are 64 legal actions, all written like the first 40: [a1]" in text
    assert Counter(re.findall(r"\[[a-h]\d\]", text)) == {f"[{c}{r}]": 1 for r in range(1, 6) for c in "abcdefgh"} | {
        "[h8]": 1
    }


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("kuhn_poker", "kuhn_poker"),
        ("kuhn_poker()", "kuhn_poker"),
        (" kuhn_poker( players = 2 )", "kuhn_poker"),
        ("kuhn_poker(players=3)", "kuhn_poker(players=3)"),
        ("goofspiel(points_order=descending,num_cards=4)", "goofspiel(num_cards=4,points_order=descending)"),
        ("goofspiel(imp_info=TRUE,egocentric=False)", "goofspiel(imp_info=true)"),
        ("tic_tac_toe(observation=words)", "tic_tac_toe"),
        ("hex(observation=latest,board_size=5)", "hex(board_size=5,observation=latest)"),
        ("go(komi=6.0,board_size=9)", "go(board_size=9,komi=6)"),
        (
            "turn_based_simultaneous_game(game=goofspiel(num_cards=4,players=2))",
            "turn_based_simultaneous_game(game=goofspiel(num_cards=4))",
        ),
        ("misere(game=tic_tac_toe)", "misere(game=tic_tac_toe())"),
        ("laser_tag(zero_sum=true)", "laser_tag(zero_sum=true)"),
        (
            "repeated_poker(universal_poker_game_string=universal_poker(),max_num_hands=2,reset_stacks=false,"
            "rotate_dealer=true)",
            "repeated_poker(max_num_hands=2,reset_stacks=false,rotate_dealer=true,"
            "universal_poker_game_string=universal_poker())",
        ),
    ],
)
def test_canonical_names(name, canonical):
    assert canonical_name(f"openspiel:{name}") == f"openspiel:{canonical}"
    assert canonical_name(f"openspiel:{canonical}") == f"openspiel:{canonical}"
    assert make_game(f"openspiel:{name}").name == f"openspiel:{canonical}"


def test_wrapped_games_are_played_too():
    for name in (
        TURN_BASED,
        "repeated_game(stage_game=matrix_rps(),num_repetitions=3)",
        "laser_tag(zero_sum=true,horizon=20)",
        "laser_tag(zero_sum=true,fully_obs=false,horizon=20)",
        "repeated_poker(universal_poker_game_string=universal_poker(),max_num_hands=2,reset_stacks=false,"
        "rotate_dealer=true)",
    ):
        *_, (game, _, _) = walk(name, 1)
        assert game.ending is Ending.TERMINAL and sum(game.returns()) == pytest.approx(0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kunn_poker", "unknown openspiel game 'kunn_poker'; allowed: amazons, .*; did you mean 'kuhn_poker'?"),
        ("", "unknown openspiel game ''"),
        ("matrix_pd", "matrix_pd is not zero-sum as given, but general-sum"),
        ("goofspiel(returns_type=total_points)", "goofspiel is not zero-sum as given, but general-sum"),
        ("capture_the_flag(zero_sum=false)", "not zero-sum"),
        ("zerosum", "zerosum needs the parameter game, a game, such as game="),
        ("repeated_poker", "needs the parameter universal_poker_game_string, a game"),
        ("repeated_poker(universal_poker_game_string=universal_poker())", "needs the parameter max_num_hands"),
        ("kuhn_poker(player=3)", "unknown parameter of openspiel:kuhn_poker 'player'; allowed: players, observation;"),
        ("kuhn_poker(players=11)", "players of openspiel:kuhn_poker must be from 2 to 10, not 11"),
        ("yacht(players=1)", "must be from 2 to 10, not 1"),
        ("kuhn_poker(players=x)", "must be a whole number, not 'x'"),
        ("kuhn_poker(players=2,players=3)", "sets 'players' twice"),
        ("kuhn_poker(2)", "'2' is not of the form parameter=value"),
        ("go(komi=nan)", "komi of openspiel:go must be a number, not 'nan'"),
        ("goofspiel(imp_info=maybe)", "imp_info of openspiel:goofspiel must be true or false, not 'maybe'"),
        ("goofspiel(returns_type=wins)", "cannot be played with these parameters: Unrecognized returns_type"),
        ("breakthrough(rows=1)", "cannot be played with these parameters: rows_ > 1"),
        ("hex(num_cols=1)", "cannot be played with these parameters: a player has no legal action"),
        # At these two the library ends the process that asks it
        ("connect_four(rows=0)", "connect_four cannot be played with these parameters: the library ends the process"),
        ("universal_poker(numRanks=64)", "the library ends the process"),
        ("tic_tac_toe(observation=latests)", "unknown value of observation .*; did you mean 'latest'?"),
        ("turn_based_simultaneous_game(game=gofspiel)", "unknown game as game of .*; did you mean 'goofspiel'?"),
        (
            "turn_based_simultaneous_game(game=goofspiel(num_card=4))",
            "unknown parameter of openspiel:goofspiel 'num_card'; .*; did you mean 'num_cards'?",
        ),
    ],
)
def test_wrong_names_are_one_line_errors(name, message):
    for function in (canonical_name, make_game, parse_name):
        with pytest.raises(ValueError, match=message) as error:
            function(f"openspiel:{name}")
        assert "\n" not in str(error.value)


def test_parameters_are_filled_in():
    base, values = parse_name(f"openspiel:{TURN_BASED}")
    assert (base, values) == (
        "openspiel:turn_based_simultaneous_game",
        {"game": "goofspiel(num_cards=4)", "observation": "words"},
    )
    assert parse_name("openspiel:hex(board_size=5,observation=latest)")[1] == {
        "board_size": 5,
        "num_cols": 11,
        "num_rows": 11,
        "observation": "latest",
        "plain_obs_tensor": False,
        "string_rep": "standard",
        "swap": False,
    }


def test_no_game_of_the_library_has_our_parameter():
    assert not any("observation" in kind.parameter_specification for kind in pyspiel.registered_games())


def test_games_played_together_are_those_played_alone():
    for name in ("openspiel:leduc_poker", "openspiel:goofspiel(num_cards=3)"):
        seeds = derive_seeds(0, np.arange(20))
        together = play(name, [RandomPlayer()] * 2, seeds, tabulated=False).episodes()
        for seed, episode in zip(seeds[:5], together[:5], strict=True):
            (alone,) = play(name, [RandomPlayer()] * 2, [seed], tabulated=False).episodes()
            assert (alone.returns, [s.reply for s in alone.steps]) == (
                episode.returns,
                [s.reply for s in episode.steps],
            )
