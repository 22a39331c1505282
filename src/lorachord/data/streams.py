"""A task whose training rows are read as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from datasets import IterableDataset  # type: ignore[import-untyped]

from lorachord.data.assemble import TaskData, features_of, read_held, to_dataset
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
            if reader.source.skip_unlabelled and reader.unlabelled(row, position):
                continue
            example = reader.example(row, position)
            if not -(2**63) <= example["idx"] < 2**63:
                raise ValueError(
                    f"Row {position} (from 0) of {reader.where}: its idx {example['idx']} has more than 63 bits, which "
                    "a stream does not hold: rename idx, or read it without streaming."
                )
            yield example


def stream_task(task: Task, source: Source, opened: Mapping[str, Opened], seed: int) -> TaskData:
    """A task's datasets, train and a val that it lacks as streams; arguments and errors as `assemble`."""
    train = opened["train"]
    if "dev" not in opened:
        raise ValueError(f"{train.where}: a single file is not streamed, for dev would be drawn from it. Use a folder.")
    reader = RowReader(task, source, train.where)
    labelled = (
        (position, row)
        for position, row in enumerate(train.rows())
        if not (source.skip_unlabelled and reader.unlabelled(row, position))
    )
    first = next(labelled, None)
    if first is None:
        raise ValueError(f"{train.where} is empty or without labels; give it rows, or name another split.")
    reader.example(first[1], first[0])
    reader.group(first[1], first[0])
    shared = {"reader": reader, "split": train, "max_rows": task.max_rows, "seed": seed}

    def stream(val: bool | None) -> IterableDataset:
        return IterableDataset.from_generator(_streamed, features=features_of(task), gen_kwargs={**shared, "val": val})

    held = {name: read_held(task, source, name, split) for name, split in opened.items() if name != "train"}
    sets = {name: to_dataset(task, rows) for name, rows in held.items()}
    in_train = None if "val" in sets else False
    sets.setdefault("val", stream(True))
    shuffled = stream(in_train).shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
    return TaskData(task=task, train=shuffled, **sets)
