"""Contrasts from records."""

import math
import time
from collections.abc import Sequence

import numpy as np
import pytest

from lorachord.data.task import Task
from lorachord.runs.compare.sample import Sample, Scores
from lorachord.runs.compare.statistics import Contrast

from .drawn import REGIMES, draw_right, records, variances

ACCURACY = Task("a", kind="classification", text="text", labels=("no", "yes"))
OTHER = Task("b", kind="classification", text="text", labels=("no", "yes"))
F1 = Task("f", kind="classification", text="text", labels=("no", "yes"), metric="f1")
NUMBERS = Task("n", kind="regression", text="text")


def sample(right: np.ndarray, tasks: Sequence[Task] = (ACCURACY,)) -> Sample:
    """Of right answers (tasks, rows, seeds, examples); rows are called r0, r1, ..."""
    ones = np.ones(right.shape[-1], dtype=int)
    rows = {
        f"r{row}": [
            {task.name: records(right[index, row, seed].astype(int).tolist(), ones.tolist())
             for index, task in enumerate(tasks)}
            for seed in range(right.shape[2])
        ]
        for row in range(right.shape[1])
    }  # fmt: skip
    return Sample(tasks, rows)


@pytest.mark.parametrize("num_seeds", [2, 5])
def test_a_difference_has_the_variances_of_its_changes(num_seeds: int) -> None:
    right = draw_right(REGIMES["all three"], num_seeds, draws=4, num_examples=60)
    for index, found in enumerate(Scores(sample(draw[None])).difference("r1", "r0") for draw in right):
        value, seeds, shared, sampling = (part[index] for part in variances(right))
        assert found.value == pytest.approx(value)
        assert found.seeds == pytest.approx(seeds)
        assert found.shared == pytest.approx(max(shared, 0))
        assert found.sampling == pytest.approx(sampling)


def test_the_mean_over_tasks_pairs_seeds_and_adds_the_examples_of_tasks() -> None:
    right = draw_right(REGIMES["seeds and examples"], 3, draws=2, num_examples=80)
    scores = Scores(sample(right, (ACCURACY, OTHER)))
    mean = scores.difference("r1", "r0")
    parts = [scores.difference("r1", "r0", task) for task in ("a", "b")]
    assert mean.value == pytest.approx(np.mean([part.value for part in parts]))
    assert mean.sampling == pytest.approx(sum(part.sampling for part in parts) / 4)
    by_seed = right.mean(axis=3).mean(axis=0)
    assert mean.seeds == pytest.approx(np.var(by_seed[1] - by_seed[0], ddof=1) / 3)
    assert scores.mean("r1") - scores.mean("r0") == pytest.approx(mean.value)
    assert scores.values_RST.shape == (2, 3, 2)


@pytest.mark.parametrize("task", [ACCURACY, F1])
def test_identical_runs_are_exactly_alike(task: Task) -> None:
    right = draw_right(REGIMES["all three"], 3, draws=1)[:, :1].repeat(2, axis=1)
    found = Scores(sample(right, (task,))).difference("r0", "r1")
    assert found == Contrast(value=0, seeds=0, shared=0, sampling=0, num_seeds=3)
    assert (found.half_width, found.p_value, found.is_different) == (0, 1, False)


def test_the_covariance_of_rows_gives_the_variance_of_their_difference() -> None:
    right = draw_right(REGIMES["all three"], 3, draws=2, methods=3)
    scores = Scores(sample(right, (ACCURACY, F1)))
    for task in ("a", "f", None):
        covariance = scores.covariance(task)
        assert covariance.shape == (3, 3)
        weights = np.array([1.0, -0.25, -0.75])
        found = scores.contrast(dict(zip(scores.rows, weights, strict=True)), task)
        assert weights @ covariance @ weights == pytest.approx(found.sampling)


def test_the_gap_recovered_by_hand() -> None:
    # Of 200 examples joint training gets 100 right, single 180, the row 160; all seeds alike.
    right = np.zeros((1, 3, 2, 200), dtype=bool)
    for row, share in enumerate((100, 180, 160)):
        right[0, row, :, :share] = True
    scores = Scores(sample(right))
    found = scores.gap_recovered("r2", "r0", "r1")
    assert found is not None
    assert found.value == pytest.approx(60 / 80)
    # Examples: 120 that no row or all rows get right, 60 won by both, 20 by single training alone.
    won, gap = np.repeat([0, 1, 0], [120, 60, 20]), np.repeat([0, 1, 1], [120, 60, 20])
    z = 1.959963984540054
    for ratio in (found.low, found.high):
        change = won - ratio * gap
        assert abs(change.mean()) == pytest.approx(z * change.std(ddof=1) / math.sqrt(200))
    assert found.low < found.value < found.high
    assert scores.gap_recovered("r0", "r0", "r1").value == 0
    whole = scores.gap_recovered("r1", "r0", "r1")
    assert (whole.low, whole.value, whole.high) == pytest.approx((1, 1, 1), abs=1e-6)


