"""Runs a model once over documents and keeps the sparse codes of its residual streams: a store.

1. Documents are taken until their kept tokens fill a shard. A shard ends with a document, and depends on nothing but
   the documents and its size, so that a run that was stopped goes on with the shard it was at.
2. Within a shard, a document that begins another one is read off it: games repeat themselves, and a causal model
   computes equal activations for a shared beginning. The others are padded on the right, in batches of similar length.
3. Each wanted residual stream is encoded by its dictionary, some tokens at a time; the entries above 0 are kept.
4. The shard is written in the order of the documents, beside sums that tell how well the dictionaries did.

Kept tokens are those from a document's `start` on; padding is never kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import UsageError
from ..players.language_model import evaluating
from .activations import check_layers
from .documents import Document, DocumentsTable
from .reader import Encoder, Reader, Sums
from .store import Store, open_store, read_about, read_shard, write_json, write_shard, write_store, written_whole


if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Folder of the sums of each shard
_SUMS = "quality"


def collect(
    model: PreTrainedModel,
    dictionaries: Mapping[int, Encoder],
    documents: Iterable[Document],
    folder: str | Path,
    *,
    model_name: str,
    source: Mapping[str, Any],
    shard_tokens: int = 1 << 16,
    batch_tokens: int = 4096,
    value_dtype: str = "float16",
    resume: bool = True,
    progress: bool | None = None,
) -> Store:
    """Runs a model over documents and writes the codes of its residual streams, with `documents.parquet` (see
    [`~spiral_trl.sae.documents.open_documents`]) and `quality.json`.

    Equal documents and `shard_tokens` give equal tokens in equal places, whatever the model: stores of two models are
    compared token by token. Documents longer than the model has positions are cut to their first ones; how many were,
    and by how much, is logged and stands in `store.json`.

    `quality.json` has for each layer, over all kept tokens: `unexplained_variance`, the squared error of the dictionary's
    reconstruction over the variance of what it reads (of every eighth token where the dictionary is large; `null` where
    it does not vary); `l0`, the mean number of active features of a token; `dead`, the share of features that were
    active on none.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model, on the device that it shall run on.
        dictionaries (`Mapping[int, Dictionary]`): The dictionary of each wanted layer, on the device that it shall run
            on; see [`~spiral_trl.sae.dictionaries.Dictionary`].
        documents (`Iterable[Document]`): What the model reads. Taken as they come, so that they may be endless in
            principle; to go on with a stopped run, they are given from the first again.
        folder (`str` or `Path`): The store.
        model_name (`str`): What the model is called in the store.
        source (`Mapping`): Where the documents come from, as JSON takes it. A store of another source is not gone on
            with.
        shard_tokens (`int`, *optional*, defaults to `65536`): Kept tokens of a shard, at least; the last may have fewer.
            A shard's codes are held in memory.
        batch_tokens (`int`, *optional*, defaults to `4096`): Most tokens of a forward pass, padding included. A longer
            document has one of its own.
        value_dtype (`str`, *optional*, defaults to `"float16"`): What activations are kept as, or `"float32"`.
        resume (`bool`, *optional*, defaults to `True`): Whether to go on with a store of the same settings, of which
            whole shards are kept. If not, a folder that has one is refused.
        progress (`bool`, *optional*): Whether a bar counts kept tokens. By default where stderr is a terminal.

    Returns:
        [`~spiral_trl.sae.store.Store`]: The store.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If the model and the dictionaries do not fit, a token is not in the model's
            vocabulary, the store was begun with other settings or other documents, one of its shards is corrupt, there
            is no token to keep, a stream is not finite, a batch does not fit in memory, or the disk is full. Whole
            shards are kept.
    """
    from huggingface_hub.utils import tqdm

    folder = Path(folder)
    _check_settings(model, dictionaries, shard_tokens, batch_tokens, value_dtype)
    about = {
        "model": model_name,
        "model_fingerprint": model_fingerprint(model),
        "source": json.loads(json.dumps(dict(source))),
        "value_dtype": value_dtype,
        "shard_tokens": shard_tokens,
        "layers": {str(layer): dictionary.to_dict() for layer, dictionary in sorted(dictionaries.items())},
    }
    reader = Reader(model, dictionaries, batch_tokens, value_dtype)
    table, fingerprint = DocumentsTable(), hashlib.sha256()
    sums = {layer: Sums.zeros(dictionary) for layer, dictionary in dictionaries.items()}
    shards = tokens = 0
    bar = tqdm(unit=" tokens", desc="codes", disable=not sys.stderr.isatty() if progress is None else not progress)
    with bar, evaluating(model):
        for part in _parts(documents, shard_tokens, _positions(model)):
            if not table.rows:
                _begin(folder, about, resume)
            numbers = [table.add(document) for document in part]
            digest = _digest(part)
            fingerprint.update(digest.encode())
            kept = sum(len(document.ids) - document.start for document in part)
            if not kept:
                continue
            written = _written(folder, shards, dictionaries, kept, digest)
            if written is None:
                records, rows, written = reader.read(part, numbers)
                try:
                    _save_sums(folder, shards, digest, written)
                    write_shard(folder, shards, records, rows)
                except OSError as error:
                    raise _not_written(folder, error, shards) from error
            for layer, more in written.items():
                sums[layer].add(more)
            shards, tokens = shards + 1, tokens + kept
            bar.update(kept)
    if not tokens:
        raise UsageError("there is no token to keep: no documents, or none with tokens")
    if read_shard(folder, shards) is not None:
        raise UsageError(f"{folder} holds codes of more documents than were given; choose another folder")
    cut = [row[-1] for row in table.rows if row[-1]]
    if cut:
        logger.warning(
            "%d of %d documents were longer than there is room for, and cut at the end: %d tokens were left off.",
            len(cut),
            len(table.rows),
            sum(cut),
        )
    totals = {
        "documents": len(table.rows),
        "tokens": tokens,
        "documents_cut": len(cut),
        "tokens_cut": sum(cut),
        "documents_fingerprint": fingerprint.hexdigest()[:16],
    }
    if _is_finished(folder, {**about, **totals}):
        return open_store(folder)
    try:
        table.write(folder)
        write_json(
            folder / "quality.json", {str(layer): sums[layer].quality(tokens) for layer in sorted(dictionaries)}
        )
        write_store(folder, {**about, **totals})
    except OSError as error:
        raise _not_written(folder, error, shards) from error
    return open_store(folder)


def model_fingerprint(model: torch.nn.Module) -> str:
    """Sixteen hexadecimal digits that tell weights from others: names, types, shapes and values."""
    seen = hashlib.blake2b(digest_size=8)
    for name, weight in sorted(model.state_dict().items()):
        seen.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        if weight.numel():
            seen.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return seen.hexdigest()


def _check_settings(
    model: PreTrainedModel,
    dictionaries: Mapping[int, Encoder],
    shard_tokens: int,
    batch_tokens: int,
    value_dtype: str,
) -> None:
    for name, value in {"shard_tokens": shard_tokens, "batch_tokens": batch_tokens}.items():
        if value < 1:
            raise UsageError(f"{name}={value}, but it must be at least 1")
    if value_dtype not in ("float16", "float32"):
        raise UsageError(f"value_dtype={value_dtype!r}, but it must be float16 or float32")
    if not dictionaries:
        raise UsageError("no dictionaries were given: at least one layer needs one")
    check_layers(model, sorted(dictionaries))
    width = model.config.get_text_config().hidden_size
    for layer, dictionary in dictionaries.items():
        if dictionary.layer != layer:
            raise UsageError(f"{dictionary.name} is a dictionary of layer {dictionary.layer}, not of layer {layer}")
        if dictionary.width != width:
            raise UsageError(
                f"{dictionary.name} is a dictionary of streams of width {dictionary.width}, but the model's have {width}"
            )


def _positions(model: PreTrainedModel) -> int | None:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _parts(documents: Iterable[Document], shard_tokens: int, positions: int | None) -> Iterator[list[Document]]:
    """Documents, shard by shard."""
    part: list[Document] = []
    kept = 0
    for document in documents:
        document = document.shortened(positions)
        part.append(document)
        kept += len(document.ids) - document.start
        if kept >= shard_tokens:
            yield part
            part, kept = [], 0
    if part:
        yield part


def _digest(part: Sequence[Document]) -> str:
    """What tells a shard's documents from others."""
    seen = hashlib.sha256()
    for document in part:
        reply = -1 if document.reply is None else document.reply
        about = (document.group, document.start, reply, document.step, document.player, document.turn, document.cut)
        seen.update(np.array([len(document.ids), *about, *document.ids], dtype="<i8").tobytes())
    return seen.hexdigest()


