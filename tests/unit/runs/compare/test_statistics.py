"""Intervals, p-values and corrections against SciPy and by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lorachord.runs.compare.statistics import (
    Contrast,
    holm,
    holm_levels,
    seeds_needed,
)

MIXED = Contrast(value=0.03, seeds=4e-5, shared=9e-5, sampling=1e-4, num_seeds=4)


def of_seeds(differences: list[float]) -> Contrast:
    variance = float(np.var(differences, ddof=1)) / len(differences)
    return Contrast(
        value=float(np.mean(differences)), seeds=variance, shared=0.0, sampling=0.0, num_seeds=len(differences)
    )


@pytest.mark.parametrize("differences", [[0.02, 0.05], [0.01, 0.03, 0.04], [-0.03, 0.01, 0.02, 0.0, 0.01]])
def test_without_examples_it_is_the_paired_t_test(differences: list[float]) -> None:
    found = of_seeds(differences)
    expected = stats.ttest_rel(differences, np.zeros(len(differences)))
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    for level in (0.8, 0.95, 0.999):
        low, high = expected.confidence_interval(level)
        assert found.at(level).half_width == pytest.approx((high - low) / 2, rel=1e-12)


def test_without_seeds_it_is_the_normal_test() -> None:
    found = Contrast(value=-0.03, seeds=0.0, shared=1e-4, sampling=1e-4, num_seeds=3)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(3), rel=1e-12)
    assert found.half_width == pytest.approx(0.01 * stats.norm.ppf(0.975), rel=1e-12)
    assert found.smallest == pytest.approx(0.01 * (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)), rel=1e-12)


def test_half_widths_add_in_squares() -> None:
    expected = math.hypot(stats.t.ppf(0.975, 3) * math.sqrt(4e-5), stats.norm.ppf(0.975) * math.sqrt(9e-5))
    assert MIXED.half_width == pytest.approx(expected, rel=1e-12)


def test_seeds_that_agree_by_luck_leave_the_interval_of_the_examples() -> None:
    lucky = replace(MIXED, seeds=0.0, shared=0.0)
    assert lucky.half_width == pytest.approx(0.01 * stats.norm.ppf(0.975))
    assert lucky.p_value == pytest.approx(2 * stats.norm.sf(3))


@pytest.mark.parametrize("value", [1e-6, 0.01, 0.03, 0.2, 5.0])
@pytest.mark.parametrize("lucky", [False, True])
def test_the_p_value_is_the_level_at_which_the_interval_ends_at_zero(value: float, lucky: bool) -> None:
    found = replace(MIXED, value=value, **({"seeds": 1e-6, "shared": 0.0} if lucky else {}))
    p_value = found.p_value
    assert p_value is not None
    if p_value > 1e-12:
        assert found.at(1 - p_value).half_width == pytest.approx(value, rel=1e-4)
    assert found.p_value == replace(found, value=-value).p_value
    assert 0 <= p_value <= 1


def test_runs_that_do_not_differ_are_not_different() -> None:
    same = Contrast(value=0.0, seeds=0.0, shared=0.0, sampling=0.0, num_seeds=3)
    assert (same.half_width, same.smallest, same.p_value, same.is_different, same.error) == (0, 0, 1, False, 0)


def test_one_seed_has_no_interval() -> None:
    single = Contrast(value=0.5, seeds=0.0, shared=1e-4, sampling=1e-4, num_seeds=1)
    assert (single.half_width, single.smallest, single.p_value, single.is_different) == (None, None, None, False)
    assert single.error == pytest.approx(0.01)


def test_a_score_that_is_no_number_is_not_called() -> None:
    lost = Contrast(value=math.nan, seeds=math.nan, shared=math.nan, sampling=math.nan, num_seeds=3)
    assert not lost.is_different
    assert math.isnan(lost.p_value or 0)
    assert seeds_needed(lost, 0.1) is None


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 12])
def test_the_smallest_visible_value_has_a_power_of_80_percent(num_seeds: int) -> None:
    found = Contrast(value=0.0, seeds=1.0, shared=0.0, sampling=0.0, num_seeds=num_seeds)
    freedom = num_seeds - 1
    shown = stats.nct.sf(stats.t.ppf(0.975, freedom), freedom, found.smallest)
    assert shown == pytest.approx(0.8, abs=1e-6)


def test_many_seeds_go_over_into_the_normal_test() -> None:
    few, many = (Contrast(value=0, seeds=1, shared=0, sampling=0, num_seeds=count).smallest for count in (200, 203))
    assert few == pytest.approx(many, rel=2e-3)


def test_holm_by_hand() -> None:
    # 4 x .01 = .04; 3 x .013 = .039, held up to .04; 2 x .03 = .06; 1 x .04, held up to .06.
    assert holm([0.03, 0.01, 0.04, 0.013]) == pytest.approx([0.06, 0.04, 0.06, 0.04])
    assert holm([0.7, 0.8]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_the_levels_of_holm_by_hand() -> None:
    # Called at .05 / 4 and .05 / 3; the other two stay at .05 / 2.
    assert holm_levels([0.03, 0.01, 0.04, 0.013]) == pytest.approx([1 - 0.025, 1 - 0.0125, 1 - 0.025, 1 - 0.05 / 3])
    # All called: the last at the level of a single claim.
    assert holm_levels([0.001, 0.002]) == pytest.approx([0.975, 0.95])
    # None is called: Bonferroni's.
    assert holm_levels([0.5, 0.03, 0.6]) == pytest.approx([1 - 0.05 / 3] * 3)


def test_seeds_needed_show_the_effect_and_one_fewer_do_not() -> None:
    def power(num_seeds: int, effect: float) -> float:
        freedom = num_seeds - 1
        return stats.nct.sf(stats.t.ppf(0.975, freedom), freedom, effect / (0.02 / math.sqrt(num_seeds)))

    found = Contrast(value=0.01, seeds=0.02**2 / 3, shared=0.0, sampling=0.0, num_seeds=3)
    for effect in (0.1, 0.02, 0.005):
        needed = seeds_needed(found, effect)
        assert needed is not None
        assert power(needed, effect) >= 0.8
        assert needed == 2 or power(needed - 1, effect) < 0.8


def test_no_number_of_seeds_shows_what_the_examples_hide() -> None:
    needed = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * math.sqrt(MIXED.shared)
    assert seeds_needed(MIXED, needed * 0.999) is None
    assert seeds_needed(MIXED, needed * 1.05) is not None
    assert seeds_needed(MIXED, 1.0) == 2
