r"""Does the move follow? Features that stand for a hand are swapped between two hands.

Two hands are two prompts of one seat that differ in its own information alone, such as card J and card K after the same
history. At a layer, the codes of some features are taken from the other hand: with `c` the code of feature `i` at a token
of this hand, `c'` that at the same token of the other, and `d` the feature's direction,

    stream' = stream + \sum_i (c'_i - c_i) d_i,

so that all other features and the dictionary's error stay. Tokens that the player has written so far are the same in both
hands. With `p`, `p'` and `q` the probabilities of the actions with this hand, the other, and this one patched, over all
pairs of hands:

    recovered = \sum <q - p, p' - p> / \sum |p' - p|^2,

which is 0 where nothing moves and 1 where the move becomes that of the other hand.

It is held against random features of the same layer that do not stand for the hand, matched one by one in density and
mean activation and swapped in the same way; and against the very same change of codes along the directions of those
(`same_size`), which disturbs the stream as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..evaluation.policy import TooManyRepliesError
from ..players.language_model import LanguageModelPlayer
from ..records import Episode
from .discoveries import benjamini_hochberg
from .game_features import GameFeatures, Progress, rounded
from .game_variables import own_name
from .hands import DECISION, SITES, HandMoves, Swap, find_hands, recovered
from .matching import draw_near
from .step_codes import REPLY
from .store import Store, shard_bounds


if TYPE_CHECKING:
    from .dictionaries import Dictionary


SINGLE, GROUP = "single", "group"
# Hands whose actions differ by less, in total variation, say nothing
_LEAST_SHIFT = 0.02
_REPLICATES = 1000


def patch_hands(
    player: LanguageModelPlayer,
    dictionaries: Mapping[int, Dictionary],
    found: GameFeatures,
    store: Store,
    episodes: Sequence[Episode],
    *,
    game: str | None = None,
    layers: Sequence[int] | None = None,
    sites: Sequence[str] = SITES,
    max_features: int = 16,
    draws: int = 100,
    max_pairs: int = 48,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Swaps the features that stand for a seat's own information between hands, and sees whether the moves follow.

    At each layer and site, of the features that stand for the hand the one (`single`) and up to `max_features` (`group`)
    that change most of the stream between hands are patched, each against as many random features. The group is at most half as large as the number of
    features that do not stand for the hand, of which the random ones are drawn.

    Args:
        player ([`~spiral_trl.players.language_model.LanguageModelPlayer`]): The model, sampling from its own
            distribution.
        dictionaries (`Mapping[int, Dictionary]`): By layer, those that `found` is about.
        found ([`~spiral_trl.sae.game_features.GameFeatures`]): What features stand for.
        store ([`~spiral_trl.sae.store.Store`]): Codes of the model, for density and mean activation.
        episodes (`Sequence[Episode]`): The games that `found` is about, from which hands are taken.
        game (`str`, *optional*): Which of the games; by default the first in which hands differ.
        layers (`Sequence[int]`, *optional*): By default those of `found` that have a dictionary.
        sites (`Sequence[str]`, *optional*): `difference`: from the first token on at which the prompts differ;
            `decision`: from the last token of the prompt on. Both go on through the reply.
        max_features (`int`, *optional*, defaults to `16`): Most features of a group.
        draws (`int`, *optional*, defaults to `100`): Random sets of features.
        max_pairs (`int`, *optional*, defaults to `48`): Most pairs of hands.
        seed (`int`, *optional*, defaults to `0`): Of the draws.
        progress (`Callable`, *optional*): Called with how much is done, of how much, and what is next.

    Returns:
        `dict`: As JSON values: `summary`, `game`, `variable`, `pairs`, `shift` (mean total variation between the hands),
        `measure` (`actions`: probabilities of all replies that are read as an action; `first token`: of the first token
        of the reply, where replies are too many), `best` and `tests`. Each test has, for a layer, site and set,
        `recovered` with an interval from resampling pairs, `random` and `same_size` with the range of 95% of the draws,
        `difference` from the random features, `p`, `q`, `moved` (share of pairs whose distribution came nearer to the
        other hand's than to its own) and `ceiling` (all features of the dictionary swapped).

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there are no pairs of hands, or the player changes its distribution.
    """
    if not player.plain_sampling:
        raise UsageError(
            "a patch is measured on the model's own distribution: leave out temperature, top_k, top_p, min_p and penalties"
        )
    if unknown := sorted(set(sites) - set(SITES)):
        raise UsageError(f"sites are of {', '.join(SITES)}, not {', '.join(unknown)}")
    if layers is None:
        layers = [layer for layer in found.result["settings"]["layers"] if layer in dictionaries]
    hands = find_hands(found.roles, episodes, game, max_pairs, seed)
    name = own_name(hands.turns[0].game)
    work = [(layer, site) for layer in layers for site in sites]

    def tested(moves: HandMoves) -> list[dict[str, Any]]:
        generator = np.random.default_rng(seed)
        tests = []
        for done, (layer, site) in enumerate(work):
            if progress is not None:
                progress(done, len(work), f"patching layer {layer} from the {site} on")
            sets = _Sets.of(dictionaries[layer], found, store, moves, name, site, max_features)
            tests += sets.test(moves, draws, generator)
        return tests

    moves = HandMoves(player, hands)
    tests: list[dict[str, Any]] = []
    if moves.shifts.max() >= _LEAST_SHIFT:
        try:
            tests = tested(moves)
        except TooManyRepliesError:
            # A patch may spread replies that were few
            moves = HandMoves(player, hands, first_token=True)
            tests = tested(moves)
    told: dict[str, Any] = {
        "game": hands.turns[0].game,
        "variable": name,
        "pairs": len(hands.pairs),
        "shift": rounded(float(moves.shifts.mean())),
        "measure": moves.kind,
        "draws": draws,
        "best": None,
        "tests": tests,
    }
    if tests:
        adjusted = benjamini_hochberg(np.array([test["p"] for test in tests]))
        for test, q in zip(tests, adjusted, strict=True):
            test["q"] = rounded(q)
        # Where the hand stands as a token of its own, swapping the features of that token swaps the token
        told["best"] = max(
            tests,
            key=lambda test: (test["q"] <= 0.05, test["site"] == DECISION, test["difference"]["estimate"]),
        )
    if progress is not None:
        progress(len(work), len(work), "done")
    return {"summary": _summary(told, float(moves.shifts.max()) >= _LEAST_SHIFT), **told}


