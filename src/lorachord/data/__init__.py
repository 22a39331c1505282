"""Tasks, where their rows come from, how they are mixed and scored. Stands alone: knows no model and no method.

A `Task` says what is asked: its kind (classification, pair, regression, multiple_choice, generation, chat), the
columns of its texts and its label, how a decoder is asked, and how answers are scored. A `Source` says where its rows
lie: a dataset's name on the hub, a local folder or a file. Rows may also be given in memory, as a list of dicts, a
`datasets.Dataset` or a pandas frame; then a task needs no source, and its classes may be read from the rows.

`load_task` and `from_rows` check every row and give a `TaskData` with three splits: `train`; `val`, to choose by;
`dev`, to report. All have the same columns, whatever the rows were called. An error names the row, column and place.

`TaskMixture` deals rows of several tasks into batches. `METRICS` score predictions. `glue.py`, `commonsense.py` and
`superni.py` hold known tasks, `lab.py` generated ones whose best scores are known.

>>> from lorachord.data import Task, from_rows
>>> rows = [{"body": f"Parcel {n} is late", "team": "delivery"} for n in range(20)]
>>> rows += [{"body": f"Invoice {n} is wrong", "team": "billing"} for n in range(20)]
>>> data = from_rows(Task("complaints", kind="classification", text="body", label="team"), {"train": rows})
>>> data.task.labels
('billing', 'delivery')
>>> len(data.train), len(data.val), len(data.dev)
(32, 4, 4)
>>> data.dev[0]
{'first': 'Parcel 5 is late', 'second': '', 'label': 1, 'idx': 5}
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lorachord.data.metrics import METRICS
from lorachord.data.mixture import TaskMixture
from lorachord.data.task import Source, Task

if TYPE_CHECKING:
    from lorachord.data.assemble import TaskData
    from lorachord.data.sources import from_rows, load_task

__all__ = ["METRICS", "Source", "Task", "TaskData", "TaskMixture", "from_rows", "load_task"]


def __getattr__(name: str) -> Any:
    # The library of datasets takes a second to import, and a recipe is checked without it.
    if name in ("from_rows", "load_task"):
        return getattr(import_module("lorachord.data.sources"), name)
    if name == "TaskData":
        return import_module("lorachord.data.assemble").TaskData
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
