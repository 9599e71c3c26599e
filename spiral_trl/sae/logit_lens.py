"""Which tokens a direction of the residual stream promotes when it is read as the last layer's would be.

The direction goes through the scale of the model's final norm and the unembedding; where the norm takes the mean over the
width off, it is taken off the direction. What the norm divides by depends on the token and is left out, so scores order
tokens and compare within a model; they are no logits. Their mean over the vocabulary is taken off, as it promotes
nothing. Blocks between the direction's layer and the last are skipped.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from .activations import blocks


if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

# Directions in one product with the unembedding
_BLOCK = 64


class LogitLens:
    """The final norm and the unembedding of a model.

    Args:
        model ([`~transformers.PreTrainedModel`]): A causal language model. It is not run.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If its unembedding does not read the residual stream.
    """

    def __init__(self, model: PreTrainedModel):
        head = model.get_output_embeddings()
        if head is None:
            raise UsageError(f"{type(model).__name__} has no unembedding: no logit lens")
        self._unembedding = head.weight.detach()  # (V, width)
        norm = final_norm(model)
        self._scale, self._centred = None, False
        if norm is not None:
            scale, self._centred = norm_scale(norm, self.width)
            self._scale = scale.to(self._unembedding.device)

    @property
    def width(self) -> int:
        return self._unembedding.shape[1]

    def extremes(
        self, directions: np.ndarray, count: int, vocabulary: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The tokens that directions promote and suppress most.

        Args:
            directions (`np.ndarray`): `(N, width)`.
            count (`int`): How many of each.
            vocabulary (`int`, *optional*): Only tokens below it are named.

        Returns:
            `tuple`: Promoted tokens, highest first, and their scores; suppressed tokens, lowest first, and theirs. Each
            is `(N, count)`, or as wide as there are tokens.
        """
        import torch

        if directions.shape[1:] != (self.width,):
            raise UsageError(
                f"directions of width {directions.shape[-1]} cannot be read by an unembedding of width {self.width}"
            )
        weight = self._unembedding[:vocabulary].float()
        if self._scale is not None:
            weight = weight * self._scale
        if self._centred:
            # Taking the mean off the direction is taking it off the weight's rows
            weight = weight - weight.mean(dim=1, keepdim=True)
        weight = weight - weight.mean(dim=0)
        count = min(count, len(weight))
        found: list[list[np.ndarray]] = [[], [], [], []]
        for start in range(0, len(directions), _BLOCK):
            block = torch.as_tensor(directions[start : start + _BLOCK], dtype=torch.float32, device=weight.device)
            scores = block @ weight.T  # (N, V)
            high, low = scores.topk(count), scores.topk(count, largest=False)
            for part, values in zip(found, (high.indices, high.values, low.indices, low.values), strict=True):
                part.append(values.cpu().numpy())
        if not found[0]:
            none = np.empty((0, count))
            return none.astype(int), none, none.astype(int), none
        tokens, scores, low_tokens, low_scores = (np.concatenate(part) for part in found)
        return tokens, scores, low_tokens, low_scores


def final_norm(model: PreTrainedModel) -> nn.Module | None:
    """The norm between the last block and the unembedding: the one that stands beside the list of blocks."""
    names = {id(module): name for name, module in model.named_modules()}
    parent, _, _ = names[id(blocks(model))].rpartition(".")
    width = model.get_output_embeddings().weight.shape[1]
    norms = [
        module
        for name, module in model.get_submodule(parent).named_children()
        if "embed" not in name and tuple(getattr(getattr(module, "weight", None), "shape", ())) == (width,)
    ]
    return norms[-1] if norms else None


def norm_scale(norm: nn.Module, width: int) -> tuple[Tensor, bool]:
    """What a norm multiplies each coordinate by once it has divided, `(width,)`, and whether it takes the mean off.

    Found by running it, as libraries write scales in several ways (Gemma's adds 1 to its weight).
    """
    import torch

    norm = copy.deepcopy(norm).float()
    device = next(norm.parameters()).device
    probe = torch.ones(width, dtype=torch.float32, device=device)
    probe[1::2] = -1
    probe = probe - probe.mean()
    probe = probe / probe.square().mean().sqrt()  # mean 0 and mean square 1: dividing by either changes nothing
    with torch.no_grad():
        scale = (norm(probe) - norm(-probe)) / (2 * probe)  # a bias falls out
        # A constant is all that a norm with centring takes off
        shifted = (norm(probe + 1) - norm(-probe - 1)) / 2
        centred = bool(torch.allclose(shifted, scale * probe, rtol=1e-3, atol=1e-5))
    return scale, centred
