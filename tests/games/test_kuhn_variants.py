"""Kuhn poker with more cards, and its prompts without finished hands."""

import itertools
import re

import numpy as np
import pytest
from game_checks import counts
from toy_games import Script

from spiral_trl.games import canonical_name, make_game, tabulate
from spiral_trl.games.kuhn_poker import KuhnPoker
from spiral_trl.games.sequence_form import sequence_form, solvable_table, solve
from spiral_trl.games.table import TERMINAL


LINES = ("check check", "check bet fold", "check bet call", "bet fold", "bet call")
FIVE = ("9", "10", "J", "Q", "K")
ALL = ("2", "3", "4", "5", "6", "7", "8", *FIVE)


def play(name, hands, deck):
    """Plays hands, ((opener's card, other card), line) each; answers the game and all turns."""
    outcomes = []
    for (first, second), _ in hands:
        left = list(deck)
        outcomes += [left.index(first)]
        left.remove(first)
        outcomes += [left.index(second)]
    chance = Script(outcomes)
    game = make_game(name)
    game.reset(0, chance=chance)
    turns = []
    for _, line in hands:
        for action in line.split():
            (turn,) = game.turns()
            turns.append(turn)
            parsed = game.parse(turn.player, f"[{action}]")
            game.step({turn.player: parsed.action})
    size = len(deck)
    assert chance.asked == [(1 / size,) * size, (1 / (size - 1),) * (size - 1)] * len(hands)
    return game, turns


def opener_wins(deal, line, deck):
    """Chips won by the opener, from the rules as Kuhn wrote them."""
    if line == "bet fold":
        return 1
    if line == "check bet fold":
        return -1
    stake = 2 if line.endswith("call") else 1
    return stake if deck.index(deal[0]) > deck.index(deal[1]) else -stake


@pytest.mark.parametrize("cards", [4, 5, 12])
def test_every_path_of_a_larger_deck(cards):
    deck = ALL[-cards:]
    for deal in itertools.permutations(deck, 2):
        for line in LINES:
            chips = opener_wins(deal, line, deck)
            game, turns = play(f"kuhn_poker(cards={cards})", [(deal, line)], deck)
            assert game.returns() == (chips, -chips)
            for i, turn in enumerate(turns):
                words = line.split()[:i]
                assert turn.player == i % 2 and turn.state is None
                assert turn.legal_actions == (("fold", "call") if "bet" in words else ("check", "bet"))
                assert turn.infoset == f"{turn.player}|{deal[turn.player]}|{' '.join(words)}"
                situation = turn.messages[0]["content"].split("\n")[3]
                told = ", ".join(
                    f"player {seat % 2} {'checked' if word == 'check' else 'bet'}" for seat, word in enumerate(words)
                )
                assert situation == f"Your card is {deal[turn.player]}. Moves so far: {told or 'none'}."


@pytest.mark.parametrize("cards", [3, 4, 5, 12])
@pytest.mark.parametrize("observation", ["words", "latest", "compact"])
def test_sizes_of_the_tree(cards, observation):
    table = tabulate(f"kuhn_poker(cards={cards},observation={observation})")
    deals = cards * (cards - 1)
    assert counts(table) == (4 * deals, 1 + cards, 5 * deals)
    assert len(table.turns) == len({turn.infoset for turn in table.turns}) == 4 * cards
    assert len({turn.messages[0]["content"] for turn in table.turns}) == 4 * cards
    assert not table.returns[table.kind == TERMINAL].sum(1).any()
    assert table.worst_returns == (-2, -2)
    reached = {0: 1.0}
    for node in range(len(table.kind)):
        for column, child in enumerate(table.child[node]):
            if child >= 0 and node in reached and table.turn[node] < 0:
                reached[int(child)] = reached[node] * table.chance_probabilities(node)[column]
    at_decisions = [p for node, p in reached.items() if table.turn[node] >= 0]
    assert np.allclose(at_decisions, 1 / deals) and len(at_decisions) == deals


