import itertools
import re
import time

import numpy as np
import pyspiel
import pytest
from game_checks import counts, spiel_counts
from playthrough import transcript
from toy_games import Script

from spiral_trl.games import make_game, tabulate
from spiral_trl.games.chance import derive_seeds
from spiral_trl.games.kuhn_equilibrium import GAME_VALUE, equilibrium, equilibrium_ranges
from spiral_trl.games.registry import parse_name
from spiral_trl.games.table import CHANCE, DECISION, TERMINAL
from spiral_trl.records import Ending


LINES = ("check check", "check bet fold", "check bet call", "bet fold", "bet call")
DEALS = tuple(itertools.permutations("JQK", 2))  # (opener's card, other card)


def outcomes_of(deal):
    """Chance outcomes that deal these cards: the opener's among three, then the other's among the two left."""
    first = "JQK".index(deal[0])
    return [first, "JQK".replace(deal[0], "").index(deal[1])]


def play(name, hands):
    """Plays hands, (deal, line) each, through the text interface; answers the game and all turns."""
    game = make_game(name)
    game.reset(0, chance=Script([o for deal, _ in hands for o in outcomes_of(deal)]))
    turns = []
    for _, line in hands:
        for action in line.split():
            (turn,) = game.turns()
            turns.append(turn)
            parsed = game.parse(turn.player, f"I choose [{action}]")
            assert parsed.error is None
            game.step({turn.player: parsed.action})
    return game, turns


def hand_chips(deal, line):
    """Chips won by the opener, from the rules as Kuhn wrote them."""
    pot_share = 2 if line.endswith("call") else 1
    if line.endswith("fold"):
        folder = (len(line.split()) - 1) % 2
        return -pot_share if folder == 0 else pot_share
    return pot_share if "JQK".index(deal[0]) > "JQK".index(deal[1]) else -pot_share


@pytest.mark.parametrize("deal", DEALS)
@pytest.mark.parametrize("line", LINES)
def test_every_path_pays_what_openspiel_pays(deal, line):
    game, _ = play("kuhn_poker", [(deal, line)])
    state = pyspiel.load_game("kuhn_poker").new_initial_state()
    for card in deal:
        state.apply_action("JQK".index(card))
    for action in line.split():
        state.apply_action(int(action in ("bet", "call")))
    assert state.is_terminal()
    assert game.returns() == tuple(state.returns())
    assert game.returns() == (hand_chips(deal, line), -hand_chips(deal, line))
    assert game.ending is Ending.TERMINAL
    assert game.turns() == ()


@pytest.mark.parametrize(
    "name",
    [
        "kuhn_poker",
        "kuhn_poker(payoff=sign)",
        "kuhn_poker(seat_bonus=1)",
        "kuhn_poker(rules=spiral)",
        "kuhn_poker(rules=spiral,payoff=chips)",
        "kuhn_poker(observation=compact)",
        "kuhn_poker(rules=spiral,observation=compact)",
    ],
)
def test_the_whole_tree(name):
    table = tabulate(name)
    assert counts(table) == spiel_counts(pyspiel.load_game("kuhn_poker")) == (24, 4, 30)
    assert len(table.turns) == 12
    assert len({turn.infoset for turn in table.turns}) == 12
    assert len({turn.messages[0]["content"] for turn in table.turns}) == 12
    assert set(table.actions) == {"check", "bet", "fold", "call"}
    totals = table.returns[table.kind == TERMINAL]
    assert np.array_equal(totals.sum(1), np.zeros(30))
    assert tuple(totals.min(0)) == table.worst_returns
    assert table.depth == 3
    for turn in table.turns:
        assert turn.legal_actions == (("fold", "call") if turn.infoset.endswith("bet") else ("check", "bet"))


def test_deals_are_uniform_in_the_table():
    table = tabulate("kuhn_poker")
    reached = {0: 1.0}
    for node in range(len(table.kind)):
        if table.kind[node] == CHANCE:
            for outcome, p in enumerate(table.chance_probabilities(node)):
                if table.child[node, outcome] >= 0:
                    reached[int(table.child[node, outcome])] = reached[node] * p
    deals = [p for node, p in reached.items() if table.kind[node] == DECISION]
    assert np.allclose(deals, [1 / 6] * 6, atol=1e-15)


# Evaluation on the table, for the values below: expectations by direct enumeration, best replies by trying all 2^6
# pure strategies of a seat.


