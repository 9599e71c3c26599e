"""Tic-tac-toe and Connect Four: against OpenSpiel, and against rules written here anew."""

import re

import numpy as np
import pyspiel
import pytest

from spiral_trl.games import canonical_name, game_names, make_game
from spiral_trl.games.connect_four import ConnectFour
from spiral_trl.games.solver_state import SolverState
from spiral_trl.games.tic_tac_toe import TicTacToe
from spiral_trl.records import Ending


ENGINES = {
    "tic_tac_toe": "tic_tac_toe",
    "tic_tac_toe(size=4)": "mnk(m=4,n=4,k=4)",
    "tic_tac_toe(size=5)": "mnk(m=5,n=5,k=4)",
    "tic_tac_toe(size=5,line=5)": "mnk(m=5,n=5,k=5)",
    "tic_tac_toe(size=4,line=3)": "mnk(m=4,n=4,k=3)",
    "connect_four": "connect_four",
    "connect_four(rows=4,columns=5,line=3)": "connect_four(rows=4,columns=5,x_in_row=3)",
}


def with_observation(name, observation):
    return f"{name[:-1]},observation={observation})" if name.endswith(")") else f"{name}(observation={observation})"


def walk(name, rng, spiel=None):
    """Plays a random game through the text; yields (turn, action, game after it, OpenSpiel's state after it)."""
    game = make_game(name)
    game.reset(0)
    state = None if spiel is None else pyspiel.load_game(spiel).new_initial_state()
    while game.turns():
        (turn,) = game.turns()
        action = turn.legal_actions[rng.integers(len(turn.legal_actions))]
        assert game.parse(turn.player, f"I choose [{action}]").action == action
        if state is not None:
            assert [int(a) for a in turn.legal_actions] == state.legal_actions()
            assert turn.player == state.current_player()
            state.apply_action(int(action))
        game.step({turn.player: action})
        yield turn, action, game, state


@pytest.mark.parametrize(("name", "spiel"), ENGINES.items())
@pytest.mark.parametrize("observation", ["words", "latest", "compact"])
def test_random_games_go_as_in_openspiel(name, spiel, observation):
    rng = np.random.default_rng(0)
    for _ in range(20):
        for index, (turn, _, game, state) in enumerate(walk(with_observation(name, observation), rng, spiel)):
            assert turn.index == index
            assert (game.ending is Ending.TERMINAL) == state.is_terminal()
        assert game.turns() == ()
        assert game.returns() == tuple(state.returns())
        assert sum(game.returns()) == 0


def winner(cells, line):
    """Seat with `line` marks in a row on a board given as {(row, column): seat}, or -1."""
    for (y, x), seat in cells.items():
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            if all(cells.get((y + i * dy, x + i * dx)) == seat for i in range(line)):
                return seat
    return -1


@pytest.mark.parametrize(
    ("name", "rows", "columns", "line", "draws"),
    [
        ("tic_tac_toe", 3, 3, 3, True),
        ("tic_tac_toe(size=4)", 4, 4, 4, True),
        ("tic_tac_toe(size=5)", 5, 5, 4, True),
        ("connect_four(rows=4,columns=4)", 4, 4, 4, True),
        ("connect_four", 6, 7, 4, False),
    ],
)
def test_the_rules_as_the_prompt_states_them(name, rows, columns, line, draws):
    """Lines, draws and gravity, kept here by hand."""
    rng = np.random.default_rng(1)
    results = set()
    for _ in range(80):
        cells = {}
        for turn, action, game, _ in walk(name, rng):
            assert turn.player == len(cells) % 2  # player 0 moves first
            if name.startswith("connect_four"):
                depth = sum(x == int(action) for _, x in cells)
                cells[rows - 1 - depth, int(action)] = turn.player
            else:
                cells[divmod(int(action), columns)] = turn.player
            won = winner(cells, line)
            assert (game.ending is not None) == (won >= 0 or len(cells) == rows * columns)
        assert game.returns() == {0: (1, -1), 1: (-1, 1), -1: (0, 0)}[won]
        assert game.ending is Ending.TERMINAL
        results.add(won)
    assert results >= {0, 1} | ({-1} if draws else set())


