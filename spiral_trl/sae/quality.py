"""How good dictionaries are: what they miss of the streams, how many features they use, and what is lost when they are
spliced in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..players.language_model import evaluating
from .activations import check_layers, edited_residuals
from .blocks import Batch, batches, readable


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from .dictionaries import Dictionary
    from .documents import Document

# Entries of dense codes, and of logits, computed at once
_ENTRIES = 1 << 26


class Reconstruction:
    """Sums over streams of one layer, added part by part: what the dictionary misses, and how many features it uses.

    Args:
        dictionary ([`~spiral_trl.sae.dictionaries.Dictionary`]): The dictionary.
    """

    def __init__(self, dictionary: Dictionary):
        import torch

        self.dictionary = dictionary
        self.tokens = 0
        device = dictionary.directions.device
        self._sum = torch.zeros(dictionary.width, dtype=torch.float64, device=device)
        self._squares = self._missed = 0.0
        self.counts = torch.zeros(dictionary.num_features, dtype=torch.int64, device=device)

    def add(self, stream: Tensor) -> None:
        """Adds streams `(n, width)`."""
        for part in stream.split(max(_ENTRIES // self.dictionary.num_features, 1)):
            codes = self.dictionary.encode(part)
            self.add_known(part, codes, self.dictionary.error(part, codes))

    def add_known(self, stream: Tensor, codes: Tensor, missed: Tensor) -> None:
        """Adds streams `(n, width)` whose codes `(n, num_features)` and errors `(n, width)` are known."""
        read = self.dictionary.read(stream).double()
        self.tokens += len(read)
        self._sum += read.sum(0)
        self._squares += float(read.square().sum())
        self._missed += float(missed.double().square().sum())
        self.counts += (codes > 0).sum(0)

    @property
    def unexplained_variance(self) -> float | None:
        """Squared error over the squared distance from the streams' mean; `None` where all streams are equal."""
        spread = self._squares - float(self._sum.square().sum()) / max(self.tokens, 1)
        # Less than rounding of the sums leaves is none
        return self._missed / spread if spread > 1e-12 * self._squares else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "unexplained_variance": self.unexplained_variance,
            "l0": float(self.counts.sum()) / self.tokens if self.tokens else None,
            "dead": float((self.counts == 0).double().mean()),
        }


