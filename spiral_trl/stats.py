"""Intervals around what was measured on a sample of games.

The unit of every sample is whatever is independent: a game, or a pair of games on the same deal, never a turn. For
paired results, form one value for each pair (a mean or a difference) and pass those to [`mean_interval`].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval.

    Args:
        estimate (`float`): The point estimate.
        low, high (`float`): Ends of the interval; infinite where the sample says nothing about the spread.
    """

    estimate: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """As JSON values; an infinite end becomes `None`."""
        return {
            "estimate": self.estimate,
            "low": self.low if isfinite(self.low) else None,
            "high": self.high if isfinite(self.high) else None,
        }


def _checked(values: Sequence[float] | np.ndarray, confidence: float) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"An interval needs at least one finite value in one dimension, not shape {array.shape}.")
    _check_confidence(confidence)
    return array


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"`confidence` has to lie between 0 and 1, not {confidence!r}.")


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean of independent values.

    Equal values give an interval of width 0: for rates near 0 or 1 use [`wilson_interval`].

    Args:
        values (`Sequence[float]`): `[n]` independent values. With one value the ends are infinite.
        confidence (`float`, *optional*, defaults to `0.95`): Coverage of the interval.
    """
    from scipy.special import stdtrit

    array = _checked(values, confidence)
    mean = float(array.mean())
    n = array.size
    if n == 1:
        return Interval(mean, -inf, inf)
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * float(array.std(ddof=1)) / sqrt(n)
    return Interval(mean, mean - half, mean + half)


def ratio_interval(
    numerators: Sequence[float] | np.ndarray, denominators: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> Interval:
    """Interval of a ratio of two sums over independent units, such as good moves per move over games.

    What belongs to one unit may depend on each other; only units are independent. Linearised (Cochran, Sampling
    Techniques, 1977, section 6.3): with R the ratio, the interval of the mean of `R + (y - R x) / mean(x)`, whose mean
    is R.

    Args:
        numerators (`Sequence[float]`): `[n]` y of each unit.
        denominators (`Sequence[float]`): `[n]` x of each unit, not negative, not all 0.
        confidence (`float`, *optional*, defaults to `0.95`): Coverage of the interval.
    """
    y, x = _checked(numerators, confidence), _checked(denominators, confidence)
    if len(x) != len(y) or x.min() < 0 or x.max() == 0:
        raise ValueError(f"A ratio needs as many denominators as numerators, not negative and not all 0: {x} for {y}.")
    ratio = y.sum() / x.sum()
    interval = mean_interval(ratio + (y - ratio * x) / x.mean(), confidence)
    return Interval(float(ratio), interval.low, interval.high)


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a rate of independent successes (Wilson, 1927).

    Unlike the normal interval it stays inside [0, 1] and does not collapse where no trial, or every trial, succeeded.

    Args:
        successes (`int`): How many trials succeeded.
        trials (`int`): How many there were, at least one.
        confidence (`float`, *optional*, defaults to `0.95`): Coverage of the interval.
    """
    from scipy.special import ndtri

    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"A rate needs 0 <= successes <= trials and trials >= 1, not {successes} of {trials}.")
    _check_confidence(confidence)
    z = float(ndtri(0.5 + confidence / 2))
    rate = successes / trials
    shrink = 1.0 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / shrink
    half = z / shrink * sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    # Rounding must not leave an end on the wrong side of the rate
    return Interval(rate, min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half)))


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    seed: int,
    statistic: Callable[..., np.ndarray] = np.mean,
    replicates: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of a statistic of independent values.

    Args:
        values (`Sequence[float]`): `[n]` independent values.
        seed (`int`): Seed of the resampling; equal seeds give equal intervals.
        statistic (`Callable`, *optional*, defaults to `np.mean`): Called with an array and `axis=-1`, as `np.mean`,
            `np.median` and `np.std` can be.
        replicates (`int`, *optional*, defaults to `2000`): How many resamples.
        confidence (`float`, *optional*, defaults to `0.95`): Coverage of the interval.
    """
    array = _checked(values, confidence)
    if replicates < 1:
        raise ValueError(f"`replicates` has to be at least 1, not {replicates!r}.")
    rng = np.random.default_rng(seed)
    # Resamples are drawn in parts, so that many values need no memory of replicates x values
    part = max(1, 2**22 // array.size)
    drawn = [
        np.atleast_1d(statistic(array[rng.integers(0, array.size, (min(part, replicates - at), array.size))], axis=-1))
        for at in range(0, replicates, part)
    ]
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1.0 - tail])
    return Interval(float(statistic(array, axis=-1)), float(low), float(high))
