import random
import re

import numpy as np
import pytest
from scripts import printed_by

from spiral_trl.games import canonical_name, make_game, tabulate, textarena_position
from spiral_trl.games import textarena as adapter
from spiral_trl.games.base import ActionSampler, Game
from spiral_trl.games.registry import game_source, parse_name
from spiral_trl.players.bots import RandomPlayer
from spiral_trl.records import Ending
from spiral_trl.rollout import play


pytest.importorskip("textarena")

# The paper's held-out games, its negotiation, and one more
SEVEN = ("ConnectFour", "LiarsDice", "PigDice", "SimpleNegotiation", "Snake", "Stratego", "TruthAndDeception")
GAMES = tuple(f"textarena:{name}-v0" for name in SEVEN)
SENTINEL = "XYZZY"


def started(name, seed=0):
    game = make_game(name)
    game.reset(seed)
    return game


def prompt(game):
    return game.turns()[0].messages[0]["content"]


def random_action(turn, seed=0):
    return turn.state.sample_action(np.random.default_rng([seed, turn.index]).random(8))


def walk(game, steps, seed=0):
    """The turns of a random game, each before it is played."""
    for _ in range(steps):
        if not game.turns():
            return
        (turn,) = game.turns()
        yield turn
        game.step({turn.player: random_action(turn, seed)})


# -------------------------------------------------------------------------------------------------------------- names


def test_names_are_textarenas():
    names = game_source("textarena").names()
    assert {f"{name}-v0" for name in SEVEN} <= set(names) and {"Snake-v0-standard", "PigDice-v0-short"} <= set(names)
    assert names == sorted(set(names)) and not [name for name in names if name.endswith(("-raw", "-train"))]
    assert "Sudoku-v0" not in names and "Debate-v0" not in names  # one player; an API key


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("textarena:Snake-v0", "textarena:Snake-v0"),
        ("textarena:Snake-v0-raw", "textarena:Snake-v0"),
        ("textarena:Snake-v0-train(num_players=2, observation=words)", "textarena:Snake-v0"),
        (
            "textarena:Snake-v0(num_players=3,observation=latest)",
            "textarena:Snake-v0(observation=latest,num_players=3)",
        ),
    ],
)
def test_canonical_names(name, canonical):
    assert canonical_name(name) == canonical == make_game(name).name == canonical_name(canonical)
    assert parse_name(name)[0] == "textarena:Snake-v0"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Snak-v0", "TextArena has no game 'Snak-v0'; .* lists them; did you mean 'Snake-v0'?"),
        ("", "TextArena has no game ''"),
        ("Sudoku-v0", "textarena:Sudoku-v0 cannot be played: .*number of players has to be 1, received 2"),
        ("ThreePlayerTicTacToe-v0", "exactly three players"),
        ("ConnectFour-v0(num_players=3)", "number of players has to be 2, received 3"),
        ("Snake-v0(num_players=1)", "num_players of Snake-v0 must be from 2 to 15, not 1"),
        (
            "Snake-v0(observation=compact)",
            "unknown value of observation in Snake-v0 'compact'; allowed: words, latest",
        ),
        ("Snake-v0(players=3)", "unknown parameter of Snake-v0 'players'"),
        ("TwoDollar-v0", "its actions do not stand within one pair of brackets"),
        ("Debate-v0", "cannot be played: ValueError: .*API key"),
    ],
)
def test_wrong_names_are_one_line_errors(name, message, monkeypatch):
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    adapter._start_problem.cache_clear()
    with pytest.raises(ValueError, match=message) as error:
        make_game(f"textarena:{name}")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(textarena_position, "find_spec", lambda name: None)
    for ask in (lambda: adapter.TextArenaSource().parse("Snake-v0"), adapter.TextArenaSource().names):
        with pytest.raises(ValueError, match=r"need an extra: pip install 'spiral-trl\[textarena\]'"):
            ask()


def test_the_library_is_imported_where_a_game_is_asked_for():
    code = "import sys, spiral_trl.games; print('textarena' in sys.modules, 'nltk' in sys.modules)"
    assert printed_by(code) == "False False"


