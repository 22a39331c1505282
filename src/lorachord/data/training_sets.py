"""What a trainer is given, by task, as the datasets that it trains and scores on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from datasets import Dataset  # type: ignore[import-untyped]

from lorachord.data.assemble import assemble, read_split, to_dataset
from lorachord.data.labels import infer_labels
from lorachord.data.memory import RowsInMemory, in_memory, is_examples, opened_rows
from lorachord.data.task import Task
from lorachord.messages import suggest

RowsByTask: TypeAlias = "Mapping[str, RowsInMemory] | Sequence[RowsInMemory]"
"""The rows of each task: by its name, or in the order of the tasks."""


@dataclass(frozen=True)
class TrainingSets:
    """
    Attributes:
        tasks: with their labels.
        train, val: one Dataset a task, with the columns of `rows.RowReader.example`.
    """

    tasks: tuple[Task, ...]
    train: tuple[Dataset, ...]
    val: tuple[Dataset, ...]


def training_sets(tasks: Sequence[Task], train_data: RowsByTask, eval_data: RowsByTask | None = None) -> TrainingSets:
    """Read and check the rows that tasks are trained on and chosen by.

    Labels that a task leaves out are read from its rows. Where a task has no `eval_data`, a tenth of its training rows
    is drawn for it, in whole groups, the same at every call.

    Args:
        train_data, eval_data: rows whose columns are called as the tasks call them, or Datasets of `load_task` and
            `from_rows`.

    Raises:
        ValueError: no rows for a task, rows of an unknown one, or as `from_rows`.
    """
    train = _in_order(tasks, train_data, "train_data")
    val = _in_order(tasks, {} if eval_data is None else eval_data, "eval_data", all_tasks=False)
    made = [_of_task(task, *rows) for task, *rows in zip(tasks, train, val, strict=True)]
    return TrainingSets(*zip(*made, strict=True))


def evaluation_sets(tasks: Sequence[Task], data: RowsByTask) -> tuple[Dataset, ...]:
    """Read and check rows to score, of every task; arguments and errors as `training_sets`."""
    return tuple(_read(task, rows) for task, rows in zip(tasks, _in_order(tasks, data, "eval_data"), strict=True))


def _in_order(tasks: Sequence[Task], data: RowsByTask, what: str, *, all_tasks: bool = True) -> list[Any]:
    """The rows of each task in the order of the tasks; None for a task without, if not `all_tasks` need some."""
    names = [task.name for task in tasks]
    if isinstance(data, Mapping):
        for name in data:
            if name not in names:
                raise ValueError(f"{what} has rows of {name!r}, which is none of the tasks. {suggest(name, names)}")
        missing = [name for name in names if name not in data]
        if missing and all_tasks:
            raise ValueError(f"{what} has no rows of {', '.join(missing)}; give rows of every task.")
        return [data.get(name) for name in names]
    if isinstance(data, (str, bytes)) or not isinstance(data, Sequence):
        raise ValueError(f"{what} is a {type(data).__name__}; give the rows of each task by its name: {{name: rows}}.")
    if len(data) != len(names):
        raise ValueError(f"{what} has {len(data)} entries for {len(names)} tasks.")
    return list(data)


def _of_task(task: Task, train: Any, val: Any) -> tuple[Task, Dataset, Dataset]:
    if is_examples(train):
        if val is None:
            raise ValueError(
                f"Task {task.name!r}: its training rows have been split already, so give its eval_data too (`val` of "
                "what load_task or from_rows gave)."
            )
        return task, train, _read(task, val)
    given = {"train": train} if val is None or is_examples(val) else {"train": train, "val": val}
    whats = {"train": "train_data", "val": "eval_data"}
    opened = {name: opened_rows(rows, _where(whats[name], task), task) for name, rows in given.items()}
    task = infer_labels(task, opened, in_memory(task))
    drawn = ("val",) if val is None else ()
    sets = assemble(task, in_memory(task), opened, seed=0, drawn=drawn)
    return task, sets["train"], sets.get("val", val)


def _read(task: Task, rows: Any) -> Dataset:
    if is_examples(rows):
        return rows
    return to_dataset(task, read_split(task, in_memory(task), opened_rows(rows, _where("eval_data", task), task))[0])


def _where(what: str, task: Task) -> str:
    return f"{what} of task {task.name!r}"
