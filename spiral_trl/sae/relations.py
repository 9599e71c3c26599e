"""How the features of one layer relate to those of a later one, by the measures of arXiv 2410.08869.

Between feature i upstream and j downstream, active together on n11 of n tokens, alone on n1 and n2:

| measure | |
|---|---|
| `pearson` | correlation of the activations over all tokens |
| `cosine` | of the activations, not centred |
| `jaccard` | n11 / (n1 + n2 - n11) |
| `sufficiency` | n11 / n1: the share of i's tokens on which j is active, P(down given up) |
| `necessity` | n11 / n2: the share of j's tokens on which i is active, P(up given down) |
| `mutual_information` | of the two events, in nats |
| `decoder_cosine` | of the decoder directions |

A feature is active where a > 0 (the rule `absolute`) or where a > 0.2 max a (`relative`). The rule decides the counts and
what is computed from them; activations are correlated as they are. What has no value, as the correlation of a constant
feature, counts as 0.

The folder:

```
relations.json               of which codes, with which settings
features/03.parquet          the features of layer 3 by themselves
absolute/03-04.parquet       the pairs of layers 3 and 4 that stand in any list, under the rule absolute
relative/03-04.parquet
README.md                    tells the Hub's viewer and `datasets` which files are one table
```

For every feature and measure, both ways, the lists hold its top k neighbours: pairs whose measure is above 0 and that are
active together on at least one token, by the rule for measures of counts (decoder directions apart, for which tokens do
not matter). Measures are compared in float32, as they are saved; of equal ones the feature with the lower number comes
first.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError, did_you_mean
from .extra import require_extra
from .relation_files import (
    directions_fingerprint,
    edges_path,
    features_path,
    is_finished,
    read_table,
    store_fingerprint,
    write_features,
    write_readme,
    write_table,
)
from .store import Store, write_json


if TYPE_CHECKING:
    from .kernels import Features


VERSION = 1
MEASURES = ("pearson", "cosine", "jaccard", "sufficiency", "necessity", "mutual_information", "decoder_cosine")
RULES = ("absolute", "relative")
# Share of a feature's largest activation above which it is active by the relative rule
RELATIVE = 0.2


@dataclass(frozen=True)
class Relations:
    """Relations between layers that have been computed; see the module.

    Args:
        folder (`Path`): Where they lie.
        about (`dict`): What `relations.json` says: `store`, `num_tokens`, `model`, `settings`, `layers`, `directions`.
    """

    folder: Path
    about: Mapping[str, Any]

    @property
    def rules(self) -> tuple[str, ...]:
        return tuple(self.about["settings"]["rules"])

    @property
    def num_tokens(self) -> int:
        return self.about["num_tokens"]

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The layer pairs that are finished, ascending."""
        found = [tuple(map(int, path.stem.split("-"))) for path in (self.folder / self.rules[0]).glob("*-*.parquet")]
        return tuple(sorted((up, down) for up, down in found if is_finished(self.folder, (up, down), self.rules)))

    def features(self, layer: int) -> dict[str, np.ndarray]:
        """Columns of a layer's features: `layer`, `feature`, `count` and `count_relative` (tokens on which it is active
        under each rule), `total` and `total_squares` (of its activations), `max`, `mean_active` (mean activation where
        it is active), `density` (share of tokens).

        Raises:
            [`~spiral_trl.errors.UsageError`]: If there is no such layer, or the file cannot be read.
        """
        layers = sorted(int(key) for key in self.about["layers"])
        if layer not in layers:
            raise UsageError(f"{self.folder} has layers {', '.join(map(str, layers))}, not {layer}")
        return read_table(features_path(self.folder, layer))

    def edges(self, pair: tuple[int, int], rule: str = "absolute") -> dict[str, np.ndarray]:
        """Columns of a layer pair's table, ascending by upstream and downstream feature.

        `upstream_layer`, `upstream`, `downstream_layer`, `downstream`; `count_up`, `count_down`, `count_both` under the
        rule; every measure, float32; and for each measure `rank_down_MEASURE`, the place of the downstream feature among
        the upstream one's neighbours, from 1, or 0 where it is not in its top k, and `rank_up_MEASURE`, the place of the
        upstream feature among the downstream one's. `decoder_cosine` is NaN where directions were not given.

        Raises:
            [`~spiral_trl.errors.UsageError`]: If there is no such pair or rule, or the file cannot be read.
        """
        _check_rules([rule], self.rules)
        if tuple(pair) not in self.pairs:
            have = ", ".join(f"{up}-{down}" for up, down in self.pairs) or "none"
            raise UsageError(f"{self.folder} has no layer pair {pair[0]}-{pair[1]}; there are: {have}")
        return read_table(edges_path(self.folder, pair, rule))


