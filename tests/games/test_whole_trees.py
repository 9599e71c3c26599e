"""What holds at every node of small games: ends, recall, privacy, and OpenSpiel's own tree where the game has one.

To add a game, append it to `GAMES`: its name, the OpenSpiel game whose tree and payoffs it has (`None` where there is
none), and whether its prompts tell a seat all it knows (`words`) or the newest position alone (`latest`). Games whose
tables are graphs of positions stand in `BOARDS`.
"""

from collections import Counter
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyspiel
import pytest
from toy_games import EndOfScript, Script

from spiral_trl.games import game_names, make_game, tabulate
from spiral_trl.games.registry import parse_name
from spiral_trl.games.sequence_form import sequence_form
from spiral_trl.games.solver_state import SolverState
from spiral_trl.games.table import CHANCE, DECISION, TERMINAL
from spiral_trl.records import Ending


STYLES = ("words", "latest", "compact")
GAMES = [
    ("kuhn_poker", "kuhn_poker", "words"),
    ("kuhn_poker(observation=latest)", "kuhn_poker", "words"),
    ("kuhn_poker(observation=compact)", "kuhn_poker", "words"),
    ("kuhn_poker(payoff=sign)", None, "words"),
    ("kuhn_poker(rounds=2)", None, "words"),
    ("kuhn_poker(rounds=2,payoff=chips)", None, "words"),
    ("kuhn_poker(rounds=2,observation=latest)", None, "latest"),
    ("kuhn_poker(rounds=2,rules=spiral)", None, "words"),
    ("kuhn_poker(rules=spiral)", None, "words"),
    ("kuhn_poker(rules=spiral,observation=compact)", None, "words"),
    ("kuhn_poker(seat_bonus=1)", None, "words"),
    ("kuhn_poker(cards=5)", None, "words"),
    ("kuhn_poker(observation=compact,cards=5)", None, "words"),
    *((f"leduc_poker(observation={style})", "leduc_poker(suit_isomorphism=True)", "words") for style in STYLES),
    ("leduc_poker(payoff=sign)", None, "words"),
    *((f"liars_dice(dice_sides=3,observation={style})", "liars_dice(dice_sides=3)", "words") for style in STYLES),
    ("liars_dice(dice_sides=4)", "liars_dice(dice_sides=4)", "words"),
    ("liars_dice(numdice=2,dice_sides=2)", None, "words"),
    ("connect_four(rows=3,columns=3,line=3)", "connect_four(rows=3,columns=3,x_in_row=3)", "words"),
    *(
        (f"pig(target=3,horizon=5,observation={style})", "pig(winscore=3,horizon=5)", kept)
        for style, kept in zip(STYLES, ("words", "latest", "latest"), strict=True)
    ),
    ("pig(target=3,players=3,horizon=4)", "pig(winscore=3,players=3,horizon=4)", "words"),
    ("openspiel:kuhn_poker", "kuhn_poker", "words"),
    ("openspiel:kuhn_poker(players=3)", "kuhn_poker(players=3)", "words"),
    ("openspiel:kuhn_poker(observation=latest)", "kuhn_poker", "latest"),
    ("openspiel:leduc_poker", "leduc_poker", "words"),
    ("openspiel:liars_dice(dice_sides=3)", "liars_dice(dice_sides=3)", "words"),
    ("openspiel:dark_hex(board_size=2)", "dark_hex(board_size=2)", "words"),
    ("openspiel:coordinated_mp", "coordinated_mp", "words"),
    ("openspiel:nim(pile_sizes=1;2;3)", "nim(pile_sizes=1;2;3)", "words"),
    ("openspiel:nim(pile_sizes=1;2;3,observation=latest)", "nim(pile_sizes=1;2;3)", "latest"),
    ("openspiel:pig(winscore=3,diceoutcomes=2,horizon=5)", "pig(winscore=3,diceoutcomes=2,horizon=5)", "words"),
    ("openspiel:matrix_rpsw", "turn_based_simultaneous_game(game=matrix_rpsw())", "words"),
    (
        "openspiel:goofspiel(num_cards=3)",
        "turn_based_simultaneous_game(game=goofspiel(num_cards=3))",
        "words",
    ),
    (
        "openspiel:goofspiel(num_cards=3,points_order=descending)",
        "turn_based_simultaneous_game(game=goofspiel(num_cards=3,points_order=descending))",
        "words",
    ),
    (
        "openspiel:oshi_zumo(coins=2,horizon=3,size=1)",
        "turn_based_simultaneous_game(game=oshi_zumo(coins=2,horizon=3,size=1))",
        "words",
    ),
]