def _begin(folder: Path, about: Mapping[str, Any], resume: bool) -> None:
    """Begins a store, or sees whether the one that is there is of these settings."""
    if not (folder / "store.json").exists() or read_shard(folder, 0) is None:
        try:
            write_store(folder, about)
        except OSError as error:
            raise _not_written(folder, error, 0) from error
        return
    if not resume:
        raise UsageError(f"{folder} holds codes already; choose another folder, or go on with them (resume=True)")
    before = read_about(folder)
    differences = [
        f"{name} {json.dumps(before.get(name))}, here {json.dumps(about[name])}"
        for name in ("source", "value_dtype", "shard_tokens")
        if before.get(name) != about[name]
    ]
    if before.get("model_fingerprint") != about["model_fingerprint"]:
        differences.append(f"the weights of {before.get('model')}, and those of {about['model']} are others")
    if _essence(before["layers"]) != _essence(about["layers"]):
        differences.append(
            f"the dictionaries {_listed(before['layers'])}, and those of {_listed(about['layers'])} are others"
        )
    if differences:
        raise UsageError(f"{folder} was begun with {'; '.join(differences)}: choose another folder")


def _is_finished(folder: Path, said: Mapping[str, Any]) -> bool:
    """Whether a call before wrote all of this store; what others added to its files since then stays."""
    before = read_about(folder)
    return all(before.get(name) == value for name, value in said.items())