def relate(
    store: Store,
    folder: str | Path,
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    directions: Mapping[int, np.ndarray] | None = None,
    top_k: int = 16,
    rules: Sequence[str] = RULES,
    relative: float = RELATIVE,
    min_count: int = 1,
    processes: int = 1,
    progress: bool | None = None,
) -> Relations:
    """Relates the features of layers, one pair of layers after the other.

    A pair's tables are written whole; what is there already, of the same codes and with the same settings, is kept. So a
    run that was stopped is gone on with by running it again.

    Args:
        store ([`~spiral_trl.sae.store.Store`]): The codes.
        folder (`str` or `Path`): Where the relations go. While it runs, the downstream layer is laid out there too: 4
            bytes an entry.
        pairs (`Sequence[tuple[int, int]]`, *optional*): Pairs of an upstream layer and a later one; by default each layer
            of the store and the next it has.
        directions (`Mapping[int, np.ndarray]`, *optional*): For each layer the decoder's directions, `(features, width)`.
            Without them there is no `decoder_cosine`.
        top_k (`int`, *optional*, defaults to 16): Neighbours in a list.
        rules (`Sequence[str]`, *optional*, defaults to both): The rules of activity.
        relative (`float`, *optional*, defaults to 0.2): The share of its largest activation above which a feature is
            active by the relative rule.
        min_count (`int`, *optional*, defaults to 1): Features that are active (a > 0) on fewer tokens have no neighbours
            and are none.
        processes (`int`, *optional*, defaults to 1): How many processes. What comes out is the same, bit by bit. Above 1
            the calling script needs its `if __name__ == "__main__"`.
        progress (`bool`, *optional*): Whether a bar is shown. By default where stderr is a terminal.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If an argument or the store cannot be used, if the folder holds relations of
            other codes or settings, or if the disk is full or a process was killed; finished pairs are kept.
    """
    require_extra()
    folder = Path(folder)
    wanted = _check(store, pairs, directions, top_k, rules, relative, min_count, processes)
    try:
        about = _begin(store, folder, wanted, directions, _settings(top_k, rules, relative, min_count))
        missing = [pair for pair in wanted if not is_finished(folder, pair, rules)]
        if missing:
            _relate_missing(store, folder, missing, directions, about["settings"], processes, progress)
    except OSError as error:
        raise UsageError(
            f"{error.filename or folder}: {error.strerror or error}; the layer pairs that were finished are kept, and "
            "running it again goes on behind them"
        ) from error
    except BrokenProcessPool:
        raise UsageError(
            f"one of {processes} processes was killed, most likely for want of memory; the layer pairs that were finished "
            "are kept, and running it again, with fewer processes, goes on behind them"
        ) from None
    finally:
        shutil.rmtree(folder / "partial", ignore_errors=True)
    return Relations(folder, about)


def open_relations(folder: str | Path) -> Relations:
    """Opens what [`relate`] wrote, without reading its tables.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there is nothing, or it was written by another version.
    """
    folder = Path(folder)
    about = _read_about(folder)
    if about is None:
        raise UsageError(f"{folder} holds no relations: there is no relations.json")
    return Relations(folder, about)


def _check(
    store: Store,
    pairs: Sequence[tuple[int, int]] | None,
    directions: Mapping[int, np.ndarray] | None,
    top_k: int,
    rules: Sequence[str],
    relative: float,
    min_count: int,
    processes: int,
) -> list[tuple[int, int]]:
    """The wanted pairs, each once."""
    _check_rules(rules, RULES)
    if not 1 <= top_k <= 1000 or min_count < 0 or processes < 1 or not 0 <= relative < 1:
        raise UsageError(
            f"top_k must be 1 to 1000, min_count at least 0, processes at least 1 and relative from 0 to below 1, not "
            f"{top_k}, {min_count}, {processes}, {relative}"
        )
    if not 2 <= store.num_tokens < 1 << 30:
        raise UsageError(
            f"{store.folder} holds codes of {store.num_tokens} tokens; relations take at least 2 and fewer than 2^30"
        )
    layers = store.layers
    if pairs is None:
        pairs = list(zip(layers[:-1], layers[1:], strict=True))
    if not pairs:
        raise UsageError(f"relations need a pair of layers, but {store.folder} has layers {layers}")
    for up, down in pairs:
        if up not in layers or down not in layers or up >= down:
            raise UsageError(
                f"a pair must be an earlier and a later of the layers {', '.join(map(str, layers))}, not {up}-{down}"
            )
        if directions is None:
            continue
        for layer in (up, down):
            if layer not in directions:
                raise UsageError(f"directions were given for layers {sorted(directions)}, but not for {layer}")
        one, other = np.shape(directions[up]), np.shape(directions[down])
        if len(one) != 2 or len(other) != 2 or one[1] != other[1]:
            raise UsageError(f"directions of layers {up} and {down} have the shapes {one} and {other}")
        if one[0] != store.num_features(up) or other[0] != store.num_features(down):
            raise UsageError(
                f"there are {one[0]} and {other[0]} directions of layers {up} and {down}, but codes of "
                f"{store.num_features(up)} and {store.num_features(down)} features"
            )
    # Pairs with the same downstream layer follow each other: its rows are laid out once
    return sorted({(up, down) for up, down in pairs}, key=lambda pair: (pair[1], pair[0]))


