"""The tasks of a run with their data."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorachord.data.assemble import TaskData
from lorachord.data.sources import from_rows, load_split, load_task
from lorachord.data.split import cut
from lorachord.data.task import Task
from lorachord.runs.recipe import Recipe
from lorachord.training.units import answers


@dataclass(frozen=True)
class TaskSet:
    """The tasks of a run with their data.

    Attributes:
        data: one per task.
        weights: of their losses.
    """

    data: tuple[TaskData, ...]
    weights: tuple[float, ...]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks in order."""
        return tuple(part.task for part in self.data)

    @property
    def sizes(self) -> list[int]:
        """Training rows of each task."""
        return [len(part.train) for part in self.data]

    @property
    def moments(self) -> dict[str, tuple[float, float]]:
        """Mean and variance of the training answers of each regression task."""
        numbers = {part.task.name: answers(part.train) for part in self.data if part.task.kind == "regression"}
        return {task: (statistics.fmean(own), statistics.pvariance(own)) for task, own in numbers.items()}

    @property
    def variances(self) -> dict[int, float]:
        """The variance of the training answers of each regression task, by its index; 1 where they are all alike."""
        regressions = {index: part for index, part in enumerate(self.data) if part.task.kind == "regression"}
        return {index: statistics.pvariance(answers(part.train)) or 1.0 for index, part in regressions.items()}

    def alone(self, index: int) -> TaskSet:
        """One task of these."""
        return TaskSet(self.data[index : index + 1], self.weights[index : index + 1])

    def of(self, tasks: Sequence[Task]) -> TaskSet:
        """Some of these, in the order of `tasks`."""
        position = {task.name: index for index, task in enumerate(self.tasks)}
        chosen = [position[task.name] for task in tasks]
        return TaskSet(tuple(self.data[index] for index in chosen), tuple(self.weights[index] for index in chosen))

    def split(self, name: str, max_rows: int | None, seed: int) -> list[Any]:
        """One split of every task, at most `max_rows` rows of each.

        Raises:
            ValueError: a task has no such split.
        """
        chosen = []
        for part in self.data:
            rows = getattr(part, name)
            if rows is None:
                raise ValueError(f"Task {part.task.name!r} has no {name} split; take dev or val.")
            chosen.append(rows.select(cut(len(rows), max_rows, seed)))
        return chosen


def load_data(recipe: Recipe, tasks: Sequence[Task], data_dir: str | Path | None) -> TaskSet:
    """Read, check and split the data of all tasks.

    Raises:
        ValueError: as `data.sources.load_task`.
    """
    part = recipe.tasks
    weights = [1.0] * len(tasks)
    if part.lab is not None:
        lab = part.lab.generate()
        index_of = {task.name: index for index, task in enumerate(lab.tasks)}
        data = tuple(from_rows(task, lab.splits(index_of[task.name]), seed=part.seed) for task in tasks)
        weights = [lab.loss_weights[index_of[task.name]] for task in tasks]
    else:
        data = tuple(load_task(task, data_dir=data_dir, seed=part.seed) for task in tasks)
    return TaskSet(
        data, tuple(part.weights.get(task.name, weight) for task, weight in zip(tasks, weights, strict=True))
    )


def load_rows(recipe: Recipe, tasks: Sequence[Task], split: str, data_dir: str | Path | None) -> list[Any]:
    """One split of every task as it is scored: at most `evaluation.max_rows` rows of each. Others are not needed.

    Raises:
        ValueError: as `data.sources.load_split`.
    """
    part = recipe.tasks
    if part.lab is not None:
        return load_data(recipe, tasks, data_dir).split(split, recipe.evaluation.max_rows, part.seed)
    found = [load_split(task, split, data_dir=data_dir, seed=part.seed) for task in tasks]
    return [rows.select(cut(len(rows), recipe.evaluation.max_rows, part.seed)) for rows in found]
