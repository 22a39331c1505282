"""Fieller's interval by hand and by SciPy's root finder."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from lorachord.runs.compare.ratio import Moments, fieller
from lorachord.runs.compare.statistics import half_width


def moments(first: float, second: float, seeds: list, shared: list, num_seeds: int = 3) -> Moments:
    part = np.array(shared)
    return Moments(np.array([first, second]), np.array(seeds), part, part, num_seeds)


def test_fieller_by_hand() -> None:
    # Normal and independent errors of .1 with z = 1.96: (1 - 2 r)^2 = 1.96^2 x .01 x (1 + r^2).
    found = fieller(moments(1.0, 2.0, [[0, 0], [0, 0]], [[0.01, 0], [0, 0.01]]))
    assert found is not None
    square = stats.norm.ppf(0.975) ** 2 * 0.01
    roots = np.sort(np.roots([4 - square, -4, 1 - square]))
    assert (found.value, found.low, found.high) == pytest.approx((0.5, *roots))


def test_fieller_holds_the_ratios_that_are_not_different() -> None:
    seeds, shared = [[4e-4, 1e-4], [1e-4, 3e-4]], [[2e-4, 1e-4], [1e-4, 2e-4]]
    found = fieller(moments(0.1, 0.2, seeds, shared, num_seeds=4))
    assert found is not None

    def excess(ratio: float) -> float:
        weights = np.array([1, -ratio])
        parts = (weights @ np.array(part) @ weights for part in (seeds, shared, shared))
        return abs(0.1 - ratio * 0.2) - float(half_width(*parts, 4, 0.95))

    assert found.low == pytest.approx(optimize.brentq(excess, -3, 0.5))
    assert found.high == pytest.approx(optimize.brentq(excess, 0.5, 5))


def test_without_a_gap_there_is_no_ratio() -> None:
    zero, small = [[0, 0], [0, 0]], [[1e-4, 0], [0, 1e-4]]
    assert fieller(moments(0.1, 0.019, zero, small)) is None
    assert fieller(moments(0.1, -0.5, zero, small)) is None
    assert fieller(moments(0.1, math.nan, zero, small)) is None
    assert fieller(moments(0.1, 0.02, zero, small)) is not None
