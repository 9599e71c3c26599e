from functools import cache

import numpy as np
import pyspiel
import pytest
from open_spiel.python.algorithms.minimax import alpha_beta_search

from spiral_trl.games import make_game
from spiral_trl.games.chance import derive_seeds
from spiral_trl.games.solver_state import SolverState
from spiral_trl.players.search import MCTSPlayer, MinimaxPlayer, position_values
from spiral_trl.records import Reply, Turn


def turn_at(state, seed=0, index=0, game="some_game"):
    actions = {f"move {action}": action for action in state.legal_actions()}
    message = {"role": "user", "content": str(state)}
    player = max(0, state.current_player())
    return Turn(
        game, 0, seed, index, player, f"player {player}", (message,), tuple(actions), None, SolverState(state, actions)
    )


def at(game, *moves):
    state = pyspiel.load_game(game).new_initial_state()
    for move in moves:
        state.apply_action(move)
    return state


def chosen(reply):
    return int(reply.text.removeprefix("[move ").removesuffix("]"))


# Tic-tac-toe by its rules alone: a board is a string of nine of " ", "x" and "o", row by row

LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))


def winner(board):
    return next((board[a] for a, b, c in LINES if board[a] != " " and board[a] == board[b] == board[c]), None)


def replies(board):
    mark = "x" if board.count("x") == board.count("o") else "o"
    return {cell: board[:cell] + mark + board[cell + 1 :] for cell in range(9) if board[cell] == " "}


@cache
def value_for_mover(board):
    if winner(board):
        return -1
    return max((-value_for_mover(after) for after in replies(board).values()), default=0)


def positions():
    """Every board that play can reach and go on from, with moves that reach it."""
    found, stack = {}, [(" " * 9, ())]
    while stack:
        board, moves = stack.pop()
        if board in found or winner(board) or " " not in board:
            continue
        found[board] = moves
        stack.extend((after, (*moves, cell)) for cell, after in replies(board).items())
    return found


@pytest.fixture(scope="module")
def tic_tac_toe_policy():
    player = MinimaxPlayer()
    return {
        board: player.action_probabilities(turn_at(at("tic_tac_toe", *moves))) for board, moves in positions().items()
    }


def test_minimax_plays_uniformly_among_the_best_moves_of_every_tic_tac_toe_position(tic_tac_toe_policy):
    assert len(tic_tac_toe_policy) == 4520
    for board, policy in tic_tac_toe_policy.items():
        values = {cell: -value_for_mover(after) for cell, after in replies(board).items()}
        best = [cell for cell, value in values.items() if value == max(values.values())]
        assert policy == {f"move {cell}": 1 / len(best) if cell in best else 0 for cell in values}, board
    assert len(position_values("tic_tac_toe()")) == 5478
    # A known figure: how often a random move is a best one
    shares = [np.mean([p > 0 for p in policy.values()]) for policy in tic_tac_toe_policy.values()]
    assert np.mean(shares) == pytest.approx(0.580, abs=5e-4)


@pytest.mark.parametrize("opponent", ["x", "o"])
def test_nobody_gains_against_minimax(tic_tac_toe_policy, opponent):
    @cache
    def best_response(board):
        """Value for `opponent`, who knows what minimax plays."""
        if winner(board) or " " not in board:
            return {opponent: 1.0, None: 0.0}.get(winner(board), -1.0)
        after = replies(board)
        if (board.count("x") > board.count("o")) == (opponent == "o"):
            return max(best_response(other) for other in after.values())
        policy = tic_tac_toe_policy[board]
        return sum(policy[f"move {cell}"] * best_response(other) for cell, other in after.items())

    assert abs(best_response(" " * 9)) < 1e-9


@pytest.mark.parametrize(
    "game",
    [
        "nim(pile_sizes=1;2;3)",
        "hex(num_cols=2,num_rows=3)",
        "clobber(rows=2,columns=4)",
        "dots_and_boxes(num_rows=1,num_cols=2)",
        "breakthrough(rows=3,columns=2)",
    ],
)
def test_values_are_those_of_openspiels_search_over_histories(game):
    loaded = pyspiel.load_game(game)
    values = position_values(str(loaded))
    rng = np.random.default_rng(0)
    for _ in range(10):
        state = loaded.new_initial_state()
        while not state.is_terminal():
            expected, _ = alpha_beta_search(loaded, state, maximizing_player_id=0)
            assert values[state.current_player(), str(state)] == expected
            state.apply_action(int(rng.choice(state.legal_actions())))


@pytest.mark.parametrize(
    ("game", "reason"),
    [
        ("connect_four", "it has more than 50,000 positions; use mcts"),
        ("kuhn_poker", "it has hidden information; use cfr where it is small enough"),
        ("matrix_rps", "it is not a sequential two-player zero-sum game"),
        ("pig(horizon=20)", "it has chance, which minimax does not average over; use mcts"),
        ("go(board_size=2)", "the same board allows different moves by how it was reached; use mcts"),
    ],
)
def test_minimax_says_in_one_line_what_it_cannot_play(game, reason):
    state = pyspiel.load_game(game).new_initial_state()
    while state.is_chance_node():
        state.apply_action(state.legal_actions()[0])
    turn = turn_at(state) if not state.is_simultaneous_node() else turn_with(SolverState(state, {"a": 0}))
    for ask in (MinimaxPlayer().check, MinimaxPlayer().action_probabilities):
        with pytest.raises(ValueError) as error:
            ask(turn)
        assert str(error.value) == f"minimax cannot play some_game: {reason}"