def test_no_gap_where_single_training_is_not_better() -> None:
    right = draw_right(REGIMES["all three"], 3, draws=1, methods=3)
    scores = Scores(sample(right))
    assert scores.gap_recovered("r2", "r0", "r1") is None
    one = Scores(sample(right[:, :, :1]))
    assert one.gap_recovered("r2", "r0", "r1") is None
    assert one.difference("r1", "r0").half_width is None


def test_the_interval_of_the_gap_covers_the_truth() -> None:
    held, trials = 0, 300
    right = draw_right(REGIMES["all three"], 3, draws=trials, methods=3)
    # Joint training loses a quarter of all answers, the row an eighth.
    lost = np.random.default_rng(9).random((trials, 1, 1, right.shape[-1]))
    for draw, (rows, luck) in enumerate(zip(right, lost, strict=True)):
        rows = rows & (luck > np.array([0.25, 0.0, 0.125])[None, :, None, None])[0]
        found = Scores(sample(rows[None])).gap_recovered("r2", "r0", "r1")
        assert found is not None, draw
        held += found.low <= 0.5 <= found.high
    assert held / trials >= 0.93


def test_a_row_with_a_lost_run_spoils_no_other() -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=50)
    runs = {row: [{"n": records((labels + generator.normal(size=50)).tolist(), labels.tolist())} for _ in range(2)]
            for row in ("lora", "dora", "lost")}  # fmt: skip
    runs["lost"][1]["n"][4]["prediction"] = math.nan
    scores = Scores(Sample((NUMBERS,), runs))
    assert math.isfinite(scores.difference("lora", "dora").half_width)
    assert not scores.difference("lora", "lost").is_different
    assert math.isnan(scores.difference("lora", "lost").value)


def test_choices_are_compared_by_their_length_normalised_likelihoods() -> None:
    task = Task("c", kind="multiple_choice", text="text")
    rows = {
        "first": [{"c": [{**row, "prediction_normalised": 1} for row in records([0, 0, 0], [1, 1, 1])]}],
        "second": [{"c": [{**row, "prediction_normalised": 0} for row in records([1, 1, 1], [1, 1, 1])]}],
    }
    scores = Scores(Sample((task,), rows))
    assert (scores.mean("first"), scores.mean("second")) == (1, 0)


def test_samples_that_do_not_fit_are_refused() -> None:
    right = np.ones((1, 2, 2, 10))
    whole = sample(right)
    with pytest.raises(ValueError, match="same seeds, at least one; found r0 2, r1 1"):
        Sample(whole.tasks, {"r0": whole.records["r0"], "r1": whole.records["r1"][:1]})
    with pytest.raises(ValueError, match="same examples of task 'a'"):
        Scores(Sample(whole.tasks, {**whole.records, "r1": sample(np.ones((1, 1, 2, 9))).records["r0"]}))
    with pytest.raises(ValueError, match="at least two"):
        Scores(sample(np.ones((1, 2, 2, 1))))
    scores = Scores(whole)
    with pytest.raises(ValueError, match="no row 'r9'"):
        scores.difference("r9", "r0")
    with pytest.raises(ValueError, match="no task 'z'"):
        scores.difference("r0", "r1", "z")
    with pytest.raises(ValueError, match="'r0' twice"):
        scores.difference("r0", "r0")


@pytest.mark.slow
def test_a_whole_table_takes_seconds() -> None:
    """22 rows, 5 seeds, four tasks of 1,000 rows, with the metrics that need resamples."""
    generator = np.random.default_rng(0)
    topics = Task(
        "m", kind="classification", text="text", labels=tuple(f"c{index}" for index in range(20)), metric="f1"
    )
    tasks = (ACCURACY, F1, topics, NUMBERS)
    labels = {
        "a": generator.integers(2, size=1000),
        "f": generator.integers(2, size=1000),
        "m": generator.integers(20, size=1000),
        "n": generator.normal(size=1000),
    }
    runs = {
        f"r{row}": [
            {name: records(np.where(generator.random(1000) < 0.7, own, own[::-1]).tolist(), own.tolist())
             for name, own in labels.items()}
            for _ in range(5)
        ]
        for row in range(22)
    }  # fmt: skip
    started = time.monotonic()
    scores = Scores(Sample(tasks, runs))
    for row in scores.rows[1:]:
        for name in (*labels, None):
            assert scores.difference(row, "r0", name).p_value is not None
    assert time.monotonic() - started < 60
