"""Players with known policies, and tables of OpenSpiel games, for the tests of evaluation."""

from itertools import product

import numpy as np
import pyspiel

from spiral_trl.games.table import CHANCE, DECISION, TERMINAL, GameTable
from spiral_trl.records import Reply, Turn


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


class TinyLM:
    """A language model of eight tokens whose next-token probabilities are an arbitrary function of the prefix.

    Token 0 ends a reply. Together the others write legal, illegal and ambiguous replies.
    """

    name = "tiny"
    speculative = True
    words = ("", "[bet]", "[check]", "[call]", "[fold]", "no ", "[be", "t]")
    eos_token_ids = frozenset({0})
    vocab_size = len(words)
    plain_sampling = True

    def __init__(self, max_new_tokens: int = 3, sharpness: float = 1.5):
        self.max_new_tokens = max_new_tokens
        self.sharpness = sharpness
        self.rows = 0

    def prompt_ids(self, turn):
        text = turn.messages[-1]["content"]
        return tuple(100 + ord(character) for character in text)

    def distribution(self, prefix):
        rng = np.random.default_rng([int(token) for token in prefix])
        logits = self.sharpness * rng.normal(size=self.vocab_size)
        p = np.exp(logits - logits.max())
        return p / p.sum()

    def next_token_probs(self, prefixes):
        self.rows += len(prefixes)
        return np.stack([self.distribution(prefix) for prefix in prefixes])

    def decode(self, completion_ids):
        return "".join(self.words[token] for token in completion_ids)

    def all_replies(self, turn):
        """Text and probability of every reply, by listing all V^L token sequences."""
        prompt = self.prompt_ids(turn)
        replies = {}
        for sequence in product(range(self.vocab_size), repeat=self.max_new_tokens):
            ended = sequence.index(0) + 1 if 0 in sequence else len(sequence)
            replies[sequence[:ended]] = None
        known = {}

        def distribution(prefix):
            if prefix not in known:
                known[prefix] = self.distribution((*prompt, *prefix))
            return known[prefix]

        for reply in replies:
            replies[reply] = np.prod([distribution(reply[:at])[token] for at, token in enumerate(reply)])
        return [(self.decode(reply), probability) for reply, probability in replies.items()]

    def sample(self, turns, which, seeds, index):
        replies, given, known = [], np.empty(len(which), dtype=np.int64), {}
        listed = [self.all_replies(turn) for turn in turns]
        for at, (u, seed) in enumerate(zip(which, seeds, strict=True)):
            cdf = np.cumsum([probability for _, probability in listed[u]])
            text = listed[u][int(np.searchsorted(cdf, np.random.default_rng(seed).random() * cdf[-1]))][0]
            if (u, text) not in known:
                known[u, text] = len(replies)
                replies.append(Reply(text=text))
            given[at] = known[u, text]
        return replies, given


class Always:
    """Gives the same reply to every turn, or the one that a mapping holds for the first of its words found."""

    speculative = True

    def __init__(self, text, name="always"):
        self.text = text
        self.name = name

    def _answer(self, turn):
        if isinstance(self.text, str):
            return self.text
        return next((reply for action, reply in self.text.items() if action in turn.legal_actions), "")

    def reply(self, turns):
        return [Reply(text=self._answer(turn)) for turn in turns]

    def sample(self, turns, which, seeds, index):
        used, given = np.unique(which, return_inverse=True)
        return [Reply(text=self._answer(turns[u])) for u in used], given
