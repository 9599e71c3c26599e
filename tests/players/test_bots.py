import logging
from dataclasses import replace

import numpy as np
import pyspiel
import pytest
from open_spiel.python import policy as spiel_policy
from open_spiel.python.algorithms import exploitability
from toy_games import TreeGame

from spiral_trl.evaluation.exploitability import exploitability as exploitability_on_table
from spiral_trl.evaluation.policy import bot_policy
from spiral_trl.games import make_game, tabulate
from spiral_trl.games.chance import derive_seeds
from spiral_trl.games.kuhn_equilibrium import equilibrium_ranges
from spiral_trl.games.solver_state import SolverState
from spiral_trl.players.bots import CFRPlayer, PolicyPlayer, RandomPlayer, solve
from spiral_trl.players.registry import make_player, player_names
from spiral_trl.records import Reply, Turn


PLAYERS = [RandomPlayer, CFRPlayer]


def turn_with(state, legal=("a", "b"), game="some_game"):
    return Turn(game, 0, 0, 0, 0, "player 0", ({"role": "user", "content": ""},), legal, state=state)


@pytest.mark.parametrize("make", PLAYERS)
def test_sample_gives_what_reply_gives(make):
    player = make()
    turns = tabulate("kuhn_poker").turns
    rng = np.random.default_rng(0)
    which = rng.integers(len(turns), size=3000)
    seeds = derive_seeds(1, np.arange(3000))
    index = rng.integers(3, size=3000)
    replies, chosen = player.sample(turns, which, seeds, index)
    one_by_one = [
        player.reply([replace(turns[w], seed=int(s), index=int(i))])[0]
        for w, s, i in zip(which, seeds, index, strict=True)
    ]
    assert [replies[c] for c in chosen] == one_by_one
    assert (
        player.reply(
            [replace(turns[w], seed=int(s), index=int(i)) for w, s, i in zip(which, seeds, index, strict=True)]
        )
        == one_by_one
    )
    # Each reply belongs to one turn only, and none is there for nothing.
    owner = {}
    assert all(owner.setdefault(int(c), int(w)) == w for c, w in zip(chosen, which, strict=True))
    assert sorted(owner) == list(range(len(replies)))


@pytest.mark.parametrize("make", PLAYERS)
def test_frequencies_follow_the_probabilities(make):
    player = make()
    for turn in tabulate("kuhn_poker").turns:
        count = 4000
        replies, chosen = player.sample(
            [turn], np.zeros(count, dtype=np.int64), derive_seeds(2, np.arange(count)), np.zeros(count, dtype=np.int64)
        )
        drawn = np.bincount(chosen, minlength=len(replies)) / count
        probabilities = player.action_probabilities(turn)
        assert tuple(probabilities) == turn.legal_actions
        assert sum(probabilities.values()) == pytest.approx(1)
        for reply, frequency in zip(replies, drawn, strict=True):
            p = probabilities[reply.text.strip("[]")]
            assert abs(frequency - p) < 4 * np.sqrt(p * (1 - p) / count) + 1e-3


def test_nothing_is_asked_nothing_is_answered():
    assert RandomPlayer().reply([]) == []


def test_uneven_numbers_of_actions():
    turns = [turn_with(None, legal) for legal in (("a",), ("a", "b", "c"), ("b", "c"))]
    which = np.arange(3000) % 3
    replies, chosen = RandomPlayer().sample(turns, which, np.arange(3000), np.zeros(3000, dtype=np.int64))
    drawn = [{replies[c].text for c in chosen[which == row]} for row in range(3)]
    assert drawn == [{"[a]"}, {"[a]", "[b]", "[c]"}, {"[b]", "[c]"}]


def test_the_outcome_drawn_is_that_of_the_cumulative_distribution():
    class Fixed(PolicyPlayer):
        name = "fixed"

        def action_probabilities(self, turn):
            return {"a": 0.0, "b": 1.0, "c": 0.0}

    assert Fixed().reply([replace(turn_with(None), seed=seed) for seed in range(200)]) == [Reply(text="[b]")] * 200


