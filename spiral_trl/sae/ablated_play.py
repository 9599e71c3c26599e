"""What a model's play loses with some of its features: the causal check of a comparison before and after training.

The model plays the same deals undisturbed, without the given features, and without each of several random sets of features
of matched density, one for one. Features are switched off on every token that it reads or writes, see
[`~spiral_trl.sae.ablate`].

The pair of games of one deal is the unit of intervals, as in [`~spiral_trl.evaluation.match`]; they do not speak of other
random sets, of which there are few: how the given features rank among those is told beside.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError, usage_errors
from ..evaluation.exploitability import EXACT_MAX_NEW_TOKENS, exploitability
from ..evaluation.match import check_match, match_result, match_seed, play_pairs
from ..evaluation.policy import PolicyTable, TooManyRepliesError, exact_policy
from ..games.registry import canonical_name
from ..games.sequence_form import solvable_table
from ..players.base import Player
from ..rollout import MAX_TURNS
from ..stats import Interval, mean_interval
from .ablate import ablated
from .kernels import feature_sums
from .matching import matched_features
from .store import Store


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..players.language_model import LanguageModelPlayer
    from .dictionaries import Dictionary

# Probability of replies that may stay unread; without some features a model's replies may spread widely
_TOLERANCES = (1e-4, 1e-2)


@dataclass(frozen=True)
class AblatedResult:
    """How the model played in one condition.

    Args:
        features (`dict`): For each layer, as text, the features that were switched off.
        mean_return, win_rate ([`~spiral_trl.stats.Interval`]): Over pairs of games; see
            [`~spiral_trl.evaluation.match.MatchResult`].
        illegal_rate (`float`): Share of its replies that were no legal action.
        exploitability (`float`, *optional*): Where it can be computed: replies of at most a hundredth of the probability at
            a turn, usually of a ten-thousandth, stay unread and count as illegal.
        policy_shift (`float`, *optional*): Total variation distance between its action probabilities (an illegal reply
            being one more action) and those of the undisturbed model, mean over the game's turns; where they can be computed.
        difference ([`~spiral_trl.stats.Interval`], *optional*): Of the mean return from that of the undisturbed model,
            over the same deals.
    """

    features: dict[str, list[int]]
    mean_return: Interval
    win_rate: Interval
    illegal_rate: float
    exploitability: float | None
    policy_shift: float | None
    difference: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: value.to_dict() if isinstance(value, Interval) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class AblatedPlay:
    """Play without features, held against play without random ones.

    Args:
        game, player, opponent (`str`): Who played what.
        pairs (`int`): Deals, each played from both seats, in every condition.
        seed (`int`): Of deals, replies and random sets.
        undisturbed, ablated ([`AblatedResult`]): The model, and the model without the features.
        random (`tuple[AblatedResult, ...]`): The model without random features.
        beyond_random ([`~spiral_trl.stats.Interval`]): Mean return without the features minus that without random ones,
            mean over the sets, on the same deals.
        p (`dict`): For `mean_return`, `exploitability` and `policy_shift` the share of sets, this one and the random ones,
            that change it at least as much: one-sided for a loss of return and a rise of exploitability. It cannot fall
            below `1 / (1 + sets)`. `None` where it cannot be computed.
    """

    game: str
    player: str
    opponent: str
    pairs: int
    seed: int
    undisturbed: AblatedResult
    ablated: AblatedResult
    random: tuple[AblatedResult, ...]
    beyond_random: Interval
    p: dict[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **{name: getattr(self, name) for name in ("game", "player", "opponent", "pairs", "seed", "p")},
            "undisturbed": self.undisturbed.to_dict(),
            "ablated": self.ablated.to_dict(),
            "random": [one.to_dict() for one in self.random],
            "beyond_random": self.beyond_random.to_dict(),
        }


def ablated_player(
    player: LanguageModelPlayer,
    dictionaries: Mapping[int, Dictionary],
    features: Mapping[int, Collection[int]],
    name: str | None = None,
) -> LanguageModelPlayer:
    """The same player without some features: the model stays what it is for everyone else.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If an engine of its own generates for the player, or there are no such features.
    """
    if player.engine is not None:
        raise UsageError(f"{player.name} generates with an engine of its own, where features cannot be switched off")
    with player.unwrap() as model, ablated(model, dictionaries, features):
        pass
    twin = copy.copy(player)
    unwrap = player.unwrap

    @contextmanager
    def without() -> Iterator[PreTrainedModel]:
        with unwrap() as model, ablated(model, dictionaries, features):
            yield model

    twin.unwrap = without
    twin.name = player.name if name is None else name
    return twin


def ablated_play(
    player: LanguageModelPlayer,
    dictionaries: Mapping[int, Dictionary],
    features: Mapping[int, Collection[int]],
    store: Store,
    game: str,
    opponent: Player,
    *,
    pairs: int = 256,
    random_sets: int = 5,
    exclude: Mapping[int, Collection[int]] | None = None,
    seed: int = 0,
    illegal: str = "forfeit",
    max_turns: int = MAX_TURNS,
    progress: Callable[[int, int, str], None] | None = None,
) -> AblatedPlay:
    """Plays a two-player game with features switched off.

    Args:
        player ([`~spiral_trl.players.language_model.LanguageModelPlayer`]): The model that plays.
        dictionaries (`Mapping[int, Dictionary]`): By layer.
        features (`Mapping[int, Collection[int]]`): For each layer the features to switch off, together.
        store ([`~spiral_trl.sae.store.Store`]): Codes that tell how often features fire, best of the model's own games.
        game (`str`): Name of the game.
        opponent ([`~spiral_trl.players.base.Player`]): Whom it plays, undisturbed.
        pairs (`int`, *optional*, defaults to `256`): Deals; every condition plays each from both seats.
        random_sets (`int`, *optional*, defaults to `5`): Random sets.
        exclude (`Mapping[int, Collection[int]]`, *optional*): Features that random sets leave alone beside the given ones,
            such as all that training changed.
        seed (`int`, *optional*, defaults to `0`): Of deals, replies and random sets.
        illegal, max_turns: See [`~spiral_trl.rollout.play`].
        progress (`Callable`, *optional*): Called before each condition: how many are over, of how many, and which is next.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If nothing is to be switched off, a layer has no dictionary or codes, there are
            too few features for random sets, or the game or a number cannot be used.
        [`~spiral_trl.errors.PlayError`]: If a player or the game fails midway.
    """
    with usage_errors():
        name = canonical_name(game)
        check_match(name, pairs)
    if pairs < 2 or random_sets < 1:
        raise UsageError(
            f"pairs={pairs} and random_sets={random_sets}, but at least 2 and 1 are needed for an interval"
        )
    given = {layer: sorted(set(map(int, one))) for layer, one in features.items() if one}
    if not given:
        raise UsageError("there are no features to switch off")
    conditions: list[tuple[str, dict[int, list[int]]]] = [
        ("nothing switched off", {}),
        ("features switched off", given),
        *(
            (f"random features switched off, set {number + 1}", one)
            for number, one in enumerate(_random_sets(store, given, exclude or {}, random_sets, seed))
        ),
    ]
    players = [ablated_player(player, dictionaries, off) if off else player for _, off in conditions]
    results: list[AblatedResult] = []
    returns: list[np.ndarray] = []
    policies: list[PolicyTable | None] = []
    for number, ((what, off), one) in enumerate(zip(conditions, players, strict=True)):
        if progress is not None:
            progress(number, len(conditions), f"{name}: {what}")
        games, error = play_pairs(
            name, (one, opponent), (0, 1), pairs, match_seed(name, seed), illegal, max_turns, block=pairs
        )
        if error is not None:
            raise error
        match = match_result(games, (one.name, opponent.name), seed)
        returns.append(games.returns[..., 0].mean(0))
        policies.append(_policy(one, name))
        results.append(
            AblatedResult(
                features={str(layer): list(chosen) for layer, chosen in off.items()},
                mean_return=match.mean_return,
                win_rate=match.win_rate,
                illegal_rate=match.illegal_rate,
                exploitability=_exploitability(policies[-1], name),
                policy_shift=_shift(policies[0], policies[-1]) if number else None,
                difference=mean_interval(returns[-1] - returns[0]) if number else None,
            )
        )
    plain, without, *random = results
    return AblatedPlay(
        game=name,
        player=player.name,
        opponent=opponent.name,
        pairs=pairs,
        seed=seed,
        undisturbed=plain,
        ablated=without,
        random=tuple(random),
        beyond_random=mean_interval(returns[1] - np.mean(returns[2:], axis=0)),
        p={
            "mean_return": _rank([-one.mean_return.estimate for one in results[1:]]),
            "exploitability": _rank([one.exploitability for one in results[1:]]),
            "policy_shift": _rank([one.policy_shift for one in results[1:]]),
        },
    )


def _random_sets(
    store: Store, given: Mapping[int, list[int]], exclude: Mapping[int, Collection[int]], sets: int, seed: int
) -> list[dict[int, list[int]]]:
    """Sets of other features that fire, as many of each layer; no feature is in two of them where there are enough."""
    found: list[dict[int, list[int]]] = [{} for _ in range(sets)]
    for layer, chosen in given.items():
        sums = feature_sums(store, layer)
        if chosen[0] < 0 or chosen[-1] >= len(sums.count):
            raise UsageError(f"layer {layer} has features 0 to {len(sums.count) - 1}, not {chosen[-1]}")
        spare = np.setdiff1d(np.flatnonzero(sums.count), [*chosen, *exclude.get(layer, ())])
        if len(spare) < len(chosen):
            raise UsageError(
                f"layer {layer} has {len(spare)} other features that fire, too few to match {len(chosen)} of them"
            )
        left = spare
        for number in range(sets):
            if len(left) < len(chosen):
                left = spare
            drawn = matched_features(sums, np.array(chosen), left, [seed, layer, number])
            left = np.setdiff1d(left, drawn)
            found[number][layer] = sorted(drawn.tolist())
    return found


def _policy(player: LanguageModelPlayer, game: str) -> PolicyTable | None:
    """Its action probabilities at every turn, where they can be computed."""
    table = solvable_table(game)
    if table is None or not player.plain_sampling or player.max_new_tokens > EXACT_MAX_NEW_TOKENS:
        return None
    for tolerance in _TOLERANCES:
        try:
            return exact_policy(player, table, tolerance)
        except TooManyRepliesError:
            continue
    return None


def _exploitability(policy: PolicyTable | None, game: str) -> float | None:
    table = solvable_table(game)
    return None if policy is None or table is None else exploitability(table, policy).exploitability


def _shift(one: PolicyTable | None, other: PolicyTable | None) -> float | None:
    if one is None or other is None:
        return None
    moved = np.abs(one.probabilities - other.probabilities).sum(1) + np.abs(one.illegal - other.illegal)
    return float(moved.mean() / 2)


def _rank(values: list[float | None]) -> float | None:
    """Share of values at least as large as the first."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return sum(value >= known[0] for value in known) / len(known)
