"""Named suites of tasks, as plain data.

A task names its columns as the local files call them, one folder a task under a data directory: `sentence1`,
`sentence2`, `label`, or `question`, `choices`, `label`. Its source is the hub's copy, and says what differs there.
The prompts are this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence

from lorachord.data.commonsense import COMMONSENSE
from lorachord.data.glue import GLUE
from lorachord.data.superni import SUPERNI
from lorachord.data.task import Task, check_tasks
from lorachord.messages import suggest

SUITES: dict[str, tuple[Task, ...]] = {"glue": GLUE, "commonsense": COMMONSENSE, "superni": SUPERNI}


def get_suite(name: str, only: Sequence[str] | None = None) -> tuple[Task, ...]:
    """The tasks of a suite.

    Args:
        name: a key of `SUITES`.
        only: the names of the tasks wanted, in the order wanted. Default: all.

    Raises:
        ValueError: no such suite or task, with the nearest name; a task named twice, or none.
    """
    if name not in SUITES:
        raise ValueError(f"There is no suite {name!r}. {suggest(name, SUITES)}")
    known = {task.name: task for task in SUITES[name]}
    for wanted in only or ():
        if wanted not in known:
            raise ValueError(f"Suite {name!r} has no task {wanted!r}. {suggest(wanted, known)}")
    tasks = SUITES[name] if only is None else tuple(known[wanted] for wanted in only)
    check_tasks(tasks)
    return tasks
