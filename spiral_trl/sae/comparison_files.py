"""Columns of a comparison on disk: parquet files, of all layers or, with what they were made from, of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .store import written_whole


if TYPE_CHECKING:
    import pyarrow as pa


def _table(columns: Mapping[str, np.ndarray]) -> pa.Table:
    import pyarrow as pa

    # What is not known is null, not NaN
    return pa.table(
        {
            name: pa.array(values, mask=np.isnan(values) if values.dtype.kind == "f" else None)
            for name, values in columns.items()
        }
    )


def write_columns(columns: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes columns `(rows,)` whole or not at all; NaN becomes null."""
    import pyarrow.parquet as pq

    table = _table(columns)
    if metadata:
        table = table.replace_schema_metadata(dict(metadata))
    with written_whole(path) as partial:
        pq.write_table(table, partial)


def write_part(path: Path, of: Mapping[str, Any], columns: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_columns(columns, path, {"of": json.dumps(of, sort_keys=True), "about": json.dumps(about)})


def read_part(path: Path, of: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """A part that was written with these stores and settings, or `None`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid):
        return None
    metadata = table.schema.metadata or {}
    if metadata.get(b"of") != json.dumps(of, sort_keys=True).encode():
        return None
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    return columns, json.loads(metadata[b"about"])