def _check_rules(rules: Sequence[str], allowed: Sequence[str]) -> None:
    for rule in rules:
        if rule not in allowed:
            raise UsageError(
                f"the rule must be one of {', '.join(allowed)}, not {rule!r}{did_you_mean(rule, allowed)}"
            )
    if not rules:
        raise UsageError(f"at least one rule is needed, of {', '.join(allowed)}")


def _settings(top_k: int, rules: Sequence[str], relative: float, min_count: int) -> dict[str, Any]:
    ordered = [rule for rule in RULES if rule in rules]
    return {"top_k": top_k, "rules": ordered, "relative": relative, "min_count": min_count}


def _begin(
    store: Store,
    folder: Path,
    pairs: Sequence[tuple[int, int]],
    directions: Mapping[int, np.ndarray] | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes `relations.json`, or sees that what is there is of the same codes and settings."""
    layers = sorted({layer for pair in pairs for layer in pair})
    used = {str(layer): directions_fingerprint(directions[layer]) if directions else None for layer in layers}
    about: dict[str, Any] = {
        "version": VERSION,
        "store": store_fingerprint(store),
        "model": store.about.get("model"),
        "num_tokens": store.num_tokens,
        "settings": dict(settings),
        "layers": {str(layer): store.num_features(layer) for layer in layers},
        "directions": used,
    }
    before = _read_about(folder)
    if before is not None:
        again = "give another folder, or remove this one"
        if before["store"] != about["store"]:
            raise UsageError(f"{folder} holds relations of other codes than those in {store.folder}: {again}")
        changed = [
            f"{key} {before['settings'].get(key)}, not {value}"
            for key, value in settings.items()
            if before["settings"].get(key) != value
        ]
        if changed:
            raise UsageError(f"{folder} holds relations made with {'; '.join(changed)}: {again}")
        if (directions is None) != (None in before["directions"].values()):
            raise UsageError(f"{folder} holds relations made with{'out' if directions else ''} directions: {again}")
        for layer, fingerprint in used.items():
            if before["directions"].get(layer, fingerprint) != fingerprint:
                raise UsageError(f"{folder} holds relations made with other directions of layer {layer}: {again}")
        about["layers"] = {**before["layers"], **about["layers"]}
        about["directions"] = {**before["directions"], **used}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "relations.json", about)
    write_readme(folder, settings["rules"])
    return about


def _read_about(folder: Path) -> dict[str, Any] | None:
    path = folder / "relations.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if not isinstance(about, dict) or about.get("version") != VERSION:
        raise UsageError(f"{path} was written by another version than {VERSION}")
    return about


def _relate_missing(
    store: Store,
    folder: Path,
    pairs: Sequence[tuple[int, int]],
    directions: Mapping[int, np.ndarray] | None,
    settings: Mapping[str, Any],
    processes: int,
    progress: bool | None,
) -> None:
    from huggingface_hub.utils import tqdm

    from .kernels import feature_sums
    from .neighbours import RANGES, Workers, lay_out, relate_pair

    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    features: dict[int, Features] = {}
    laid_out = None
    hidden = not sys.stderr.isatty() if progress is None else not progress
    with Workers(processes) as workers, tqdm(total=RANGES * len(pairs), unit=" parts", disable=hidden) as bar:
        for number, pair in enumerate(pairs):
            bar.set_description(f"layers {pair[0]} and {pair[1]}")
            for layer in pair:
                if layer not in features:
                    # Also checks every row, so that no loop after it reads or writes outside an array
                    features[layer] = feature_sums(store, layer, settings["relative"])
                    write_features(folder, layer, features[layer], store.num_tokens)
            up, down = pair
            if laid_out != down:
                lay_out(store, down, settings["relative"] * features[down].max, partial)
                laid_out = down
            both = None if directions is None else (directions[up], directions[down])
            neighbours = relate_pair(
                store, pair, partial, (features[up], features[down]), both, settings, workers, bar.update
            )
            for rule in settings["rules"]:
                table = neighbours.table(rule)
                write_table(edges_path(folder, pair, rule), table)
            bar.update(RANGES * (number + 1) - bar.n)
            later = {layer for other in pairs[number + 1 :] for layer in other}
            features = {layer: sums for layer, sums in features.items() if layer in later}
