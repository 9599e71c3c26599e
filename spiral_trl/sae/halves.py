"""A store of codes cut in two by games: what a difference between two models is held against."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from .store import Rows, Store, open_store, write_shard, write_store


def split_store(store: Store, folder: str | Path, seed: int = 42) -> tuple[Store, Store]:
    """Writes two stores, `folder/0` and `folder/1`, of a random half of the games each.

    Stores of the same texts are cut alike. Halves that are there already, of the same games, are opened.

    Args:
        store ([`~spiral_trl.sae.store.Store`]): The codes.
        folder (`str` or `Path`): Where the halves go.
        seed (`int`, *optional*, defaults to `42`): Which games go where.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there are fewer than two games, or the folder holds other halves.
    """
    games = np.unique(store.tokens["group"])
    if len(games) < 2:
        raise UsageError(f"{store.folder} holds {len(games)} game, too few for two halves")
    first = np.random.default_rng(seed).permutation(games)[: len(games) // 2]
    halves = []
    for number in (0, 1):
        path = Path(folder) / str(number)
        said = {"number": number, "seed": seed, "of": identity(store)}
        if not path.is_dir():
            _write_half(
                store, path, {**store.about, "half": said}, np.sort(games[np.isin(games, first) == (number == 0)])
            )
        half = open_store(path)
        if half.about.get("half") != said:
            raise UsageError(f"{path} holds codes of something else; choose another folder")
        halves.append(half)
    return halves[0], halves[1]


def _write_half(store: Store, path: Path, about: Mapping[str, Any], games: np.ndarray) -> None:
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_store(partial, about)
    shards = 0
    for shard in store.shards:
        tokens = shard.tokens()
        kept = np.flatnonzero(np.isin(tokens["group"], games))
        if len(kept):
            rows = {layer: _rows(shard.rows(layer), kept) for layer in store.layers}
            write_shard(partial, shards, tokens[kept], rows)
            shards += 1
    os.replace(partial, path)


def identity(store: Store) -> dict[str, Any]:
    """What tells a store from others, wherever it lies."""
    return {
        "model": store.about.get("model"),
        "model_fingerprint": store.about.get("model_fingerprint"),
        "documents": store.about.get("documents_fingerprint"),
        "layers": {layer: said.get("fingerprint") for layer, said in store.about["layers"].items()},
        "tokens": store.num_tokens,
        "entries": {str(layer): sum(shard.entries[layer] for shard in store.shards) for layer in store.layers},
    }


def _rows(rows: Rows, kept: np.ndarray) -> Rows:
    sizes = np.diff(rows.indptr)[kept]
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    entries = np.repeat(rows.indptr[kept] - indptr[:-1], sizes) + np.arange(indptr[-1])
    return Rows(indptr, rows.feature[entries], rows.value[entries])
