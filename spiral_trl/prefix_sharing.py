"""Shared prefixes computed once, for rollout and for scoring.

Self-play batches repeat themselves: thousands of small games stand at a dozen prompts, and short replies coincide.
[`sample_distinct`] computes each distinct prefix once while it samples, and [`distinct_rows`] finds the distinct rows
of a training batch, so that log-probabilities are computed for those and gathered back to every row. Both are exact.

Axes: `B` samples wanted, `R` distinct rows of the moment, `L` tokens, `V` vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch


if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Numbers of logits that are turned into cumulative distributions at once: bounds the memory of large vocabularies.
_CDF_CHUNK = 2**25
# The largest draw that stays below the next integer after an offset of up to 2**20 rows is added in float64.
_MAX_DRAW = 1.0 - 2.0**-32


@dataclass
class Completions:
    """What [`sample_distinct`] sampled.

    Args:
        token_ids (`list[tuple[int, ...]]`): Distinct completions, the end-of-sequence token included where sampled.
        logprobs (`list[tuple[float, ...]]`): Log-probability of each token under the distribution it was drawn from.
        prompt (`list[int]`): Index of the prompt each completion continues.
        completion (`np.ndarray`): `[B]` index of the completion each sample got.
    """

    token_ids: list[tuple[int, ...]]
    logprobs: list[tuple[float, ...]]
    prompt: list[int]
    completion: np.ndarray


@dataclass
class _Front:
    """Distinct prefixes at one depth, and the samples that stand at them."""

    tokens: torch.Tensor  # (R, L) prompts and what was sampled, left-padded
    mask: torch.Tensor  # (R, L)
    fresh: int  # how many columns of `tokens` the cache does not hold yet
    cache: Any
    prompt: list[int]  # R
    done: list[tuple[int, ...]]  # R sampled tokens
    logprobs: list[tuple[float, ...]]  # R
    samples: np.ndarray  # live samples
    row: np.ndarray  # the row each live sample stands at


def left_padded(
    rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both `(R, L)`, of token sequences of different lengths, padded on the left."""
    length = max(len(row) for row in rows)
    tokens = np.full((len(rows), length), pad_token_id, dtype=np.int64)
    mask = np.zeros_like(tokens)
    for i, row in enumerate(rows):
        tokens[i, length - len(row) :] = row
        mask[i, length - len(row) :] = 1
    return torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)


