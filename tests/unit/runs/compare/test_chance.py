"""Runs at chance, and rates that are tied."""

import math

import numpy as np
import pytest

from lorachord.data.task import Task
from lorachord.runs.compare.chance import at_chance, tied

TASK = Task("a", kind="classification", text="text", labels=("no", "yes"))
TEXTS = Task("t", kind="generation", text="text")


def run(num_right: int, num_examples: int = 400, first: int = 0) -> dict[str, list[dict]]:
    """A run on as many examples of either class, right on as many, from the first one on."""
    rights = [first <= index < first + num_right for index in range(num_examples)]
    labels = [index % 2 for index in range(num_examples)]
    return {
        "a": [
            {"idx": index, "label": label, "prediction": label if right else 1 - label}
            for index, (label, right) in enumerate(zip(labels, rights, strict=True))
        ]
    }


def test_a_run_must_beat_the_constant_answer_by_its_standard_error() -> None:
    # The standard error of .5 over 400 examples is .025, ten answers.
    assert at_chance([TASK], run(200))
    assert at_chance([TASK], run(209))
    assert not at_chance([TASK], run(212))
    assert at_chance([TASK], run(100))


def test_chance_is_meant_over_the_tasks() -> None:
    other = Task("b", kind="classification", text="text", labels=("no", "yes"))
    lifted = {**run(200), "b": run(300)["a"]}
    assert at_chance([TASK], lifted)
    assert not at_chance([TASK, other], lifted)


def test_written_answers_have_nothing_to_beat() -> None:
    def texts(answers: list[str]) -> dict[str, list[dict]]:
        return {"t": [{"idx": index, "label": "a cat", "prediction": answer} for index, answer in enumerate(answers)]}

    assert at_chance([TEXTS], texts(["dog"] * 20))
    assert not at_chance([TEXTS], texts(["a cat"] * 5 + ["dog"] * 15))


def test_a_run_whose_score_is_no_number_is_at_chance() -> None:
    task = Task("n", kind="regression", text="text")
    lost = [{"idx": index, "label": float(index), "prediction": math.nan} for index in range(5)]
    assert at_chance([task], {"n": lost})


def test_rates_are_tied_within_one_standard_error_of_their_difference() -> None:
    # One seed. k answers more of 400, none lost: a difference of k / 400 with an error of about sqrt(k) / 400.
    assert tied([TASK], [run(301)], [run(300)])
    assert not tied([TASK], [run(304)], [run(300)])
    # As many more, but among other examples: the error grows.
    assert tied([TASK], [run(304)], [run(300, first=50)])
    assert tied([TASK], [run(300)], [run(320)])
    assert tied([TASK], [run(300)], [run(300)])


def test_with_several_seeds_their_spread_counts_too() -> None:
    best, steady, loose = (
        [run(300), run(300), run(300)], [run(290), run(290), run(290)], [run(310), run(260), run(300)]
    )  # fmt: skip
    assert not tied([TASK], best, steady)
    assert tied([TASK], best, loose)


def test_a_rate_that_was_lost_is_not_tied() -> None:
    task = Task("n", kind="regression", text="text")
    labels = np.random.default_rng(0).normal(size=20)
    good = {"n": [{"idx": index, "label": label, "prediction": label} for index, label in enumerate(labels.tolist())]}
    lost = {"n": [{**row, "prediction": math.nan} for row in good["n"]]}
    assert not tied([task], [good], [lost])


@pytest.mark.parametrize("metric", ["f1", "matthews"])
def test_other_metrics_are_judged_alike(metric: str) -> None:
    task = Task("a", kind="classification", text="text", labels=("no", "yes"), metric=metric)
    assert not at_chance([task], run(380))
    assert not tied([task], [run(380)], [run(200)])
