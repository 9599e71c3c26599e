"""Candidates for new directions: features of a dictionary of both models that only one of them has.

A dictionary trained on the streams of two models together has features for what either of them represents. A feature
that never fires on one model's streams may still be there, below the threshold or mixed up with others. Latent scaling
(Minder et al., arXiv 2504.02922, adapted from crosscoders) asks for the direction itself: on the same tokens, with f the
feature's activations on one model and d its direction, how much of f d is in what the other features leave of each
model's stream? The coefficient of least squares for model m, with error e_m and own activations f_m, is

    beta_m = sum f d . (e_m + f_m d) / sum (f d) . (f d)

Near 1 for the model that f was read from; near 0 for one that does not have the direction. Their ratio is near 0 for a
feature of one model alone and near 1 for a shared one.

What this finds are candidates: another seed of the dictionary finds others, and a direction that is there may be split
over several features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import UsageError


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from .dictionaries import Dictionary
    from .documents import Document

# Parts of the games that are left out in turn, and entries of dense codes computed at once
_PARTS, _ENTRIES = 20, 1 << 24
# Of a dictionary's 24,576 features some thousands are rare; below this a ratio is anything
_MIN_GAMES = 20


class Streams(NamedTuple):
    """Residual streams of two models on the same tokens.

    Args:
        before, after (`Tensor`): `(n, width)`.
        group (`np.ndarray`): `(n,)` the game of each token.
    """

    before: Tensor
    after: Tensor
    group: np.ndarray


@dataclass(frozen=True)
class Specific:
    """Latent scaling of each feature of one layer's pooled dictionary. F features.

    Args:
        layer (`int`): The layer.
        games, tokens (`np.ndarray`): `(2, F)` games and tokens with the feature active, on the model before and after.
        energy (`np.ndarray`): `(2, F)` squared norm of what the feature adds to the streams of either model.
        scaling (`np.ndarray`): `(2, 2, F)`: coefficient of the activations read from one model (first axis) in the
            streams of either (second axis); NaN where the feature is never active.
        ratio (`np.ndarray`): `(2, F)`: for features read from the model before, and after, the other model's coefficient
            over the own one.
        low, high (`np.ndarray`): `(2, F)`: 95% interval of the ratio, by leaving out a part of the games at a time.
        after_specific, before_specific (`np.ndarray`): Candidates, the smallest ratio first.
        limits (`tuple[float, float]`): What ratio and energy, and the upper end of the ratio's interval, were held
            against.
    """

    layer: int
    games: np.ndarray
    tokens: np.ndarray
    energy: np.ndarray
    scaling: np.ndarray
    ratio: np.ndarray
    low: np.ndarray
    high: np.ndarray
    after_specific: np.ndarray
    before_specific: np.ndarray
    limits: tuple[float, float]

    def to_dict(self, top: int = 50) -> dict[str, Any]:
        """For JSON: counts, and the first candidates of either model."""
        found: dict[str, Any] = {
            "layer": self.layer,
            "features": self.ratio.shape[1],
            "scaled": int(np.isfinite(self.ratio).any(0).sum()),
            "limits": {"ratio": self.limits[0], "upper_end": self.limits[1]},
        }
        for side, name in enumerate(("before_specific", "after_specific")):
            candidates = getattr(self, name)
            found[name] = {
                "count": len(candidates),
                "candidates": [
                    {
                        "feature": int(f),
                        "ratio": float(self.ratio[side, f]),
                        "low": float(self.low[side, f]),
                        "high": float(self.high[side, f]),
                        "own": float(self.scaling[side, side, f]),
                        "other": float(self.scaling[side, 1 - side, f]),
                        "games_before": int(self.games[0, f]),
                        "games_after": int(self.games[1, f]),
                    }
                    for f in candidates[:top]
                ],
            }
        return found


def specific_features(
    dictionary: Dictionary,
    streams: Iterable[Streams],
    *,
    ratio: float = 0.2,
    upper_end: float = 0.5,
    min_games: int = _MIN_GAMES,
) -> Specific:
    """Latent scaling of a pooled dictionary, and the features that only one of the two models has.

    Args:
        dictionary ([`~spiral_trl.sae.dictionaries.Dictionary`]): Trained on the streams of both models, with
            [`~spiral_trl.sae.train.train_dictionaries`] and its `others`.
        streams (`Iterable[Streams]`): Their streams of its layer on the same tokens, see [`paired_streams`].
        ratio (`float`, *optional*, defaults to `0.2`): A candidate's ratio is at most this: a fifth of the feature is in
            the other model. So is its energy in the other model over that in its own, as a feature that the other model
            has on other tokens is no new direction.
        upper_end (`float`, *optional*, defaults to `0.5`): And the upper end of its interval at most this.
        min_games (`int`, *optional*, defaults to `20`): Games in which a candidate has to be active.

    Raises:
        [`~spiral_trl.errors.UsageError`]: If there are no streams, or of another width.
    """
    sums = _Sums(dictionary)
    for part in streams:
        sums.add(part)
    if not sums.games:
        raise UsageError("there are no streams to scale features on")
    scaling, estimate, low, high = sums.scaled()
    games, energy = sums.active_games, sums.squares.sum(0)
    candidates = []
    for side in (0, 1):
        with np.errstate(invalid="ignore"):
            kept = (estimate[side] <= ratio) & (high[side] <= upper_end) & (games[side] >= min_games)
            kept &= energy[1 - side] <= ratio * energy[side]
        found = np.flatnonzero(kept)
        candidates.append(found[np.argsort(estimate[side, found], kind="stable")])
    return Specific(
        dictionary.layer,
        games,
        sums.tokens,
        energy,
        scaling,
        estimate,
        low,
        high,
        after_specific=candidates[1],
        before_specific=candidates[0],
        limits=(ratio, upper_end),
    )


class _Sums:
    def __init__(self, dictionary: Dictionary):
        self.dictionary = dictionary
        count = dictionary.num_features
        # Part of the games, side the feature is read from, model, feature
        self.products = np.zeros((_PARTS, 2, 2, count))
        self.squares = np.zeros((_PARTS, 2, count))
        self.tokens = np.zeros((2, count), np.int64)
        self.games: dict[int, int] = {}
        self.active: list[dict[int, np.ndarray]] = [{}, {}]

    def add(self, part: Streams) -> None:
        if part.before.shape != part.after.shape or len(part.before) != len(part.group):
            raise UsageError(
                "streams of the same tokens were to be scaled on, not "
                f"{tuple(part.before.shape)} before, {tuple(part.after.shape)} after, of {len(part.group)} tokens"
            )
        if part.before.shape[1] != self.dictionary.width:
            raise UsageError(
                f"streams have width {part.before.shape[1]}, but {self.dictionary.name} reads {self.dictionary.width}"
            )
        size = max(_ENTRIES // self.dictionary.num_features, 1)
        for at in range(0, len(part.group), size):
            rows = slice(at, at + size)
            self._add(part.before[rows], part.after[rows], part.group[rows])

    def _add(self, before: Tensor, after: Tensor, group: np.ndarray) -> None:
        directions = self.dictionary.directions.double()
        codes, errors = [], []
        for stream in (before, after):
            code = self.dictionary.encode(stream)
            codes.append((code * self.dictionary.scale(stream)).double())
            errors.append(self.dictionary.error(stream, code).double() @ directions.T)
        norms = directions.square().sum(1)
        present = [errors[model] + codes[model] * norms for model in (0, 1)]
        for game in np.unique(group):
            place = self.games.setdefault(int(game), len(self.games)) % _PARTS
            rows = np.flatnonzero(group == game)
            for side in (0, 1):
                own = codes[side][rows]
                self.squares[place, side] += (own.square().sum(0) * norms).cpu().numpy()
                fired = (own > 0).sum(0).cpu().numpy()
                self.tokens[side] += fired
                self.active[side][int(game)] = self.active[side].get(int(game), 0) | (fired > 0)
                for model in (0, 1):
                    self.products[place, side, model] += (own * present[model][rows]).sum(0).cpu().numpy()

    @property
    def active_games(self) -> np.ndarray:
        return np.stack([np.sum(list(active.values()), axis=0) for active in self.active])

    def scaled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Scaling `(2, 2, F)`; ratio and both ends of its interval, `(2, F)` each."""
        parts = min(_PARTS, len(self.games))
        products, squares = self.products.sum(0), self.squares.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            scaling = products / squares[:, None]
            estimate = _ratios(products)
            left_out = np.stack([_ratios(products - self.products[part]) for part in range(parts)])
            if parts < 2:
                spread = np.full(estimate.shape, np.inf)
            else:
                # A part without the feature leaves the estimate as it is
                spread = np.sqrt((parts - 1) / parts * np.square(left_out - left_out.mean(0)).sum(0))
        return scaling, estimate, estimate - 1.96 * spread, estimate + 1.96 * spread


