"""Rows in memory: lists of dicts, Datasets and data frames, each as plain rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from datasets import ClassLabel, Dataset  # type: ignore[import-untyped]
from pandas import NA, DataFrame, NaT  # type: ignore[import-untyped]

from lorachord.data.files import Row, refuse_repeated
from lorachord.data.locate import Opened
from lorachord.data.task import Task

RowsInMemory: TypeAlias = "Iterable[Mapping[str, Any]] | Dataset | DataFrame"
EXAMPLES = "Examples of a LoRAchord task."
"""The description of a Dataset whose columns are those of `rows.RowReader.example`."""


def opened_rows(rows: RowsInMemory, where: str, task: Task | None = None) -> Opened:
    """Rows in memory, to be read like those of a file.

    Args:
        where: what they are, for errors.
        task: whose label is given by its name where a Dataset names the task's classes. Default: labels as they are.

    Raises:
        ValueError: something else than rows, or a row that is no mapping of columns.
    """
    made = plain_rows(rows, where)
    if task is not None and isinstance(rows, Dataset):
        made = list(with_named_labels(made, rows.features, task, task.label))
    return Opened(where, partial(iter, made))


def with_named_labels(
    rows: Iterable[Row], features: Mapping[str, Any] | None, task: Task, column: str
) -> Iterator[Row]:
    """Rows of a Dataset whose label is the name of its class, if the Dataset has the task's classes by name.

    An index of the Dataset's says nothing about the order in which the task names its classes.

    Args:
        features: of the Dataset.
        column: of the label.
    """
    feature = (features or {}).get(column)
    if not isinstance(feature, ClassLabel) or set(feature.names) != set(task.labels):
        yield from rows
        return
    for row in rows:
        index = row[column]
        # -1 marks rows without labels.
        yield {**row, column: feature.names[index] if isinstance(index, int) and index >= 0 else index}


def plain_rows(rows: RowsInMemory, where: str) -> list[Row]:
    """Each row as a dict; arguments and errors as `opened_rows`."""
    if isinstance(rows, DataFrame):
        refuse_repeated(map(str, rows.columns), where)
        return [{column: _plain(value) for column, value in row.items()} for row in rows.to_dict("records")]
    if isinstance(rows, Dataset):
        plain: list[Row] = rows.with_format("arrow")[:].to_pylist()
        return plain
    if isinstance(rows, (str, Mapping)) or not isinstance(rows, Iterable):
        raise ValueError(
            f"{where} is a {type(rows).__name__}; rows are a list of dicts, one a row, a datasets.Dataset or a "
            "pandas.DataFrame."
        )
    made = []
    for position, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(
                f"Row {position} (from 0) of {where}: a {type(row).__name__}, not a dict of columns, such as "
                "{'text': '...', 'label': '...'}."
            )
        made.append(dict(row))
    return made


def is_examples(rows: object) -> bool:
    """Whether rows are a Dataset that `load_task` or `from_rows` made, or a choice of its rows."""
    return isinstance(rows, Dataset) and rows.info.description == EXAMPLES


def with_class_names(task: Task, splits: Mapping[str, RowsInMemory]) -> Task:
    """A task that needs labels, with the names that its Datasets have for them, if they have any.

    Raises:
        ValueError: the splits have different names.
    """
    if not task.needs_labels:
        return task
    columns = [rows.features.get(task.label) for rows in splits.values() if isinstance(rows, Dataset)]
    found = {tuple(column.names) for column in columns if isinstance(column, ClassLabel)}
    if len(found) > 1:
        lists = "; ".join(", ".join(names) for names in sorted(found))
        raise ValueError(f"Task {task.name!r}: its splits have different classes: {lists}. Name them: labels=(...).")
    return replace(task, labels=found.pop()) if found else task


def _plain(value: Any) -> Any:
    # Gaps in a frame, and lists in one that was read from parquet.
    if value is NA or value is NaT:
        return None
    return value.tolist() if isinstance(value, np.ndarray) else value
