"""Compares the features of a model before and after training, and says what of it is beyond noise.

1. The gate: the dictionaries, which are those of the model before, have to serve the model after as well (see
   [`~spiral_trl.sae.gate`]). Layers where they do not are left out; where none is left, that is the result.
2. The same texts read by both models: what the model makes of a text has changed. Tested game by game.
3. Each model's own games: what it comes to see has changed as well. Kept apart, as a change of the texts alone moves
   densities.
4. The noise floor: the same test on what cannot differ. For own games, the model before against itself on other games,
   or on halves of its games; for the same texts, both models with their names swapped in a random half of the games.
   Besides, whether features change alike in two halves of the games.
5. What was measured elsewhere is taken in: the graph of features ([`~spiral_trl.sae.graph_difference`]), candidates for
   new directions ([`~spiral_trl.sae.specific`]), ablations in play.

Tests are those of [`~spiral_trl.sae.discoveries`]; discoveries are counted at a rate of false ones over all layers and
features of a comparison.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from .comparison_files import read_part, write_columns, write_part
from .discoveries import STATISTICS, Differences, benjamini_hochberg, clustered_difference, ratio_interval_by_game
from .game_sums import GameSums, correlations, game_sums
from .gate import Gate, GateLimits, open_gate
from .halves import identity
from .store import Store, check_same_tokens, write_json


# Features of a layer whose ratio gets an interval: those with the smallest probabilities
_WITH_INTERVAL = 100
SAME_TEXT, ON_POLICY = "same_text", "on_policy"


@dataclass(frozen=True)
class CompareSettings:
    """Settings of a comparison.

    Args:
        false_discoveries (`float`, *optional*, defaults to `0.05`): Rate of false ones among discoveries, over all layers
            and features of a comparison (Benjamini-Hochberg).
        min_games (`int`, *optional*, defaults to `20`): Features active in fewer games are not tested.
        draws (`int`, *optional*, defaults to `1000`): Draws of importance sampling, see
            [`~spiral_trl.sae.discoveries.clustered_difference`].
        longer (`float`, *optional*, defaults to `0.1`): Share by which games may be longer on one side before statistics
            that depend on length no longer count.
        replies_only (`bool`, *optional*, defaults to `False`): Whether only tokens that the players wrote count.
        material (`float`, *optional*, defaults to `1.25`): Factor of density or mean activation from which on a change is
            called large. With many games, small changes too are beyond noise.
        seed (`int`, *optional*, defaults to `42`): Of pairs, draws, halves and bootstraps.
    """

    false_discoveries: float = 0.05
    min_games: int = 20
    draws: int = 1000
    longer: float = 0.1
    replies_only: bool = False
    material: float = 1.25
    seed: int = 42

    def __post_init__(self) -> None:
        for name, ok, allowed in (
            ("false_discoveries", 0 < self.false_discoveries < 1, "between 0 and 1"),
            ("min_games", self.min_games >= 1, "at least 1"),
            ("draws", self.draws >= 100, "at least 100"),
            ("longer", self.longer > 0, "above 0"),
            ("material", self.material > 1, "above 1"),
        ):
            if not ok:
                raise UsageError(f"{name}={getattr(self, name)}, but it must be {allowed}")


@dataclass(frozen=True)
class Changes:
    """One comparison over all layers, with its control.

    Args:
        kind (`str`): `same_text` or `on_policy`.
        layers (`dict[int, dict[str, np.ndarray]]`): For each layer the columns of `comparison.parquet`, `(F,)` each.
        about (`dict[int, dict]`): For each layer `pairs`, `length` (mean tokens of a game, before and after), `counted`
            (statistics that decide) and `games`.
        control (`dict[int, dict[str, np.ndarray]]`): The same columns of the control.
        control_about (`dict[int, dict]`): And what it is about.
    """

    kind: str
    layers: dict[int, dict[str, np.ndarray]]
    about: dict[int, dict[str, Any]]
    control: dict[int, dict[str, np.ndarray]]
    control_about: dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """A comparison that was written.

    Args:
        folder (`Path`): Where `comparison.json` and `comparison.parquet` lie.
        data (`dict`): What the JSON holds: `summary`, `verdict`, `gate`, `tables`, `counts`, `settings`, and what was
            taken in. It is what a report shows.
    """

    folder: Path
    data: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return self.data


def compare(
    folder: str | Path,
    *,
    same_text: tuple[Store, Store] | None = None,
    on_policy: tuple[Store, Store] | None = None,
    control: Store | None = None,
    quality: tuple[Mapping[Any, Any], Mapping[Any, Any]] | None = None,
    graph: Mapping[str, Any] | None = None,
    candidates: Mapping[int, Mapping[str, Any]] | None = None,
    causal: Mapping[str, Any] | None = None,
    settings: CompareSettings | None = None,
    limits: GateLimits | None = None,
    top: int = 50,
    progress: Callable[[int, int, str], None] | None = None,
) -> Comparison:
    """Compares a model before with one after training, and writes `comparison.json` and `comparison.parquet`.

    The parquet file has a row for each feature of each layer that passed the gate. Layers that were done before, with the
    same stores and settings, are taken from `parts/`.

    Args:
        folder (`str` or `Path`): Where the result goes.
        same_text (`tuple[Store, Store]`, *optional*): Codes of the model before and after, of the same documents.
        on_policy (`tuple[Store, Store]`, *optional*): Codes of the model before and after, of its own games each.
        control (`Store`, *optional*): Codes of the model before, of other games of its own, with other seeds; by default
            halves of its games are held against each other.
        quality (`tuple[Mapping, Mapping]`, *optional*): For each layer, the quality of the dictionaries on the model
            before and after, measured on the same tokens with [`~spiral_trl.sae.quality.measure_quality`]; by default what
            `quality.json` of the `same_text` stores says, which has no cross-entropy.
        graph (`Mapping`, *optional*): What [`~spiral_trl.sae.graph_difference.graph_difference`] found.
        candidates (`Mapping`, *optional*): For each layer, `to_dict()` of
            [`~spiral_trl.sae.specific.Specific`].
        causal (`Mapping`, *optional*): What playing without the most changed features did: `to_dict()` of what
            `ablated_play` gives.
        settings ([`CompareSettings`], *optional*): Settings.
        limits ([`~spiral_trl.sae.gate.GateLimits`], *optional*): What the gate lets through.
        top (`int`, *optional*, defaults to `50`): Rows of the tables of most changed features.
        progress (`Callable`, *optional*): Called after each layer with layers done, all layers, and what was done.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there is nothing to compare, stores are of other dictionaries or, for the
            same texts, of other tokens, or an option is out of range.
    """
    from .comparison_tables import describe

    settings, folder = settings or CompareSettings(), Path(folder)
    stores = [store for pair in (same_text, on_policy) if pair is not None for store in pair]
    if not stores:
        raise UsageError("there is nothing to compare: give stores of the same texts, or of own games, or both")
    if control is not None and on_policy is None:
        raise UsageError("a control store is held against own games, and none were given")
    layers = _layers([*stores, *([control] if control is not None else [])])
    if same_text is not None:
        check_same_tokens(*same_text)
    if control is not None and on_policy is not None:
        _check_control(on_policy[0], control)
    gate = _gate(same_text, quality, limits)
    passed = [layer for layer in layers if gate is None or layer not in gate.failing]
    if gate is not None and (missing := sorted(set(passed) - set(gate.transferring))):
        raise UsageError(f"the gate has no quality of layer {missing[0]}, which was to be compared")

    pairs: dict[str, tuple[Store, Store]] = {}
    if same_text is not None:
        pairs[SAME_TEXT] = same_text
    if on_policy is not None:
        pairs[ON_POLICY] = on_policy
    found = []
    for number, (kind, pair) in enumerate(pairs.items()):
        changes = Changes(kind, {}, {}, {}, {})
        for done, layer in enumerate(passed):
            _compare_layer(changes, layer, pair, control if kind == ON_POLICY else None, settings, folder / "parts")
            if progress is not None:
                progress(number * len(passed) + done + 1, len(pairs) * len(passed), f"{kind}, layer {layer}")
        for tables in (changes.layers, changes.control):
            _adjust(tables, settings.false_discoveries)
        found.append(changes)

    data = {
        "version": 1,
        **describe(found, gate, settings, top, graph=graph, candidates=candidates, causal=causal),
        "settings": {
            **asdict(settings),
            "statistics": list(STATISTICS),
            "layers": layers,
            "stores": {kind: [identity(store) for store in pair] for kind, pair in pairs.items()},
            "control": identity(control) if control is not None else None,
        },
        "graph": graph,
        "candidates": {str(layer): dict(said) for layer, said in candidates.items()} if candidates else None,
        "causal": causal,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_columns(_rows(found, passed), folder / "comparison.parquet")
    write_json(folder / "comparison.json", data)
    return Comparison(folder, data)


def _layers(stores: list[Store]) -> list[int]:
    """The layers that all stores have.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there is none, or its dictionaries differ.
    """
    common = sorted(set.intersection(*(set(store.layers) for store in stores)))
    if not common:
        raise UsageError("the stores have no layer in common: " + "; ".join(f"{s.folder}: {s.layers}" for s in stores))
    first = stores[0]
    for store in stores[1:]:
        for layer in common:
            one, other = (of.about["layers"][str(layer)] for of in (first, store))
            if any(one.get(name) != other.get(name) for name in ("num_features", "fingerprint")):
                raise UsageError(
                    f"layer {layer} of {first.folder} has codes of {one.get('dictionary')} ({one.get('fingerprint')}), and "
                    f"of {store.folder} codes of {other.get('dictionary')} ({other.get('fingerprint')}): features of two "
                    "dictionaries are not compared by number; collect both with the dictionaries of the model before"
                )
    return common


def _check_control(before: Store, control: Store) -> None:
    models = [store.about.get("model_fingerprint") for store in (before, control)]
    if models[0] != models[1]:
        raise UsageError(f"the control has to be of the model before, and {control.folder} is of another one")
    if before.num_tokens == control.num_tokens and np.array_equal(before.tokens, control.tokens):
        raise UsageError(f"the control {control.folder} holds the very games of {before.folder}: play others")


def _gate(
    same_text: tuple[Store, Store] | None,
    quality: tuple[Mapping[Any, Any], Mapping[Any, Any]] | None,
    limits: GateLimits | None,
) -> Gate | None:
    if quality is not None:
        return open_gate(quality[0], quality[1], limits)
    paths = [store.folder / "quality.json" for store in same_text or ()]
    if not paths or not all(path.is_file() for path in paths):
        return None
    try:
        before, after = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
        return open_gate(before, after, limits)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"the quality of the dictionaries cannot be read from {paths[0]} and {paths[1]}: {error}"
        ) from None


def _compare_layer(
    changes: Changes,
    layer: int,
    pair: tuple[Store, Store],
    control: Store | None,
    settings: CompareSettings,
    parts: Path,
) -> None:
    """Adds a layer, from its parts where they are there."""
    paired = changes.kind == SAME_TEXT
    of = {
        "kind": changes.kind,
        "layer": layer,
        "settings": asdict(settings),
        "stores": [identity(store) for store in (*pair, *([control] if control is not None else []))],
    }
    paths = [parts / f"{changes.kind}{end}-{layer:02d}.parquet" for end in ("", "_control")]
    main, floor = (read_part(path, of) for path in paths)
    if main is None or floor is None:
        before, after = (game_sums(store, layer, settings.replies_only) for store in pair)
        columns, about = _tested(before, after, paired, settings)
        columns |= _intervals(before, after, columns["p"], paired, settings.seed)
        if paired:
            columns["correlation"] = correlations(*pair, layer)
        other = game_sums(control, layer, settings.replies_only) if control is not None else None
        sides = _swapped(before, after, settings.seed) if paired else _control_of(before, other, settings.seed)
        main, floor = (columns, about), _tested(*sides, paired, settings)
        for path, part in zip(paths, (main, floor), strict=True):
            write_part(path, of, *part)
    changes.layers[layer], changes.about[layer] = main
    changes.control[layer], changes.control_about[layer] = floor


def _tested(
    before: GameSums, after: GameSums, paired: bool, settings: CompareSettings
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    found = clustered_difference(
        before,
        after,
        paired=paired,
        min_games=settings.min_games,
        draws=settings.draws,
        longer=settings.longer,
        seed=settings.seed,
    )
    about = {
        "pairs": found.pairs,
        "games": [len(before.games), len(after.games)],
        "tokens": [int(before.tokens.sum()), int(after.tokens.sum())],
        "length": [float(length) for length in found.length],
        "counted": list(found.counted),
    }
    return _columns(found), about


def _columns(found: Differences) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    for name in ("games", "density", "activation"):
        columns[f"{name}_before"], columns[f"{name}_after"] = getattr(found, name)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = found.density[1] / found.density[0]
    columns["density_ratio"] = np.where(np.isfinite(ratio), ratio, np.nan)
    columns["tested"] = found.tested
    for name in STATISTICS:
        columns[f"z_{name}"], columns[f"p_{name}"] = found.z[name], found.p[name]
    columns["half_0"], columns["half_1"] = found.halves
    return columns | {"direction": found.rose, "p": found.combined}


def _intervals(before: GameSums, after: GameSums, p: np.ndarray, paired: bool, seed: int) -> dict[str, np.ndarray]:
    features = np.argsort(np.nan_to_num(p, nan=2.0), kind="stable")[:_WITH_INTERVAL]
    features = features[~np.isnan(p[features])]
    ends = np.full((2, len(p)), np.nan)
    if len(features):
        ends[:, features] = ratio_interval_by_game(before, after, features, paired=paired, seed=seed)
    return {"ratio_low": ends[0], "ratio_high": ends[1]}


def _swapped(before: GameSums, after: GameSums, seed: int) -> tuple[GameSums, GameSums]:
    """Both with their names swapped in a random half of the games."""
    from scipy.sparse import vstack

    n = len(before.games)
    swap = np.zeros(n, bool)
    swap[np.random.default_rng([seed, 1]).permutation(n)[: n // 2]] = True
    rows = [np.where(swap, np.arange(n) + n, np.arange(n)), np.where(swap, np.arange(n), np.arange(n) + n)]
    counts, totals = (
        vstack(parts).tocsr() for parts in ((before.counts, after.counts), (before.totals, after.totals))
    )
    one, other = (GameSums(before.games, before.tokens, counts[at], totals[at]) for at in rows)
    return one, other


def _control_of(before: GameSums, control: GameSums | None, seed: int) -> tuple[GameSums, GameSums]:
    """The games before against the control's, or halves of them against each other."""
    if control is not None:
        return before, control
    order = np.random.default_rng([seed, 1]).permutation(len(before.games))
    half = len(order) // 2
    if half < 2:
        raise UsageError(f"halves of {len(order)} games are too few for a control: 4 games are needed")
    return before.take(order[:half]), before.take(order[half : 2 * half])


def _adjust(tables: dict[int, dict[str, np.ndarray]], rate: float) -> None:
    """Adds `q` and `beyond` over all layers together."""
    if not tables:
        return
    q = benjamini_hochberg(np.concatenate([columns["p"] for columns in tables.values()]))
    cuts = np.cumsum([len(columns["p"]) for columns in tables.values()])[:-1]
    for columns, part in zip(tables.values(), np.split(q, cuts), strict=True):
        columns["q"], columns["beyond"] = part, np.nan_to_num(part, nan=2.0) <= rate


def _rows(found: list[Changes], layers: list[int]) -> dict[str, np.ndarray]:
    """Columns of the parquet file, over all layers."""
    sizes = [len(found[0].layers[layer]["p"]) for layer in layers]
    rows = {
        "layer": np.repeat(np.array(layers, np.int32), sizes),
        "feature": np.concatenate([np.zeros(0), *(np.arange(size) for size in sizes)]).astype(np.int32),
    }
    for changes in found if layers else ():
        for name in changes.layers[layers[0]]:
            rows[f"{changes.kind}_{name}"] = np.concatenate([changes.layers[layer][name] for layer in layers])
    return rows
