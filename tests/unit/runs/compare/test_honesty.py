"""Comparisons say no more than they know: of drawn predictions, whose truth is known, few are called wrongly."""

from functools import cache

import numpy as np
import pytest

from lorachord.data.task import Task
from lorachord.runs.compare.sample import Sample, Scores
from lorachord.runs.compare.statistics import LEVEL, Contrast, half_width, holm, holm_levels, smallest_visible

from .drawn import REGIMES, draw_right, records, variances

DRAWS = 1000
regimes = pytest.mark.parametrize("name", REGIMES)
seed_counts = pytest.mark.parametrize("num_seeds", [3, 5])


@cache
def alike(name: str, num_seeds: int) -> tuple[np.ndarray, ...]:
    return variances(draw_right(REGIMES[name], num_seeds, draws=DRAWS))


def called(name: str, num_seeds: int, lead: np.ndarray | float, seed: int) -> float:
    """The share of draws in which the last method is called better, whose lead is true."""
    value, *errors = variances(draw_right(REGIMES[name], num_seeds, draws=DRAWS, lead=lead, seed=seed))
    return float(np.mean(value > half_width(*errors, num_seeds, LEVEL)))


@seed_counts
@regimes
def test_methods_that_are_alike_are_seldom_called_different(name: str, num_seeds: int) -> None:
    value, *errors = alike(name, num_seeds)
    assert np.mean(np.abs(value) > half_width(*errors, num_seeds, LEVEL)) <= 0.07


@seed_counts
@regimes
def test_the_smallest_visible_difference_is_called(name: str, num_seeds: int) -> None:
    _, *errors = alike(name, num_seeds)
    # From the errors as they are.
    truth = float(smallest_visible(*(error.mean() for error in errors), num_seeds, LEVEL))
    assert called(name, num_seeds, truth, seed=1) >= 0.75


@seed_counts
@regimes
def test_the_size_that_a_report_calls_visible_would_have_shown_in_it(name: str, num_seeds: int) -> None:
    _, *errors = alike(name, num_seeds)
    # Each report has its own, from the errors that it found: the same luck, and a lead of this size.
    assert called(name, num_seeds, smallest_visible(*errors, num_seeds, LEVEL), seed=0) >= 0.75


@seed_counts
def test_the_interval_is_not_much_wider_than_it_must_be(num_seeds: int) -> None:
    """Where seeds alone differ, or examples alone, the calls are near their 5 %."""
    for name in ("seeds dominate", "examples dominate"):
        value, *errors = alike(name, num_seeds)
        assert np.mean(np.abs(value) > half_width(*errors, num_seeds, LEVEL)) >= 0.025


@pytest.mark.parametrize("lead", [0.0, 0.05])
@seed_counts
def test_of_four_claims_a_false_one_is_seldom_called(num_seeds: int, lead: float) -> None:
    """Against one method, of which three or four are alike: their errors depend on each other."""
    right = draw_right(REGIMES["all three"], num_seeds, draws=DRAWS, methods=5, lead=lead)
    claims = [np.array(variances(right[:, [0, other]])).T for other in range(1, 5)]
    wrong = 0
    for draw in range(DRAWS):
        contrasts = [contrast(claim[draw], num_seeds) for claim in claims]
        p_values = [found.p_value for found in contrasts]
        adjusted = holm(p_values)
        intervals = [found.at(level) for found, level in zip(contrasts, holm_levels(p_values), strict=True)]
        assert [found.is_different for found in intervals] == [p < 1 - LEVEL for p in adjusted]
        wrong += min(adjusted[: 3 if lead else 4]) < 1 - LEVEL
    assert wrong / DRAWS <= 0.07


def contrast(row: np.ndarray, num_seeds: int) -> Contrast:
    value, seeds, shared, sampling = row.tolist()
    return Contrast(value=value, seeds=seeds, shared=max(shared, 0), sampling=sampling, num_seeds=num_seeds)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["examples dominate", "all three"])
def test_whole_comparisons_of_records_are_as_honest(name: str) -> None:
    """The mean of two tasks, of which one is scored by F1, whose sampling is resampled."""
    tasks = [Task(metric, kind="classification", text="text", labels=("no", "yes"), metric=metric)
             for metric in ("accuracy", "f1")]  # fmt: skip
    generator = np.random.default_rng(4)
    rights = [draw_right(REGIMES[name], 3, draws=DRAWS, seed=seed, num_examples=200) for seed in (5, 6)]
    wrong = 0
    for draw in range(DRAWS):
        labels = (generator.random((2, 200)) < 0.4).astype(int)
        runs = {}
        for row, method in enumerate(("first", "second")):
            runs[method] = [
                {task.name: records(np.where(right[draw, row, seed], own, 1 - own).tolist(), own.tolist())
                 for task, right, own in zip(tasks, rights, labels, strict=True)}
                for seed in range(3)
            ]  # fmt: skip
        wrong += Scores(Sample(tasks, runs)).difference("first", "second").is_different
    assert wrong / DRAWS <= 0.07