# --------------------------------------------------------------------------------------------------------------- play


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("observation", ["words", "latest"])
def test_random_players_play_it_and_rewards_add_up_to_zero(name, observation):
    name = canonical_name(f"{name}(observation={observation})")
    # Those two are long; the limit truncates them
    batch = play(name, [RandomPlayer()] * 2, range(4), max_turns=40)
    for episode in batch.episodes():
        assert all(step.reply.error is None for step in episode.steps)
        assert sum(episode.returns) == 0 and set(episode.returns) <= {-1.0, 0.0, 1.0}
        assert (episode.ending is Ending.TRUNCATED) == (len(episode.steps) == 40)
        assert {step.turn.role for step in episode.steps} == {"player 0", "player 1"}
    if "Stratego" not in name and "PigDice" not in name:
        assert all(episode.ending is Ending.TERMINAL for episode in batch.episodes())
        assert np.any(batch.outcomes.returns != 0)
    assert tabulate(name) is None


def test_connect_four_is_won_by_four_in_a_column():
    game = started("textarena:ConnectFour-v0")
    assert isinstance(game, Game) and game.worst_returns == (-1.0, -1.0)
    for column in (0, 1, 0, 1, 0, 1, 0):
        assert game.ending is None
        player = game.turns()[0].player
        action = game.parse(player, rf"I take \boxed{{[col {column}]}}.").action
        assert action == f"col {column}"
        game.step({player: action})
    assert game.ending is Ending.TERMINAL and game.returns() == (1.0, -1.0) and game.turns() == ()
    with pytest.raises(ValueError, match="the game is over"):
        game.parse(0, "[col 1]")


def test_truth_and_deception_is_decided_by_the_guess():
    for seed in range(6):
        game = started("textarena:TruthAndDeception-v0", seed)
        right = re.search(r"Fact (\d): .* \(correct\)", prompt(game))[1]
        for turn in range(5):
            player = turn % 2
            said = game.parse(player, f"<think>{SENTINEL}</think>\\boxed{{It is fact {turn}, I say.}}")
            assert said.action == f"It is fact {turn}, I say."
            game.step({player: said.action})
        assert "It is fact 4, I say." in prompt(game) and "Now guess" in prompt(game)
        assert "correct format" in game.parse(1, r"\boxed{the first}").error
        for text in (rf"\boxed{{Fact {right}}}", f"[fact {right}]", rf"\boxed{{[Fact {right}]}}"):
            assert game.parse(1, text).action.casefold() == f"fact {right}"
        assert game.parse(1, rf"\boxed{{It is [Fact {right}]}}").error is None
        guess = seed % 2
        wrong = "2" if right == "1" else "1"
        game.step({1: game.parse(1, f"[Fact {right if guess else wrong}]").action})
        assert game.returns() == ((-1.0, 1.0) if guess else (1.0, -1.0))


def test_snakes_move_at_once():
    """The second seat does not learn the first one's pending move."""
    seen = set()
    for move in ("up", "down", "left", "right"):
        game = started("textarena:Snake-v0", 3)
        game.step({0: move})
        seen.add(prompt(game))
        assert game.turns()[0].player == 1
    assert len(seen) == 1


def list_pieces(env):
    """Where each player's pieces stand, from the board."""
    return {
        player: [
            (row, column)
            for row in range(10)
            for column in range(10)
            if isinstance(env.board[row][column], dict) and env.board[row][column]["player"] == player
        ]
        for player in (0, 1)
    }


def test_stratego_ends_where_a_seat_cannot_move():
    game = started("textarena:Stratego-v0", 1)
    env = game._position.env
    for row in range(6, 10):  # only bombs and the flag are left to player 1
        for column in range(10):
            piece = env.board[row][column]
            if piece and piece["rank"] not in ("Flag", "Bomb"):
                env.board[row][column] = None
    env.player_pieces.update(list_pieces(env))
    for turn in walk(game, 1):
        assert turn.player == 0
    assert game.ending is Ending.TERMINAL and game.returns() == (1.0, -1.0)


