"""A ratio of two contrasts and the values that it may have, by Fieller's theorem.

The interval holds the ratios r for which the contrast first - r second is not different from 0, by the interval of
`Contrast`. It need not lie evenly around the ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lorachord.runs.compare.statistics import LEVEL, Floats, quantiles


@dataclass(frozen=True)
class Ratio:
    """A ratio with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Moments:
    """Two contrasts at once: their values (2,), and their variances and covariance (2, 2), each as in `Contrast`."""

    value: Floats
    seeds: Floats
    shared: Floats
    sampling: Floats
    num_seeds: int


def fieller(moments: Moments, level: float = LEVEL) -> Ratio | None:
    """The first contrast over the second, with its interval.

    Args:
        moments: of both.
        level: of the interval. Default 0.95.

    Returns:
        None where the second is not visibly above 0: a ratio to nothing has no bounds.
    """
    student, normal = quantiles(moments.num_seeds - 1, level)
    # The interval of `Contrast` is the widest of three, each with a square that is quadratic in r.
    squares = [
        student**2 * moments.seeds,
        student**2 * moments.seeds + normal**2 * moments.shared,
        normal**2 * moments.sampling,
    ]
    first, second = moments.value
    if not second > math.sqrt(max(square[1, 1] for square in squares)):
        return None
    value = first / second
    bounds = [value]
    for square in squares:
        # (first - r second)^2 = square(r)
        leading = second**2 - square[1, 1]
        middle = (first * second - square[0, 1]) / leading
        below_root = middle**2 - (first**2 - square[0, 0]) / leading
        if below_root >= 0:
            bounds += [middle - math.sqrt(below_root), middle + math.sqrt(below_root)]
    return Ratio(float(value), float(min(bounds)), float(max(bounds)))
