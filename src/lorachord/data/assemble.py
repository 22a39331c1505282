"""From opened splits to a task's datasets: reading every row, and drawing the splits that are missing."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, DatasetInfo, Features, IterableDataset, Value  # type: ignore[import-untyped]
from datasets import List as ListOf

from lorachord.data.locate import Opened
from lorachord.data.memory import EXAMPLES
from lorachord.data.metrics import WRITTEN
from lorachord.data.row_reader import Example, RowReader
from lorachord.data.split import cut, draw
from lorachord.data.task import Source, Task

logger = logging.getLogger(__name__)


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
    label = "string" if task.kind in WRITTEN else "float64" if task.kind == "regression" else "int64"
    features: dict[str, Any] = {"first": Value("string"), "second": Value("string"), "label": Value(label)}
    if task.kind == "multiple_choice":
        features["choices"] = ListOf(Value("string"))
    return Features({**features, "idx": Value("int64")})


def to_dataset(task: Task, examples: list[Example]) -> Dataset:
    """A Dataset of a task's examples, which `memory.is_examples` recognises."""
    features = features_of(task)
    numbers = [example["idx"] for example in examples]
    low, high = min(numbers, default=0), max(numbers, default=0)
    if low < -(2**63) or high >= 2**63:
        # Hashes of 64 bits without a sign.
        if low < 0 or high >= 2**64:
            odd = low if low < -(2**63) else high
            raise ValueError(f"Task {task.name!r}: its idx is {odd}, which 64 bits do not hold; rename idx.")
        features["idx"] = Value("uint64")
    columns: dict[str, Any] = {name: [example[name] for example in examples] for name in features}
    # By way of Arrow, since the library of datasets takes all integers for signed ones.
    return Dataset(pa.table(columns, features.arrow_schema), DatasetInfo(description=EXAMPLES, features=features))


def read_split(task: Task, source: Source, split: Opened) -> tuple[list[Example], list[str]]:
    """Every example of a split, and its group."""
    reader = RowReader(task, source, split.where)
    examples, groups, skipped, position = [], [], 0, -1
    for position, row in enumerate(split.rows()):
        if source.skip_unlabelled and reader.unlabelled(row, position):
            skipped += 1
            continue
        examples.append(reader.example(row, position))
        groups.append(reader.group(row, position))
    if skipped and not examples:
        raise ValueError(
            f"{split.where}: none of its {skipped} rows has a label. Check the column {task.label!r}, or leave the "
            "split out: splits={'test': None}."
        )
    if skipped:
        logger.warning("%s: %d of %d rows have no label and are left out", split.where, skipped, position + 1)
    if not examples:
        raise ValueError(f"{split.where} is empty; give it rows, or name another split.")
    return examples, groups


def read_held(task: Task, source: Source, name: str, split: Opened) -> list[Example]:
    """Every example of a split that is not trained on; errors in a test split say how to leave it out."""
    try:
        return read_split(task, source, split)[0]
    except ValueError as error:
        if name in ("test", "val") and name not in source.splits:
            advice = f"To leave this split out, write in the source splits: {{{name}: null}}."
            raise ValueError(f"{error} {advice}") from None
        raise


def assemble(
    task: Task, source: Source, opened: Mapping[str, Opened], seed: int, drawn: Collection[str] = ("dev", "val")
) -> dict[str, Dataset]:
    """The datasets of a task by split: of those opened, and of those that are drawn from train.

    Args:
        opened: train, and any others.
        drawn: the splits that are drawn from train where they are not there.
    """
    held = {name: read_held(task, source, name, split) for name, split in opened.items() if name != "train"}
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