@pytest.mark.parametrize("make", PLAYERS)
@pytest.mark.parametrize(
    "name",
    [
        "kuhn_poker",
        "kuhn_poker(rounds=2)",
        "kuhn_poker(rounds=3)",
        "kuhn_poker(observation=compact)",
        "kuhn_poker(rules=spiral,cards=5)",
        "leduc_poker",
        "liars_dice(dice_sides=3)",
    ],
)
def test_every_reply_is_legal_to_the_end(make, name):
    for seed in range(20):
        game, player = make_game(name), make()
        game.reset(seed)
        while game.turns():
            (turn,) = game.turns()
            parsed = game.parse(turn.player, player.reply([turn])[0].text)
            assert parsed.error is None
            game.step({turn.player: parsed.action})


def test_cfr_is_unexploitable_by_openspiels_own_measure():
    player = CFRPlayer()
    by_words = {turn.infoset: player.action_probabilities(turn) for turn in tabulate("kuhn_poker").turns}
    game = pyspiel.load_game("kuhn_poker")

    def probabilities(state):
        cards, moves = state.history()[:2], state.history()[2:]
        words = []
        for move in moves:
            words.append((("fold", "call") if "bet" in words else ("check", "bet"))[move])
        seat = state.current_player()
        actions = by_words[f"{seat}|{'JQK'[cards[seat]]}|{' '.join(words)}"]
        return {
            number: actions[word]
            for number, word in enumerate(("fold", "call") if "bet" in words else ("check", "bet"))
        }

    policy = spiel_policy.tabular_policy_from_callable(game, probabilities)
    assert exploitability.exploitability(game, policy) < 1e-3
    assert solve("kuhn_poker()")[1] == pytest.approx(exploitability.exploitability(game, policy), abs=1e-9)


def test_cfr_lies_in_the_equilibrium_family():
    player = CFRPlayer()
    policy = {turn.infoset: player.action_probabilities(turn) for turn in tabulate("kuhn_poker").turns}
    ranges = equilibrium_ranges()
    assert set(policy) == set(ranges)
    for infoset, actions in policy.items():
        for action, p in actions.items():
            low, high = ranges[infoset][action]
            assert low - 0.005 <= p <= high + 0.005, (infoset, action)
    alpha = policy["0|J|"]["bet"]
    assert policy["0|K|"]["bet"] == pytest.approx(3 * alpha, abs=0.01)
    assert policy["0|Q|check bet"]["call"] == pytest.approx(alpha + 1 / 3, abs=0.01)


def test_cfr_does_not_mind_a_seat_bonus():
    plain, shifted = tabulate("kuhn_poker").turns, tabulate("kuhn_poker(seat_bonus=2)").turns
    player = CFRPlayer()
    assert [player.action_probabilities(turn) for turn in plain] == [player.action_probabilities(t) for t in shifted]


def test_cfr_plays_each_hand_of_a_match_from_the_seat_that_opens_it_and_says_so(caplog):
    hand = {turn.infoset: turn for turn in tabulate("kuhn_poker").turns}
    player = CFRPlayer()
    game = make_game("kuhn_poker(rounds=3)")
    game.reset(0)
    game.step({0: "bet"})
    game.step({1: "fold"})
    (turn,) = game.turns()
    assert turn.player == 1
    card = turn.infoset.split(" / ")[-1].rstrip("|")
    with caplog.at_level(logging.WARNING):
        assert player.action_probabilities(turn) == player.action_probabilities(hand[f"0|{card}|"])
        player.action_probabilities(turn)
    assert caplog.messages == ["cfr plays each hand of kuhn_poker(rounds=3) by the equilibrium of a single one"]
    CFRPlayer().check(turn)
    assert len(caplog.messages) == 1  # asked whether it can, it plays nothing


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kuhn_poker(rules=spiral)", 0),
        ("kuhn_poker(payoff=sign)", None),
        ("kuhn_poker(cards=5)", -1 / 15),
        ("kuhn_poker(cards=5,rules=spiral)", 0),
        ("kuhn_poker(rounds=2)", None),
        ("kuhn_poker(rounds=2,payoff=chips)", 0),
        ("kuhn_poker(rounds=2,rules=spiral)", 0),
        ("leduc_poker(payoff=sign)", None),
    ],
)
def test_cfr_solves_the_table_of_a_game_that_openspiel_does_not_have(name, value, caplog):
    table = tabulate(name)
    measured = exploitability_on_table(table, bot_policy(CFRPlayer(), table))
    assert measured.exploitability < 1e-3
    if value is not None:
        assert measured.value[0] == pytest.approx(value, abs=1e-3)
    assert caplog.messages == []