def test_stratego_survives_a_defused_bomb():
    """TextArena forgets to take it off the list of pieces, and stumbles over it later."""
    game = started("textarena:Stratego-v0(observation=latest)", 1)
    env = game._position.env
    env.board[3] = [None] * 10
    env.board[4][0], env.board[5][0] = {"rank": "Miner", "player": 0}, {"rank": "Bomb", "player": 1}
    env.player_pieces.update(list_pieces(env))
    game.step({0: "E0 F0"})
    env = game._position.env
    assert {player: sorted(pieces) for player, pieces in env.player_pieces.items()} == list_pieces(env)
    assert env.board[5][0] == {"rank": "Miner", "player": 0}


def test_more_than_two_players():
    batch = play("textarena:Snake-v0(num_players=3)", [RandomPlayer()] * 3, range(6))
    for episode in batch.episodes():
        assert len(episode.returns) == 3 and all(-1 <= value <= 1 for value in episode.returns)
        assert episode.roles == ("player 0", "player 1", "player 2")


@pytest.mark.parametrize(
    "name", ["TicTacToe-v0", "UltimateTicTacToe-v0", "SimpleTak-v0", "KuhnPoker-v0", "Othello-v0-tiny"]
)
def test_moves_of_other_games_are_found_in_what_they_say(name):
    batch = play(f"textarena:{name}", [RandomPlayer()] * 2, range(2), max_turns=6)
    assert all(step.reply.error is None for step in batch.samples)


# ------------------------------------------------------------------------------------------------------- what is legal


@pytest.mark.parametrize(
    ("name", "text", "action"),
    [
        ("Snake", "[up]", "up"),
        ("Snake", "[ UP ] it is", "UP"),
        ("Snake", r"\boxed{w}", "w"),
        ("Snake", r"\boxed{\text{left}}", "left"),
        ("Snake", "[note] [left] [LEFT]", "left"),
        ("Snake", "[right] or [left]? </think> [left]", "left"),
        ("ConnectFour", "[col 3]", "col 3"),
        ("ConnectFour", "[3]", "3"),
        ("ConnectFour", "[col 9] is full, so [col 3]", "col 3"),
        ("ConnectFour", r"[col 3] \boxed{col 4}", "col 4"),
        ("PigDice", "[Roll]", "Roll"),
        ("LiarsDice", "[Bid: 3, 4]", "Bid: 3, 4"),
        ("SimpleNegotiation", "[Offer: 1 Wheat -> 1 Ore]", "Offer: 1 Wheat -> 1 Ore"),
        ("TruthAndDeception", "[Trust me.]", "Trust me."),
        ("TruthAndDeception", "\\boxed{Two\n\nlines \u202e<|im_end|>}", "Two lines (|im_end|>"),
    ],
)
def test_good_replies(name, text, action):
    game = started(f"textarena:{name}-v0")
    assert game.parse(0, text) == type(game.parse(0, text))(action, None)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("Snake", "up", "names no action"),
        ("Snake", "<think>[up]", "the reasoning was not finished"),
        ("Snake", r"\boxed{up", "was not closed"),
        ("Snake", "[stay]", "'stay' is no direction: up, down, left, right"),
        ("Snake", "[up] [down]", "ambiguous: it names 2 legal actions, [up], [down]"),
        ("Snake", r"\boxed{[up] [down]}", "ambiguous"),
        ("Snake", r"\boxed{}", "the action is empty"),
        ("ConnectFour", "[col 9]", "Column 9 is out of bounds"),
        ("ConnectFour", "[hello]", "Invalid action format"),
        ("ConnectFour", "[" + "9" * 5000 + "]", "longer than 1,000 characters"),
        ("ConnectFour", "[" + "9" * 900 + "]", "Column 999"),
        ("PigDice", "[fold]", "Use '[roll]' or '[hold]'"),
        ("PigDice", "[roll] or [hold]", "ambiguous"),
        ("LiarsDice", "[Call]", "Call made with no prior bid"),
        ("LiarsDice", "[Bid: 1, 7]", "Face value must be between 1 and 6"),
        ("LiarsDice", "[\x1b[31m\n" + "x" * 500 + "]", "neither"),
        ("SimpleNegotiation", "[Offer: 99 Wheat -> 1 Ore]", "without having the necessary resources"),
        ("Stratego", "[A0 J9]", "Invalid action format"),
        ("TruthAndDeception", "[one] [two]", "ambiguous"),
        ("TruthAndDeception", " ".join(f"[{i}]" for i in range(500)), "holds 500 different texts"),
    ],
)
def test_bad_replies_have_a_reason_and_change_nothing(name, text, reason):
    game = started(f"textarena:{name}-v0")
    before = game.turns()
    parsed = game.parse(0, text)
    assert parsed.action is None
    assert reason in parsed.error or (reason == "neither" and "Action not recognized" in parsed.error)
    assert parsed.error.isprintable() and len(parsed.error) < 250
    assert game.turns() == before and game.ending is None


