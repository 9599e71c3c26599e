"""Files of relations between layers: what they are called, and tables written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from .store import Store, written_whole


if TYPE_CHECKING:
    import pyarrow

    from .kernels import Features


_README = """---
configs:
{configs}
---

# Relations between features of sparse autoencoders

Each row of `absolute` and `relative` is a pair of features of two layers; `features` describes the features by
themselves. See the columns' meaning in `spiral_trl.sae.relations`.
"""


def store_fingerprint(store: Store) -> str:
    """Of what a store is about and the sizes of its shards, not of every code."""
    sizes = [[shard.num_tokens, sorted(shard.entries.items())] for shard in store.shards]
    text = json.dumps([dict(store.about), sizes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def directions_fingerprint(directions: np.ndarray) -> str:
    """Of decoder directions, in float32."""
    return hashlib.sha256(np.ascontiguousarray(directions, np.float32).data).hexdigest()[:16]


def features_path(folder: Path, layer: int) -> Path:
    return folder / "features" / f"{layer:02d}.parquet"


def edges_path(folder: Path, pair: tuple[int, int], rule: str) -> Path:
    return folder / rule / f"{pair[0]:02d}-{pair[1]:02d}.parquet"


def write_readme(folder: Path, rules: Sequence[str]) -> None:
    """Writes what tells the Hub's viewer and `datasets` which files are one table."""
    configs = [f"- config_name: {name}\n  data_files: {name}/*.parquet" for name in [*rules, "features"]]
    (folder / "README.md").write_text(_README.format(configs="\n".join(configs)), encoding="utf-8")


def write_features(folder: Path, layer: int, features: Features, num_tokens: int) -> None:
    number = len(features.count)
    columns = {
        "layer": np.full(number, layer, np.int32),
        "feature": np.arange(number, dtype=np.int32),
        "count": features.count,
        "count_relative": features.count_relative,
        "total": features.total,
        "total_squares": features.total_squares,
        "max": features.max,
        "mean_active": features.total / np.maximum(features.count, 1),
        "density": features.count / num_tokens,
    }
    write_table(features_path(folder, layer), columns)


def write_table(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Writes a table whole or not at all. Ranks of 0 are null in it."""
    import pyarrow
    from pyarrow import parquet

    def column(name: str, values: np.ndarray) -> pyarrow.Array:
        return pyarrow.array(values, mask=values == 0 if name.startswith("rank_") else None)

    table = pyarrow.table({name: column(name, values) for name, values in columns.items()})
    # Numbers of which most differ gain nothing from a dictionary
    repeated = [name for name, values in columns.items() if values.dtype.kind == "i"]
    path.parent.mkdir(exist_ok=True)
    with written_whole(path) as partial:
        parquet.write_table(
            table, partial, row_group_size=1 << 18, compression="zstd", use_dictionary=repeated, store_schema=False
        )


def read_table(path: Path) -> dict[str, np.ndarray]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        return {
            name: (table[name].fill_null(0) if name.startswith("rank_") else table[name]).to_numpy()
            for name in table.column_names
        }
    except (OSError, pyarrow.ArrowException) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None


def is_finished(folder: Path, pair: tuple[int, int], rules: Sequence[str]) -> bool:
    """Whether the tables of a layer pair are there under all of the rules."""
    return all(edges_path(folder, pair, rule).exists() for rule in rules)
