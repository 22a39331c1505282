"""Answers to new rows, without labels: `lc.load(path).predict(rows, task=...)`, and `lorachord predict`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from lorachord.data.files import Row
from lorachord.data.memory import RowsInMemory, in_memory, plain_rows
from lorachord.data.metrics import WRITTEN
from lorachord.data.row_reader import Example, RowReader
from lorachord.data.task import Task
from lorachord.messages import suggest
from lorachord.runs.served import Served, autocast_of, find_served
from lorachord.training.model_kind import Record
from lorachord.training.scoring import predict

logger = logging.getLogger("lorachord")
ANSWER_COLUMNS = ("prediction", "probability", "probabilities", "written")
"""What an answer holds at most."""
NewRows: TypeAlias = "RowsInMemory | Sequence[str]"


class Predictor:
    """Models that answer tasks. Weights are read when they are first needed, and kept.

    Args:
        served: one, or one a task; see `served.find_served`.

    >>> import lorachord as lc
    >>> model = lc.load("runs/support")  # doctest: +SKIP
    >>> model.predict(["The courier lost my parcel."], task="team")  # doctest: +SKIP
    [{'prediction': 'delivery', 'probability': 0.98, 'probabilities': {'billing': 0.02, 'delivery': 0.98}}]
    """

    def __init__(self, served: Sequence[Served]) -> None:
        self._served = tuple(served)
        self._places = {task.name: (own, index) for own in served for index, task in enumerate(own.tasks)}

    @property
    def tasks(self) -> dict[str, Task]:
        """The tasks that are answered, by name."""
        return {name: own.tasks[index] for name, (own, index) in self._places.items()}

    def predict(
        self,
        rows: NewRows,
        task: str | None = None,
        *,
        task_column: str | None = None,
        where: str = "the rows",
        progress: Callable[[str, int], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Answer N rows. They need no label; one that they have is not looked at.

        A row's columns are called as its task's source or the task itself calls them. Every row is checked before any
        model is read. An answer is the one of `lorachord evaluate` for the same row, to the rounding of its batch.

        Args:
            rows: a list of dicts, a datasets.Dataset or a pandas.DataFrame; or, for a task with one text, a list of
                texts.
            task: of all rows. Default: the only one that there is.
            task_column: the column that names each row's task, in place of `task`.
            where: what the rows are, for errors.
            progress: is called with a task's name and a number of rows after each batch. Default: nothing.

        Returns:
            N dicts in the order of the rows. `prediction` is the name of a class, the text of an option, a number or a
            written text. Where the model chooses, `probability` is the chosen one's, and `probabilities` holds that of
            each class by its name, or of each option in the row's order; None where the model's scores are not
            finite. A decoder's number has the text that it was read from beside it, as `written`.

        Raises:
            ValueError: an unknown task or none named; no rows; a row that lacks a column of its task (the columns that
                were found are named) or holds something else there. As `load_run`, where a model cannot be read.
        """
        names, plain = self.check(rows, task, task_column, where)
        pairs = enumerate(zip(names, plain, strict=True))
        examples = [self._example(name, row, position, where) for position, (name, row) in pairs]
        answers: dict[int, dict[str, Any]] = {}
        for name in dict.fromkeys(names):
            places = [place for place, own in enumerate(names) if own == name]
            chosen = [examples[place] for place in places]
            records = self._records(name, chosen, progress)
            for place, example, record in zip(places, chosen, records, strict=True):
                answers[place] = answer(self.tasks[name], example, record)
        return [answers[place] for place in range(len(names))]

    def check(
        self, rows: NewRows, task: str | None, task_column: str | None, where: str
    ) -> tuple[list[str], list[Row]]:
        """The task of each row, and each row as a dict; arguments and errors as `predict`."""
        texts = not isinstance(rows, str) and isinstance(rows, Sequence) and all(isinstance(row, str) for row in rows)
        names = [*self._places]
        if task is not None and task_column is not None:
            raise ValueError("Name one task for all rows, or the column that names each row's task; not both.")
        if task is None and task_column is None:
            if len(names) > 1:
                raise ValueError(
                    f"There are several tasks, {', '.join(names)}: say whose rows these are (--task NAME, task=...), "
                    "or which column says it (--task-column COLUMN, task_column=...)."
                )
            task = names[0]
        if task is not None:
            self._known(task, "Among these, ")
        plain = self._of_texts(rows, task, where) if texts and rows else plain_rows(rows, where)  # type: ignore[arg-type]
        if not plain:
            raise ValueError(f"{where}: there are no rows to predict.")
        if task is not None:
            return [task] * len(plain), plain
        assert task_column is not None
        return [self._task_of(row, task_column, position, where) for position, row in enumerate(plain)], plain

    def _of_texts(self, texts: Iterable[str], task: str | None, where: str) -> list[Row]:
        if task is None:
            raise ValueError(f"{where} are plain texts, which have no column for a task: name one task for all.")
        own = self.tasks[task]
        if (len(own.text_columns) > 1 and own.kind != "chat") or own.kind == "multiple_choice":
            columns = [*own.text_columns, *([own.choices] if own.kind == "multiple_choice" else [])]
            raise ValueError(
                f"{where} are plain texts, and task {task!r} reads several columns, {', '.join(columns)}: give rows "
                "with named columns, as a JSON object a line."
            )
        return [{own.text_columns[0]: text} for text in texts]

    def _known(self, task: str, at: str) -> None:
        if task not in self._places:
            raise ValueError(f"{at}no task is called {task!r}. {suggest(task, self._places)}")

    def _task_of(self, row: Row, column: str, position: int, where: str) -> str:
        at = f"Row {position} (from 0) of {where}: "
        if column not in row:
            raise ValueError(f"{at}there is no column {column!r} for the task. Columns: {', '.join(map(str, row))}.")
        name = row[column]
        if not isinstance(name, str):
            raise ValueError(f"{at}the column {column!r} must name a task; it holds {name!r}.")
        self._known(name, at)
        return name

    def _example(self, name: str, row: Row, position: int, where: str) -> Example:
        own = self.tasks[name]
        try:
            # As the data that it was trained on called them.
            found = RowReader(own, own.source or in_memory(own), where).inputs(row, position)
        except ValueError:
            found = RowReader(own, in_memory(own), where).inputs(row, position)
        # The label is not looked at.
        return {**found, "label": 0, "idx": position}

    def _records(
        self, name: str, examples: Sequence[Example], progress: Callable[[str, int], None] | None
    ) -> list[Record]:
        own, index = self._places[name]
        model, kind = own.loaded
        how = {"batch_size": own.batch_size, "max_new_tokens": own.max_new_tokens}
        with autocast_of(own):
            return predict(model, kind, examples, index, progress=progress, **how)


