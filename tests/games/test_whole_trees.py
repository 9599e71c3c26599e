"""What holds at every node of small games: ends, recall, privacy, and OpenSpiel's own tree where the game has one.

To add a game, append it to `GAMES`: its name, the OpenSpiel game whose tree and payoffs it has (`None` where there is
none), and whether its prompts tell a seat all it knows (`words`) or the newest position alone (`latest`).
"""

from collections import Counter
from functools import lru_cache

import numpy as np
import pyspiel
import pytest

from spiral_trl.games import make_game, tabulate
from spiral_trl.games.sequence_form import sequence_form
from spiral_trl.games.solver_state import SolverState
from spiral_trl.games.table import CHANCE, DECISION, TERMINAL
from spiral_trl.records import Ending


GAMES = [
    ("kuhn_poker", "kuhn_poker", "words"),
    ("kuhn_poker(observation=compact)", "kuhn_poker", "words"),
    ("kuhn_poker(payoff=sign)", None, "words"),
    ("kuhn_poker(rounds=2,payoff=chips)", None, "words"),
    ("kuhn_poker(rules=spiral)", None, "words"),
    ("kuhn_poker(seat_bonus=1)", None, "words"),
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


class Script:
    """Chance that follows a list of outcomes and then stops the game."""

    class End(Exception):
        pass

    def __init__(self, outcomes):
        self.outcomes = list(outcomes)

    def choose(self, probabilities):
        if not self.outcomes:
            raise Script.End(list(probabilities))
        return self.outcomes.pop(0)


@lru_cache(maxsize=4)
def histories(name):
    """Every point of the game, by replaying it from its start: a list of (its probabilities, at chance), (its turns), or
    (the game, at an end), each with the turn and action before it where nothing was drawn since."""
    points = []
    stack = [((), (), None)]
    while stack:
        script, played, last = stack.pop()
        game = make_game(name)
        try:
            game.reset(0, chance=Script(script))
            for actions in played:
                game.step(actions)
        except Script.End as end:
            (probabilities,) = end.args
            points.append(("chance", probabilities, last))
            stack += [((*script, i), played, None) for i, p in enumerate(probabilities) if p > 0]
            continue
        turns = game.turns()
        if not turns:
            points.append(("end", game, last))
            continue
        points.append(("turns", turns, last))
        joint = [{}]
        for turn in turns:
            joint = [{**chosen, turn.player: action} for chosen in joint for action in turn.legal_actions]
        stack += [(script, (*played, chosen), (turns, chosen)) for chosen in joint]
    return points


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


every_game = pytest.mark.parametrize(("name", "library", "style"), GAMES, ids=[name for name, *_ in GAMES])


@every_game
def test_every_history_is_well_formed(name, library, style):
    probe = make_game(name)
    for kind, what, _ in histories(name):
        if kind == "chance":
            assert sum(what) == pytest.approx(1) and min(what) >= 0
        elif kind == "turns":
            assert len({turn.player for turn in what}) == len(what)
            for turn in what:
                assert turn.legal_actions and len(set(turn.legal_actions)) == len(turn.legal_actions)
                assert turn.game == probe.name and turn.role == probe.roles[turn.player]
        else:
            assert what.ending is Ending.TERMINAL and not what.turns()
            assert sum(what.returns()) == pytest.approx(0, abs=1e-9)
            assert all(got >= worst for got, worst in zip(what.returns(), probe.worst_returns, strict=True))


@every_game
def test_the_tree_is_that_of_the_library(name, library, style):
    if library is None:
        pytest.skip("OpenSpiel has no such game")
    table = tabulate(name)
    kinds, returns = library_tree(library)
    assert {kind: int((table.kind == kind).sum()) for kind in kinds} == dict(kinds)
    assert len(table.kind) == sum(kinds.values())
    ends = table.returns[table.kind == TERMINAL]
    assert Counter(tuple(row) for row in np.round(ends, 9) + 0.0) == returns
    checked = 0
    for kind, what, last in histories(name):
        if kind != "end" or last is None:
            continue
        (turn, *others), chosen = last
        if not others and isinstance(turn.state, SolverState):
            end = turn.state.state.child(turn.state.actions[chosen[turn.player]])
            assert end.is_terminal() and tuple(end.returns()) == what.returns()
            checked += 1
    assert checked > 0 or library.startswith("turn_based")


@every_game
def test_seats_have_perfect_recall(name, library, style):
    """What a seat reads tells its own moves before, unless it reads the newest position alone."""
    form = sequence_form(tabulate(name))
    if style == "words":
        assert form.remembered
        assert sum(len(seat.parent) for seat in form.seats) == len({(t.player, t.infoset) for t in form.table.turns})


@every_game
def test_a_prompt_tells_what_the_seat_knows_and_nothing_else(name, library, style):
    """Histories that OpenSpiel says a seat cannot tell apart read alike, byte for byte; others read differently."""
    prompts, keys, known = {}, {}, {}
    compared = 0
    for kind, turns, _ in histories(name):
        if kind != "turns":
            continue
        for turn in turns:
            text = tuple(message["content"] for message in turn.messages)
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
    for kind, turns, last in histories(name):
        if kind != "turns" or last is None:
            continue
        _, chosen = last
        for turn in turns:
            told = turn.messages[0]["content"].split("Moves so far: ")[1].split(".\n")[0].split("; ")
            assert told[-len(chosen) :] == [f"player {player} {action}" for player, action in sorted(chosen.items())]
        points += 1
    assert points > 5
