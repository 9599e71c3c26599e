"""Codes of a model's residual streams on documents, each distinct sequence read once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch

from ..errors import UsageError
from .activations import read_residuals
from .documents import Document
from .store import TOKEN, Rows, join_rows, rows_from, take_rows


if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Numbers of a dense block of codes: bounds the memory of encoding
_BLOCK = 2**25
# Dictionaries with more weights than this are decoded on every eighth token only, as decoding costs as much as encoding
_SMALL, _EVERY = 2**20, 8


class Encoder(Protocol):
    """What is needed of a dictionary; see [`~spiral_trl.sae.dictionaries.Dictionary`]."""

    @property
    def layer(self) -> int: ...
    @property
    def num_features(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    def encode(self, stream: torch.Tensor, /) -> torch.Tensor: ...
    def read(self, stream: torch.Tensor, /) -> torch.Tensor: ...
    def error(self, stream: torch.Tensor, codes: torch.Tensor, /) -> torch.Tensor: ...
    def to_dict(self) -> dict[str, Any]: ...


@dataclass
class Sums:
    """What tells how well a dictionary did, over tokens.

    Args:
        moments (`np.ndarray`): `(3,)` of decoded tokens: number, squared error, squared norm.
        total (`np.ndarray`): `(width,)` sum of their streams.
        count (`np.ndarray`): `(features,)` tokens on which each feature was active, of all tokens.
    """

    moments: np.ndarray
    total: np.ndarray
    count: np.ndarray

    @classmethod
    def zeros(cls, dictionary: Encoder) -> Sums:
        return cls(np.zeros(3), np.zeros(dictionary.width), np.zeros(dictionary.num_features, dtype=np.int64))

    def add(self, other: Sums) -> None:
        self.moments += other.moments
        self.total += other.total
        self.count += other.count

    def quality(self, tokens: int) -> dict[str, float | None]:
        number, error, squares = self.moments.tolist()
        variance = squares - float(self.total @ self.total) / number if number else 0.0
        # A stream that is the same everywhere leaves a difference of rounding
        varies = variance > 1e-9 * squares
        return {
            "unexplained_variance": error / variance if varies else None,
            "l0": float(self.count.sum() / tokens),
            "dead": float((self.count == 0).mean()),
        }


@dataclass(frozen=True)
class _Plan:
    """Which sequences are read for the documents of a shard.

    Args:
        sequences (`list[tuple[int, ...]]`): Distinct, none the beginning of another; longest first.
        starts (`list[int]`): Of each, the first position that a document keeps.
        index (`np.ndarray`): `(kept,)` where each kept token stands among the positions from `starts` on of all
            sequences.
        rows (`int`): How many these are.
    """

    sequences: list[tuple[int, ...]]
    starts: list[int]
    index: np.ndarray
    rows: int


def _plan(documents: Sequence[Document]) -> _Plan:
    ordered = sorted({document.ids for document in documents})
    # What begins with given tokens directly follows them in this order
    whole: dict[tuple[int, ...], tuple[int, ...]] = {}
    for place in reversed(range(len(ordered))):
        ids, after = ordered[place], ordered[place + 1] if place + 1 < len(ordered) else ()
        whole[ids] = whole[after] if after[: len(ids)] == ids else ids
    starts: dict[tuple[int, ...], int] = {}
    for document in documents:
        ids = whole[document.ids]
        starts[ids] = min(starts.get(ids, len(ids)), document.start)
    sequences = sorted(starts, key=lambda ids: (-len(ids), ids))
    ends = np.cumsum([len(ids) - starts[ids] for ids in sequences])
    # Where position 0 of each sequence would stand
    origin = {ids: int(end) - len(ids) for ids, end in zip(sequences, ends, strict=True)}
    index = [origin[whole[document.ids]] + np.arange(document.start, len(document.ids)) for document in documents]
    return _Plan(sequences, [starts[ids] for ids in sequences], np.concatenate(index), int(ends[-1]))


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[range]:
    """Consecutive sequences, longest first, that together take at most `batch_tokens`, or one alone."""
    first = 0
    while first < len(lengths):
        last = min(len(lengths), first + max(1, batch_tokens // lengths[first]))
        yield range(first, last)
        first = last


def _records(documents: Sequence[Document], numbers: Sequence[int]) -> np.ndarray:
    """`(kept,)` records of the documents' kept tokens."""
    kept = np.array([len(document.ids) - document.start for document in documents])
    records = np.zeros(kept.sum(), TOKEN)
    records["token"] = np.concatenate([document.ids[document.start :] for document in documents])
    records["position"] = np.concatenate([np.arange(document.start, len(document.ids)) for document in documents])
    for name, values in {
        "group": [document.group for document in documents],
        "document": numbers,
        "player": [document.player for document in documents],
        "turn": [document.turn for document in documents],
    }.items():
        records[name] = np.repeat(values, kept)
    replies = [len(document.ids) if document.reply is None else document.reply for document in documents]
    records["reply"] = records["position"] >= np.repeat(replies, kept)
    return records