class _Sets:
    """The features that are swapped at one layer and site.

    Args:
        dictionary (`Dictionary`): Of the layer.
        site (`str`): From where on.
        chosen (`dict[str, dict[int, np.ndarray]]`): For `single` and `group`, the features of each role.
        spare (`dict[int, np.ndarray]`): Of each role the features that do not stand for its hand.
        names (`dict[int, str]`): The roles.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        site: str,
        chosen: dict[str, dict[int, np.ndarray]],
        spare: dict[int, np.ndarray],
        names: dict[int, str],
        usage: tuple[np.ndarray, np.ndarray],
    ):
        self.dictionary = dictionary
        self.site = site
        self.chosen = chosen
        self.spare = spare
        self.names = names
        self.density, self.mean = usage

    @classmethod
    def of(
        cls,
        dictionary: Dictionary,
        found: GameFeatures,
        store: Store,
        moves: HandMoves,
        name: str,
        site: str,
        max_features: int,
    ) -> _Sets:
        layer = dictionary.layer
        usage = _usage(store, layer)
        active = np.flatnonzero(usage[0] > 0)
        # From the decision on, a feature can change only where it is active there or later
        positions = (DECISION, REPLY) if site == DECISION else None
        chosen: dict[str, dict[int, np.ndarray]] = {SINGLE: {}, GROUP: {}}
        spare, names = {}, {}
        sizes = moves.sizes(dictionary, site)
        for number in sorted({moves.hands.roles[pair.own] for pair in moves.hands.pairs}):
            role = found.roles[number]
            names[number] = role.role
            standing = found.features_for(name, role.role, layer, role.game, positions)
            # Of those that stand for the hand, first what changes most of the stream
            standing = [feature for feature in standing if sizes[number][feature] > 0]
            standing.sort(key=lambda feature: -sizes[number][feature])
            spare[number] = np.setdiff1d(active, found.features_for(name, role.role, layer, role.game))
            room = min(max_features, (len(spare[number]) + 1) // 2)
            chosen[SINGLE][number] = np.array(standing[: min(1, room)], dtype=np.int64)
            chosen[GROUP][number] = np.array(standing[:room], dtype=np.int64)
        if all(len(features) <= 1 for features in chosen[GROUP].values()):
            del chosen[GROUP]
        return cls(dictionary, site, chosen, spare, names, usage)

    def test(self, moves: HandMoves, draws: int, generator: np.random.Generator) -> list[dict[str, Any]]:
        """Patches the chosen features, and random ones in their place."""
        if not any(len(features) for features in self.chosen[SINGLE].values()):
            return []
        everything = np.arange(self.dictionary.num_features)
        plan = [Swap.of(dict.fromkeys(self.names, everything))]
        for chosen in self.chosen.values():
            plan.append(Swap.of(chosen))
            for _ in range(draws):
                drawn = {
                    role: matched(features, self.spare[role], self.density, self.mean, generator)
                    for role, features in chosen.items()
                }
                plan += [Swap.of(drawn), Swap(chosen, drawn)]
        patched = moves.patched(self.dictionary, self.site, plan)
        shares = np.array([_share(*recovered(moves.own, moves.other, one)) for one in patched])
        told, at = [], 1
        for kind, chosen in self.chosen.items():
            random, same_size = shares[at + 1 : at + 1 + 2 * draws : 2], shares[at + 2 : at + 2 + 2 * draws : 2]
            low, high = np.quantile(random, [0.025, 0.975])
            told.append(
                {
                    "layer": self.dictionary.layer,
                    "site": self.site,
                    "set": kind,
                    "features": {self.names[role]: features.tolist() for role, features in chosen.items()},
                    "recovered": _interval(*recovered(moves.own, moves.other, patched[at]), generator),
                    "random": _range(random),
                    "same_size": _range(same_size),
                    "difference": _values(shares[at] - random.mean(), shares[at] - high, shares[at] - low),
                    "p": rounded((1 + int((random >= shares[at]).sum())) / (1 + draws)),
                    "moved": rounded(_moved(moves, patched[at])),
                    "ceiling": rounded(shares[0]),
                }
            )
            at += 1 + 2 * draws
        return told


def matched(
    features: np.ndarray, spare: np.ndarray, density: np.ndarray, mean: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """For each feature another of nearly its density and mean activation, none of them twice.

    Of those that are left, one of the nearest is drawn, by the distance of the logarithms.

    Args:
        features (`np.ndarray`): `(k,)` the features.
        spare (`np.ndarray`): At least as many others.
        density, mean (`np.ndarray`): `(F,)` share of tokens, and mean activation on them.
        generator (`np.random.Generator`): Draws.
    """
    return draw_near(np.log(np.stack([density, mean], axis=1) + 1e-12), features, spare, generator)


def _usage(store: Store, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """`(F,)` share of tokens on which each feature is active, and its mean activation on those."""
    features = store.num_features(layer)
    counts, sums = np.zeros(features), np.zeros(features)
    for shard in store.shards:
        rows = shard.rows(layer)
        counts += np.bincount(rows.feature, minlength=features)
        sums += np.bincount(rows.feature, rows.value.astype(np.float64), minlength=features)
    return counts / max(1, int(shard_bounds(store.shards)[-1])), sums / np.maximum(counts, 1)


def _share(numerators: np.ndarray, denominators: np.ndarray) -> float:
    return float(numerators.sum() / denominators.sum())


def _interval(numerators: np.ndarray, denominators: np.ndarray, generator: np.random.Generator) -> dict[str, Any]:
    """The share, with an interval from resampling pairs."""
    drawn = generator.integers(len(numerators), size=(_REPLICATES, len(numerators)))
    below = denominators[drawn].sum(1)
    shares = numerators[drawn].sum(1)[below > 0] / below[below > 0]
    return _values(_share(numerators, denominators), *np.quantile(shares, [0.025, 0.975]))


def _range(shares: np.ndarray) -> dict[str, Any]:
    return {**_values(shares.mean(), *np.quantile(shares, [0.025, 0.975])), "largest": rounded(shares.max())}


def _values(estimate: float, low: float, high: float) -> dict[str, Any]:
    return {"estimate": rounded(estimate), "low": rounded(low), "high": rounded(high)}


def _moved(moves: HandMoves, patched: np.ndarray) -> float:
    """Share of pairs whose distribution came nearer to the other hand's than to its own."""
    telling = moves.shifts >= _LEAST_SHIFT
    nearer = np.abs(patched - moves.other).sum(1) < np.abs(patched - moves.own).sum(1)
    return float(nearer[telling].mean())


