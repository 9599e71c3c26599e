"""Sparse codes on disk: for every token and layer the active features and their activations, memory-mapped.

A store is a folder of shards, each written whole or not at all, so that a collection that was stopped goes on behind the
last one:

```
store.json                  what was read: model, layers, dictionaries, source
shards/00000/shard.json     numbers of tokens and entries
shards/00000/tokens.npy     one record for each token, of TOKEN
shards/00000/layer_03.indptr.npy, .feature.npy, .value.npy    rows of layer 3: those of scipy's CSR
```
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import UsageError


VERSION = 1

# What is kept of a token. `group` is the game, or the text: the unit that statistics resample. `document` is the row of
# the documents' table, `position` the place in the document; `player` and `turn` are -1 outside games; `reply` tells
# tokens that the player wrote from those it was shown.
TOKEN = np.dtype(
    [
        ("token", "<i4"),
        ("group", "<i4"),
        ("document", "<i4"),
        ("position", "<i4"),
        ("player", "<i2"),
        ("turn", "<i2"),
        ("reply", "?"),
    ]
)
# Activations are kept in half precision, which holds none above this
LARGEST = float(np.finfo(np.float16).max)


class Rows(NamedTuple):
    """Sparse rows of a layer in one shard, as scipy's CSR has them: one row a token, one column a feature.

    Args:
        indptr (`np.ndarray`): `(tokens + 1,)`, int64.
        feature (`np.ndarray`): `(entries,)`, uint16 or uint32: features, ascending within a row.
        value (`np.ndarray`): `(entries,)`, float16 or float32: activations, above 0.
    """

    indptr: np.ndarray
    feature: np.ndarray
    value: np.ndarray

    @property
    def num_tokens(self) -> int:
        return len(self.indptr) - 1


def rows_of(dense: np.ndarray, value_dtype: str = "float16") -> Rows:
    """Sparse rows of dense codes `(tokens, features)`: their entries above 0.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If half precision cannot hold an activation.
    """
    at, feature = np.nonzero(dense > 0)
    return rows_from(at, feature, dense[at, feature], dense.shape, value_dtype)


def rows_from(
    at: np.ndarray, feature: np.ndarray, value: np.ndarray, shape: tuple[int, ...], value_dtype: str = "float16"
) -> Rows:
    """Sparse rows of the entries above 0 of codes of a shape `(tokens, features)`.

    Args:
        at, feature (`np.ndarray`): `(entries,)` row and column of each, in the order of rows and, within them, columns.
        value (`np.ndarray`): `(entries,)` activations.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If half precision cannot hold an activation.
    """
    if value_dtype == "float16" and value.size and value.max() > LARGEST:
        raise UsageError(
            f"an activation of {value.max():.3g} is above {LARGEST:.0f}, the largest that half precision holds; collect "
            "with value_dtype=float32"
        )
    counts = np.bincount(at, minlength=shape[0])
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    # Above 0 it stays, also where half precision would round it to 0
    kept = value.astype(value_dtype)
    kept[kept == 0] = np.finfo(value_dtype).smallest_subnormal
    return Rows(indptr, feature.astype(feature_dtype(shape[1])), kept)


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Rows one part after the other."""
    starts = np.cumsum([0, *(part.indptr[-1] for part in parts)])
    indptr = np.concatenate([[0], *(part.indptr[1:] + start for part, start in zip(parts, starts, strict=False))])
    return Rows(
        indptr.astype(np.int64),
        np.concatenate([part.feature for part in parts]),
        np.concatenate([part.value for part in parts]),
    )


def take_rows(rows: Rows, index: np.ndarray) -> Rows:
    """The rows of these numbers, in their order; a row may be taken several times."""
    lengths = np.diff(rows.indptr)[index]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    # Place of each entry: where its row began, moved to where it begins now
    entries = np.repeat(rows.indptr[index] - indptr[:-1], lengths) + np.arange(indptr[-1])
    return Rows(indptr, rows.feature[entries], rows.value[entries])


