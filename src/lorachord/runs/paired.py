"""Two kinds of runs over the same seeds, compared task by task from their saved predictions.

The difference has two sources of error. Over seeds: the spread of the differences, each of two runs of one seed, in a
Student interval. Over examples: a bootstrap of the examples, drawn jointly for all runs, since they predict the same
ones. The half-widths of the two intervals add in squares. That is on the safe side, the more so where seeds hardly
differ; Satterthwaite's degrees of freedom, the usual alternative, fall to 87 % coverage with two or three seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorachord.data.metrics import score
from lorachord.data.task import Task
from lorachord.runs.constants import records_of
from lorachord.runs.folder import RunFolder
from lorachord.runs.scores import NORMALISED
from lorachord.training.model_kind import Record

NUM_RESAMPLES = 1000
LEVEL, POWER = 0.95, 0.8


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
    tasks = first[0].recipe.tasks.chosen()
    found, spread_ST, sampling_T = [], [], []
    for task in tasks:
        sides = [[records_of(run, split, task) for run in runs] for runs in (first, second)]
        key = NORMALISED if NORMALISED in sides[0][0][0] and task.kind == "multiple_choice" else "prediction"
        labels = same_labels(task, [records for side in sides for records in side])
        predicted_2SN = [[np.asarray([record[key] for record in records]) for records in side] for side in sides]
        scores_2S = np.asarray([[score(task.metric, p, labels) for p in side] for side in predicted_2SN])
        sampling = _sampling_variance(task.metric, predicted_2SN, labels)
        found.append(_difference(task.name, task.metric, scores_2S, sampling))
        spread_ST.append(scores_2S)
        sampling_T.append(sampling)
    mean_2S = np.mean(spread_ST, axis=0)
    # Tasks have different examples, so that their sampling errors are independent; their seeds are not.
    sampling = sum(sampling_T) / len(tasks) ** 2
    return [*found, _difference("mean", "", mean_2S, sampling)]


def same_labels(task: Task, runs: Sequence[Sequence[Record]]) -> NDArray[Any]:
    """The answers of a task's examples.

    Raises:
        ValueError: the runs did not predict the same ones.
    """
    shown = [[(record["idx"], record["label"]) for record in records] for records in runs]
    if any(other != shown[0] for other in shown):
        raise ValueError(f"The runs did not predict the same examples of task {task.name!r}; evaluate them alike.")
    return np.asarray([label for _, label in shown[0]])


def _sampling_variance(metric: str, predicted_2SN: Sequence[Sequence[NDArray[Any]]], labels: NDArray[Any]) -> float:
    """Variance of the seeds' mean difference under resampling of the examples."""
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(NUM_RESAMPLES):
        rows = generator.integers(len(labels), size=len(labels))
        means = [np.mean([score(metric, p[rows], labels[rows]) for p in side]) for side in predicted_2SN]
        drawn.append(means[1] - means[0])
    return float(np.var(drawn, ddof=1))


def interval(scores_2S: NDArray[Any], sampling: float) -> tuple[float, float]:
    """The half-width of the 95 % interval of the seeds' mean difference, and the smallest difference it would show.

    Args:
        scores_2S: the scores of both kinds of runs, by seed.
        sampling: variance of the mean difference under resampling of the examples.
    """
    from scipy.special import ndtri, stdtrit  # type: ignore[import-untyped]

    differences_S = scores_2S[1] - scores_2S[0]
    seeds = float(np.var(differences_S, ddof=1)) / len(differences_S)
    errors = np.sqrt([seeds, sampling])
    freedom, tail = len(differences_S) - 1, (1 + LEVEL) / 2
    at_level = np.array([stdtrit(freedom, tail), ndtri(tail)])
    at_power = np.array([stdtrit(freedom, POWER), ndtri(POWER)])
    half_width = np.hypot(*(errors * at_level))
    smallest = np.hypot(*(errors * (at_level + at_power)))
    return float(half_width), float(smallest)


def _difference(task: str, metric: str, scores_2S: NDArray[Any], sampling: float) -> Difference:
    half_width, smallest = interval(scores_2S, sampling)
    first, second = scores_2S.mean(axis=1).tolist()
    return Difference(task=task, metric=metric, first=first, second=second, half_width=half_width, smallest=smallest)