def expected(table, policy):
    def value(node):
        if table.kind[node] == TERMINAL:
            return table.returns[node]
        if table.kind[node] == CHANCE:
            weights = table.chance_probabilities(node)
        else:
            actions = policy[table.turns[table.turn[node]].infoset]
            weights = [actions.get(action, 0.0) for action in table.actions]
        return sum(w * value(table.child[node, i]) for i, w in enumerate(weights) if w > 0)

    return value(0)


def best_reply_value(table, policy, player):
    own = [turn for turn in table.turns if turn.player == player]
    assert len(own) == 6
    return max(
        expected(table, policy | {turn.infoset: {action: 1.0} for turn, action in zip(own, pure, strict=True)})[player]
        for pure in itertools.product(*(turn.legal_actions for turn in own))
    )


def uniform(table):
    return {turn.infoset: dict.fromkeys(turn.legal_actions, 0.5) for turn in table.turns}


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1 / 6, 1 / 3])
def test_the_equilibrium_family(alpha):
    table = tabulate("kuhn_poker")
    policy = equilibrium(alpha)
    assert set(policy) == {turn.infoset for turn in table.turns}
    assert expected(table, policy) == pytest.approx((-1 / 18, 1 / 18), abs=1e-12)
    assert GAME_VALUE == -1 / 18
    assert best_reply_value(table, policy, 0) == pytest.approx(-1 / 18, abs=1e-12)
    assert best_reply_value(table, policy, 1) == pytest.approx(1 / 18, abs=1e-12)
    for infoset, actions in policy.items():
        assert sum(actions.values()) == pytest.approx(1)
        for action, p in actions.items():
            low, high = equilibrium_ranges()[infoset][action]
            assert low - 1e-12 <= p <= high + 1e-12


def test_outside_the_family_there_is_no_equilibrium():
    table = tabulate("kuhn_poker")
    policy = equilibrium(1 / 3)
    policy["0|J|"] = {"check": 0.5, "bet": 0.5}
    assert best_reply_value(table, policy, 1) > 1 / 18 + 0.01
    for alpha in (-0.01, 0.34, float("nan")):
        with pytest.raises(ValueError, match="alpha must be from 0 to 1/3"):
            equilibrium(alpha)


def test_the_uniform_policy_has_its_known_nash_conv():
    table = tabulate("kuhn_poker")
    policy = uniform(table)
    nash_conv = best_reply_value(table, policy, 0) + best_reply_value(table, policy, 1)
    assert nash_conv == pytest.approx(11 / 12, abs=1e-12)


def test_a_seat_bonus_shifts_every_return_and_no_best_reply():
    plain, shifted = tabulate("kuhn_poker"), tabulate("kuhn_poker(seat_bonus=1.5)")
    assert np.array_equal(shifted.returns[:, 0], plain.returns[:, 0] + 1.5, equal_nan=True)
    assert shifted.worst_returns == (-0.5, -3.5)
    for player, sign in ((0, 1), (1, -1)):
        assert best_reply_value(shifted, equilibrium(0.2), player) == pytest.approx(sign * (1.5 - 1 / 18))


def test_the_sign_payoff_is_the_sign_of_the_chips():
    plain, sign = tabulate("kuhn_poker"), tabulate("kuhn_poker(payoff=sign)")
    assert np.array_equal(sign.returns, np.sign(plain.returns), equal_nan=True)
    assert sign.worst_returns == (-1, -1)


@pytest.mark.parametrize("payoff", ["chips", "sign"])
def test_spiral_rules_make_never_folding_optimal_and_the_value_zero(payoff):
    table = tabulate(f"kuhn_poker(rules=spiral,payoff={payoff})")
    assert set(np.unique(table.returns[table.kind == TERMINAL])) == {-1.0, 1.0}
    assert table.turns[0].player == 1  # player 1 opens hand 1
    never_fold = {
        turn.infoset: {"call": 1.0} if "call" in turn.legal_actions else {"check": 0.5, "bet": 0.5}
        for turn in table.turns
    }
    # Each seat holds the other to 0 by never folding, so 0 is the value and never folding is optimal.
    assert best_reply_value(table, never_fold, 0) == pytest.approx(0, abs=1e-12)
    assert best_reply_value(table, never_fold, 1) == pytest.approx(0, abs=1e-12)
    # The equilibrium of the right rules gives something away there.
    folds_sometimes = {
        f"{1 - int(infoset[0])}{infoset[1:]}": actions for infoset, actions in equilibrium(1 / 3).items()
    }
    assert best_reply_value(table, folds_sometimes, 0) > 0.01


def tree(name):
    """All decision points of a game as (turn, finished hands, current deal, its actions), through the text."""
    rounds = parse_name(name)[1]["rounds"]
    for hands in itertools.product(itertools.product(DEALS, LINES), repeat=rounds):
        _, turns = play(name, hands)
        position = iter(turns)
        for number, (deal, line) in enumerate(hands):
            actions = line.split()
            for i in range(len(actions)):
                yield next(position), hands[:number], deal, actions[:i]
        assert next(position, None) is None