def feature_dtype(num_features: int) -> str:
    """The smallest of the integers that a store holds features in."""
    return "uint16" if num_features <= 1 << 16 else "uint32"


@dataclass(frozen=True)
class Shard:
    """One shard of a [`Store`]."""

    folder: Path
    num_tokens: int
    entries: Mapping[int, int]

    def tokens(self) -> np.ndarray:
        """`(tokens,)` records of [`TOKEN`], memory-mapped."""
        return _mapped(self.folder / "tokens.npy", self.num_tokens)

    def rows(self, layer: int) -> Rows:
        """Rows of a layer, memory-mapped.

        Raises:
            [`~spiral_trl.errors.UsageError`]: If the files are cut short or do not belong together.
        """
        stem = f"layer_{layer:02d}"
        entries = self.entries[layer]
        indptr = _mapped(self.folder / f"{stem}.indptr.npy", self.num_tokens + 1)
        if indptr[0] != 0 or indptr[-1] != entries:
            raise UsageError(
                f"the shard {self.folder} is corrupt: layer {layer} counts {indptr[-1]} entries, not {entries}"
            )
        feature = _mapped(self.folder / f"{stem}.feature.npy", entries)
        return Rows(indptr, feature, _mapped(self.folder / f"{stem}.value.npy", entries))


@dataclass(frozen=True)
class Store:
    """Codes of a model on a set of documents; see the module.

    Args:
        folder (`Path`): Where it lies.
        about (`dict`): What `store.json` says: `model`, `source`, `layers` (for each layer, as text, `num_features`,
            `dictionary` and `fingerprint`), and whatever the collection adds.
        shards (`tuple[Shard, ...]`): The shards, in order.
    """

    folder: Path
    about: Mapping[str, Any]
    shards: tuple[Shard, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(int(layer) for layer in self.about["layers"]))

    @property
    def num_tokens(self) -> int:
        return sum(shard.num_tokens for shard in self.shards)

    def num_features(self, layer: int) -> int:
        """Width of a layer's dictionary.

        Raises:
            [`~spiral_trl.errors.UsageError`]: If the store does not have the layer.
        """
        if layer not in self.layers:
            raise UsageError(f"{self.folder} has layers {', '.join(map(str, self.layers))}, not {layer}")
        return self.about["layers"][str(layer)]["num_features"]

    @cached_property
    def tokens(self) -> np.ndarray:
        """`(num_tokens,)` records of [`TOKEN`], in memory."""
        return np.concatenate([shard.tokens() for shard in self.shards])

    def rows(self, layer: int) -> Rows:
        """Rows of a layer over all shards, in memory: for what is small. Large stores are read shard by shard."""
        self.num_features(layer)
        return join_rows([shard.rows(layer) for shard in self.shards])


def open_store(folder: str | Path) -> Store:
    """Opens a store, without reading its codes.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there is none, it is empty, of another version, or a shard is corrupt.
    """
    folder = Path(folder)
    about = read_about(folder)
    shards = whole_shards(folder)
    if not shards:
        raise UsageError(f"{folder} holds no codes yet: no shard was finished")
    layers = [int(layer) for layer in about["layers"]]
    for shard in shards:
        for layer in layers:
            if layer not in shard.entries:
                raise UsageError(f"the shard {shard.folder} is corrupt: layer {layer} is missing")
            shard.rows(layer)
        shard.tokens()
    return Store(folder, about, tuple(shards))


def read_about(folder: str | Path) -> dict[str, Any]:
    """What a store says that it is about.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there is none, or it is of another version.
    """
    about = _read_json(Path(folder) / "store.json", f"{folder} holds no codes: there is no store.json")
    if about.get("version") != VERSION:
        raise UsageError(f"{folder} was written by another version ({about.get('version')}, here {VERSION})")
    if not isinstance(about.get("layers"), dict):
        raise UsageError(f"{folder} holds no codes: its store.json names no layers")
    return about


