"""A task whose training rows are read as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from datasets import IterableDataset  # type: ignore[import-untyped]

from lorachord.data.assemble import TaskData, features_of, read_split, to_dataset
from lorachord.data.locate import Opened
from lorachord.data.row_reader import Example, RowReader
from lorachord.data.split import FRACTION, place
from lorachord.data.task import Source, Task

SHUFFLE_BUFFER = 1000
"""Rows among which a stream is shuffled."""


def _streamed(reader: RowReader, split: Opened, max_rows: int | None, seed: int, val: bool | None) -> Iterator[Example]:
    """The examples of train that are in val (true), not in val (false), or all of them (None)."""
    for position, row in enumerate(islice(split.rows(), max_rows)):
        if val is None or (place(reader.group(row, position), seed) < FRACTION) == val:
            yield reader.example(row, position)


def stream_task(task: Task, source: Source, opened: Mapping[str, Opened], seed: int) -> TaskData:
    """A task's datasets, train and a val that it lacks as streams; arguments and errors as `assemble`."""
    train = opened["train"]
    if "dev" not in opened:
        raise ValueError(f"{train.where}: a single file is not streamed, for dev would be drawn from it. Use a folder.")
    reader = RowReader(task, source, train.where)
    first = next(iter(train.rows()), None)
    if first is None:
        raise ValueError(f"{train.where} is empty; give it rows, or name another split.")
    reader.example(first, 0)
    reader.group(first, 0)
    shared = {"reader": reader, "split": train, "max_rows": task.max_rows, "seed": seed}

    def stream(val: bool | None) -> IterableDataset:
        return IterableDataset.from_generator(_streamed, features=features_of(task), gen_kwargs={**shared, "val": val})

    held = {name: read_split(task, source, split)[0] for name, split in opened.items() if name != "train"}
    sets = {name: to_dataset(task, rows) for name, rows in held.items()}
    in_train = None if "val" in sets else False
    sets.setdefault("val", stream(True))
    shuffled = stream(in_train).shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
    return TaskData(task=task, train=shuffled, **sets)
