"""Players for tests, whose replies are known."""

from itertools import product

import numpy as np

from spiral_trl.records import Reply


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


# What they do in Kuhn poker
BETTOR = Always({"bet": "[bet]", "call": "[call]"}, "bettor")
FOLDER = Always({"check": "[check]", "fold": "[fold]"}, "folder")
CALLER = Always({"check": "[check]", "call": "[call]"}, "caller")


class Scripted:
    """Replies to the n-th turn of every game with the n-th text, the last one over and over, or with `texts[0](turn)`.

    Notes what it was asked.
    """

    def __init__(self, *texts, name="scripted", speculative=True):
        self.texts = texts
        self.name = name
        self.speculative = speculative
        self.asked = []  # one list of turns for each call

    def _reply(self, turn, index):
        (*_, last) = self.texts
        return Reply(last(turn) if callable(last) else self.texts[min(index, len(self.texts) - 1)])

    def reply(self, turns):
        self.asked.append(list(turns))
        return [self._reply(turn, turn.index) for turn in turns]

    def sample(self, turns, which, seeds, index):
        self.asked.append([turns[w] for w in which])
        pairs, of = np.unique(np.stack([which, index]), axis=1, return_inverse=True)
        return [self._reply(turns[w], i) for w, i in pairs.T], of.reshape(-1)
