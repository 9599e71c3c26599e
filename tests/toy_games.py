"""Small games in the form of the package, for tests: any tree, one with simultaneous turns, OpenSpiel's as tables; and
chance that follows a script."""

import numpy as np
import pyspiel

from spiral_trl.games.chance import SeededChance
from spiral_trl.games.parsing import parse_action
from spiral_trl.games.table import CHANCE, DECISION, TERMINAL, GameTable
from spiral_trl.records import Ending, Parsed, Turn


class EndOfScript(Exception):
    """Its argument is what was asked: the probabilities."""


class Script:
    """Chance that follows a list of outcomes, then gives `rest` or raises [`EndOfScript`]; records what it was asked."""

    def __init__(self, outcomes=(), rest=None):
        self.outcomes = list(outcomes)
        self.rest = rest
        self.asked = []

    def choose(self, probabilities):
        self.asked.append(tuple(probabilities))
        if len(self.asked) <= len(self.outcomes):
            return self.outcomes[len(self.asked) - 1]
        if self.rest is None:
            raise EndOfScript(list(probabilities))
        return self.rest


class TreeGame:
    """A game given as a tree.

    Nodes are `("chance", [(weight, node), ...])`, `("turn", player, {action: node})`, `("free", player, node)` for free
    text, and `("end", returns)` or `("end", returns, ending)`. Seats see the actions so far and no chance outcome.
    """

    def __init__(self, name, tree, num_players=2):
        self.name = name
        self.tree = tree
        self.num_players = num_players
        self.roles = tuple(f"seat {player}" for player in range(num_players))
        self.worst_returns = (-1.0,) * num_players
        self.ending = None

    def reset(self, seed, chance=None):
        self.seed = seed
        self.chance = SeededChance(seed) if chance is None else chance
        self.history = []
        self.outcomes = []
        self._go(self.tree)

    def _go(self, node):
        while node[0] == "chance":
            outcome = self.chance.choose([weight for weight, _ in node[1]])
            self.outcomes.append(outcome)
            node = node[1][outcome][1]
        self.node = node
        if node[0] == "end":
            self.ending = node[2] if len(node) > 2 else Ending.TERMINAL

    def turns(self):
        if self.ending is not None:
            return ()
        player = self.node[1]
        legal = tuple(self.node[2]) if self.node[0] == "turn" else None
        messages = ({"role": "user", "content": f"{self.roles[player]}: {' '.join(self.history)}"},)
        return (Turn(self.name, 0, self.seed, len(self.history), player, self.roles[player], messages, legal),)

    def parse(self, player, text):
        if self.node[0] == "free":
            return Parsed(text.strip()) if text.strip() else Parsed(None, "said nothing")
        return parse_action(text, tuple(self.node[2]))

    def step(self, actions):
        (action,) = actions.values()
        self.history.append(action)
        self._go(self.node[2] if self.node[0] == "free" else self.node[2][action])

    def returns(self):
        return tuple(float(value) for value in self.node[1])


class Pennies:
    """Matching pennies, both seats asked at once, `rounds` times; the first wins where they match."""

    num_players = 2
    roles = ("even", "odd")

    def __init__(self, name="pennies", rounds=1):
        self.name = name
        self.rounds = rounds
        self.worst_returns = (-float(rounds), -float(rounds))
        self.ending = None

    def reset(self, seed, chance=None):
        self.seed = seed
        self.played = []

    def turns(self):
        if self.ending is not None:
            return ()
        content = f"round {len(self.played) + 1} after {self.played}"
        return tuple(
            Turn(
                self.name,
                0,
                self.seed,
                0,
                player,
                self.roles[player],
                ({"role": "system", "content": "Pennies."}, {"role": "user", "content": content}),
                ("heads", "tails"),
            )
            for player in (0, 1)
        )

    def parse(self, player, text):
        return parse_action(text, ("heads", "tails"))

    def step(self, actions):
        assert sorted(actions) == [0, 1]
        self.played.append((actions[0], actions[1]))
        if len(self.played) == self.rounds:
            self.ending = Ending.TERMINAL

    def returns(self):
        total = sum(1 if even == odd else -1 for even, odd in self.played)
        return (float(total), -float(total))


def openspiel_table(name: str) -> GameTable:
    """The tree of an OpenSpiel game as a table; turns are its information states."""
    game = pyspiel.load_game(name)
    players = game.num_players()
    kind, turn_of, player_of, children, chances, returns = [], [], [], [], [], []
    turns: dict[str, Turn] = {}
    order: dict[str, int] = {}

    def grow(state) -> int:
        node = len(kind)
        kind.append(TERMINAL if state.is_terminal() else CHANCE if state.is_chance_node() else DECISION)
        turn_of.append(-1)
        player_of.append(-1)
        children.append({})
        chances.append(())
        returns.append([np.nan] * players)
        if state.is_terminal():
            returns[node] = state.returns()
        elif state.is_chance_node():
            chances[node] = tuple(p for _, p in state.chance_outcomes())
            for column, (action, _) in enumerate(state.chance_outcomes()):
                children[node][column] = grow(state.child(action))
        else:
            player = state.current_player()
            key = state.information_state_string()
            if key not in turns:
                legal = tuple(str(action) for action in state.legal_actions())
                turns[key] = Turn(name, 0, 0, 0, player, str(player), (), legal, infoset=key)
                order[key] = len(order)
            turn_of[node], player_of[node] = order[key], player
            for action in state.legal_actions():
                children[node][action] = grow(state.child(action))
        return node

    grow(game.new_initial_state())
    actions = tuple(str(action) for action in range(game.num_distinct_actions()))
    outcomes = max(len(row) for row in chances)
    child = np.full((len(kind), max(len(actions), outcomes)), -1)
    cdf = np.zeros((len(kind), max(1, outcomes)))
    for node in range(len(kind)):
        for column, target in children[node].items():
            child[node, column] = target
        if chances[node]:
            cdf[node] = 1.0
            cdf[node, : len(chances[node])] = np.cumsum(chances[node])
    return GameTable(
        name=f"openspiel:{name}",
        num_players=players,
        roles=tuple(str(p) for p in range(players)),
        worst_returns=(game.min_utility(),) * players,
        actions=actions,
        turns=tuple(turns.values()),
        games=(),
        kind=np.array(kind),
        turn=np.array(turn_of),
        player=np.array(player_of),
        child=child,
        cdf=cdf,
        returns=np.array(returns),
        truncated=np.zeros(len(kind), dtype=bool),
        depth=game.max_game_length(),
    )