@pytest.mark.parametrize("name", ["kuhn_poker", "kuhn_poker(observation=compact)", "kuhn_poker(rounds=2)"])
@pytest.mark.parametrize("rules", ["canonical", "spiral"])
def test_a_prompt_tells_exactly_what_the_seat_has_seen(name, rules):
    name = name.rstrip(")") + ("," if "(" in name else "(") + f"rules={rules})"
    opens_first = int(rules == "spiral")
    seen = {}
    for turn, finished, deal, actions in tree(name):
        player = turn.player
        cards, shown, known = [], [], [player]
        for number, (past_deal, line) in enumerate([*finished, (deal, None)]):
            opener = (number + opens_first) % 2
            cards.append(past_deal[0] if player == opener else past_deal[1])
            if line is not None and not line.endswith("fold"):
                shown.append((number, past_deal[1] if player == opener else past_deal[0]))
            known.append((cards[-1], line))
        assert player == (len(finished) + opens_first + len(actions)) % 2
        knowledge = (*known, tuple(shown), tuple(actions))
        text = turn.messages[0]["content"]
        # The same knowledge gives the same prompt, whatever the other seat holds: no leak.
        assert seen.setdefault(knowledge, (text, turn.infoset, turn.legal_actions)) == (
            text,
            turn.infoset,
            turn.legal_actions,
        )
        # Only own cards and those shown down stand in it, outside the rules.
        situation = "\n".join(line for line in text.split("\n") if not line.startswith("Rules:"))
        assert sorted(re.findall(r"\b[JQK]\b", situation)) == sorted([*cards, *(card for _, card in shown)])
        assert len(turn.messages) == 1 and turn.messages[0]["role"] == "user"
        assert turn.role == f"player {player}"
    # Different knowledge gives different prompts and information sets: perfect recall is in the text.
    assert len({text for text, _, _ in seen.values()}) == len(seen)
    assert len({infoset for _, infoset, _ in seen.values()}) == len(seen)


def test_infoset_keys_and_compact_prompts():
    for turn, _, deal, actions in tree("kuhn_poker(observation=compact)"):
        card = deal[turn.player]
        assert turn.infoset == f"{turn.player}|{card}|{' '.join(actions)}"
        history = " ".join(actions) if actions else "none"
        assert turn.messages[0]["content"] == f"player {turn.player} card {card} history {history}"


def random_match(rng, rounds):
    return [(DEALS[rng.integers(6)], LINES[rng.integers(5)]) for _ in range(rounds)]


@pytest.mark.parametrize("rounds", [2, 5])
def test_matches_add_up(rounds):
    rng = np.random.default_rng(0)
    results = set()
    for _ in range(200):
        hands = random_match(rng, rounds)
        won = [hand_chips(*hand) * (1 if i % 2 == 0 else -1) for i, hand in enumerate(hands)]
        chips, turns = play(f"kuhn_poker(rounds={rounds},payoff=chips)", hands)
        sign, _ = play(f"kuhn_poker(rounds={rounds})", hands)
        assert chips.returns() == (sum(won), -sum(won))
        assert sign.returns() == (np.sign(sum(won)), -np.sign(sum(won)))
        assert [turn.index for turn in turns] == list(range(len(turns)))
        # The opponent's chips, as the prompts of the last hand state them.
        assert (
            f"Chips so far: player 0 {sum(won[:-1]):+d}, player 1 {-sum(won[:-1]):+d}."
            in turns[-1].messages[0]["content"]
        )
        results.add(sign.returns())
    assert results == {(1, -1), (-1, 1), (0, 0)}
    assert make_game(f"kuhn_poker(rounds={rounds},payoff=chips)").worst_returns == (-2 * rounds, -2 * rounds)
    assert make_game(f"kuhn_poker(rounds={rounds})").worst_returns == (-1, -1)


def test_spiral_matches_go_to_the_winner_of_the_last_hand():
    rng = np.random.default_rng(1)
    against_the_chips = 0
    for _ in range(200):
        hands = random_match(rng, 5)
        # Player 1 opens hands 1, 3 and 5; every hand is worth one chip.
        won = [(1 if hand_chips(*hand) > 0 else -1) * (-1 if i % 2 == 0 else 1) for i, hand in enumerate(hands)]
        sign, _ = play("kuhn_poker(rounds=5,rules=spiral)", hands)
        chips, _ = play("kuhn_poker(rounds=5,rules=spiral,payoff=chips)", hands)
        assert sign.returns() == (won[-1], -won[-1])
        assert chips.returns() == (sum(won), -sum(won))
        against_the_chips += won[-1] * sum(won) < 0
    assert against_the_chips > 10
    assert make_game("kuhn_poker(rounds=5,rules=spiral)").worst_returns == (-1, -1)
    assert make_game("kuhn_poker(rounds=5,rules=spiral,payoff=chips)").worst_returns == (-5, -5)