@pytest.mark.parametrize("name", ["tic_tac_toe", "tic_tac_toe(size=4)", "connect_four"])
def test_prompts_show_the_board(name):
    rng = np.random.default_rng(2)
    for observation in ("words", "latest", "compact"):
        moves = []
        for turn, action, _, _ in walk(with_observation(name, observation), rng):
            board = str(turn.state.state).strip().upper().split("\n")
            assert turn.role == f"player {turn.player}"
            (message,) = turn.messages
            text = message["content"]
            if observation == "compact":
                assert text == f"player {turn.player} board {' '.join(''.join(board))}"
            else:
                assert text.startswith(f"You are player {turn.player} in a game of ")
                assert f"Board (you play {'XO'[turn.player]}):" in text
                drawn = text.partition("):\n")[2].partition("It is your turn.")[0]
                if name == "connect_four":
                    header, *drawn_rows = drawn.strip().split("\n")
                    assert header.split() == [str(column) for column in range(7)]
                    assert ["".join(row.split()) for row in drawn_rows] == board
                else:
                    marks = "".join(board)
                    expected = [str(i) if mark == "." else mark for i, mark in enumerate(marks)]
                    assert re.findall(r"\w+", drawn) == expected
                assert all(f"[{legal}]" in text for legal in turn.legal_actions)
                assert text.count("[") == len(turn.legal_actions) + 1  # and the example
            verb = "took" if name.startswith("tic") else "played column"
            told = ", ".join(f"player {i % 2} {verb} {move}" for i, move in enumerate(moves)) or "none"
            assert (f"Moves so far: {told}.\n" in text) == (observation == "words")
            moves.append(action)


def test_infosets():
    """The whole history with `words`; the position and the seat alone without it."""
    game = make_game("tic_tac_toe")
    game.reset(0)
    assert game.turns()[0].infoset == "0|"
    orders = (("4", "0", "3"), ("3", "0", "4"))
    seen = {}
    for observation in ("words", "latest", "compact"):
        for order in orders:
            game = make_game(with_observation("tic_tac_toe", observation))
            game.reset(0)
            for player, action in zip((0, 1, 0), order, strict=True):
                game.step({player: action})
            seen.setdefault(observation, []).append(game.turns()[0])
    assert [turn.infoset for turn in seen["words"]] == ["1|4 0 3", "1|3 0 4"]
    for observation in ("latest", "compact"):
        first, second = seen[observation]
        assert first.infoset == second.infoset == "1|O../XX./..."
        assert first.messages == second.messages
    assert seen["words"][0].messages != seen["words"][1].messages


def test_the_solver_state_is_that_of_the_very_game():
    rng = np.random.default_rng(3)
    for name in ("tic_tac_toe", "tic_tac_toe(size=5,observation=latest)", "connect_four(observation=compact)"):
        played, turns = [], []
        for turn, action, _, _ in walk(name, rng):
            assert isinstance(turn.state, SolverState) and turn.state.part is None
            assert turn.state.actions == {legal: int(legal) for legal in turn.legal_actions}
            assert turn.state.state.history() == played
            turns.append(turn)
            played.append(int(action))
        # Turns stay where they were handed out
        assert [len(turn.state.state.history()) for turn in turns] == list(range(len(turns)))


def test_thousands_of_positions_are_not_kept():
    from spiral_trl.games import board

    game = make_game("connect_four(observation=latest)")
    remembered = board._REMEMBERED
    board._REMEMBERED = 50
    try:
        texts = [[turn.messages for turn, *_ in walk(game.name, np.random.default_rng(seed))] for seed in (0, 1, 0)]
        assert len(game._board._positions) <= 50
    finally:
        board._REMEMBERED = remembered
    assert texts[0] == texts[2] != texts[1]


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("tic_tac_toe(size=3,line=3,observation=words)", "tic_tac_toe"),
        ("tic_tac_toe(size=5)", "tic_tac_toe(size=5)"),
        ("tic_tac_toe(line=4,size=5)", "tic_tac_toe(size=5)"),
        ("tic_tac_toe(size=5,line=5)", "tic_tac_toe(size=5,line=5)"),
        ("connect_four(line=4,columns=7,rows=6)", "connect_four"),
        ("connect_four(columns=5,rows=4)", "connect_four(rows=4,columns=5)"),
    ],
)
def test_names(name, canonical):
    assert canonical_name(name) == canonical
    assert make_game(name).name == canonical


def test_direct_construction():
    assert TicTacToe(size=5, observation="compact").name == "tic_tac_toe(size=5,observation=compact)"
    assert ConnectFour(rows=4).name == "connect_four(rows=4)"
    assert {"tic_tac_toe", "connect_four"} <= set(game_names())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tic_tac_toe(size=2)", "size of tic_tac_toe must be from 3 to 10, not 2"),
        ("tic_tac_toe(line=4)", "line=4 does not fit on a board of size=3"),
        ("tic_tac_toe(observation=last)", "allowed: words, latest, compact; did you mean 'latest'"),
        ("connect_four(rows=3,columns=3)", "line=4 does not fit on a board of 3 rows and 3 columns"),
        ("connect_four(row=3)", "did you mean 'rows'"),
    ],
)
def test_wrong_names_are_one_line_errors(name, message):
    with pytest.raises(ValueError, match=message) as error:
        make_game(name)
    assert "\n" not in str(error.value)