def test_rules_name_the_deck():
    text = tabulate("kuhn_poker(cards=5)").turns[0].messages[0]["content"]
    assert "Rules: The deck is 9, 10, J, Q, K; 9 is the lowest card and K the highest. Each player antes" in text
    text = tabulate("kuhn_poker(cards=12)").turns[0].messages[0]["content"]
    assert "The deck is 2, 3, 4, 5, 6, 7, 8, 9, 10, J, Q, K; 2 is the lowest card" in text


def test_the_equilibrium_of_five_cards_against_trying_all_pure_replies():
    """OpenSpiel has no such game, so that the value is held by best replies, found by enumeration."""
    table = tabulate("kuhn_poker(cards=5)")
    policy = solve(table, tolerance=1e-5)
    by_key = {turn.infoset: dict(zip(table.actions, policy[u], strict=True)) for u, turn in enumerate(table.turns)}

    def line_probability(deal, line, seat):
        """Probability that the seat's own moves are those of the line."""
        words, p = line.split(), 1.0
        for i in range(seat, len(words), 2):
            p *= by_key[f"{seat}|{FIVE[deal[seat]]}|{' '.join(words[:i])}"][words[i]]
        return p

    deals = list(itertools.permutations(range(5), 2))
    # A card's best reply does not depend on what the seat does with others, so each card is tried alone
    best = [0.0, 0.0]
    for card in range(5):
        for seat, plans in ((0, ("check fold", "check call", "bet")), (1, itertools.product("cb", "fc"))):
            values = []
            for plan in plans:
                value = 0.0
                for deal in (d for d in deals if d[seat] == card):
                    if seat == 0:
                        lines = {"check fold": ("check check", "check bet fold"), "bet": ("bet fold", "bet call")}
                        reached = lines.get(plan, ("check check", "check bet call"))
                    else:
                        after_check = ("check check",) if plan[0] == "c" else ("check bet fold", "check bet call")
                        reached = (*after_check, "bet fold" if plan[1] == "f" else "bet call")
                    for line in reached:
                        chips = opener_wins(deal, line, tuple(range(5)))
                        value += line_probability(deal, line, 1 - seat) * (chips if seat == 0 else -chips) / len(deals)
                values.append(value)
            best[seat] += max(values)
    assert 0 <= best[0] + best[1] < 1e-4
    value, replies = sequence_form(table).evaluate(policy, np.zeros(len(table.turns)))
    assert replies == pytest.approx(best, abs=1e-12)
    assert value[0] == pytest.approx(-1 / 15, abs=1e-4)


@pytest.mark.parametrize("cards", [3, 5])
def test_matches_rules_payoffs_and_bonus_with_more_cards(cards):
    deck = ALL[-cards:]
    rng = np.random.default_rng(cards)
    deals = list(itertools.permutations(deck, 2))
    for _ in range(100):
        hands = [(deals[rng.integers(len(deals))], LINES[rng.integers(5)]) for _ in range(3)]
        won = [opener_wins(deal, line, deck) * (1 if i % 2 == 0 else -1) for i, (deal, line) in enumerate(hands)]
        total = sum(won)
        prefix = f"kuhn_poker(cards={cards},rounds=3"
        assert play(f"{prefix},payoff=chips)", hands, deck)[0].returns() == (total, -total)
        assert play(f"{prefix})", hands, deck)[0].returns() == (np.sign(total), -np.sign(total))
        bonus = play(f"{prefix},payoff=chips,seat_bonus=1.5)", hands, deck)[0]
        assert bonus.returns() == (total + 1.5, -total - 1.5)
        released = [-np.sign(chips) for chips in won]  # player 1 opens hand 1, every hand is worth one chip
        spiral = play(f"{prefix},rules=spiral,payoff=chips)", hands, deck)[0]
        assert spiral.returns() == (sum(released), -sum(released))
        assert play(f"{prefix},rules=spiral)", hands, deck)[0].returns()[0] == released[-1]


