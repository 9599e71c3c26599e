"""Documents through a model: residual streams of the tokens that are kept, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from ..errors import UsageError
from .activations import read_residuals


if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from .documents import Document


class Batch(NamedTuple):
    """Documents that a model reads at once, padded on the right.

    Args:
        documents (`list[Document]`): `B` documents.
        ids (`Tensor`): `(B, T)` token ids; 0 after a document's end.
        mask (`Tensor`): `(B, T)`, 1 at tokens and 0 at padding.
        kept (`Tensor`): `(B, T)` bool: tokens from the document's `start` on.
    """

    documents: list[Document]
    ids: Tensor
    mask: Tensor
    kept: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {"input_ids": self.ids, "attention_mask": self.mask}


def batches(documents: Iterable[Document], tokens: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
    """Batches of consecutive documents, of at most `tokens` tokens with their padding, or of one document."""
    part: list[Document] = []
    longest = 0
    for document in documents:
        if not document.ids:
            continue
        if part and max(longest, len(document.ids)) * (len(part) + 1) > tokens:
            yield batch_of(part, device)
            part, longest = [], 0
        part.append(document)
        longest = max(longest, len(document.ids))
    if part:
        yield batch_of(part, device)


def batch_of(documents: Sequence[Document], device: torch.device | str = "cpu") -> Batch:
    """One batch of some documents."""
    import torch

    lengths = torch.tensor([len(document.ids) for document in documents])
    place = torch.arange(int(lengths.max()))
    ids = torch.zeros(len(documents), len(place), dtype=torch.long)
    for row, document in zip(ids, documents, strict=True):
        row[: len(document.ids)] = torch.tensor(document.ids)
    mask = place < lengths[:, None]
    kept = mask & (place >= torch.tensor([document.start for document in documents])[:, None])
    return Batch(list(documents), ids.to(device), mask.long().to(device), kept.to(device))


def read_kept(model: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> dict[int, Tensor]:
    """`(kept tokens, width)` residual streams of each layer, documents and tokens in order."""
    return {layer: stream[batch.kept] for layer, stream in read_residuals(model, batch.inputs, layers).items()}


def readable(model: PreTrainedModel, documents: Iterable[Document]) -> Iterator[Document]:
    """Documents as the model can read them: those longer than its positions are cut to their first ones.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If one has tokens that the model does not know.
    """
    text = model.config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    for document in documents:
        document = document.shortened(positions)
        if document.ids and not 0 <= min(document.ids) <= max(document.ids) < text.vocab_size:
            raise UsageError(
                f"a document of group {document.group} has the token {max(document.ids)}, but the model has "
                f"{text.vocab_size}: its tokenizer is another"
            )
        yield document


class Place(NamedTuple):
    """Where a run over repeated documents stands.

    Args:
        block (`int`): Number of the next block.
        document (`int`): Documents of this reading before the block.
    """

    block: int = 0
    document: int = 0


class Block(NamedTuple):
    """Streams of the documents between two places.

    Args:
        begin, end (`Place`): Where it begins, and where the next one does.
        streams (`dict[int, Tensor]`): `(tokens, width)` for each layer, on the model's device and in its dtype.
        longest (`int`): Tokens of the longest document.
    """

    begin: Place
    end: Place
    streams: dict[int, Tensor]
    longest: int

    @property
    def num_tokens(self) -> int:
        return len(next(iter(self.streams.values())))


def blocks(
    models: Sequence[PreTrainedModel],
    documents: Iterable[Document],
    layers: Sequence[int],
    block_tokens: int,
    batch_tokens: int,
    begin: Place,
) -> Iterator[Block]:
    """Reads documents again and again, in blocks of whole documents with at least `block_tokens` kept tokens.

    A block does not reach over the end of the documents. Documents that fit in one block are read by the model once.

    Args:
        models (`Sequence[PreTrainedModel]`): One model, or several of equal width and on one device, whose streams are
            put together.
        layers: See [`read_kept`].
        documents (`Iterable[Document]`): An iterator is read once; then there are no more blocks.
        block_tokens (`int`): Kept tokens of a block.
        batch_tokens (`int`): Tokens, padding included, that the model reads at once.
        begin ([`Place`]): Where to begin; `Place()` is the beginning.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there is nothing to read, or a document is of another tokenizer.
    """
    while True:
        stream = iter(documents)
        once = stream is documents
        if sum(1 for _ in islice(stream, begin.document)) < begin.document:
            raise UsageError(f"the documents end before number {begin.document}, where the run was stopped")
        at, over = begin, False
        while not over:
            part, taken, kept = _take(readable(models[0], stream), block_tokens)
            if not part:
                break
            over = kept < block_tokens
            end = Place(at.block + 1, 0 if over else at.document + taken)
            block = Block(at, end, _read(models, part, layers, batch_tokens), max(len(one.ids) for one in part))
            yield block
            while over and not at.document and not once:
                at, end = end, Place(end.block + 1, 0)
                yield block._replace(begin=at, end=end)
            del block
            at = end
        if once:
            return
        if at == begin and not begin.document:
            raise UsageError("there are no tokens to read: no document has one, or they can be read only once")
        begin = Place(at.block, 0)


def _read(
    models: Sequence[PreTrainedModel], documents: Sequence[Document], layers: Sequence[int], tokens: int
) -> dict[int, Tensor]:
    import torch

    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    # By length, so that little is padded
    for batch in batches(sorted(documents, key=lambda document: len(document.ids)), tokens, models[0].device):
        for model in models:
            for layer, rows in read_kept(model, batch, layers).items():
                parts[layer].append(rows)
    return {layer: torch.cat(rows) for layer, rows in parts.items()}


def _take(stream: Iterator[Document], tokens: int) -> tuple[list[Document], int, int]:
    """The next documents with at least `tokens` kept tokens together, how many were looked at, and those tokens."""
    part, taken, kept = [], 0, 0
    for document in stream:
        taken += 1
        count = len(document.ids) - document.start
        if count > 0:
            part.append(document)
            kept += count
        if kept >= tokens:
            break
    return part, taken, kept