def test_a_long_match_has_no_table_and_says_so_quickly():
    start = time.process_time()
    assert tabulate("kuhn_poker(rounds=5)") is None
    assert time.process_time() - start < 3


def test_a_match_of_two_hands_has_a_table():
    table = tabulate("kuhn_poker(rounds=2,payoff=chips)")
    # 28 inner nodes of hand 1, and the 58 of hand 2 after each of its 30 ends.
    assert len(table.kind) == 28 + 30 * 58
    policy = {}
    for turn in table.turns:
        *_, now = turn.infoset.split("|", 1)[1].split(" / ")
        opens = turn.infoset.count(" / ") % 2 == turn.player
        policy[turn.infoset] = equilibrium(0.1)[f"{0 if opens else 1}|{now}"]
    # Each seat opens once, so the two values cancel.
    assert expected(table, policy) == pytest.approx((0, 0), abs=1e-12)


def deal_of(game):
    return game.turns()[0].state.state.to_string()[:3]


def test_deals_are_uniform_over_seeds():
    game = make_game("kuhn_poker(rounds=2)")
    firsts, pairs = [], []
    for seed in derive_seeds(0, np.arange(6000)):
        game.reset(int(seed))
        first = deal_of(game)
        for action in ("bet", "fold"):
            game.step({game.turns()[0].player: action})
        firsts.append(first)
        pairs.append(first + "," + deal_of(game))
    # Upper 0.1% points of chi-square with 5 and 35 degrees of freedom.
    for sample, cells, limit in ((firsts, 6, 20.5), (pairs, 36, 66.6)):
        counts = np.unique(sample, return_counts=True)[1]
        assert len(counts) == cells
        assert ((counts - 6000 / cells) ** 2 / (6000 / cells)).sum() < limit


def test_cards_are_drawn_one_by_one_in_the_order_of_the_hands():
    game = make_game("kuhn_poker(rounds=2,rules=spiral)")
    chance = Script([2, 0, 1, 1])
    game.reset(0, chance=chance)
    assert chance.asked == [(1 / 3,) * 3, (1 / 2,) * 2]
    assert game.turns()[0].infoset == "1|K|"
    game.step({1: "bet"})
    assert game.turns()[0].infoset == "0|J|bet"
    game.step({0: "fold"})
    assert chance.asked == [(1 / 3,) * 3, (1 / 2,) * 2] * 2
    assert game.turns()[0].infoset == "0|J|bet fold|? / Q|"
    game.step({0: "check"})
    assert game.turns()[0].infoset == "1|K|bet fold|? / K|check"


def test_games_played_side_by_side_do_not_disturb_each_other():
    alone = [transcript("kuhn_poker(rounds=3)", seed) for seed in (0, 1)]
    games = [make_game("kuhn_poker(rounds=3)") for _ in range(2)]
    for seed, game in enumerate(games):
        game.reset(seed)
    prompts = ["", ""]
    while any(game.turns() for game in games):
        for seed, game in enumerate(games):
            for turn in game.turns():
                prompts[seed] += turn.messages[0]["content"]
                assert turn.messages[0]["content"] in alone[seed]
                game.step({turn.player: turn.legal_actions[derive_seeds(seed, turn.index) % 2]})
    assert all(prompts)


def test_the_solver_state_stands_where_the_turn_stands():
    for turn, _, deal, actions in tree("kuhn_poker"):
        attached = turn.state
        assert attached.state.current_player() == turn.player and attached.part is None
        expected_actions = {"fold": 0, "call": 1} if "bet" in actions else {"check": 0, "bet": 1}
        assert attached.actions == expected_actions
        assert attached.state.history()[:2] == ["JQK".index(card) for card in deal]
        assert len(attached.state.history()) == 2 + len(actions)
    match = make_game("kuhn_poker(rounds=2)")
    match.reset(0)
    assert match.turns()[0].state.part == "hand"
    for name in ("kuhn_poker(payoff=sign)", "kuhn_poker(rules=spiral)", "kuhn_poker(rounds=2,rules=spiral)"):
        other = make_game(name)
        other.reset(0)
        assert other.turns()[0].state is None
