"""By which runs a learning rate is chosen: no run of it at chance, and no visible loss against the best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lorachord.data.task import Task
from lorachord.runs.compare.sample import RunRecords, Sample, Scores
from lorachord.runs.constants import constant_score


def at_chance(tasks: Sequence[Task], records: RunRecords) -> bool:
    """Whether a run's mean over the tasks is not above that of constant answers by more than its standard error.

    The standard error is that of the run's mean over draws of examples. Written answers have no constant answer that
    scores; theirs counts as 0. A run whose score is NaN is at chance.

    Args:
        tasks: of the run.
        records: of the run, by task.
    """
    scores = Scores(Sample(tasks, {"run": [records]}))
    own = scores.contrast({"run": 1.0})
    constants = [constant_score(task, records[task.name]) or 0.0 for task in tasks]
    return not own.value - float(np.mean(constants)) > own.error


def tied(tasks: Sequence[Task], best: Sequence[RunRecords], other: Sequence[RunRecords]) -> bool:
    """Whether the mean score of some runs lies within one standard error of the best runs' mean score.

    The standard error is that of their difference, over the examples, and over the seeds where there are several.

    Args:
        tasks: of the runs.
        best, other: the records of each run by task, paired by seed; at least one.
    """
    difference = Scores(Sample(tasks, {"best": best, "other": other})).difference("best", "other")
    return difference.value <= difference.error
