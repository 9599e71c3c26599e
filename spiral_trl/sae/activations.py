"""Residual streams of any causal language model of transformers: read, and edited, by forward hooks.

Layer `l` is the residual stream before block `l`, as in arXiv 2410.08869 (`blocks.l.hook_resid_pre` of TransformerLens);
the layer after the last block, before the final norm, is numbered as one block more. A model of 12 blocks has layers 0
to 12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import UsageError


if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedConfig, PreTrainedModel


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks of a model: its outermost list of as many modules as the configuration has layers.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there is none.
    """
    from torch import nn

    count = model.config.get_text_config().num_hidden_layers
    found = [
        (name.count("."), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not found:
        raise UsageError(
            f"{type(model).__name__} has no list of {count} blocks, so its residual stream cannot be read"
        )
    return min(found, key=lambda item: item[:2])[2]


def num_layers(model: PreTrainedModel) -> int:
    """How many layers, in the sense of this module, a model has: one more than it has blocks."""
    return len(blocks(model)) + 1


def hook_name(model: PreTrainedModel, layer: int) -> str:
    """What TransformerLens and SAELens call a layer."""
    last = len(blocks(model))
    return f"blocks.{last - 1}.hook_resid_post" if layer == last else f"blocks.{layer}.hook_resid_pre"


def check_layers(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Refuses layers that a model does not have.

    Raises:
        [`~spiral_trl.errors.UsageError`]: With the layers there are.
    """
    blocks(model)
    check_layers_of(model.config, layers)


def check_layers_of(config: PreTrainedConfig, layers: Sequence[int]) -> None:
    """[`check_layers`] for a model of which the configuration is known."""
    last = config.get_text_config().num_hidden_layers
    for layer in layers:
        if not 0 <= layer <= last:
            raise UsageError(
                f"layer {layer} was asked for, but the model has layers 0 (before the first block) to {last} (after the "
                "last)"
            )


class _Stop(Exception):
    """The last wanted layer has been read."""


def read_residuals(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], layers: Sequence[int], whole: bool = False
) -> dict[int, Tensor]:
    """Runs a model once and gives its residual streams.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model, in evaluation mode.
        inputs (`Mapping[str, Tensor]`): What the model is called with: `input_ids` and `attention_mask`, `(B, T)`.
        layers (`Sequence[int]`): The wanted layers.
        whole (`bool`, *optional*, defaults to `False`): Whether to run the blocks after the last wanted layer too.

    Returns:
        `dict[int, Tensor]`: `(B, T, width)` for each layer, detached, in the model's own dtype.
    """
    import torch

    check_layers(model, layers)
    read: dict[int, Tensor] = {}
    last = max(layers)

    def keep(layer: int) -> Callable[[Tensor], Tensor]:
        def edit(stream: Tensor) -> Tensor:
            read[layer] = stream.detach()
            if layer == last and not whole:
                raise _Stop
            return stream

        return edit

    with torch.no_grad(), edited_residuals(model, {layer: keep(layer) for layer in sorted(set(layers))}):
        try:
            model(**inputs, use_cache=False)
        except _Stop:
            pass
    return {layer: read[layer] for layer in layers}


@contextmanager
def edited_residuals(model: PreTrainedModel, edits: Mapping[int, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Within it, the model goes on with what `edits` make of the residual streams.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model.
        edits (`Mapping[int, Callable]`): For each layer, a function from the residual stream `(B, T, width)` to the one
            that takes its place. Under generation with a cache, `T` is the number of new tokens of each pass.
    """
    check_layers(model, list(edits))
    with ExitStack() as hooks:
        for layer, edit in edits.items():
            hooks.callback(_hook(model, layer, edit).remove)
        yield


def _hook(model: PreTrainedModel, layer: int, edit: Callable[[Tensor], Tensor]) -> RemovableHandle:
    modules = blocks(model)
    if layer < len(modules):

        def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            if args:
                return (edit(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

        return modules[layer].register_forward_pre_hook(before, with_kwargs=True)

    def after(module: nn.Module, args: tuple, output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    return modules[-1].register_forward_hook(after)