def position_ids(mask: torch.Tensor) -> torch.Tensor:
    """`(R, L)` position of each token in its own row, from the mask `(R, L)`."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _draw(probabilities: torch.Tensor, row: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Token of each sample by inversion: `probabilities` (R, V), `row` and `draws` (B,) -> (B,).

    One binary search over the cumulative distributions of all rows laid end to end, row r in (r, r + 1].
    """
    num_rows, vocab = probabilities.shape
    tokens = torch.empty_like(row)
    step = max(1, _CDF_CHUNK // vocab)
    for start in range(0, num_rows, step):
        cdf = probabilities[start : start + step].double().cumsum(-1)
        cdf = cdf / cdf[:, -1:]
        offset = torch.arange(cdf.size(0), device=cdf.device, dtype=cdf.dtype)
        here = (row >= start) & (row < start + step)
        local = row[here] - start
        position = torch.searchsorted((cdf + offset[:, None]).flatten(), draws[here] + local, right=True)
        tokens[here] = position - local * vocab
    return tokens


@torch.no_grad()
def sample_distinct(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    which: np.ndarray,
    draw: Callable[[np.ndarray, int], np.ndarray],
    *,
    max_new_tokens: int,
    eos_token_ids: Collection[int],
    pad_token_id: int,
    process_logits: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    use_cache: bool = True,
    max_rows: int = 512,
) -> Completions:
    """Samples many completions of few prompts, each distinct prefix computed once.

    All samples that have drawn the same tokens so far share one row of the batch and its key-value cache; a row splits
    where its samples draw different tokens. The result has the distribution of one-by-one sampling, and depends on
    `draw` alone, not on which samples are drawn together (up to rounding of the forward pass).

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model.
        prompts (`Sequence[Sequence[int]]`): Distinct prompts as token ids.
        which (`np.ndarray`): `[B]` prompt of each sample.
        draw (`Callable`): `draw(samples, position)` gives uniform numbers in [0, 1) that decide the token at
            `position` of those samples (`[B']` indices into `which`).
        max_new_tokens (`int`): Longest completion.
        eos_token_ids (`Collection[int]`): Tokens that end a completion.
        pad_token_id (`int`): Token of padding.
        process_logits (`Callable`, *optional*): `(token ids (R, L), mask (R, L), logits (R, V)) -> logits (R, V)`:
            temperature, top-p and the like. Token ids are padded on the left, where the mask is 0.
        use_cache (`bool`, *optional*, defaults to `True`): Whether to keep key-value caches. `False` computes every
            prefix anew, for models whose cache cannot be reordered.
        max_rows (`int`, *optional*, defaults to `512`): Most rows in one forward pass.

    Returns:
        [`Completions`]
    """
    device = model.device
    token_ids: list[tuple[int, ...]] = []
    logprobs: list[tuple[float, ...]] = []
    prompt_of: list[int] = []
    completion = np.full(len(which), -1, dtype=np.int64)

    fronts: list[_Front] = []
    for start in range(0, len(prompts), max_rows):
        part = prompts[start : start + max_rows]
        samples = np.flatnonzero((which >= start) & (which < start + max_rows))
        if not len(samples):
            continue
        tokens, mask = left_padded(part, pad_token_id, device)
        fronts.append(
            _Front(
                tokens=tokens,
                mask=mask,
                fresh=tokens.size(1),
                cache=None,
                prompt=list(range(start, start + len(part))),
                done=[()] * len(part),
                logprobs=[()] * len(part),
                samples=samples,
                row=which[samples] - start,
            )
        )

    while fronts:
        front = fronts.pop()
        position = len(front.done[0])
        fresh = front.fresh if use_cache else front.tokens.size(1)
        outputs = model(
            input_ids=front.tokens[:, -fresh:],
            attention_mask=front.mask,
            position_ids=position_ids(front.mask)[:, -fresh:],
            past_key_values=front.cache,
            use_cache=use_cache,
            logits_to_keep=1,
        )
        logits = outputs.logits[:, -1].float()  # (R, V)
        vocab = logits.size(1)
        if process_logits is not None:
            logits = process_logits(front.tokens, front.mask, logits)
        log_probabilities = torch.log_softmax(logits, dim=-1)
        row = torch.from_numpy(front.row).to(device)
        draws = torch.from_numpy(np.minimum(draw(front.samples, position), _MAX_DRAW)).to(device)
        token = _draw(log_probabilities.exp(), row, draws)

        # Samples of one row that drew the same token go on together
        key, joined = np.unique((row * vocab + token).cpu().numpy(), return_inverse=True)
        parent, drawn = key // vocab, key % vocab
        drawn_logprobs = log_probabilities[torch.from_numpy(parent), torch.from_numpy(drawn)].cpu().tolist()
        ends = np.isin(drawn, list(eos_token_ids)) | (position + 1 >= max_new_tokens)
        done = [front.done[p] + (int(t),) for p, t in zip(parent, drawn, strict=True)]
        lps = [front.logprobs[p] + (lp,) for p, lp in zip(parent, drawn_logprobs, strict=True)]

        finished = np.full(len(key), -1, dtype=np.int64)
        for k in np.flatnonzero(ends):
            finished[k] = len(token_ids)
            token_ids.append(done[k])
            logprobs.append(lps[k])
            prompt_of.append(front.prompt[parent[k]])
        completion[front.samples] = finished[joined]

        going = np.flatnonzero(~ends)
        for start in range(0, len(going), max_rows):
            rows = going[start : start + max_rows]
            new_row = np.full(len(key), -1, dtype=np.int64)
            new_row[rows] = np.arange(len(rows))
            live = new_row[joined] >= 0
            parents = torch.from_numpy(parent[rows]).to(device)
            cache = None
            if use_cache:
                last = start + max_rows >= len(going)
                cache = outputs.past_key_values if last else copy.deepcopy(outputs.past_key_values)
                cache.reorder_cache(parents)
            next_token = torch.from_numpy(drawn[rows]).to(device)
            fronts.append(
                _Front(
                    tokens=torch.cat([front.tokens[parents], next_token[:, None]], dim=1),
                    mask=torch.cat([front.mask[parents], front.mask.new_ones(len(rows), 1)], dim=1),
                    fresh=1,
                    cache=cache,
                    prompt=[front.prompt[parent[k]] for k in rows],
                    done=[done[k] for k in rows],
                    logprobs=[lps[k] for k in rows],
                    samples=front.samples[live],
                    row=new_row[joined][live],
                )
            )
    return Completions(token_ids, logprobs, prompt_of, completion)


def distinct_rows(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Finds the distinct rows of a batch.

    Args:
        input_ids (`torch.Tensor`): `(B, L)` token ids.
        attention_mask (`torch.Tensor`): `(B, L)` mask.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`, *optional*: `first` (R,), a row index of each distinct row, and `inverse`
        (B,), with `input_ids[first][inverse] == input_ids` and likewise for the mask. `None` where all rows differ.

    Rows are told apart by a 64-bit hash and then compared token by token, so a collision is found, not trusted.
    """
    num_rows, length = input_ids.shape
    weights = torch.randint(
        -(2**62), 2**62, (length,), generator=torch.Generator().manual_seed(length), dtype=torch.int64
    )
    weights = (weights | 1).to(input_ids.device)
    hashed = ((input_ids * 2 + attention_mask) * weights).sum(1)  # (B,), wraps modulo 2**64
    values, inverse = torch.unique(hashed, return_inverse=True)
    if len(values) == num_rows:
        return None
    first = torch.full((len(values),), num_rows, dtype=torch.int64, device=input_ids.device)
    first = first.scatter_reduce(0, inverse, torch.arange(num_rows, device=input_ids.device), "amin")
    same = (input_ids[first][inverse] == input_ids) & (attention_mask[first][inverse] == attention_mask)
    if not bool(same.all()):
        rows = torch.stack([input_ids, attention_mask.to(input_ids.dtype)], dim=-1).flatten(1)
        _, inverse = torch.unique(rows, dim=0, return_inverse=True)
        first = torch.full((int(inverse.max()) + 1,), num_rows, dtype=torch.int64, device=input_ids.device)
        first = first.scatter_reduce(0, inverse, torch.arange(num_rows, device=input_ids.device), "amin")
        if len(first) == num_rows:
            return None
    return first, inverse