def _essence(layers: Mapping[str, Any]) -> dict[str, tuple]:
    return {layer: (said.get("num_features"), said.get("fingerprint")) for layer, said in layers.items()}


def _listed(layers: Mapping[str, Any]) -> str:
    return ", ".join(f"{said.get('dictionary')} (layer {layer})" for layer, said in layers.items())


def _written(
    folder: Path, number: int, dictionaries: Mapping[int, Encoder], kept: int, digest: str
) -> dict[int, Sums] | None:
    """Sums of a shard that was written before, or `None` if it was not."""
    shard = read_shard(folder, number)
    if shard is None:
        return None
    missing = [layer for layer in dictionaries if layer not in shard.entries]
    if missing:
        raise UsageError(f"the shard {shard.folder} is corrupt: layer {missing[0]} is missing; remove it to go on")
    path = folder / _SUMS / f"{number:05d}.npz"
    try:
        with np.load(path) as saved:
            before = str(saved["digest"])
            sums = {
                layer: Sums(saved[f"moments_{layer}"], saved[f"total_{layer}"], saved[f"count_{layer}"])
                for layer in dictionaries
            }
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UsageError(f"{path} cannot be read ({error}); remove {shard.folder} to go on") from None
    if before != digest or shard.num_tokens != kept:
        raise UsageError(f"{shard.folder} holds codes of other documents than were given; choose another folder")
    for layer in dictionaries:
        shard.rows(layer)
    shard.tokens()
    return sums


def _save_sums(folder: Path, number: int, digest: str, sums: Mapping[int, Sums]) -> None:
    path = folder / _SUMS / f"{number:05d}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"{name}_{layer}": values for layer, part in sums.items() for name, values in vars(part).items()}
    with written_whole(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, digest=np.array(digest), **arrays)


def _not_written(folder: Path, error: OSError, shards: int) -> UsageError:
    return UsageError(
        f"{folder} cannot be written to: {error.strerror or error}; {shards} whole shards are kept: the same call goes "
        "on from there"
    )