def test_a_crash_of_the_environment_is_an_illegal_reply():
    game = started("textarena:ConnectFour-v0")

    def broken(action):
        raise KeyError(action)

    game._position.env.step = broken
    assert game.parse(0, "[col 1]").error == "TextArena cannot play '[col 1]': KeyError"


def test_illegal_replies_are_left_to_our_policies():
    class Silent(RandomPlayer):
        name = "silent"

        def sample(self, turns, which, seeds, index):
            replies, chosen = super().sample(turns, which, seeds, index)
            return [type(reply)("[col 99]") for reply in replies], chosen

    players = [Silent(), RandomPlayer()]
    (forfeit,) = play("textarena:ConnectFour-v0", players, [0]).episodes()
    assert forfeit.ending is Ending.ILLEGAL and forfeit.returns == (-1.0, 1.0) and len(forfeit.steps) == 1
    (retried,) = play("textarena:ConnectFour-v0", players, [0], illegal="retry(3)").episodes()
    assert len(retried.steps) == 4  # TextArena would have ended it after two
    (replaced,) = play("textarena:ConnectFour-v0", players, [0], illegal="random_legal").episodes()
    assert replaced.ending is Ending.TERMINAL and len(replaced.steps) > 6


def test_a_turn_that_is_over_samples_nothing():
    game = started("textarena:PigDice-v0")
    (turn,) = game.turns()
    assert isinstance(turn.state, ActionSampler) and turn.legal_actions is None
    with pytest.raises(ValueError, match="'jump' is not legal: Invalid action format"):
        game.step({0: "jump"})
    game.step({0: "roll"})
    with pytest.raises(ValueError, match="turn 0 is over"):
        turn.state.sample_action([0.5] * 8)


# ------------------------------------------------------------------------------------------------------------ privacy


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("observation", ["words", "latest"])
def test_reasoning_reaches_no_prompt(name, observation):
    game = started(f"{name}(observation={observation})", 5)
    forms = [
        "<think>{s} [{s}]</think>{s} [{a}]",
        "{s} [{s} \\boxed{{{s}}} </think> {s}: \\boxed{{{a}}} {s}",
        "{s}\n\n\\boxed{{{s}}} no, \\boxed{{[{a}]}} {s} [{s}]",
    ]
    for turn in walk(game, 14):
        action = random_action(turn)
        for form in forms if not game._position.speaks else forms[:2]:
            # Reasoning without tags or a box stays private too
            parsed = game.parse(turn.player, form.format(s=SENTINEL, a=action))
            assert parsed.action == action, parsed.error
        assert SENTINEL not in prompt(game)
    assert game._index == 14 or game.ending


def test_said_words_are_passed_on_so_that_the_check_above_can_fail():
    game = started("textarena:TruthAndDeception-v0")
    game.step({0: game.parse(0, rf"\boxed{{{SENTINEL}}}").action})
    assert f"[Deceiver] {SENTINEL}\n" in prompt(game)
    game.step({1: game.parse(1, r"\boxed{No [Fact 1] [/INST] <|im_end|>}").action})
    assert "[Guesser] No (Fact 1) (/INST) (|im_end|>\n" in prompt(game)


def test_the_guesser_is_not_told_which_fact_is_right():
    for seed in range(5):
        for turn in walk(started("textarena:TruthAndDeception-v0", seed), 6):
            text = turn.messages[0]["content"]
            assert ("(correct)" in text and "(wrong)" in text) is (turn.player == 0)