class Point(NamedTuple):
    """A point of a game. `what` is, by `kind`, the probabilities at `chance`, the `turns`, or the game at its `end`.

    `last` is the turns and the actions just before, where nothing was drawn since; `script` all outcomes of chance,
    `played` all actions, and `pasts` for each seat the prompts it read and what it did.
    """

    kind: str
    what: Any
    last: Any
    script: tuple
    played: tuple
    pasts: tuple


@lru_cache(maxsize=2)
def histories(name):
    """Every point of the game, by replaying it from its start."""
    points = []
    stack = [((), (), None, ((),) * make_game(name).num_players)]
    while stack:
        script, played, last, pasts = stack.pop()
        game = make_game(name)
        try:
            game.reset(0, chance=Script(script))
            for actions in played:
                game.step(actions)
        except EndOfScript as end:
            (probabilities,) = end.args
            points.append(Point("chance", probabilities, last, script, played, pasts))
            stack += [((*script, i), played, None, pasts) for i, p in enumerate(probabilities) if p > 0]
            continue
        turns = game.turns()
        if not turns:
            points.append(Point("end", game, last, script, played, pasts))
            continue
        points.append(Point("turns", turns, last, script, played, pasts))
        joint = [{}]
        for turn in turns:
            joint = [{**chosen, turn.player: action} for chosen in joint for action in turn.legal_actions]
        for chosen in joint:
            after = list(pasts)
            for turn in turns:
                after[turn.player] = (*pasts[turn.player], (read(turn), chosen[turn.player]))
            stack.append((script, (*played, chosen), (turns, chosen), tuple(after)))
    return points


def read(turn):
    return tuple(message["content"] for message in turn.messages)


@lru_cache(maxsize=8)
def library_tree(name):
    """Counts of nodes by kind, and of returns, in OpenSpiel's tree."""
    kinds, returns = Counter(), Counter()
    stack = [pyspiel.load_game(name).new_initial_state()]
    while stack:
        state = stack.pop()
        kinds[TERMINAL if state.is_terminal() else CHANCE if state.is_chance_node() else DECISION] += 1
        if state.is_terminal():
            returns[tuple(np.round(state.returns(), 9) + 0.0)] += 1
            continue
        chances = state.chance_outcomes() if state.is_chance_node() else [(a, 1) for a in state.legal_actions()]
        stack += [state.child(action) for action, probability in chances if probability > 0]
    return kinds, returns


@pytest.fixture(scope="module", params=GAMES, ids=[name for name, *_ in GAMES])
def case(request):
    """Name, OpenSpiel's game and style; all tests of a game before the next, so that its histories are walked once."""
    return request.param


def test_every_history_is_well_formed(case):
    name, _, _ = case
    probe = make_game(name)
    for kind, what, *_ in histories(name):
        if kind == "chance":
            assert sum(what) == pytest.approx(1) and min(what) >= 0
        elif kind == "turns":
            assert len({turn.player for turn in what}) == len(what)
            for turn in what:
                assert turn.legal_actions and len(set(turn.legal_actions)) == len(turn.legal_actions)
                assert turn.game == probe.name and turn.role == probe.roles[turn.player]
        else:
            assert not what.turns()
            if "horizon" in name and what.ending is Ending.TRUNCATED:
                assert set(what.returns()) == {0.0}
                continue
            assert what.ending is Ending.TERMINAL
            assert sum(what.returns()) == pytest.approx(0, abs=1e-9)
            assert all(got >= worst for got, worst in zip(what.returns(), probe.worst_returns, strict=True))


