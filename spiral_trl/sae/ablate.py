"""Features switched off while a model runs, and what becomes of the features downstream of them.

Where a feature fires, its part of the residual stream is taken out and the rest is kept, what the dictionary misses
included: `stream' = stream - code * direction`. Everywhere else the stream stays as it is, to the last bit.

What that does to downstream features is measured in [`~spiral_trl.sae.causal_effects`], what it does to play in
[`~spiral_trl.sae.ablated_play`].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import UsageError
from .activations import edited_residuals


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from .dictionaries import Dictionary

# Entries of dense codes computed at once
_ENTRIES = 1 << 26


def part_of(dictionary: Dictionary, stream: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """What some features bring to streams.

    Args:
        dictionary ([`~spiral_trl.sae.dictionaries.Dictionary`]): The dictionary.
        stream (`Tensor`): `(n, width)`.
        features (`Tensor`): `(k,)` features.

    Returns:
        `tuple[Tensor, Tensor]`: `(n, width)` their part, in the dictionary's precision, and `(n, k)` their codes.
    """
    import torch

    parts, codes = [], []
    for rows in stream.split(max(_ENTRIES // dictionary.num_features, 1)):
        chosen = dictionary.encode(rows)[:, features]  # (n, k)
        parts.append(dictionary.scale(rows) * chosen @ dictionary.directions[features])
        codes.append(chosen)
    return torch.cat(parts), torch.cat(codes)


def ablation(dictionary: Dictionary, features: Collection[int]) -> Callable[[Tensor], Tensor]:
    """An edit for [`~spiral_trl.sae.activations.edited_residuals`]: `(B, T, width)` to the same without the features' part.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If the dictionary has no such feature.
    """
    import torch

    chosen = torch.tensor(sorted(set(features)), dtype=torch.long, device=dictionary.directions.device)
    for feature in features:
        if not 0 <= feature < dictionary.num_features:
            raise UsageError(f"{dictionary.name} has features 0 to {dictionary.num_features - 1}, not {feature}")

    def edit(stream: Tensor) -> Tensor:
        if not len(chosen):
            return stream
        flat = stream.reshape(-1, stream.shape[-1])
        part, codes = part_of(dictionary, flat, chosen)
        fired = (codes > 0).any(1, keepdim=True).to(flat.device)
        less = (flat.to(part.dtype) - part.to(flat.device)).to(flat.dtype)
        return torch.where(fired, less, flat).view_as(stream)

    return edit


@contextmanager
def ablated(
    model: PreTrainedModel, dictionaries: Mapping[int, Dictionary], features: Mapping[int, Collection[int]]
) -> Iterator[None]:
    """Within it, the model runs without some features: on every row and token, in prefill and in generation.

    Where features of several layers are switched off, those of a later layer are read from the stream that the earlier
    ablation leaves.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model.
        dictionaries (`Mapping[int, Dictionary]`): By layer.
        features (`Mapping[int, Collection[int]]`): For each layer the features to switch off.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there is no dictionary of a layer, or it has no such feature.
    """
    for layer in features:
        if layer not in dictionaries:
            raise UsageError(
                f"features of layer {layer} are to be switched off, but the dictionaries are of layers "
                f"{', '.join(map(str, sorted(dictionaries)))}"
            )
    with edited_residuals(model, {layer: ablation(dictionaries[layer], one) for layer, one in features.items()}):
        yield