def test_a_whole_match_is_solved_where_it_has_a_table():
    """The equilibrium of a single hand is none of a match of two that only its sign counts."""
    table = tabulate("kuhn_poker(rounds=2)")
    hand = {turn.infoset: turn for turn in tabulate("kuhn_poker").turns}
    player = CFRPlayer()

    class HandByHand(PolicyPlayer):
        name = "hand by hand"

        def action_probabilities(self, turn):
            *before, now = turn.infoset.partition("|")[2].split(" / ")
            return player.action_probabilities(hand[f"{(turn.player + len(before)) % 2}|{now}"])

    whole, single = (exploitability_on_table(table, bot_policy(p, table)) for p in (player, HandByHand()))
    assert whole.exploitability < 1e-3 < 0.05 < single.exploitability


@pytest.mark.parametrize(
    ("name", "distance"),
    [("kuhn_poker", 1e-3), ("leduc_poker", 0.02), ("liars_dice(dice_sides=3)", 1e-3)],
)
def test_cfr_is_unexploitable_through_text_by_openspiels_own_measure(name, distance):
    """The probabilities of what it replies, as the game parses it, put into OpenSpiel's game."""
    table, player = tabulate(name), CFRPlayer()
    policy = {}
    for turn, game in zip(table.turns, table.games, strict=True):
        words = player.action_probabilities(turn)
        parsed = {game.parse(turn.player, f"[{word}]").action: p for word, p in words.items()}
        assert tuple(parsed) == turn.legal_actions
        state = turn.state.state
        policy[state.information_state_string()] = [(turn.state.actions[word], p) for word, p in parsed.items()]
    spiel = table.turns[0].state.state.get_game()
    assert pyspiel.exploitability(spiel, pyspiel.TabularPolicy(policy)) < distance


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("kuhn_poker(rounds=5,rules=spiral)", r"no OpenSpiel game has its rules and payoffs, and it has no table to"),
        ("kuhn_poker(rounds=3,cards=5)", r"no OpenSpiel game has its rules and payoffs, and it has no table to"),
        ("kuhn_poker(rounds=2,cards=5,observation=latest)", "it has no table|does not tell its players what they did"),
        ("kuhn_poker(rounds=2,rules=spiral,observation=latest)", "does not tell its players what they did"),
        ("liars_dice", "more than 100,000 histories"),
    ],
)
def test_cfr_says_why_it_refuses_a_game(name, reason):
    game = make_game(name)
    game.reset(0)
    for _ in range(2):  # a remembered reason is the same
        with pytest.raises(ValueError, match=f"cfr cannot play .*: .*{reason}") as error:
            CFRPlayer().reply(game.turns())
        assert game.name in str(error.value) and "\n" not in str(error.value)


def test_cfr_refuses_free_text():
    with pytest.raises(ValueError, match="cfr cannot play some_game: its actions are free text"):
        CFRPlayer().reply([turn_with(None, legal=None)])


def test_cfr_refuses_tables_that_are_not_zero_sum(register_game):
    tree = ("turn", 0, {"a": ("end", (1, 1)), "b": ("end", (0, 0))})
    name = register_game("common_interest", lambda: TreeGame("common_interest", tree))
    with pytest.raises(ValueError, match="cfr cannot play common_interest: .*no zero-sum game of two players"):
        CFRPlayer().reply(tabulate(name).turns)