def test_the_tree_is_that_of_the_library(case):
    name, library, _ = case
    if library is None:
        pytest.skip("OpenSpiel has no such game")
    table = tabulate(name)
    kinds, returns = library_tree(library)
    assert {kind: int((table.kind == kind).sum()) for kind in kinds} == dict(kinds)
    assert len(table.kind) == sum(kinds.values())
    ends = table.returns[table.kind == TERMINAL]
    assert Counter(tuple(row) for row in np.round(ends, 9) + 0.0) == returns
    checked = 0
    for kind, what, last, *_ in histories(name):
        if kind != "end" or last is None:
            continue
        (turn, *others), chosen = last
        if not others and isinstance(turn.state, SolverState):
            end = turn.state.state.child(turn.state.actions[chosen[turn.player]])
            assert end.is_terminal() and tuple(end.returns()) == what.returns()
            checked += 1
    assert checked > 0 or library.startswith("turn_based")


def test_seats_have_perfect_recall(case):
    """What a seat reads tells all that it read and did before, unless it reads the newest position alone."""
    name, _, style = case
    if style == "words":
        pasts = {}
        for point in histories(name):
            for turn in point.what if point.kind == "turns" else ():
                past = point.pasts[turn.player]
                assert pasts.setdefault((turn.player, read(turn)), past) == past
        assert pasts
    form = sequence_form(tabulate(name))
    if style == "words":
        assert form.remembered
        assert sum(len(seat.parent) for seat in form.seats) == len({(t.player, t.infoset) for t in form.table.turns})


def test_a_prompt_tells_what_the_seat_knows_and_nothing_else(case):
    """Histories that OpenSpiel says a seat cannot tell apart read alike, byte for byte; others read differently."""
    name, library, style = case
    prompts, keys, known = {}, {}, {}
    compared = 0
    for kind, turns, *_ in histories(name):
        if kind != "turns":
            continue
        for turn in turns:
            text = read(turn)
            if turn.infoset is not None:
                prompts.setdefault((turn.player, turn.infoset), set()).add((text, turn.legal_actions))
            keys.setdefault((turn.player, text), set()).add(turn.infoset)
            if isinstance(turn.state, SolverState) and turn.state.part is None:
                private = turn.state.state.information_state_string(turn.player) if has_strings(library) else None
                known.setdefault((turn.player, private or str(turn.state.state.history())), set()).add(text)
                compared += 1
    assert all(len(texts) == 1 for texts in prompts.values())
    if style == "words":
        assert all(len(infosets) == 1 for infosets in keys.values())
    if library is not None and not library.startswith("turn_based"):
        assert compared > 0
        assert all(len(texts) == 1 for texts in known.values())
        if style == "words":
            assert len({(player, *texts) for (player, _), texts in known.items()}) == len(known)


def has_strings(library):
    return library is None or pyspiel.load_game(library).get_type().provides_information_state_string


@pytest.mark.parametrize(
    "name",
    ["openspiel:goofspiel(num_cards=3,points_order=descending)", "openspiel:oshi_zumo(coins=2,horizon=3,size=1)"],
)
def test_seats_that_choose_together_read_what_all_chose_before(name):
    points = 0
    for kind, turns, last, *_ in histories(name):
        if kind != "turns" or last is None:
            continue
        _, chosen = last
        for turn in turns:
            told = turn.messages[0]["content"].split("Moves so far: ")[1].split(".\n")[0].split("; ")
            assert told[-len(chosen) :] == [f"player {player} {action}" for player, action in sorted(chosen.items())]
        points += 1
    assert points > 5


# ------------------------------------------------------------------------------------- what the rules let a seat know


def known_in_kuhn_poker(values, script, moves, seat):
    """Own cards, all actions, and the other's card where it was shown."""
    opener, ends = int(values["rules"] == "spiral"), {"check check", "bet fold", "bet call"}
    ends |= {"check bet fold", "check bet call"}
    hands, start = [], 0
    for hand, (first, second) in enumerate(zip(script[::2], script[1::2], strict=True)):
        deck = list(range(values["cards"]))
        cards = [deck.pop(first), deck.pop(second)]
        mine = (seat + opener + hand) % 2
        stop = next((end for end in range(start, len(moves) + 1) if " ".join(moves[start:end]) in ends), len(moves))
        actions = moves[start:stop]
        shown = " ".join(actions) in ends and actions[-1] != "fold"
        hands.append((cards[mine], tuple(actions), cards[1 - mine] if shown else None))
        start = stop
    return tuple(hands)