def answer(task: Task, example: Example, record: Record) -> dict[str, Any]:
    """A record of one example in the words of its task; see `Predictor.predict`."""
    found = record["prediction"]
    if task.kind in WRITTEN:
        return {"prediction": found}
    if task.kind == "regression":
        return {"prediction": found, **({"written": record["text"]} if "text" in record else {})}
    options = example["choices"] if task.kind == "multiple_choice" else list(task.labels)
    shares = _shares(record["scores"])
    if shares is None:
        return {"prediction": options[found], "probability": None, "probabilities": None}
    by_name = shares if task.kind == "multiple_choice" else dict(zip(options, shares, strict=True))
    return {"prediction": options[found], "probability": shares[found], "probabilities": by_name}


def _shares(scores: Sequence[float]) -> list[float] | None:
    """Probabilities from scores, by softmax; None where one is not finite."""
    if not all(map(math.isfinite, scores)):
        return None
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    return [power / sum(powers) for power in powers]


def load(path: str | Path) -> Predictor:
    """What a finished run, an exported LoRA or a merged model answers; weights are read at the first `predict`.

    Args:
        path: a run of either mode or its `adapter` folder; an exported LoRA, or a folder with one a task; a merged
            model.

    Raises:
        ValueError: the folder is none of these, the run is not finished, or a file in it is damaged.
    """
    return Predictor(find_served(path))
