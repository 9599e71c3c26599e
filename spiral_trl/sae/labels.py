"""What each feature of a layer is to the layer above it in the model's stream: one label a feature.

The labels exclude each other; the first that fits is given:

1. `duplicate`: another feature of its layer is the same, or several features upstream are, or the one upstream that is the
   same is so to several downstream.
2. `pass-through`: one feature upstream is the same: the measure reaches the threshold, as in arXiv 2410.08869.
3. `and`, `or`: a gate of two upstream features, see [`~spiral_trl.sae.gates.and_margins`] and
   [`~spiral_trl.sae.gates.or_margins`].
4. `specialising`: it fires on a subset of an upstream feature, much more seldom, and on no wider a choice of tokens.
5. `none`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from numba import njit

from ..errors import UsageError, did_you_mean
from .gates import Candidates, Gate, active_counts, find_gates, wilson_bounds
from .kernels import Features, transpose
from .relation_files import store_fingerprint
from .relations import RELATIVE, RULES, Relations
from .store import Store
from .twins import SAME_MEASURES, twins


LABELS = ("duplicate", "pass-through", "and", "or", "specialising", "none")
_ENTRIES = 1 << 27


@dataclass(frozen=True)
class LabelSettings:
    """What the labels rest on.

    Args:
        measure (`str`, *optional*, defaults to `"pearson"`): By which two features are the same: `"pearson"`, `"cosine"`
            or `"jaccard"`.
        pass_threshold (`float`, *optional*, defaults to 0.95): What it must reach.
        gate_threshold (`float`, *optional*, defaults to 0.95): What necessities and sufficiencies must reach.
        min_exclusive (`int`, *optional*, defaults to 20): Tokens with only the one and with only the other input that an
            AND needs.
        max_density_ratio (`float`, *optional*, defaults to 0.5): A specialised feature has at most this share of the
            firings of the upstream feature.
        entropy_slack (`float`, *optional*, defaults to 0.1): The entropy of the tokens of the vocabulary it fires on may
            exceed the upstream feature's by so much, in nats.
        rule (`str`, *optional*, defaults to `"relative"`): When a feature is active, for everything but Pearson
            correlation and cosine: as in the paper, above a share of its largest activation, which is that of the
            relations; or `"absolute"`, above 0.
    """

    measure: str = "pearson"
    pass_threshold: float = 0.95
    gate_threshold: float = 0.95
    min_exclusive: int = 20
    max_density_ratio: float = 0.5
    entropy_slack: float = 0.1
    rule: str = "relative"

    def __post_init__(self) -> None:
        for name, value, allowed in (("measure", self.measure, SAME_MEASURES), ("rule", self.rule, RULES)):
            if value not in allowed:
                raise UsageError(
                    f"{name} must be one of {', '.join(allowed)}, not {value!r}{did_you_mean(value, allowed)}"
                )
        for name in ("pass_threshold", "gate_threshold"):
            value = getattr(self, name)
            # At half and below, the inputs of a gate could be told from chance no more
            if not 0.5 < value <= 1:
                raise UsageError(f"{name} must be above 0.5 and at most 1, not {value}")
        if self.min_exclusive < 1 or not 0 < self.max_density_ratio < 1 or self.entropy_slack < 0:
            raise UsageError(
                "min_exclusive must be at least 1, max_density_ratio between 0 and 1, entropy_slack at least 0, not "
                f"{self.min_exclusive}, {self.max_density_ratio} and {self.entropy_slack}"
            )


@dataclass(frozen=True, eq=False)
class LayerLabels:
    """Labels of a layer's features: arrays `(features,)`.

    Args:
        layer (`int`): The layer.
        upstream (`int` or `None`): The layer that it is held against; `None` for the first.
        label (`np.ndarray`): One of [`LABELS`] each, as text. In the first layer only duplicates are told.
        partner (`np.ndarray`): int64: the upstream feature that the label names, -1 where none: the same one, the gate's
            more frequent input, or the narrowest feature it is a subset of.
        second (`np.ndarray`): int64: the other input of a gate, or another upstream duplicate; -1 where none.
        twin (`np.ndarray`): int64: the most similar feature of its own layer that is the same, -1 where none.
        token_entropy (`np.ndarray`): float64: entropy, in nats, of the tokens of the vocabulary that it fires on.
        gates (`tuple[Gate, ...]`): The gates, with their counts.
    """

    layer: int
    upstream: int | None
    label: np.ndarray
    partner: np.ndarray
    second: np.ndarray
    twin: np.ndarray
    token_entropy: np.ndarray
    gates: tuple[Gate, ...] = field(default=())


def label_features(
    store: Store,
    relations: Relations,
    settings: LabelSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[LayerLabels]:
    """Labels the features of every layer that the relations speak of.

    Args:
        store ([`~spiral_trl.sae.store.Store`]): The codes.
        relations ([`~spiral_trl.sae.relations.Relations`]): Their relations, for the pairs of consecutive layers at least.
        settings ([`LabelSettings`], *optional*): What the labels rest on.
        progress (`Callable[[int, int], None]`, *optional*): Told how many layers are done, and of how many.

    Returns:
        `list[LayerLabels]`: One for each layer, ascending.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If the relations are of other codes, were not made under the rule, or hold no
            consecutive layers.
    """
    settings = settings or LabelSettings()
    if relations.about["store"] != store_fingerprint(store):
        raise UsageError(f"the relations in {relations.folder} are of other codes than those in {store.folder}")
    pairs = consecutive(relations.pairs)
    above = {down: up for up, down in pairs}
    layers = sorted({layer for pair in pairs for layer in pair})
    labelled: dict[int, LayerLabels] = {}
    for number, layer in enumerate(layers):
        upstream = labelled[above[layer]] if layer in above else None
        labelled[layer] = _label_layer(store, relations, layer, upstream, settings)
        if progress:
            progress(number + 1, len(layers))
    return list(labelled.values())


def consecutive(pairs: object) -> list[tuple[int, int]]:
    """Of pairs of layers those with no layer between them, ascending.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there are none.
    """
    every = sorted({(int(up), int(down)) for up, down in pairs})  # type: ignore[attr-defined]
    layers = sorted({layer for pair in every for layer in pair})
    after = dict(zip(layers[:-1], layers[1:], strict=True))
    kept = [pair for pair in every if after.get(pair[0]) == pair[1]]
    if not kept:
        raise UsageError("the relations hold no pair of consecutive layers")
    return kept


def _label_layer(
    store: Store, relations: Relations, layer: int, upstream: LayerLabels | None, settings: LabelSettings
) -> LayerLabels:
    features, relative = _sums(relations, layer), relations.about["settings"]["relative"]
    count = active_counts(features, settings.rule)
    size = len(count)
    entropy = token_entropies(store, layer, features, settings.rule, relative)
    label = np.full(size, "none", dtype="<U12")
    partner, second, twin = (np.full(size, -1) for _ in range(3))
    same, similarity = twins(
        store, layer, features, settings.measure, settings.pass_threshold, settings.rule, relative
    )
    for order in np.argsort(similarity, kind="stable"):
        one, other = same[order]
        twin[one], twin[other] = other, one
    label[twin >= 0] = "duplicate"
    if upstream is None:
        return LayerLabels(layer, None, label, partner, second, twin, entropy)
    edges = relations.edges((upstream.layer, layer), settings.rule)
    _label_same(edges, settings, label, partner, second)
    above = _sums(relations, upstream.layer)
    gates, candidates = find_gates(
        store,
        (upstream.layer, layer),
        (above, features),
        edges,
        (label == "none") & (count > 0),
        settings.gate_threshold,
        settings.min_exclusive,
        settings.rule,
        relative,
    )
    for gate in gates:
        label[gate.feature] = gate.kind
        partner[gate.feature], second[gate.feature] = gate.upstream
    count_up = active_counts(above, settings.rule)
    fits = _specialises(
        candidates,
        count_up,
        count,
        store.num_tokens,
        entropy[candidates.downstream] - upstream.token_entropy[candidates.upstream],
        settings,
    )
    # The narrowest of them last, so that it stays
    fitting = np.nonzero(fits)[0]
    widest = np.lexsort((-candidates.upstream[fitting], -count_up[candidates.upstream[fitting]]))
    for at in fitting[widest]:
        feature = candidates.downstream[at]
        if label[feature] in ("none", "specialising"):
            label[feature], partner[feature] = "specialising", candidates.upstream[at]
    return LayerLabels(layer, upstream.layer, label, partner, second, twin, entropy, tuple(gates))


def _sums(relations: Relations, layer: int) -> Features:
    said = relations.features(layer)
    return Features(*(np.asarray(said[column.name]) for column in fields(Features)))


def _label_same(
    edges: Mapping[str, np.ndarray],
    settings: LabelSettings,
    label: np.ndarray,
    partner: np.ndarray,
    second: np.ndarray,
) -> None:
    """Duplicates and what passes through, from the edges."""
    measure = np.nan_to_num(np.asarray(edges[settings.measure], np.float64))
    same = measure >= settings.pass_threshold
    up, down = edges["upstream"][same].astype(np.int64), edges["downstream"][same].astype(np.int64)
    # The most similar first
    order = np.lexsort((up, -measure[same]))
    up, down = up[order], down[order]
    several_up = np.bincount(down, minlength=len(label)) > 1
    several_down = np.bincount(up, minlength=1) > 1
    for one, other in zip(up, down, strict=True):
        if partner[other] < 0:
            partner[other] = one
        elif second[other] < 0:
            second[other] = one
        if several_up[other] or several_down[one]:
            label[other] = "duplicate"
        elif label[other] == "none":
            label[other] = "pass-through"


def _specialises(
    candidates: Candidates,
    count_up: np.ndarray,
    count_down: np.ndarray,
    num_tokens: int,
    wider: np.ndarray,
    settings: LabelSettings,
) -> np.ndarray:
    """`(n,)`, bool: candidates of which the downstream feature is a specialised form.

    Subset relation: the lower end of the interval of P(up | down) reaches the threshold, and firings outside the subset
    are less than half as frequent as chance would have them (of a feature that is nearly always active, everything is a
    subset). Density ratio n(down) / n(up) and token entropy as in the settings.
    """
    up, down = count_up[candidates.upstream], count_down[candidates.downstream]
    low, _ = wilson_bounds(candidates.both, down)
    subset = (low >= settings.gate_threshold) & (1 - candidates.necessity < 0.5 * (1 - up / num_tokens))
    return subset & (down <= settings.max_density_ratio * up) & (wider <= settings.entropy_slack)


def token_entropies(
    store: Store, layer: int, features: Features, rule: str = "absolute", relative: float = RELATIVE
) -> np.ndarray:
    """Entropy of the tokens of the vocabulary that each feature fires on, `(features,)`, in nats; 0 if it never fires.

    The plug-in estimate: with few firings too low, by about (kinds of tokens - 1) / (2 firings).
    """
    token = np.concatenate([np.asarray(shard.tokens()["token"]) for shard in store.shards])
    entropies = np.zeros(store.num_features(layer))
    counts = active_counts(features, rule)
    # By features of so many entries at a time
    part = np.cumsum(counts) // _ENTRIES
    seen = np.zeros(1 + int(token.max(initial=0)), np.int64)
    for number in np.unique(part):
        some = np.nonzero((part == number) & (counts > 0))[0]
        postings = transpose(store, layer, rule, relative, features, some)
        _entropies(postings.indptr, postings.token, token, seen, some, entropies)
    return entropies


@njit(cache=True)
def _entropies(
    indptr: np.ndarray,
    posted: np.ndarray,
    token: np.ndarray,
    seen: np.ndarray,
    some: np.ndarray,
    entropies: np.ndarray,
) -> None:
    for feature in some:
        firings = indptr[feature + 1] - indptr[feature]
        for at in range(indptr[feature], indptr[feature + 1]):
            seen[token[posted[at]]] += 1
        total = 0.0
        for at in range(indptr[feature], indptr[feature + 1]):
            times = seen[token[posted[at]]]
            if times:
                total += times * np.log(times)
                seen[token[posted[at]]] = 0
        entropies[feature] = np.log(firings) - total / firings