def known_in_leduc_poker(values, script, moves, seat):
    """Own card, the public card once it is dealt, all actions."""
    left = [2, 2, 2]
    cards = []
    for outcome in script:
        rank = [rank for rank in range(3) if left[rank]][outcome]
        left[rank] -= 1
        cards.append(rank)
    return cards[seat], cards[2:], moves


def known_in_liars_dice(values, script, moves, seat):
    """Own dice, in whatever order they fell, and all bids."""
    count = values["numdice"]
    return sorted(script[seat * count : (seat + 1) * count]), moves


KNOWN = {
    "kuhn_poker": known_in_kuhn_poker,
    "leduc_poker": known_in_leduc_poker,
    "liars_dice": known_in_liars_dice,
    # Nothing is private
    "connect_four": lambda values, script, moves, seat: moves,
    "pig": lambda values, script, moves, seat: (script, moves),
}


@pytest.mark.parametrize(("name", "style"), [(name, style) for name, _, style in GAMES if ":" not in name])
def test_histories_that_the_rules_let_nobody_tell_apart_read_alike(name, style):
    base, values = parse_name(name)
    texts = {}
    for point in histories(name):
        for turn in point.what if point.kind == "turns" else ():
            moves = [action for actions in point.played for action in actions.values()]
            known = (turn.player, repr(KNOWN[base](values, point.script, moves, turn.player)))
            texts.setdefault(known, set()).add((read(turn), turn.legal_actions, turn.infoset))
    assert texts and all(len(told) == 1 for told in texts.values())
    if style == "words":
        assert len({(known[0], *told) for known, told in texts.items()}) == len(texts)
    else:
        assert len({(known[0], *told) for known, told in texts.items()}) < len(texts)


def test_every_game_with_words_of_its_own_is_here():
    """But those that have no table: offers are free text."""
    trees = {parse_name(name)[0] for name, *_ in (*GAMES, *BOARDS)}
    assert set(game_names()) - trees == {"simple_negotiation"}
    told = {(parse_name(name)[0], parse_name(name)[1]["observation"]) for name, *_ in (*GAMES, *BOARDS)}
    for base in set(game_names()) & trees - {"tic_tac_toe"}:
        assert {(base, style) for style in STYLES} <= told, base


# --------------------------------------------------------------------------------------------------------------- boards


BOARDS = [
    *((f"tic_tac_toe(observation={style})", "tic_tac_toe") for style in STYLES[1:]),
    ("openspiel:tic_tac_toe(observation=latest)", "tic_tac_toe"),
    *(
        (f"connect_four(rows=3,columns=3,line=3,observation={style})", "connect_four(rows=3,columns=3,x_in_row=3)")
        for style in STYLES[1:]
    ),
]


@pytest.mark.parametrize(("name", "library"), BOARDS)
def test_graphs_of_positions(name, library):
    """As many positions as in OpenSpiel, each with its own prompt, and every move leads where it does there."""
    table = tabulate(name)
    assert not table.is_tree and table.num_players == 2
    start = pyspiel.load_game(library).new_initial_state()
    node_of, stack, asked = {str(start): 0}, [start], set()
    while stack:
        state = stack.pop()
        node = node_of[str(state)]
        if state.is_terminal():
            assert table.kind[node] == TERMINAL and tuple(table.returns[node]) == tuple(state.returns())
            assert table.returns[node].sum() == 0 and not table.truncated[node]
            continue
        turn = table.turns[table.turn[node]]
        assert table.kind[node] == DECISION and table.player[node] == turn.player == state.current_player()
        assert sorted(turn.state.actions[word] for word in turn.legal_actions) == state.legal_actions()
        asked.add(read(turn))
        for word, action in turn.state.actions.items():
            after = state.child(action)
            child = int(table.child[node, table.actions.index(word)])
            if str(after) not in node_of:
                node_of[str(after)] = child
                stack.append(after)
            assert node_of[str(after)] == child
    assert sorted(node_of.values()) == list(range(len(table.kind)))
    assert len(asked) == len(table.turns) == (table.kind == DECISION).sum()
