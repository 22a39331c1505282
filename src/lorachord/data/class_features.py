"""Names that a data set has for its classes. `datasets` keeps them beside a column of indices, in parquet files too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]
from datasets import ClassLabel, Features  # type: ignore[import-untyped]
from pyarrow import ArrowException

from lorachord.data.files import Row
from lorachord.data.task import Source, Task

METADATA = b"huggingface"
"""Under which `datasets` writes its features into a parquet file."""


def file_features(path: Path) -> Mapping[str, Any]:
    """The features that `datasets` wrote into a parquet file; none for other files.

    Raises:
        ValueError: a file that is not parquet, or features that cannot be read.
    """
    if path.suffix != ".parquet":
        return {}
    try:
        schema = pq.read_schema(path)
        found: Mapping[str, Any] = Features.from_arrow_schema(schema) if METADATA in (schema.metadata or {}) else {}
    except (ArrowException, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from None
    return found


def label_column(task: Task, source: Source) -> str:
    """The column of a task's labels, as its source calls it."""
    column = source.columns.get(task.label, task.label)
    return column if isinstance(column, str) else task.label


def own_names(features: Mapping[str, Any] | None, task: Task, source: Source) -> tuple[str, ...]:
    """The names that a data set has for a task's classes, in its order; none where the source says `label_keys`."""
    feature = (features or {}).get(label_column(task, source))
    return tuple(feature.names) if isinstance(feature, ClassLabel) and not source.label_keys else ()


def with_named_labels(rows: Iterable[Row], names: tuple[str, ...], task: Task, source: Source) -> Iterator[Row]:
    """Rows whose label is the name of its class, if a data set has the task's classes by name, or the task names none.

    An index of the data set's says nothing about the order in which the task names its classes.

    Args:
        names: as `own_names`.
    """
    if not names or (task.labels and set(names) != set(task.labels)):
        yield from rows
        return
    column = label_column(task, source)
    for row in rows:
        index = row[column]
        # -1 marks rows without labels.
        yield {**row, column: names[index] if isinstance(index, int) and 0 <= index < len(names) else index}