def _percent(share: float) -> str:
    # Adding 0 makes a rounded -0 a 0
    return f"{round(share, 2) + 0.0:.0%}"


def _summary(told: Mapping[str, Any], shifted: bool) -> str:
    """What came of it, in words."""
    name, best = told["variable"], told["best"]
    if not shifted:
        return (
            f"The model plays hands that differ in the {name} alike (mean total variation {told['shift']:.3f} over "
            f"{told['pairs']} pairs), so there is nothing for a patch to move."
        )
    if best is None:
        return f"No feature that changes between hands stands for the {name}, so there is nothing to patch."
    count = max(len(features) for features in best["features"].values())
    which = "the feature" if count == 1 else f"the {count} features"
    where = "the first token that differs" if best["site"] != DECISION else "the last token of the prompt"
    share, random, difference = best["recovered"], best["random"], best["difference"]
    verdict = (
        "more than matched random features do" if best["q"] <= 0.05 else "no more than matched random features do"
    )
    return (
        f"Swapping {which} of layer {best['layer']} that stand{'s' if count == 1 else ''} for the {name} between hands, "
        f"from {where} on, moves the distribution of the {told['measure']} "
        f"{_percent(share['estimate'])} of the way to the other hand's (95% interval {_percent(share['low'])} to "
        f"{_percent(share['high'])}), {verdict} ({_percent(random['estimate'])}, 95% of draws {_percent(random['low'])} to "
        f"{_percent(random['high'])}; difference {_percent(difference['estimate'])}, {_percent(difference['low'])} to "
        f"{_percent(difference['high'])}; q = {best['q']:.2g} over {len(told['tests'])} tests)."
    )
