"""What a task would score if everything were given one answer: the least that a model has to beat."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from lorachord.data.metrics import WRITTEN, score
from lorachord.data.task import Task
from lorachord.runs.folder import RunFolder
from lorachord.runs.scores import read_records
from lorachord.training.model_kind import Record


def constant_score(task: Task, records: Sequence[Record]) -> float | None:
    """The score of the most frequent answer of the records, or of the mean of a regression; None for written answers.

    A metric that divides zero by zero then has its own convention: correlations are 0.
    """
    labels = [record["label"] for record in records]
    if task.kind in WRITTEN:
        return None
    if task.kind == "regression":
        answer = statistics.fmean(labels)
    else:
        counts = Counter(labels)
        # Of equally frequent ones the first, whatever the order of the rows.
        answer = min(counts, key=lambda label: (-counts[label], label))
    return score(task.metric, [answer] * len(labels), labels)


def constant_scores(tasks: Sequence[Task], records: Mapping[str, Sequence[Record]]) -> dict[str, float | None]:
    """The same for several tasks, from the records of each."""
    return {task.name: constant_score(task, records[task.name]) for task in tasks}


def records_of(run: RunFolder, split: str, task: Task) -> list[Record]:
    """The saved records of one task of a run of either mode.

    Raises:
        ValueError: there are none.
    """
    path = run.path / task.name if run.recipe.mode == "single" else run.path
    return read_records(path / "predictions" / split, [task])[task.name]
