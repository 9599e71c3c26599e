"""A report that no model wrote, in the shape and with the habits of a real one, of any size."""

from __future__ import annotations

import math
import random
from typing import Any


MEASURES = ("pearson", "cosine", "jaccard", "sufficiency", "necessity", "mutual_information", "decoder_cosine")
TOPICS = (
    ("the card is a king", "K", "King"), ("a bet that was just made", "bet", "bets"),
    ("the opponent checked", "check", "checks"), ("the opening of a reply", "[", "<think>"),
    ("references to the city of Jerusalem", "Jerusalem", "Zion"), ("names of months", "March", "October"),
    ("numbers written as words", "three", "seven"), ("the second half of a compound", "board", "ship"),
    ("opening quotation marks", "“", "\""), ("verbs of giving and lending", "gave", "lent"),
    ("words for water in motion", "river", "tide"), ("terms of contract law, with a strong emphasis on liability "
     "and indemnity between parties", "liable", "indemnity"),
)  # fmt: skip
FILLER = (
    "player 0 holds the card and the history is check so it says that there was a long way to go before the others "
    "would come and see what had been left on the table by those who spoke first that day"
).split()
LABELS = ("none", "none", "none", "pass-through", "pass-through", "and", "or", "specialising", "duplicate")


def make_text(generator: random.Random, topic: tuple[str, str, str], length: int, games: bool) -> dict[str, Any]:
    tokens = [" " + generator.choice(FILLER) for _ in range(length)]
    values = [0.0] * length
    peak = generator.randrange(length // 4, max(length // 4 + 1, 3 * length // 4))
    for at in {peak, generator.randrange(length), generator.randrange(length)}:
        tokens[at] = " " + topic[1 + (at % 2)]
        values[at] = round(generator.uniform(0.3, 6) if at != peak else generator.uniform(6, 9), 3)
    if length > 12:
        tokens[peak // 2] = "\n"
    role = f"player {generator.randrange(2)} ({generator.choice(('prompt', 'reply'))})" if games else None
    return {"tokens": tokens, "values": values, "peak": peak, "role": role, "document": generator.randrange(900)}


def make_feature(generator: random.Random, layer: int, number: int, topic: int, card: bool, games: bool) -> dict:
    density = 10 ** generator.uniform(-4.5, -0.8)
    edges = [round(0.9 * n, 2) for n in range(11)]
    badges = [badge for badge in ("appears", "disappears", "stands for: card") if generator.random() < 0.15]
    explained = not games and topic % 5 != 3
    feature: dict[str, Any] = {
        "l": layer, "f": number, "density": density, "count": round(1e6 * density), "max": 8.91, "mean": 2.312,
        "label": generator.choice(LABELS), "badges": badges, "community": None,
        "explanation": TOPICS[topic][0] if explained else None,
        "neuronpedia": f"https://www.neuronpedia.org/gpt2-small/{layer}-res-jb/{number}" if not games else None,
        "histogram": None, "texts": [], "promoted": [], "suppressed": [],
    }  # fmt: skip
    if card:
        feature["histogram"] = {"edges": edges, "counts": [round(4000 * math.exp(-0.7 * n)) for n in range(10)]}
        feature["texts"] = [make_text(generator, TOPICS[topic], generator.randrange(24, 80), games) for _ in range(8)]
        feature["promoted"] = [[" " + generator.choice(FILLER), round(3.1 - 0.3 * n, 2)] for n in range(8)]
        feature["suppressed"] = [[" " + generator.choice(FILLER), round(-2.4 + 0.2 * n, 2)] for n in range(8)]
    return feature


def make_report(
    layers: int = 4,
    width: int = 24,
    edges: int | None = None,
    cards: int | None = None,
    games: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """`layers` of `width` features each; `edges` between adjacent layers in all (four a feature by default); `cards` of
    the features with texts (all by default). With `games`, what a self-play model's report has beside."""
    generator = random.Random(seed)
    features = [
        make_feature(
            generator, layer, 7 * n + layer, n % len(TOPICS), cards is None or layer * width + n < cards, games
        )
        for layer in range(layers)
        for n in range(width)
    ]
    pairs: dict[tuple[int, int], list[float]] = {}
    wanted = 4 * width * (layers - 1) if edges is None else edges
    for layer in range(layers - 1):
        for n in range(width):
            # Those of one topic are related most; the rest is chance
            near = [m for m in range(width) if m % len(TOPICS) == n % len(TOPICS)]
            for k in range(max(1, wanted // (width * (layers - 1)))):
                m = n if k == 0 else generator.choice(near if k % 2 else range(width))
                strength = (0.97 if m == n else 0.6 if m in near else 0.2) * generator.uniform(0.5, 1)
                pairs[layer * width + n, (layer + 1) * width + m] = [
                    round(strength * generator.uniform(0.8, 1), 4), round(strength, 4), round(strength**2, 4),
                    round(min(1, 1.2 * strength), 4), round(min(1, 1.1 * strength), 4), round(0.3 * strength**3, 5),
                    round(generator.uniform(-0.3, 1) * strength, 4),
                ]  # fmt: skip
    communities = []
    for topic in range(min(len(TOPICS), width)):
        members = [i for i in range(len(features)) if (i % width) % len(TOPICS) == topic]
        for i in members:
            features[i]["community"] = topic + 3
        spread = {str(layer): sum(features[i]["l"] == layer for i in members) for layer in range(layers)}
        communities.append({
            "id": topic + 3, "size": len(members), "layers": spread, "stability": round(generator.uniform(0.5, 1), 3),
            "features": members, "texts": [make_text(generator, TOPICS[topic], 40, games) for _ in range(4)],
        })  # fmt: skip
    return {
        "version": 1,
        "title": "Kuhn poker, before and after self-play" if games else "GPT-2 small, residual stream",
        "about": {
            "model": "outputs/kuhn" if games else "gpt2", "source": "10,000 games of kuhn_poker" if games else "text",
            "tokens": 1_048_576, "settings": {"top_k": 16, "relative": 0.2, "rules": ["absolute", "relative"]},
            "dictionaries": {str(layer): {"name": f"dictionaries/layer_{layer:02d}", "num_features": width} for layer in range(layers)},
        },
        "measures": list(MEASURES), "layers": list(range(layers)),
        "quality": {
            str(n): {"unexplained_variance": 0.011 * (n + 1), "l0": 12.3 + n, "dead": 0.02 * n, "ce_recovered": 0.991 - 0.01 * n}
            for n in range(layers)
        },
        "features": features, "edges": [[up, down, values] for (up, down), values in pairs.items()],
        "flow": [
            {"layer": n, "next": n + 1, "of": width, "of_next": width, "passing": width - width // 4 - n,
             "disappearing": width // 4 + n, "appearing": width // 5 + 1}
            for n in range(layers - 1)
        ],
        "communities": communities,
        "prompts": [make_prompt(generator, n, features) for n in range(5)],
        "games": make_games(generator, features) if games else None,
        "comparison": make_comparison() if games else None,
        "ablation": {
            "summary": "Pearson correlation predicts the causal effect best (Spearman 0.61 [0.55, 0.67]).",
            "tables": [{"title": "How well each measure predicts the effect of an ablation",
                        "columns": ["measure", "Spearman", "AUC", "strongest pair"],
                        "rows": [[m, [0.61 - 0.05 * n, 0.55 - 0.05 * n, 0.67 - 0.05 * n], 0.9 - 0.03 * n, "1/1"]
                                 for n, m in enumerate(MEASURES)]}],
        } if games else None,
    }  # fmt: skip


def make_prompt(generator: random.Random, number: int, features: list[dict]) -> dict[str, Any]:
    tokens = [f" {generator.choice(FILLER)}" for _ in range(22)] + ["\n", " K", " [", "bet", "]"]
    active = [
        [index, at, round(generator.uniform(0.2, 8), 3)]
        for at in range(len(tokens))
        for index in generator.sample(range(len(features)), min(6, len(features)))
    ]
    return {"id": f"game {number}/turn 1", "tokens": tokens, "active": active}


def make_games(generator: random.Random, features: list[dict]) -> dict[str, Any]:
    variables = []
    for name, role in (("own card", "player 0"), ("own card", "player 1"), ("history", "player 1"), ("winning", None)):
        layers = []
        for layer in sorted({feature["l"] for feature in features}):
            chosen = [f for f in features if f["l"] == layer][:3]
            best = round(min(0.97, 0.3 + 0.25 * layer * generator.uniform(0.7, 1)), 3)
            layers.append({"layer": layer, "best": best, "features": [
                {"l": f["l"], "f": f["f"], "effect": round(best - 0.05 * n, 3), "p": 10.0 ** -(8 - n),
                 "before": round(0.4 * best, 3), "after": round(best - 0.05 * n, 3)} for n, f in enumerate(chosen)]})  # fmt: skip
        variables.append({"name": name, "role": role, "layers": layers})
    return {
        "summary": "The own card is read from layer 1 on by two features, the history from layer 2. Swapping the card's "
        "feature between two hands moves the bet's probability by 0.41 [0.35, 0.47], matched random features by 0.02.",
        "variables": variables,
        "patch": {"summary": "The move follows the patched card.", "moved": [0.41, 0.35, 0.47],
                  "random_features": [0.02, 0.0, 0.04], "pairs": 512},
    }  # fmt: skip


def make_comparison() -> dict[str, Any]:
    return {
        "summary": "31 of 96 features changed beyond noise (false-discovery rate 0.05, clustered by game); the control finds 0.",
        "gate": {"passed": True, "unexplained_variance": {"before": 0.021, "after": 0.024}, "l0": {"before": 12.1, "after": 12.6}},
        "tables": [{"title": "Features that changed most", "columns": ["feature", "density before", "density after", "adjusted p"],
                    "rows": [["1/1", 0.0121, 0.0413, 1.2e-9], ["2/9", 0.2, 0.05, 3.1e-5], ["0/0", 0.001, None, 0.04]]}],
    }  # fmt: skip