def turn_with(state):
    return Turn("some_game", 0, 0, 0, 0, "player 0", ({"role": "user", "content": ""},), ("a",), None, state)


@pytest.mark.parametrize("player", [MinimaxPlayer(), MCTSPlayer()])
def test_a_game_without_a_state_is_refused(player):
    for turn in (turn_with(None), turn_with("board")):
        with pytest.raises(ValueError, match="cannot play some_game: no OpenSpiel game has its rules and payoffs"):
            player.check(turn)
        with pytest.raises(ValueError, match="cannot play some_game"):
            player.reply([turn])


def test_mcts_replies_depend_on_position_seed_and_index_alone():
    player = MCTSPlayer(simulations=3)
    states = [at("tic_tac_toe"), at("tic_tac_toe", 4, 0), at("connect_four", 3)]
    turns = [turn_at(state) for state in states]
    rng = np.random.default_rng(0)
    which, index = rng.integers(3, size=300), rng.integers(4, size=300)
    seeds = derive_seeds(5, np.arange(300))
    answers, of = player.sample(turns, which, seeds, index)
    one_by_one = [
        MCTSPlayer(simulations=3).reply([turn_at(states[w], int(s), int(i))])[0]
        for w, s, i in zip(which[::-1], seeds[::-1], index[::-1], strict=True)
    ]
    assert [answers[i] for i in of] == one_by_one[::-1]
    # Each reply is one turn's, each is used, and seed and index both matter
    owner = {}
    assert all(owner.setdefault(int(o), int(w)) == w for o, w in zip(of, which, strict=True))
    assert sorted(owner) == list(range(len(answers)))
    assert len({player.reply([turn_at(states[0], seed, 0)])[0] for seed in range(30)}) > 1
    assert len({player.reply([turn_at(states[0], 7, i)])[0] for i in range(30)}) > 1


def test_mcts_leaves_the_state_as_it_was():
    state = at("tic_tac_toe", 4, 0)
    MCTSPlayer().reply([turn_at(state)])
    assert state.history() == [4, 0] and state.current_player() == 0


@pytest.mark.parametrize(
    ("moves", "best"),
    [
        ((0, 3, 1, 4), 2),  # x completes the top row
        ((0, 3, 1), 2),  # o has to stop it
        ((0, 4, 8), None),  # o must not take a corner
    ],
)
def test_mcts_finds_the_moves_that_decide(moves, best):
    allowed = {best} if best is not None else {1, 3, 5, 7}
    for seed in range(20):
        (reply,) = MCTSPlayer(simulations=1000).reply([turn_at(at("tic_tac_toe", *moves), seed)])
        assert chosen(reply) in allowed


def test_more_simulations_play_better():
    def score(simulations):
        """Mean return of 60 tic-tac-toe games as the second player against one simulation a move."""
        total = 0
        for seed in range(60):
            state = at("tic_tac_toe")
            while not state.is_terminal():
                player = MCTSPlayer(simulations if state.current_player() else 1)
                state.apply_action(chosen(player.reply([turn_at(state, seed, state.move_number())])[0]))
            total += state.returns()[1]
        return total / 60

    assert score(200) > score(1) + 0.5


def test_mcts_plays_games_with_dice():
    state = at("pig(horizon=50,winscore=10)")
    for seed in range(20):
        while not state.is_terminal():
            if state.is_chance_node():
                state.apply_action(state.legal_actions()[seed % len(state.legal_actions())])
            else:
                state.apply_action(chosen(MCTSPlayer(20).reply([turn_at(state, seed, state.move_number())])[0]))


@pytest.mark.parametrize(
    ("game", "reason"),
    [
        ("kuhn_poker", "it has hidden information, which tree search would look at; use cfr where it is small enough"),
        ("python_iterated_prisoners_dilemma", "its players move at once"),
    ],
)
def test_mcts_says_in_one_line_what_it_cannot_play(game, reason):
    import open_spiel.python.games  # noqa: F401 (registers the games that are written in Python)

    turn = turn_with(SolverState(pyspiel.load_game(game).new_initial_state(), {"a": 0}))
    for ask in (MCTSPlayer().check, lambda turn: MCTSPlayer().reply([turn])):
        with pytest.raises(ValueError) as error:
            ask(turn)
        assert str(error.value) == f"mcts(simulations=100) cannot play some_game: {reason}"


def test_the_name_of_mcts_carries_its_parameters():
    assert MCTSPlayer().name == "mcts(simulations=100)"
    assert MCTSPlayer(20, 1.5, 3).name == "mcts(simulations=20,uct_c=1.5,rollouts=3)"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(simulations=0), "simulations of mcts must be at least 1, not 0"),
        (dict(rollouts=0), "rollouts of mcts must be at least 1, not 0"),
        (dict(uct_c=float("nan")), "uct_c of mcts must be a number from 0, not nan"),
    ],
)
def test_mcts_refuses_parameters_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        MCTSPlayer(**values)


def test_poker_in_words_is_refused_by_both():
    game = make_game("kuhn_poker")
    game.reset(0)
    for player in (MinimaxPlayer(), MCTSPlayer()):
        with pytest.raises(ValueError, match=r"cannot play kuhn_poker: it has hidden information"):
            player.reply(game.turns())


def test_nothing_is_asked_nothing_is_answered():
    assert MCTSPlayer().reply([]) == [] and MinimaxPlayer().reply([]) == []
    nothing = np.array([], dtype=np.int64)
    assert MCTSPlayer().sample([], nothing, nothing, nothing)[0] == []
    assert isinstance(MinimaxPlayer().reply([turn_at(at("tic_tac_toe"))])[0], Reply)