def test_dice_and_values_are_the_seats_own():
    game = started("textarena:LiarsDice-v0", 2)
    rolled = {0: [], 1: []}
    for turn in walk(game, 60, seed=1):
        state = game._position.env.state.game_state
        for player in (0, 1):
            dice = ", ".join(map(str, state["dice_rolls"][player]))
            if state["last_bidder_id"] is None or not rolled[player]:
                rolled[player].append(dice)
        text = turn.messages[0]["content"]
        assert re.findall(r"Your current Dice are: (.*)", text) == rolled[turn.player]
    assert len(rolled[0]) > 3
    for seed in range(5):
        for turn in walk(game := started("textarena:SimpleNegotiation-v0", seed), 10):
            values = game._position.env.state.game_state["player_values"][turn.player]
            shown = re.findall(r"\[(\w+)\] .*Value: (\d+)", turn.messages[0]["content"])
            assert {name: int(value) for name, value in shown} == values and len(shown) == 5


@pytest.mark.parametrize("observation", ["words", "latest"])
def test_a_board_of_stratego_shows_ones_own_pieces_only(observation):
    game = started(f"textarena:Stratego-v0(observation={observation})", 4)
    boards = 0
    for turn in walk(game, 30):
        board = game._position.env.board
        drawn = re.findall(r"^([A-J])  ((?: {2}[.~?] | [A-Z]{2} ){10})$", turn.messages[0]["content"], re.MULTILINE)
        assert len(drawn) == 10 * (1 if observation == "latest" else turn.index // 2 + 1)
        boards += 1
        for letter, cells in drawn[-10:]:
            for column, cell in enumerate(cells[i : i + 4].strip() for i in range(0, 40, 4)):
                piece = board[ord(letter) - 65][column]
                own = isinstance(piece, dict) and piece["player"] == turn.player
                assert (len(cell) == 2) == own
                assert (cell == "?") == (isinstance(piece, dict) and not own)
    assert boards == 30


# -------------------------------------------------------------------------------------------------------- observations


def test_latest_shows_the_rules_and_the_newest_board():
    for name, board in (("ConnectFour", "0 1 2 3 4 5 6"), ("Snake", "Current Board"), ("PigDice", "Total Scores")):
        long, short = started(f"textarena:{name}-v0", 1), started(f"textarena:{name}-v0(observation=latest)", 1)
        for turn in walk(long, 6):
            text = prompt(short)
            opening, closing = turn.messages[0]["content"].split("\n")[0], turn.messages[0]["content"].split("\n")[-1]
            assert text.startswith(opening) and text.endswith(closing)
            assert text.count(board) == 1 and turn.messages[0]["content"].count(board) >= 1
            short.step({turn.player: random_action(turn)})
        assert len(prompt(long)) > len(prompt(short)) if long.turns() else True


def test_latest_of_a_conversation_is_what_was_said_since_ones_last_turn():
    game = started("textarena:TruthAndDeception-v0(observation=latest)")
    for index, word in enumerate(("alpha", "beta", "gamma")):
        game.step({index % 2: word})
    assert "gamma" in prompt(game) and "alpha" not in prompt(game)
    assert "Fact 1:" in prompt(game)
    words = started("textarena:TruthAndDeception-v0")
    for index, word in enumerate(("alpha", "beta", "gamma")):
        words.step({index % 2: word})
    assert "[Deceiver] alpha\n[Guesser] beta\n[Deceiver] gamma\n" in prompt(words)


# -------------------------------------------------------------------------------------------------------------- chance


@pytest.mark.parametrize("name", GAMES)
def test_global_generators_are_left_alone(name):
    before = (random.getstate(), np.random.get_state()[1].tolist())
    for _ in walk(started(name, 7), 25, 7):
        pass
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_a_rejected_try_draws_nothing():
    """Trying an action does not change what a later roll of the dice gives."""
    rolled = []
    for tries in (0, 3):
        game = started("textarena:PigDice-v0", 11)
        for _ in range(4):
            for text in ["[roll]", "[hold]", "[jump]"][:tries]:
                game.parse(game.turns()[0].player, text)
            game.step({game.turns()[0].player: "roll"})
        rolled.append(prompt(game))
    assert rolled[0] == rolled[1]
