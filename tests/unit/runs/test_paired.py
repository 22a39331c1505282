"""Intervals of paired differences, against what is known of them."""

import math
from pathlib import Path

import numpy as np
import pytest

from lorachord.runs.folder import RunFolder
from lorachord.runs.paired import compare, interval
from lorachord.runs.recipe import recipe_from
from lorachord.training.scoring import save_records

NUM_EXAMPLES = 400


def run(path: Path, right: np.ndarray, mode: str = "joint", first_idx: int = 0) -> RunFolder:
    """A run's folder with predictions that are right where `right` (tasks, examples) says so."""
    names = ["glue_sst2", "glue_rte"]
    recipe = recipe_from(
        {"model": {"name": "m", "kind": "encoder"}, "tasks": {"suite": "glue", "only": names}, "mode": mode}
    )
    folder = RunFolder.start(path, recipe, data_dir=None)
    for name, row in zip(names, right, strict=True):
        records = [
            {"idx": first_idx + index, "label": 1, "prediction": int(is_right)} for index, is_right in enumerate(row)
        ]
        place = path / name if mode == "single" else path
        save_records(place / "predictions" / "dev", {name: records})
    return folder


def test_runs_that_predict_alike_do_not_differ(tmp_path: Path) -> None:
    right = np.random.default_rng(0).random((2, NUM_EXAMPLES)) < 0.7
    first = [run(tmp_path / f"a{seed}", right, mode="single") for seed in range(2)]
    second = [run(tmp_path / f"b{seed}", right) for seed in range(2)]
    for row in compare(first, second):
        assert (row.difference, row.half_width, row.smallest, row.is_significant) == (0, 0, 0, False)
    assert [row.task for row in compare(first, second)] == ["glue_sst2", "glue_rte", "mean"]


def test_without_spread_over_seeds_the_interval_is_that_of_paired_shares(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    left, right = (generator.random((2, NUM_EXAMPLES)) < share for share in (0.6, 0.8))
    first = [run(tmp_path / f"a{seed}", left) for seed in range(2)]
    second = [run(tmp_path / f"b{seed}", right) for seed in range(2)]
    *tasks, mean = compare(first, second)
    changes = right.astype(float) - left
    errors = changes.std(axis=1) / math.sqrt(NUM_EXAMPLES)
    for row, change, error in zip(tasks, changes.mean(1), errors, strict=True):
        assert row.difference == pytest.approx(change)
        assert row.half_width == pytest.approx(1.96 * error, rel=0.1)
        assert row.smallest == pytest.approx((1.96 + 0.84) * error, rel=0.1)
        assert row.is_significant
    assert mean.half_width == pytest.approx(1.96 * math.hypot(*errors) / 2, rel=0.1)


@pytest.mark.parametrize("luck", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("num_seeds", [2, 3])
def test_the_interval_holds_the_truth_at_least_as_often_as_it_says(luck: float, num_seeds: int) -> None:
    generator = np.random.default_rng(2)
    covered, trials = 0, 1000
    for _ in range(trials):
        # Examples differ in difficulty, seeds in their luck; the true difference is 0.
        difficulty = generator.uniform(0.4, 0.9, NUM_EXAMPLES)
        shift = generator.normal(0, luck, (2, num_seeds, 1))
        right = generator.random((2, num_seeds, NUM_EXAMPLES)) < difficulty + shift
        scores = right.mean(axis=2)
        changes = right[1].mean(axis=0) - right[0].mean(axis=0)
        half_width, _ = interval(scores, float(changes.var(ddof=1)) / NUM_EXAMPLES)
        covered += abs(np.diff(scores.mean(axis=1))[0]) <= half_width
    assert covered / trials >= 0.935


def test_the_smallest_visible_difference_is_seen_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    seen, trials, spread, num_seeds = 0, 2000, 0.02, 5
    # The smallest difference for this spread, which each trial estimates.
    example = generator.normal(0, 1, num_seeds)
    example *= spread / example.std(ddof=1)
    _, truth = interval(np.stack([np.zeros(num_seeds), example]), 0.0)
    for _ in range(trials):
        scores = np.stack([np.zeros(num_seeds), generator.normal(truth, spread, num_seeds)])
        half_width, _ = interval(scores, 0.0)
        seen += abs(scores[1].mean()) > half_width
    assert 0.75 <= seen / trials <= 0.9


def test_other_examples_and_single_runs_are_refused(tmp_path: Path) -> None:
    right = np.ones((2, 10))
    runs = [run(tmp_path / str(seed), right, first_idx=seed) for seed in range(2)]
    with pytest.raises(ValueError, match="same examples of task 'glue_sst2'"):
        compare(runs, runs)
    with pytest.raises(ValueError, match="at least two runs"):
        compare(runs[:1], runs[:1])