@dataclass(frozen=True)
class Quality:
    """How good a dictionary is.

    Args:
        layer (`int`): Its layer.
        tokens (`int`): Tokens it was measured on.
        unexplained_variance (`float`, *optional*): Squared error over variance; 0 is perfect.
        l0 (`float`, *optional*): Features active for a token, on average.
        dead (`float`): Share of features that were active for none of the tokens.
        predictions (`int`): Tokens whose prediction the cross-entropies are means over.
        ce_clean, ce_spliced, ce_zero (`float`, *optional*): Cross-entropy, in nats for a token, of the model, of the model
            that goes on with what the dictionary makes of the stream, and of one whose stream is zero there.
        ce_recovered (`float`, *optional*): `(ce_zero - ce_spliced) / (ce_zero - ce_clean)`; `None` where a stream of
            zeros does no harm.
    """

    layer: int
    tokens: int
    unexplained_variance: float | None
    l0: float | None
    dead: float
    predictions: int
    ce_clean: float | None
    ce_spliced: float | None
    ce_zero: float | None
    ce_recovered: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_quality(
    model: PreTrainedModel,
    dictionaries: Mapping[int, Dictionary],
    documents: Iterable[Document],
    *,
    max_tokens: int | None = None,
    batch_tokens: int = 8192,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[int, Quality]:
    """Measures dictionaries on documents. Every token counts once and equally.

    Variances are those of the tokens that documents keep; cross-entropies those of the tokens predicted there, of games
    the replies' alone. In games, where a token before a document's `start` is one of an earlier document, the whole stream
    is spliced; in other texts, where it is one that dictionaries do not read, the stream is left as it is before `start`.

    The model runs once, and twice more for each layer.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model.
        dictionaries (`Mapping[int, Dictionary]`): By layer.
        documents (`Iterable[Document]`): What the model reads.
        max_tokens (`int`, *optional*): Stops once so many tokens were measured.
        batch_tokens (`int`, *optional*, defaults to `8192`): Most tokens that the model reads at once; fewer where its
            vocabulary is large.
        progress (`Callable`, *optional*): Called after each batch with its number, 0 for how many there are, and the tokens
            so far.

    Returns:
        `dict[int, Quality]`: By layer.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If a layer or document is not the model's, or there are no tokens.
    """
    check_layers(model, list(dictionaries))
    sums = {layer: Reconstruction(dictionary) for layer, dictionary in dictionaries.items()}
    losses = {(layer, kind): 0.0 for layer in dictionaries for kind in ("spliced", "zero")}
    clean, predictions, tokens = 0.0, 0, 0
    size = max(min(batch_tokens, _ENTRIES // model.config.get_text_config().vocab_size), 1)
    for number, batch in enumerate(batches(readable(model, documents), size, model.device)):
        loss, count = _cross_entropy(model, batch, {})
        clean, predictions, tokens = clean + loss, predictions + count, tokens + int(batch.kept.sum())
        where = _spliced(batch)
        for layer, measured in sums.items():
            # The stream that is spliced is the undisturbed one: it is measured on the way
            for kind, edit in (("spliced", _splice(measured, where, batch.kept)), ("zero", _zero(where))):
                losses[layer, kind] += _cross_entropy(model, batch, {layer: edit})[0]
        if progress is not None:
            progress(number + 1, 0, f"{tokens} tokens")
        if max_tokens is not None and tokens >= max_tokens:
            break
    if not tokens:
        raise UsageError("there are no tokens to measure dictionaries on")

    def mean(total: float) -> float | None:
        return total / predictions if predictions else None

    found = {}
    for layer, measured in sums.items():
        harm = losses[layer, "zero"] - clean
        recovered = (losses[layer, "zero"] - losses[layer, "spliced"]) / harm if harm > 0 else None
        found[layer] = Quality(
            layer=layer,
            **measured.to_dict(),
            predictions=predictions,
            ce_clean=mean(clean),
            ce_spliced=mean(losses[layer, "spliced"]),
            ce_zero=mean(losses[layer, "zero"]),
            ce_recovered=recovered,
        )
    return found


def _spliced(batch: Batch) -> Tensor:
    """`(B, T)` bool: where dictionaries are spliced in."""
    import torch

    games = torch.tensor([document.step >= 0 for document in batch.documents], device=batch.kept.device)
    return torch.where(games[:, None], batch.mask.bool(), batch.kept)


def _splice(sums: Reconstruction, where: Tensor, kept: Tensor) -> Callable[[Tensor], Tensor]:
    """Splices a dictionary in at `where`, and adds what it does to the streams at `kept` to its sums."""
    dictionary = sums.dictionary

    def edit(stream: Tensor) -> Tensor:
        stream = stream.clone()
        rows, counted = stream[where], kept[where]
        size = max(_ENTRIES // dictionary.num_features, 1)
        for part, count in zip(rows.split(size), counted.split(size), strict=True):
            codes = dictionary.encode(part)
            missed = dictionary.error(part, codes)
            sums.add_known(part[count], codes[count], missed[count])
            # A view of the rows
            part -= missed.to(part.dtype)
        stream[where] = rows
        return stream

    return edit


def _zero(where: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda stream: stream.masked_fill(where[..., None], 0)


def _cross_entropy(
    model: PreTrainedModel, batch: Batch, edits: Mapping[int, Callable[[Tensor], Tensor]]
) -> tuple[float, int]:
    """Summed cross-entropy of what is predicted after kept tokens, in games of the replies alone: a model is not asked to
    foretell its prompts. And of how many tokens."""
    import torch

    with torch.no_grad(), evaluating(model), edited_residuals(model, edits):
        logits = model(**batch.inputs, use_cache=False).logits
    at = batch.kept[:, :-1] & batch.mask[:, 1:].bool()
    for row, document in zip(at, batch.documents, strict=True):
        if document.step >= 0 and document.reply is not None:
            row[: document.reply - 1] = False
    loss = torch.nn.functional.cross_entropy(logits[:, :-1][at].float(), batch.ids[:, 1:][at], reduction="none")
    return float(loss.double().sum()), int(at.sum())
