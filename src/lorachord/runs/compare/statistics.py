"""Intervals of contrasts between methods, from a spread over seeds and a spread over examples.

A contrast is a weighted sum of methods' mean scores over S paired seeds, such as a difference. Its variance has three
parts: luck of the seeds; examples that suit one method better whatever the seed; and answers that change with both.

    seeds     from the spread of the S contrasts, each of one seed: luck + both
    shared    the covariance, over draws of examples, between contrasts of *different* seeds: examples
    sampling  the variance, over draws of examples, of the mean contrast: examples + both

The half-width of the interval at a level adds Student's interval of the seeds and the normal one of the examples in
squares, and never falls below the interval that the examples alone give:

    half_width^2 = max(t^2 seeds + z^2 shared, z^2 sampling)

Such a sum covers at least as often as it says, whichever part dominates (Banerjee 1960); Satterthwaite's degrees of
freedom fall to 87 % with two or three seeds. Taking `sampling` in the place of `shared` would count the third part
twice, and makes the interval a fifth wider with five seeds where that part dominates. The second term guards against
seeds that agree by luck: two seeds of a difference of two examples in 400 would have the interval 0.

Measured on 10,000 drawn comparisons of 400 examples (the regimes of `tests/unit/runs/compare/drawn.py`): how often
methods that are alike are called different, how often with `sampling` in the place of `shared`, and how often a true
difference of the smallest visible size is called.

    what dominates        3 seeds              5 seeds
    seeds                 4.5 %  3.8 %  84 %   3.9 %  3.3 %  81 %
    examples              4.2 %  3.9 %  83 %   5.3 %  5.0 %  83 %
    seeds and examples    2.8 %  2.6 %  90 %   3.5 %  3.3 %  85 %
    both at once          1.3 %  0.4 %  83 %   1.9 %  0.4 %  81 %
    all three             2.3 %  1.2 %  85 %   3.3 %  1.7 %  84 %
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL, POWER = 0.95, 0.8

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A contrast of methods with its errors.

    Attributes:
        value: its mean over the seeds.
        seeds: the variance of `value` by the spread over the seeds; 0 for a single seed, which has no interval.
        shared: the variance by the examples, where it is common to all seeds; not below 0.
        sampling: the whole variance by the examples.
        num_seeds: S.
        level: of the interval. Default 0.95.
    """

    value: float
    seeds: float
    shared: float
    sampling: float
    num_seeds: int
    level: float = LEVEL

    @property
    def half_width(self) -> float | None:
        """Of the interval around `value`; None for a single seed."""
        if self.num_seeds < 2:
            return None
        return float(half_width(self.seeds, self.shared, self.sampling, self.num_seeds, self.level))

    @property
    def smallest(self) -> float | None:
        """The smallest visible true value, which such runs call different from 0 with a power of 80 %.

        It takes the spread that these seeds had for the true one, which few seeds know roughly. Where seeds dominate, a
        fresh set of three therefore shows this size in about 63 %, and of five in 67 %. None for a single seed.
        """
        if self.num_seeds < 2:
            return None
        return float(smallest_visible(self.seeds, self.shared, self.sampling, self.num_seeds, self.level))

    @property
    def p_value(self) -> float | None:
        """One less the level at which the interval ends at 0; None for a single seed."""
        return None if self.num_seeds < 2 else _p_value(self)

    @property
    def is_different(self) -> bool:
        """Whether the interval leaves out 0; not with a single seed."""
        width = self.half_width
        return width is not None and abs(self.value) > width

    @property
    def error(self) -> float:
        """The standard error; that of the examples alone for a single seed."""
        return math.sqrt(max(self.seeds + self.shared, self.sampling))

    def at(self, level: float) -> Contrast:
        """The same with an interval of another level."""
        return replace(self, level=level)


def half_width(seeds: ArrayLike, shared: ArrayLike, sampling: ArrayLike, num_seeds: int, level: float) -> Floats:
    """Of the interval at a level, from the variances of this page; of many contrasts at once."""
    student, normal = quantiles(num_seeds - 1, level)
    return _add(seeds, shared, sampling, student, normal)


def smallest_visible(seeds: ArrayLike, shared: ArrayLike, sampling: ArrayLike, num_seeds: int, level: float) -> Floats:
    """The true value that leaves 0 out of the interval with a power of 80 %; of many contrasts at once."""
    student, normal = _visible(num_seeds - 1, level)
    return _add(seeds, shared, sampling, student, normal)


