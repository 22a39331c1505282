"""From opened splits to a task's datasets: reading every row, and drawing the splits that are missing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetInfo, Features, IterableDataset, Value  # type: ignore[import-untyped]
from datasets import List as ListOf

from lorachord.data.locate import Opened
from lorachord.data.memory import EXAMPLES
from lorachord.data.row_reader import Example, RowReader
from lorachord.data.split import cut, draw
from lorachord.data.task import Source, Task

IN_MEMORY = Source(path="memory")
"""Columns are called as the task calls them."""


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """A task's datasets, with the columns that `RowReader.example` describes.

    Attributes:
        train, val: map-style, or iterable where they were asked for as streams.
        dev: for the reported number only.
        test: likewise; None unless the source has one.
    """

    task: Task
    train: Dataset | IterableDataset
    val: Dataset | IterableDataset
    dev: Dataset
    test: Dataset | None = None


def features_of(task: Task) -> Features:
    """The columns of a task's examples."""
    label = {"regression": "float64", "generation": "string"}.get(task.kind, "int64")
    features: dict[str, Any] = {"first": Value("string"), "second": Value("string"), "label": Value(label)}
    if task.kind == "multiple_choice":
        features["choices"] = ListOf(Value("string"))
    return Features({**features, "idx": Value("int64")})


def to_dataset(task: Task, examples: list[Example]) -> Dataset:
    """A Dataset of a task's examples, which `memory.is_examples` recognises."""
    features = features_of(task)
    columns = {name: [example[name] for example in examples] for name in features}
    return Dataset.from_dict(columns, info=DatasetInfo(description=EXAMPLES, features=features))


def read_split(task: Task, source: Source, split: Opened) -> tuple[list[Example], list[str]]:
    """Every example of a split, and its group."""
    reader = RowReader(task, source, split.where)
    examples, groups = [], []
    for position, row in enumerate(split.rows()):
        examples.append(reader.example(row, position))
        groups.append(reader.group(row, position))
    if not examples:
        raise ValueError(f"{split.where} is empty; give it rows, or name another split.")
    return examples, groups


def assemble(
    task: Task, source: Source, opened: Mapping[str, Opened], seed: int, drawn: Collection[str] = ("dev", "val")
) -> dict[str, Dataset]:
    """The datasets of a task by split: of those opened, and of those that are drawn from train.

    Args:
        opened: train, and any others.
        drawn: the splits that are drawn from train where they are not there.
    """
    held = {name: read_split(task, source, split)[0] for name, split in opened.items() if name != "train"}
    examples, groups = read_split(task, source, opened["train"])
    kept = list(range(len(examples)))

    def hold_out(split: str) -> None:
        try:
            chosen = draw([groups[row] for row in kept], seed)
        except ValueError as error:
            raise ValueError(f"{opened['train'].where}: {split} cannot be drawn from it: {error}") from None
        held[split] = [examples[row] for at, row in enumerate(kept) if at in chosen]
        kept[:] = [row for at, row in enumerate(kept) if at not in chosen]

    if "dev" in drawn and "dev" not in held:
        hold_out("dev")
    kept[:] = [kept[at] for at in cut(len(kept), task.max_rows, seed)]
    if "val" in drawn and "val" not in held:
        hold_out("val")
    train = [examples[row] for row in kept]
    seen = {example["label"] for example in train}
    if task.labels and len(seen) == 1:
        raise ValueError(
            f"{opened['train'].where}: all {len(train)} rows have the one class {task.labels[seen.pop()]!r}, so there "
            "is nothing to learn. Check the label column, or raise max_rows."
        )
    return {name: to_dataset(task, rows) for name, rows in {"train": train, **held}.items()}