class Reader:
    """Codes of a model's streams on documents."""

    def __init__(
        self, model: PreTrainedModel, dictionaries: Mapping[int, Encoder], batch_tokens: int, value_dtype: str
    ):
        self.model = model
        self.dictionaries = dictionaries
        self.batch_tokens = batch_tokens
        self.value_dtype = value_dtype
        self.vocabulary = len(cast("torch.Tensor", model.get_input_embeddings().weight))

    def read(
        self, documents: Sequence[Document], numbers: Sequence[int]
    ) -> tuple[np.ndarray, dict[int, Rows], dict[int, Sums]]:
        """Token records, rows and sums of the kept tokens of documents, in their order."""
        some = [
            (document, n) for document, n in zip(documents, numbers, strict=True) if document.start < len(document.ids)
        ]
        documents, numbers = [document for document, _ in some], [n for _, n in some]
        self._check_vocabulary(documents)
        plan = _plan(documents)
        # How many documents each computed token stands in
        weights = np.bincount(plan.index, minlength=plan.rows)
        parts: dict[int, list[Rows]] = {layer: [] for layer in self.dictionaries}
        sums = {layer: Sums.zeros(dictionary) for layer, dictionary in self.dictionaries.items()}
        done = 0
        for batch in _batches([len(ids) for ids in plan.sequences], self.batch_tokens):
            try:
                streams, kept = self._streams(
                    [plan.sequences[place] for place in batch], [plan.starts[place] for place in batch]
                )
                for layer in list(streams):
                    stream = streams.pop(layer)[kept]  # (n, width)
                    self._encode(layer, stream, weights[done : done + len(stream)], parts[layer], sums[layer])
            except torch.OutOfMemoryError as error:
                raise UsageError(
                    f"a batch of {self.batch_tokens} tokens does not fit in memory: lower batch_tokens. Whole shards "
                    "are kept"
                ) from error
            done += int(kept.sum())
        rows = {layer: take_rows(join_rows(parts.pop(layer)), plan.index) for layer in list(parts)}
        return _records(documents, numbers), rows, sums

    def _check_vocabulary(self, documents: Sequence[Document]) -> None:
        for document in documents:
            if not 0 <= min(document.ids) <= max(document.ids) < self.vocabulary:
                raise UsageError(
                    f"a document of group {document.group} has the token {max(document.ids)}, but the model has "
                    f"{self.vocabulary}: its tokenizer is another"
                )

    def _streams(
        self, sequences: Sequence[tuple[int, ...]], starts: Sequence[int]
    ) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        """Residual streams `(B, T, width)` of each layer, and which positions are kept, `(B, T)`."""
        lengths = torch.tensor([len(ids) for ids in sequences])
        ids = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = torch.tensor(sequence)
        position = torch.arange(ids.size(1))
        read = position < lengths[:, None]
        inputs = {"input_ids": ids.to(self.model.device), "attention_mask": read.long().to(self.model.device)}
        streams = read_residuals(self.model, inputs, sorted(self.dictionaries))
        return streams, read & (position >= torch.tensor(starts)[:, None])

    @torch.no_grad()
    def _encode(self, layer: int, streams: torch.Tensor, weights: np.ndarray, parts: list[Rows], sums: Sums) -> None:
        """Adds the rows of streams `(n, width)`, and what they bring to the sums, `weights` times each."""
        dictionary = self.dictionaries[layer]
        if not torch.isfinite(streams).all():
            raise UsageError(
                f"the residual stream of layer {layer} is not finite: load the model in float32 or bfloat16"
            )
        size = max(_EVERY, _BLOCK // dictionary.num_features)
        every = 1 if dictionary.num_features * dictionary.width <= _SMALL else _EVERY
        for first in range(0, len(streams), size):
            stream, weight = streams[first : first + size].float(), weights[first : first + size]
            codes = dictionary.encode(stream)  # (n, features)
            flat = codes.flatten()
            where = torch.nonzero(flat > 0).squeeze(1)
            at, feature = np.divmod(where.cpu().numpy(), dictionary.num_features)
            rows = rows_from(at, feature, flat[where].float().cpu().numpy(), codes.shape, self.value_dtype)
            parts.append(rows)
            sums.count += np.bincount(feature, weight[at], dictionary.num_features).astype(np.int64)
            some, error = weight[::every], dictionary.error(stream[::every], codes[::every])
            squared = error.cpu().double().square().sum(-1).numpy()
            exact = dictionary.read(stream[::every]).cpu().double().numpy()
            sums.moments += [some.sum(), some @ squared, some @ np.square(exact).sum(-1)]
            sums.total += some @ exact
