"""Rows in memory: lists of dicts, Datasets and data frames, each as plain rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from datasets import Dataset  # type: ignore[import-untyped]
from pandas import NA, DataFrame, NaT  # type: ignore[import-untyped]

from lorachord.data.class_features import own_names, with_named_labels
from lorachord.data.files import Row, refuse_repeated
from lorachord.data.locate import Opened
from lorachord.data.task import Source, Task

RowsInMemory: TypeAlias = "Iterable[Mapping[str, Any]] | Dataset | DataFrame"
EXAMPLES = "Examples of a LoRAchord task."
"""The description of a Dataset whose columns are those of `rows.RowReader.example`."""
IN_MEMORY = Source(path="memory")
"""Columns are called as the task calls them."""


def in_memory(task: Task) -> Source:
    """`IN_MEMORY`, which leaves out rows without a label if the task's source does."""
    return replace(IN_MEMORY, skip_unlabelled=task.source is not None and task.source.skip_unlabelled)


def opened_rows(rows: RowsInMemory, where: str, task: Task | None = None) -> Opened:
    """Rows in memory, to be read like those of a file.

    Args:
        where: what they are, for errors.
        task: whose label is given by its name where a Dataset names the task's classes. Default: labels as they are.

    Raises:
        ValueError: something else than rows, or a row that is no mapping of columns.
    """
    made = plain_rows(rows, where)
    if task is None or not isinstance(rows, Dataset):
        return Opened(where, partial(iter, made))
    names = own_names(rows.features, task, in_memory(task))
    return Opened(where, partial(with_named_labels, made, names, task, in_memory(task)), names)


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


def _plain(value: Any) -> Any:
    # Gaps in a frame, and lists in one that was read from parquet.
    if value is NA or value is NaT:
        return None
    return value.tolist() if isinstance(value, np.ndarray) else value