def _add(seeds: ArrayLike, shared: ArrayLike, sampling: ArrayLike, student: float, normal: float) -> Floats:
    both = student**2 * np.asarray(seeds) + normal**2 * np.maximum(shared, 0)
    return np.sqrt(np.maximum(both, normal**2 * np.asarray(sampling)))


@lru_cache
def quantiles(freedom: int, level: float) -> tuple[float, float]:
    """How many standard errors the two-sided intervals of Student and of the normal distribution reach."""
    from scipy.special import ndtri, stdtrit  # type: ignore[import-untyped]

    # The lower tail keeps its digits at high levels.
    tail = (1 - level) / 2
    return -float(stdtrit(freedom, tail)), -float(ndtri(tail))


@lru_cache
def _visible(freedom: int, level: float) -> tuple[float, float]:
    """How many standard errors a true value must have for a power of 80 %, for a t-test and for a normal test."""
    from scipy.optimize import brentq  # type: ignore[import-untyped]
    from scipy.special import nctdtr, ndtri

    student, normal = quantiles(freedom, level)
    power = float(ndtri(POWER))
    if freedom > 200:
        # Both agree to 1 in 10,000 by here, and the noncentral distribution loses digits far beyond.
        return student + power, normal + power
    # A t-test of a true value follows the noncentral distribution.
    shift = brentq(lambda shift: nctdtr(freedom, shift, student) - (1 - POWER), 0, 10 * student)
    return float(shift), normal + power


def _p_value(contrast: Contrast) -> float:
    from scipy.optimize import brentq
    from scipy.special import ndtr, stdtrit

    size, freedom = abs(contrast.value), contrast.num_seeds - 1
    if not math.isfinite(size):
        return math.nan
    if size == 0:
        return 1.0
    alone = 2 * float(ndtr(-size / math.sqrt(contrast.sampling))) if contrast.sampling > 0 else 0.0
    error = math.sqrt(contrast.seeds + contrast.shared)
    if error == 0:
        return alone

    def excess(normal: float) -> float:
        student = float(stdtrit(freedom, ndtr(-normal)))
        return math.hypot(student * math.sqrt(contrast.seeds), normal * math.sqrt(contrast.shared)) - size

    # Student's quantile is at least the normal one, so that the sum reaches the value by here. Beyond 37 the p-value
    # has no digits.
    highest = min(size / error, 37.0)
    normal = highest if excess(highest) <= 0 else brentq(excess, 0, highest, xtol=1e-14)
    return max(alone, 2 * float(ndtr(-normal)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's steps, in the order in which they were given.

    The chance of any false call at a level is at most that level, however the tests depend on each other.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for step, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - step) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def holm_levels(p_values: Sequence[float], level: float = LEVEL) -> list[float]:
    """The level at which the interval of each claim leaves out 0 exactly where Holm's steps call it.

    The k-th smallest of m p-values is tested at (1 - level) / (m - k + 1), and its interval is shown at this step. All
    claims after the first that is not called stay at its step. Holm's promise is for the calls. The intervals of claims
    that are called hold one by one at their own levels.

    Args:
        level: of the whole. Default 0.95.
    """
    adjusted = holm(p_values)
    num_called = sum(p < 1 - level for p in adjusted)
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    levels = [0.0] * len(p_values)
    for step, index in enumerate(order):
        levels[index] = 1 - (1 - level) / (len(p_values) - min(step, num_called))
    return levels


def seeds_needed(contrast: Contrast, effect: float) -> int | None:
    """How many seeds would show a true value of this size with a power of 80 %, at the contrast's level.

    Args:
        contrast: of at least two seeds, whose spread is taken for the true one.
        effect: in the unit of the scores, above 0.

    Returns:
        At least 2; None if the examples alone hide such a value, however many the seeds, or the contrast is NaN.
    """
    assert contrast.num_seeds > 1, "one seed says nothing of the spread"
    assert effect > 0, "a size is above 0"

    def shows(num_seeds: int) -> bool:
        fewer = contrast.num_seeds / num_seeds
        sampling = contrast.shared + max(contrast.sampling - contrast.shared, 0) * fewer
        found = smallest_visible(contrast.seeds * fewer, contrast.shared, sampling, num_seeds, contrast.level)
        return bool(found <= effect)

    _, normal = _visible(1, contrast.level)
    if not math.isfinite(contrast.value) or normal**2 * contrast.shared >= effect**2:
        return None
    highest = 2
    while not shows(highest):
        highest *= 2
    lowest = highest // 2
    while highest - lowest > 1:
        middle = (lowest + highest) // 2
        lowest, highest = (lowest, middle) if shows(middle) else (middle, highest)
    return highest