def test_cfr_goes_hand_by_hand_where_the_prompt_leaves_out_the_past(caplog):
    game = make_game("kuhn_poker(rounds=2,observation=latest)")
    game.reset(0)
    with caplog.at_level(logging.WARNING):
        CFRPlayer().reply(game.turns())
    assert caplog.messages == [f"cfr plays each hand of {game.name} by the equilibrium of a single one"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("kuhn_poker(players=3)", "not a sequential two-player zero-sum game"),
        ("matching_pennies_3p", "not a sequential two-player zero-sum game"),
        ("matrix_rps", "not a sequential two-player zero-sum game"),
        ("tic_tac_toe", "a game of perfect information without chance; use minimax or mcts"),
        ("phantom_ttt", "more than 100,000 histories"),
    ],
)
def test_cfr_refuses_games_it_cannot_solve(name, reason):
    state = pyspiel.load_game(name).new_initial_state()
    with pytest.raises(ValueError, match=reason) as error:
        CFRPlayer().action_probabilities(turn_with(SolverState(state, {"a": 0, "b": 1})))
    assert str(error.value).startswith("cfr cannot play some_game: ") and "\n" not in str(error.value)


def test_other_openspiel_games_are_solved_too():
    game = pyspiel.load_game("liars_dice(numdice=1,dice_sides=2)")
    state = game.new_initial_state()
    while state.is_chance_node():
        state.apply_action(state.legal_actions()[0])
    actions = {state.action_to_string(action): action for action in state.legal_actions()}
    probabilities = CFRPlayer().action_probabilities(turn_with(SolverState(state, actions), tuple(actions)))
    assert sum(probabilities.values()) == pytest.approx(1)
    assert solve(str(game))[1] <= 1e-4


def test_random_refuses_free_text():
    with pytest.raises(ValueError, match="random cannot play some_game: its actions are free text"):
        RandomPlayer().reply([turn_with(None, legal=None)])


class Sayings:
    """An ActionSampler of a made-up game."""

    example_actions = ("hm",)

    def __init__(self, word):
        self.word = word

    def sample_action(self, draws):
        assert len(draws) == 8 and all(0 <= draw < 1 for draw in draws)
        return f"{self.word} {int(3 * draws[0])} {int(2 * draws[7])}"


def test_random_plays_free_text_beside_listed_actions_as_each_alone():
    player = RandomPlayer()
    turns = [
        turn_with(None, ("a", "b")),
        turn_with(Sayings("x"), None),
        turn_with(None),
        turn_with(Sayings("y"), None),
    ]
    which = np.random.default_rng(0).integers(4, size=400)
    seeds, index = derive_seeds(3, np.arange(400)), np.arange(400) % 3
    replies, chosen = player.sample(turns, which, seeds, index)
    asked = [replace(turns[w], seed=int(s), index=int(i)) for w, s, i in zip(which, seeds, index, strict=True)]
    assert [replies[c] for c in chosen] == [player.reply([turn])[0] for turn in asked] == player.reply(asked)
    owner = {}
    assert all(owner.setdefault(int(c), int(w)) == w for c, w in zip(chosen, which, strict=True))
    assert sorted(owner) == list(range(len(replies))) and len(replies) == 2 * 2 + 2 * 6
    assert {reply.text[:2] for reply in replies} == {"[a", "[b", "[x", "[y"}
    only = player.reply([replace(turns[1], seed=s) for s in range(50)])
    assert {reply.text for reply in only} == {f"[x {i} {j}]" for i in range(3) for j in range(2)}


def test_players_by_name():
    assert {"cfr", "random"} <= set(player_names())
    assert isinstance(make_player("random"), RandomPlayer)
    assert isinstance(make_player("cfr"), CFRPlayer)
    assert make_player("random").name == "random" and make_player("cfr").name == "cfr"
    with pytest.raises(ValueError, match=r"unknown player 'randm'; allowed: .*random.*; did you mean 'random'\?"):
        make_player("randm")
