"""Correction for an engine that samples with other numerics than training: importance sampling ratios."""

from __future__ import annotations

import math

import torch

from ..errors import did_you_mean


_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def importance_sampling_ratio(
    old_logps: torch.Tensor,
    sampling_logps: torch.Tensor,
    mask: torch.Tensor,
    *,
    mode: str,
    low: float | None,
    high: float | None,
) -> torch.Tensor:
    """Ratio of the training policy to the sampling policy, bounded as TRL's `vllm_importance_sampling_mode` says.

    Args:
        old_logps (`torch.Tensor`): `(N, C)` log-probabilities under the training model that generated.
        sampling_logps (`torch.Tensor`): `(N, C)` log-probabilities the engine reported; NaN where it has none, which
            counts as no difference.
        mask (`torch.Tensor`): `(N, C)` completion mask.
        mode (`str`): `token_` or `sequence_` (one ratio per row: the product over its tokens), then `truncate` (clip to
            the bounds) or `mask` (zero outside the bounds).
        low, high (`float`, *optional*): Bounds; `None` is no bound.

    Returns:
        `torch.Tensor`: `(N, C)` or, per sequence, `(N, 1)`.
    """
    if mode not in _MODES:
        raise ValueError(
            f"Unknown vllm_importance_sampling_mode {mode!r}. Choose token_truncate, token_mask, sequence_truncate or "
            f"sequence_mask{did_you_mean(mode, _MODES)}"
        )
    level, _, constraint = mode.partition("_")
    difference = torch.nan_to_num((old_logps - sampling_logps) * mask, nan=0.0)
    if level == "sequence":
        difference = difference.sum(dim=-1, keepdim=True)
    ratio = difference.exp()
    floor = -math.inf if low is None else low
    ceiling = math.inf if high is None else high
    if constraint == "truncate":
        return ratio.clamp(min=floor, max=ceiling)
    return ratio.masked_fill((ratio < floor) | (ratio > ceiling), 0.0)
