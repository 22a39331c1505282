"""From the predictions of runs to contrasts of their methods.

Shapes: R rows (methods), S seeds, T tasks, B resamples or examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorachord.data.metrics import score
from lorachord.data.task import Task
from lorachord.messages import suggest
from lorachord.runs.compare.ratio import Moments, Ratio, fieller
from lorachord.runs.compare.resampling import sampling_errors
from lorachord.runs.compare.statistics import LEVEL, Contrast, Floats
from lorachord.runs.constants import records_of
from lorachord.runs.folder import RunFolder
from lorachord.runs.scores import NORMALISED
from lorachord.training.model_kind import Record

RunRecords = Mapping[str, Sequence[Record]]
"""The records of one run, by task."""


@dataclass(frozen=True)
class Sample:
    """The predictions of several methods for the same examples, with paired seeds.

    Args:
        tasks: that are compared.
        records: of each row, by seed. Rows have equally many seeds, in one order; what has no seed, such as the base
            untrained, is repeated.

    Raises:
        ValueError: rows with different numbers of seeds, fewer than two examples, or runs that did not predict the
            same examples.
    """

    tasks: Sequence[Task]
    records: Mapping[str, Sequence[RunRecords]]

    def __post_init__(self) -> None:
        counts = {row: len(runs) for row, runs in self.records.items()}
        if len(set(counts.values())) != 1 or 0 in counts.values():
            shown = ", ".join(f"{row} {count}" for row, count in counts.items())
            raise ValueError(f"Rows of a comparison need the same seeds, at least one; found {shown}.")

    @classmethod
    def of_runs(cls, runs: Mapping[str, Sequence[RunFolder]], split: str = "dev") -> Sample:
        """The saved predictions of finished runs on the same tasks.

        Args:
            runs: of each row, by seed.
            split: that was predicted. Default dev.

        Raises:
            ValueError: as above, or a run has no saved predictions.
        """
        tasks = next(iter(runs.values()))[0].recipe.tasks.chosen()
        records = {
            row: [{task.name: records_of(run, split, task) for task in tasks} for run in own]
            for row, own in runs.items()
        }
        return cls(tasks, records)

    @property
    def rows(self) -> list[str]:
        """The names of the methods."""
        return list(self.records)

    @property
    def num_seeds(self) -> int:
        """S."""
        return len(next(iter(self.records.values())))


def same_labels(task: Task, runs: Sequence[Sequence[Record]]) -> NDArray[Any]:
    """The answers of a task's examples.

    Raises:
        ValueError: the runs did not predict the same ones.
    """
    shown = [[(record["idx"], record["label"]) for record in records] for records in runs]
    if any(other != shown[0] for other in shown):
        raise ValueError(f"The runs did not predict the same examples of task {task.name!r}; evaluate them alike.")
    return np.asarray([label for _, label in shown[0]])


class Scores:
    """The scores of a sample, and how they move with the seeds and with the examples.

    Examples of different tasks are taken as drawn independently of each other. Tasks that ask different questions about
    the same texts are not; the intervals of their mean are then too narrow.

    A decoder's choices among options are compared by their length-normalised likelihoods.

    Args:
        sample: the predictions.

    Attributes:
        tasks: their names.
        rows: the names of the methods.
        num_seeds: S.
        values_RST: the scores.
    """

    def __init__(self, sample: Sample) -> None:
        self.tasks = [task.name for task in sample.tasks]
        self.rows = sample.rows
        self.num_seeds = sample.num_seeds
        runs = [run for row in self.rows for run in sample.records[row]]
        shape = (len(self.rows), self.num_seeds)
        values, self._errors_BRS = [], []
        for task in sample.tasks:
            records = [run[task.name] for run in runs]
            labels = same_labels(task, records)
            if len(labels) < 2:
                raise ValueError(f"Task {task.name!r} has one example to compare by; it needs at least two.")
            predictions = [_predictions(task, own) for own in records]
            values.append([score(task.metric, own, labels) for own in predictions])
            self._errors_BRS.append(sampling_errors(task.metric, predictions, labels).reshape(-1, *shape))
        self.values_RST: Floats = np.array(values).T.reshape(*shape, len(self.tasks))

    def mean(self, row: str, task: str | None = None) -> float:
        """The mean score of a row over its seeds, of one task or (default) over all tasks."""
        values_T = self.values_RST[self._row(row)].mean(axis=0)
        return float(np.mean(values_T[self._chosen(task)]))

    def contrast(self, weights: Mapping[str, float], task: str | None = None, level: float = LEVEL) -> Contrast:
        """The sum of the rows' mean scores times their weights, with its interval.

        Args:
            weights: of the rows that take part, by name.
            task: by name. Default: the mean over all tasks.
            level: of the interval. Default 0.95.

        Raises:
            ValueError: no such row or task.
        """
        found = self._moments([weights], task)
        (value,), ((seeds,),), ((shared,),), ((sampling,),) = (
            part.tolist() for part in (found.value, found.seeds, found.shared, found.sampling)
        )
        return Contrast(
            value=value,
            seeds=seeds,
            shared=max(shared, 0.0),
            sampling=sampling,
            num_seeds=self.num_seeds,
            level=level,
        )

    def difference(self, first: str, second: str, task: str | None = None, level: float = LEVEL) -> Contrast:
        """The score of the first row less that of the second; arguments as for `contrast`."""
        if first == second:
            raise ValueError(f"A difference needs two rows; got {first!r} twice.")
        return self.contrast({first: 1.0, second: -1.0}, task, level)

    def gap_recovered(
        self, row: str, joint: str, single: str, task: str | None = None, level: float = LEVEL
    ) -> Ratio | None:
        """How much of the gap between joint and single-task training a row recovers, with Fieller's interval.

        (row - joint) / (single - joint): 0 is as good as joint training, 1 as good as single-task training.

        Args:
            row, joint, single: names of rows.
            task, level: as for `contrast`.

        Returns:
            None where single-task training is not visibly better than joint training, so that there is no gap to
            recover; and with a single seed.
        """
        if self.num_seeds < 2:
            return None
        return fieller(self._moments([_less(row, joint), _less(single, joint)], task), level)

    def covariance(self, task: str | None = None) -> Floats:
        """The covariance (R, R) of the rows' mean scores over draws of examples, with the seeds as they are."""
        rows = [{row: 1.0} for row in self.rows]
        return self._moments(rows, task).sampling

    def _moments(self, contrasts: Sequence[Mapping[str, float]], task: str | None) -> Moments:
        """Several contrasts at once, C."""
        chosen = self._chosen(task)
        values_CST = np.stack([_sum(self._weights(each), self.values_RST) for each in contrasts])
        values_CS = values_CST[:, :, chosen].mean(axis=2)
        count = len(contrasts)
        own_CC, sampling_CC = np.zeros((count, count)), np.zeros((count, count))
        for index in chosen:
            errors_BRS = self._errors_BRS[index]
            errors_BCS = np.stack(
                [_sum(self._weights(each), errors_BRS.swapaxes(0, 1)) for each in contrasts], axis=1
            ) / len(chosen)
            mean_BC = errors_BCS.mean(axis=2)
            sampling_CC += mean_BC.T @ mean_BC
            own_CC += np.einsum("bcs,bds->cd", errors_BCS, errors_BCS) / self.num_seeds
        value_C = values_CS.mean(axis=1)
        if self.num_seeds < 2:
            return Moments(value_C, np.zeros_like(own_CC), sampling_CC, sampling_CC, 1)
        # Sums over pairs of different seeds: all pairs less those of a seed with itself.
        shared_CC = (self.num_seeds * sampling_CC - own_CC) / (self.num_seeds - 1)
        off_CS = values_CS - value_C[:, None]
        seeds_CC = off_CS @ off_CS.T / (self.num_seeds * (self.num_seeds - 1))
        return Moments(value_C, seeds_CC, shared_CC, sampling_CC, self.num_seeds)

    def _weights(self, weights: Mapping[str, float]) -> list[tuple[int, float]]:
        return [(self._row(row), weight) for row, weight in weights.items()]

    def _row(self, name: str) -> int:
        return _index(name, self.rows, "row")

    def _chosen(self, task: str | None) -> list[int]:
        return list(range(len(self.tasks))) if task is None else [_index(task, self.tasks, "task")]


def _index(name: str, names: Sequence[str], kind: str) -> int:
    if name not in names:
        raise ValueError(f"There is no {kind} {name!r} in this comparison. {suggest(name, names)}")
    return names.index(name)


def _less(first: str, second: str) -> dict[str, float]:
    return {first: 1.0, second: -1.0} if first != second else {first: 0.0}


def _sum(weights: Iterable[tuple[int, float]], values_R: Floats) -> Floats:
    """Of equal rows with weights 1 and -1, exactly 0; rows without a weight, which may be NaN, take no part."""
    total: Floats = np.sum([weight * values_R[row] for row, weight in weights], axis=0)
    return total


def _predictions(task: Task, records: Sequence[Record]) -> list[Any]:
    key = NORMALISED if task.kind == "multiple_choice" and NORMALISED in records[0] else "prediction"
    return [record[key] for record in records]