@pytest.mark.parametrize("cards", [3, 5])
def test_no_prompt_of_a_match_tells_a_hidden_card(cards):
    deck = ALL[-cards:]
    rng = np.random.default_rng(1)
    deals = list(itertools.permutations(deck, 2))
    ranks = "|".join(deck)
    for observation in ("words", "latest"):
        for _ in range(60):
            hands = [(deals[rng.integers(len(deals))], LINES[rng.integers(5)]) for _ in range(3)]
            _, turns = play(f"kuhn_poker(cards={cards},rounds=3,observation={observation})", hands, deck)
            at = iter(turns)
            for number, (deal, line) in enumerate(hands):
                for _ in line.split():
                    turn = next(at)
                    seat_in_hand = (turn.player - number) % 2
                    seen = [deal[seat_in_hand]]
                    for past, (past_deal, past_line) in enumerate(hands[:number] if observation == "words" else []):
                        own = (turn.player - past) % 2
                        seen.append(past_deal[own])
                        seen += [past_deal[1 - own]] if not past_line.endswith("fold") else []
                    text = turn.messages[0]["content"].split("\n", 2)[2]
                    cards_told = re.findall(rf"(?:card is|card was|showed) ({ranks})\b", text)
                    assert sorted(cards_told) == sorted(seen)
                    assert set(re.findall(r"\b(?:J|Q|K|10)\b", text)) <= set(seen)


def test_latest_leaves_out_finished_hands_and_keeps_the_chips():
    hands = [(("K", "J"), "bet call"), (("Q", "K"), "check bet fold"), (("J", "Q"), "check check")]
    _, words = play("kuhn_poker(rounds=3)", hands, ALL[-3:])
    _, latest = play("kuhn_poker(rounds=3,observation=latest)", hands, ALL[-3:])
    for long, short in zip(words, latest, strict=True):
        assert short.infoset is None and long.infoset is not None
        kept = [
            line for line in long.messages[0]["content"].split("\n") if not re.match(r"Hand \d: your card was", line)
        ]
        assert short.messages[0]["content"].split("\n") == kept
        assert short.state.part == "hand" and short.state.state.history() == long.state.state.history()
    assert "Chips so far: player 0 +3, player 1 -3.\nHand 3: Your card is J." in latest[-2].messages[0]["content"]


@pytest.mark.parametrize("name", ["kuhn_poker", "kuhn_poker(rules=spiral)", "kuhn_poker(cards=5)"])
def test_latest_of_one_hand_reads_as_words(name):
    words, latest = tabulate(name), tabulate(name.rstrip(")") + ("," if "(" in name else "(") + "observation=latest)")
    assert [t.messages for t in words.turns] == [t.messages for t in latest.turns]
    assert [t.infoset for t in words.turns] == [t.infoset for t in latest.turns]


def test_a_match_without_its_history_has_no_equilibrium_to_compute_and_says_so():
    table = tabulate("kuhn_poker(rounds=2,observation=latest)")
    assert not sequence_form(table).remembered
    with pytest.raises(ValueError, match="does not tell its players what they did before"):
        solve(table)
    assert solvable_table("kuhn_poker(rounds=2,observation=latest)") is table
    assert solvable_table("kuhn_poker(rounds=2)") is tabulate("kuhn_poker(rounds=2)")
    assert solvable_table("kuhn_poker(rounds=5)") is None


def test_names():
    assert canonical_name("kuhn_poker(cards=3)") == "kuhn_poker" == KuhnPoker(cards=3).name
    assert KuhnPoker(cards=5, rounds=2).name == "kuhn_poker(rounds=2,cards=5)"
    for cards in (2, 13):
        with pytest.raises(ValueError, match=f"cards of kuhn_poker must be from 3 to 12, not {cards}"):
            make_game(f"kuhn_poker(cards={cards})")
    with pytest.raises(ValueError, match="observation=compact is for one hand"):
        make_game("kuhn_poker(cards=5,rounds=2,observation=compact)")
