"""Codes as games have them, made up: rates that are heavy-tailed over features and games, bursts, features of few games,
and what all features of a game have in common."""

import numpy as np
from scipy.sparse import csr_array

from spiral_trl.sae.game_sums import GameSums
from spiral_trl.sae.store import TOKEN, Rows, open_store, write_shard, write_store


class World:
    """Features with their rates; `games(...)` draws independent games."""

    def __init__(self, num_features, seed):
        random = np.random.default_rng([seed, 0])
        self.num_features = num_features
        # Half of the features occur in every kind of game, the others in a share of them, often a small one
        self.share = np.where(random.random(num_features) < 0.5, 1.0, random.beta(0.5, 2, num_features))
        self.rate = np.minimum(np.exp(random.normal(np.log(0.004), 2, num_features)), 0.3)
        self.spread = random.uniform(0.3, 1.2, num_features)
        self.burst = random.geometric(0.4, num_features)
        self.topics = random.normal(0, 0.3, (5, num_features))
        self.strength = np.exp(random.normal(0, 0.7, num_features))

    def counts(self, num_games, seed, factor=1.0):
        """Tokens of each game, and active tokens `(games, features)`; `factor` multiplies rates."""
        random = np.random.default_rng([seed, 1])
        tokens = np.maximum(20, random.lognormal(np.log(200), 0.5, num_games)).astype(int)
        shape = (num_games, self.num_features)
        common = random.normal(0, 1, (num_games, 5)) @ self.topics
        game = np.exp(random.normal(0, 1, shape) * self.spread - self.spread**2 / 2 + common)
        rate = np.where(random.random(shape) < self.share, self.rate * game * factor, 0)
        bursts = random.poisson(np.minimum(rate, 0.9) / self.burst * tokens[:, None])
        return tokens, np.minimum(bursts * self.burst, tokens[:, None])

    def games(self, num_games, seed, factor=1.0, strength=1.0):
        tokens, counts = self.counts(num_games, seed, factor)
        random = np.random.default_rng([seed, 2])
        totals = counts * self.strength * strength * np.exp(random.normal(0, 0.3, counts.shape))
        return sums_of(tokens, counts, totals)


def sums_of(tokens, counts, totals=None):
    """Sums of games from dense arrays."""
    counts = np.asarray(counts, dtype=float)
    totals = counts if totals is None else totals
    return GameSums(np.arange(len(tokens)), np.asarray(tokens, float), csr_array(counts), csr_array(totals))


def write_counts(folder, layers, seed=0, shards=2, **about):
    """A store whose games have given counts: `{layer: (tokens, counts, strength)}`, active tokens at random places."""
    random = np.random.default_rng(seed)
    sizes = next(iter(layers.values()))[0]
    group = np.repeat(np.arange(len(sizes)), sizes)
    tokens = np.zeros(len(group), TOKEN)
    tokens["group"] = tokens["document"] = group
    tokens["player"] = tokens["turn"] = -1
    said = {
        str(layer): {"num_features": counts.shape[1], "dictionary": f"made {layer}", "fingerprint": f"made {layer}"}
        for layer, (_, counts, _) in layers.items()
    }
    write_store(folder, {"model": "made", "model_fingerprint": "made", "source": {}, "layers": said, **about})
    starts = np.cumsum([0, *sizes[:-1]])
    rows = {}
    for layer, (_, counts, strength) in layers.items():
        place, feature = [], []
        for game, column in zip(*np.nonzero(counts), strict=True):
            place.append(starts[game] + random.permutation(sizes[game])[: counts[game, column]])
            feature.append(np.full(counts[game, column], column))
        at, column = np.concatenate(place), np.concatenate(feature)
        order = np.lexsort((column, at))
        at, column = at[order], column[order]
        value = (strength * random.lognormal(0, 0.3, len(at))).astype(np.float32)
        rows[layer] = (np.concatenate([[0], np.cumsum(np.bincount(at, minlength=len(group)))]), column, value)
    for number, part in enumerate(np.array_split(np.arange(len(group)), shards)):
        start, stop = part[0], part[-1] + 1
        write_shard(
            folder,
            number,
            tokens[start:stop],
            {
                layer: Rows(
                    (indptr[start : stop + 1] - indptr[start]).astype(np.int64),
                    column[indptr[start] : indptr[stop]].astype(np.uint16),
                    value[indptr[start] : indptr[stop]],
                )
                for layer, (indptr, column, value) in rows.items()
            },
        )
    return open_store(folder)
