"""Two kinds of runs over the same seeds, compared task by task from their saved predictions.

The intervals are those of `lorachord.runs.compare`, over seeds and examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorachord.runs.compare.sample import Sample, Scores
from lorachord.runs.compare.statistics import LEVEL, half_width, smallest_visible
from lorachord.runs.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Difference:
    """
    Attributes:
        task: its name, or "mean" over all tasks.
        metric: what is compared.
        first, second: the mean scores over the seeds.
        half_width: of the 95 % interval around `difference`.
        smallest: the smallest true difference that these runs would have shown, at that level with a power of 80 %.
    """

    task: str
    metric: str
    first: float
    second: float
    half_width: float
    smallest: float

    @property
    def difference(self) -> float:
        """Second minus first."""
        return self.second - self.first

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.difference) > self.half_width


def compare(first: Sequence[RunFolder], second: Sequence[RunFolder], split: str = "dev") -> list[Difference]:
    """The differences for each task and for their mean.

    A decoder's choices among options are compared by their length-normalised likelihoods.

    Args:
        first, second: finished runs on the same tasks, of either mode, paired in this order.
        split: whose saved predictions to compare. Default dev.

    Raises:
        ValueError: fewer than two pairs, or runs that did not predict the same examples.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"Give at least two runs of each kind, paired; got {len(first)} and {len(second)}.")
    sample = Sample.of_runs({"first": first, "second": second}, split)
    scores = Scores(sample)
    metrics = {task.name: task.metric for task in sample.tasks}
    return [_difference(scores, task, metrics.get(task or "", "")) for task in (*metrics, None)]


def _difference(scores: Scores, task: str | None, metric: str) -> Difference:
    found = scores.difference("second", "first", task)
    assert found.half_width is not None, "two seeds have an interval"
    assert found.smallest is not None, "and a smallest visible difference"
    return Difference(
        task=task or "mean",
        metric=metric,
        first=scores.mean("first", task),
        second=scores.mean("second", task),
        half_width=found.half_width,
        smallest=found.smallest,
    )


def interval(scores_2S: NDArray[Any], sampling: float) -> tuple[float, float]:
    """The half-width of the 95 % interval of the seeds' mean difference, and the smallest difference it would show.

    Args:
        scores_2S: the scores of both kinds of runs, by seed.
        sampling: variance of the mean difference under resampling of the examples; counted as common to all seeds.
    """
    differences_S = scores_2S[1] - scores_2S[0]
    num_seeds = len(differences_S)
    errors = (float(np.var(differences_S, ddof=1)) / num_seeds, sampling, sampling, num_seeds, LEVEL)
    return float(half_width(*errors)), float(smallest_visible(*errors))