def whole_shards(folder: str | Path) -> list[Shard]:
    """The shards of a store that were written to their end: consecutive from the first.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If what describes one cannot be read.
    """
    shards: list[Shard] = []
    while (shard := read_shard(folder, len(shards))) is not None:
        shards.append(shard)
    return shards


def read_shard(folder: str | Path, number: int) -> Shard | None:
    """The shard of this number, or `None` where it was not written.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If what describes it cannot be read.
    """
    path = Path(folder) / "shards" / f"{number:05d}"
    if not path.is_dir():
        return None
    said = _read_json(path / "shard.json", f"the shard {path} is corrupt: there is no shard.json")
    try:
        entries = {int(layer): int(count) for layer, count in said["entries"].items()}
        return Shard(path, int(said["num_tokens"]), entries)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"the shard {path} is corrupt: its shard.json cannot be read ({error})") from None


def write_store(folder: str | Path, about: Mapping[str, Any]) -> None:
    """Begins a store: writes what it is about. Needs `layers`, see [`Store`]."""
    folder = Path(folder)
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    write_json(folder / "store.json", {"version": VERSION, **about})


def write_shard(folder: str | Path, number: int, tokens: np.ndarray, rows: Mapping[int, Rows]) -> Shard:
    """Writes a shard whole: under another name first, which is then changed.

    Raises:
        `OSError`: If the disk is full, say; nothing of the shard is left, and earlier ones stay.
    """
    shards = Path(folder) / "shards"
    final, partial = shards / f"{number:05d}", shards / f"{number:05d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_array(partial / "tokens.npy", tokens.astype(TOKEN, copy=False))
        for layer, part in rows.items():
            for name, values in part._asdict().items():
                save_array(partial / f"layer_{layer:02d}.{name}.npy", values)
        entries = {str(layer): int(part.indptr[-1]) for layer, part in rows.items()}
        write_json(partial / "shard.json", {"num_tokens": len(tokens), "entries": entries})
        os.replace(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Shard(final, len(tokens), {layer: int(part.indptr[-1]) for layer, part in rows.items()})


def save_array(path: Path, values: np.ndarray) -> None:
    """Writes what `np.save` does, and sees that it arrived.

    `np.save` hands the numbers to C, and does not see an error of the last of them: on a full disk it leaves a short file
    and says nothing.
    """
    values = np.ascontiguousarray(values)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(values))
        file.write(values.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Within it a file is written under the name that it yields, which then takes the place of `path`: whole or not at
    all."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Writes JSON whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(value, indent=indent, allow_nan=False) + "\n", encoding="utf-8")


def _read_json(path: Path, missing: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(missing) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} cannot be read: it holds no JSON object")
    return value


def _mapped(path: Path, length: int) -> np.ndarray:
    try:
        values = np.load(path, mmap_mode="r") if length else np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"the shard {path.parent} is corrupt: {path.name} cannot be read ({error})") from None
    if values.shape != (length,):
        raise UsageError(
            f"the shard {path.parent} is corrupt: {path.name} has {len(values)} entries where {length} were written"
        )
    return values


def groups_of(tokens: np.ndarray) -> tuple[np.ndarray, int]:
    """The group of each token as a number from 0 without gaps, `(tokens,)`, and how many groups there are."""
    _, numbers = np.unique(tokens["group"], return_inverse=True)
    return numbers, int(numbers.max(initial=-1)) + 1


def check_same_tokens(one: Store, other: Store) -> None:
    """Refuses two stores whose codes are not of the same tokens.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If they are not.
    """
    if one.num_tokens != other.num_tokens or not np.array_equal(one.tokens, other.tokens):
        raise UsageError(f"{one.folder} and {other.folder} hold codes of different tokens")


def shard_bounds(shards: Sequence[Shard]) -> np.ndarray:
    """`(shards + 1,)`: number of the first token of each shard over the whole store, and of all tokens."""
    return np.cumsum([0, *(shard.num_tokens for shard in shards)])