def _ratios(products: np.ndarray) -> np.ndarray:
    """`(2, F)`: the other model's coefficient over the own one; NaN where the own one is not above 0."""
    own = np.stack([products[0, 0], products[1, 1]])
    other = np.stack([products[0, 1], products[1, 0]])
    return np.where(own > 0, other / np.where(own > 0, own, 1.0), np.nan)


def paired_streams(
    before: PreTrainedModel,
    after: PreTrainedModel,
    documents: Iterable[Document],
    layer: int,
    batch_tokens: int = 4096,
) -> Iterator[Streams]:
    """Streams of two models on the kept tokens of the same documents.

    Args:
        before, after ([`~transformers.PreTrainedModel`]): The models, in evaluation mode.
        documents (`Iterable[Document]`): What they read.
        layer (`int`): The layer.
        batch_tokens (`int`, *optional*, defaults to `4096`): Most tokens of a pass, padding included.
    """
    from .blocks import batches, read_kept, readable

    for batch in batches(readable(before, documents), batch_tokens, before.device):
        lengths = [len(document.ids) - document.start for document in batch.documents]
        group = np.repeat([document.group for document in batch.documents], lengths)
        one, other = (read_kept(model, batch, [layer])[layer] for model in (before, after))
        yield Streams(one, other, group)
