"""Bootstrap intervals: how far a mean over questions, or a comparison of two methods, would move with other questions.

Percentile bootstrap: questions are drawn again, as many as there are and with repetition; the statistic of each draw is
computed; the interval leaves out (1 - level) / 2 of the draws at either end.  Two methods are compared on the same draws of
questions (paired), since what is hard for one is mostly hard for the other.  Knows arrays of scores only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from psynth_jax.axes import HostArray

Scores: TypeAlias = Sequence[float] | HostArray

RESAMPLES, LEVEL = 10_000, 0.95
_DRAWN_AT_ONCE = 1 << 21  # question numbers in memory


@dataclasses.dataclass(frozen=True)
class Interval:
    """A statistic of the questions, and the ends of its interval."""

    value: float
    low: float
    high: float


def mean_interval(scores: Scores, seed: int, resamples: int = RESAMPLES, level: float = LEVEL) -> Interval:
    """Return the mean of scores `[n]` and its interval.  Raises `ValueError` for no score, or one that is not finite."""
    (values,) = _checked(scores)
    means = _resampled_means(values[None], seed, resamples)[0]
    return _interval(float(values.mean()), means, level)


def difference_interval(
    first: Scores, second: Scores, seed: int, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """Return mean(first) - mean(second) over the same questions, and its interval.

    Raises `ValueError` when the two are not scores of the same number of questions.
    """
    pair = _checked(first, second)
    means = _resampled_means(pair, seed, resamples)
    return _interval(float(pair[0].mean() - pair[1].mean()), means[0] - means[1], level)


def ratio_interval(
    first: Scores, second: Scores, seed: int, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval | None:
    """Return mean(first) / mean(second) over the same questions, and its interval; scores must not be negative.

    None where the second mean is 0, in the data or in a draw: no ratio can be told from so few right answers.  Raises
    `ValueError` when the two are not scores of the same number of questions.
    """
    pair = _checked(first, second)
    if (pair < 0).any():
        raise ValueError("a ratio is of scores that are not negative")
    means = _resampled_means(pair, seed, resamples)
    if not means[1].all():
        return None
    return _interval(float(pair[0].mean() / pair[1].mean()), means[0] / means[1], level)


def _checked(*scores: Scores) -> HostArray:
    """Return scores of the same questions as `[methods, n]` float64."""
    if len({len(each) for each in scores}) != 1:
        raise ValueError(f"scores of {' and '.join(str(len(each)) for each in scores)} questions are not paired")
    values = np.asarray(scores, np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError("an interval needs at least one score, and finite ones")
    return values


def _resampled_means(values: HostArray, seed: int, resamples: int) -> HostArray:
    """Return the means `[methods, resamples]` over questions drawn anew."""
    count = values.shape[1]
    draws = _draws(count, seed, resamples)
    return np.concatenate([values[:, drawn].mean(axis=-1) for drawn in draws], axis=1)


def _draws(count: int, seed: int, resamples: int) -> Iterator[HostArray]:
    """Draw question numbers `[some, count]` until there are `resamples` draws."""
    rng = np.random.default_rng(seed)
    at_once = max(_DRAWN_AT_ONCE // count, 1)
    for first in range(0, resamples, at_once):
        yield rng.integers(0, count, (min(at_once, resamples - first), count))


def _interval(value: float, draws: HostArray, level: float) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
