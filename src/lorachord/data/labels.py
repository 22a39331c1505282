"""The classes of a task that does not name them: read from its rows, never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lorachord.data.locate import Opened
from lorachord.data.row_reader import RowReader
from lorachord.data.task import Source, Task

SHOWN = 8
"""Labels in an error."""


def infer_labels(task: Task, splits: Mapping[str, Opened], source: Source) -> Task:
    """The task with the names of its classes: the texts that are its labels in any of the splits, in sorted order.

    Where `datasets` keeps names beside the labels, these are the names, in its order. A task that names its classes, or
    has none, is given back as it is.

    Args:
        splits: by name, all that are known.
        source: how the columns are called in the splits.

    Raises:
        ValueError: a label that is missing or a number (which may be the name of a class or its index), fewer than two
            classes, data sets with different names, or a source whose `label_keys` say already how classes are written.
    """
    if not task.needs_labels:
        return task
    if source.label_keys:
        raise ValueError(
            f"Task {task.name!r}: its source says by label_keys how the classes are written there; write their names "
            "in the same order, labels=('...', '...')."
        )
    own = {split.class_names for split in splits.values() if split.class_names}
    if len(own) > 1:
        lists = "; ".join(", ".join(names) for names in sorted(own))
        raise ValueError(f"Task {task.name!r}: its splits have different classes: {lists}. Name them: labels=(...).")
    if own:
        return replace(task, labels=own.pop())
    found: set[str] = set()
    for split in splits.values():
        reader = RowReader(task, source, split.where)
        for position, row in enumerate(split.rows()):
            if source.skip_unlabelled and reader.unlabelled(row, position):
                continue
            label = reader.raw_label(row, position)
            if not isinstance(label, str) or not label.strip() or _is_number(label):
                raise ValueError(f"Row {position} (from 0) of {split.where}: {_advice(label)}")
            found.add(label)
    if not found:
        # There are no rows, which the reader says in its own words.
        return task
    if len(found) < 2:
        raise ValueError(
            f"Task {task.name!r}: {task.kind} needs at least two classes, and all its rows have the label "
            f"{found.pop()!r}. Check the column {task.label!r}, or name the classes, labels=('...', '...')."
        )
    return replace(task, labels=tuple(sorted(found)))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    # "nan" and "inf" are words too.
    return any(letter.isdigit() for letter in text)


def _advice(label: object) -> str:
    # Only a NaN differs from itself.
    if label is None or label != label or (isinstance(label, str) and not label.strip()):
        return (
            f"the label is missing; it is {label!r}. Leave such rows out, or write skip_unlabelled: true in the task's "
            "source."
        )
    if isinstance(label, (str, int, float)):
        return (
            f"the label {label!r} may be the name of a class or its index. If it is an index, write the names of the "
            "classes in the order of their indices from 0: labels=('...', '...'), in a recipe labels: [...] or "
            "a file with a name a line. If it is a name, make it a text that is no number, such as 'grade 1'."
        )
    return f"the label must be a text; it is {label!r}."
