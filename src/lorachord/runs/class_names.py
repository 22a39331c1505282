"""Names of classes that a recipe does not write itself: from a file of names, or from the rows of the task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorachord.data.labels import infer_labels
from lorachord.data.sources import open_source
from lorachord.data.task import Task
from lorachord.hub import absolute

CLASSES = ("classification", "pair")


def read_names(tree: Mapping[str, Any], folder: str | Path) -> tuple[dict[str, Any], list[int]]:
    """A recipe's plain data with the names from files, and names to hold the place of those that are left out.

    Args:
        folder: where relative paths start from.

    Returns:
        The data, and the positions of the tasks in `tasks.own` whose names are still to be read from their rows.

    Raises:
        ValueError: a file of names that does not exist.
    """
    tasks = tree.get("tasks")
    own = tasks.get("own") if isinstance(tasks, Mapping) else None
    if not isinstance(own, list):
        return dict(tree), []
    made, open_tasks = list(own), []
    for position, task in enumerate(own):
        if not isinstance(task, Mapping):
            continue
        labels = task.get("labels")
        if isinstance(labels, str):
            made[position] = {**task, "labels": _from_file(absolute(labels, folder))}
        elif labels is None and task.get("kind") in CLASSES:
            answers = task.get("answers")
            number = len(answers) if isinstance(answers, list) else 2
            made[position] = {**task, "labels": [f"<class {index}>" for index in range(number)]}
            open_tasks.append(position)
    return {**tree, "tasks": {**tasks, "own": made}}, open_tasks  # type: ignore[dict-item]


def _from_file(path: Path) -> list[str]:
    try:
        if not path.is_file():
            raise ValueError(f"There is no file of labels {path}. It would have a name a line.")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"labels: {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8.") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def name_classes(task: Task, data_dir: str | Path | None) -> Task:
    """A task with the names of its classes read from the rows of all its splits, in sorted order.

    Args:
        task: with names that hold the place.
        data_dir: as for `load_task`.

    Raises:
        ValueError: as `load_task`; labels that cannot be names, or as many as there are not answers.
    """
    source, splits = open_source(task, data_dir=data_dir)
    found = infer_labels(replace(task, source=None, labels=(), answers=()), splits, source).labels
    if not found:
        raise ValueError(f"Task {task.name!r} has no rows to read the names of its classes from.")
    written = task.answers if task.answers != task.labels else ()
    return replace(task, labels=found, answers=written)
