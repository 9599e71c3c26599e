"""What the tests of several games share: games along a script, and a walk of the whole tree beside OpenSpiel's."""

import numpy as np
from toy_games import Script

from spiral_trl.games import make_game
from spiral_trl.games.table import CHANCE, DECISION, TERMINAL


def play(name, outcomes, actions):
    """Plays actions under scripted chance, through the text interface; answers the game."""
    game = make_game(name)
    game.reset(0, chance=Script(outcomes))
    for action in actions:
        (turn,) = game.turns()
        parsed = game.parse(turn.player, f"I choose [{action}]")
        assert parsed.error is None, parsed
        game.step({turn.player: parsed.action})
    return game


def beside_openspiel(table, spiel, spiel_action):
    """Walks a table and OpenSpiel's tree side by side and holds them together; yields (turn, state) at decisions.

    `spiel_action` translates a word into OpenSpiel's action, without the game's own translation.
    """
    stack = [(0, spiel.new_initial_state())]
    nodes = 0
    while stack:
        node, state = stack.pop()
        nodes += 1
        children = {column: int(child) for column, child in enumerate(table.child[node]) if child >= 0}
        if state.is_terminal():
            assert table.kind[node] == TERMINAL
            assert table.returns[node].tolist() == list(state.returns())
            continue
        if state.is_chance_node():
            assert table.kind[node] == CHANCE
            outcomes = state.chance_outcomes()
            given = table.chance_probabilities(node)[: len(outcomes)]
            assert np.allclose(given, [p for _, p in outcomes], atol=1e-15) and len(children) == len(outcomes)
            stack += [(children[i], state.child(outcome)) for i, (outcome, _) in enumerate(outcomes)]
            continue
        assert table.kind[node] == DECISION and table.player[node] == state.current_player()
        turn = table.turns[table.turn[node]]
        translated = {spiel_action(table.actions[column]): child for column, child in children.items()}
        assert sorted(translated) == sorted(state.legal_actions()) and len(translated) == len(children)
        assert {table.actions[column] for column in children} == set(turn.legal_actions)
        yield turn, state
        stack += [(child, state.child(action)) for action, child in translated.items()]
    assert nodes == len(table.kind)


def check_information_sets(pairs):
    """Our information sets and prompts, and OpenSpiel's information states, one-to-one; answers how many there are.

    So no prompt tells more, or less, than the seat knows.
    """
    ours, theirs, prompts = {}, {}, {}
    for turn, state in pairs:
        text, known = turn.messages[0]["content"], state.information_state_string()
        key = (turn.player, known)
        assert ours.setdefault(turn.infoset, key) == key
        assert theirs.setdefault(key, turn.infoset) == turn.infoset
        assert prompts.setdefault(text, key) == key
    assert len(ours) == len(theirs) == len(prompts)
    return len(ours)


def counts(table):
    """Numbers of decisions, chance nodes and ends."""
    return tuple(int((table.kind == kind).sum()) for kind in (DECISION, CHANCE, TERMINAL))


def spiel_counts(spiel):
    found = [0, 0, 0]
    stack = [spiel.new_initial_state()]
    while stack:
        state = stack.pop()
        found[2 if state.is_terminal() else 1 if state.is_chance_node() else 0] += 1
        stack += [] if state.is_terminal() else [state.child(action) for action in state.legal_actions()]
    return tuple(found)
