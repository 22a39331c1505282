"""From a task to its datasets: hub names, local folders and files, rows in memory.

Three splits with three jobs: `train`; `val`, to choose by (early stopping, learning rates); `dev` and `test`, to report
alone. Where the source has no val, it is a tenth of train, in whole groups, so that no group is on both sides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetInfo, Features, IterableDataset, Value, load_dataset  # type: ignore[import-untyped]
from datasets import List as ListOf

from lorachord.data.files import Row
from lorachord.data.labels import infer_labels
from lorachord.data.locate import REQUIRED, Opened, choose_splits, describe, open_local
from lorachord.data.memory import EXAMPLES, RowsInMemory, opened_rows, with_class_names
from lorachord.data.row_reader import Example, RowReader
from lorachord.data.split import FRACTION, cut, draw, place
from lorachord.data.task import SPLITS, Source, Task
from lorachord.messages import suggest

IN_MEMORY = Source(path="memory")
"""Columns are called as the task calls them."""
SHUFFLE_BUFFER = 1000
"""Rows among which a stream is shuffled."""


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


def load_task(task: Task, *, data_dir: str | Path | None = None, seed: int = 0, streaming: bool = False) -> TaskData:
    """Read, check and split a task's rows.

    A local folder needs a file for train and one for dev. Of a single file, a tenth is drawn for dev first, as val is.
    `task.max_rows` is a random choice among train's rows, made before val is drawn: train and val together hold them.

    Args:
        data_dir: a folder with a folder per task, named as the task, in place of the task's own source.
        seed: of every random choice here. Default 0.
        streaming: train as an `IterableDataset`, shuffled through a buffer of `SHUFFLE_BUFFER` rows (`set_epoch` gives
            another order). Then a row is checked when it is read, `max_rows` are the first ones, a group is in val if
            its hash is in the lowest tenth, and val is a stream too unless the source has one. Default false.

    Raises:
        ValueError: neither source nor folder; a file, split or column that is missing; an empty split; a label or
            option list that does not fit; one class only in train; text that is not UTF-8.
    """
    source = task.source if data_dir is None else Source(path=str(Path(data_dir).expanduser().absolute() / task.name))
    if source is None:
        raise ValueError(
            f"Task {task.name!r} has no source: give it one (source=Source(path=...)), or a folder with a folder of "
            "files per task (data_dir=..., --data on the command line), or its rows in memory (from_rows, or "
            "train_data of MultiTaskTrainer)."
        )
    if task.needs_labels:
        raise ValueError(f"Task {task.name!r}: write the names of its classes, labels=('...', '...').")
    opened = open_local(task, source)
    if opened is None:
        opened = _open_hub(task, source, streaming)
    if streaming:
        return _stream(task, source, opened, seed)
    return TaskData(task=task, **assemble(task, source, opened, seed))


def from_rows(task: Task, splits: Mapping[str, RowsInMemory], *, seed: int = 0) -> TaskData:
    """The same from rows in memory, whose columns are called as the task calls them.

    Args:
        task: without labels, its classes are the texts that are found as labels, in sorted order.
        splits: "train", and any of "val", "dev" and "test". Without dev, a tenth of train is drawn for it.
        seed: as in `load_task`.

    Raises:
        ValueError: as `load_task` and `labels.infer_labels`, or an unknown split.
    """
    for name in splits:
        if name not in SPLITS:
            raise ValueError(f"Task {task.name!r}: there is no split {name!r}. {suggest(name, SPLITS)}")
    if "train" not in splits:
        raise ValueError(f"Task {task.name!r} has no rows for train; it has {', '.join(splits) or 'none'}.")
    opened = {name: opened_rows(rows, describe(name, task, "in memory")) for name, rows in splits.items()}
    task = infer_labels(with_class_names(task, splits), opened, IN_MEMORY)
    return TaskData(task=task, **assemble(task, IN_MEMORY, opened, seed))


def _open_hub(task: Task, source: Source, streaming: bool) -> dict[str, Opened]:
    origin = source.path if source.name is None else f"{source.path}, {source.name}"
    try:
        found = load_dataset(source.path, source.name, streaming=streaming)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Task {task.name!r}: {origin} is neither a local folder or file nor a dataset that the hub could give: "
            f"{error}"
        ) from error
    chosen = choose_splits(source, found, origin, REQUIRED)
    return {
        ours: Opened(describe(ours, task, origin), partial(_hub_rows, found[name])) for ours, name in chosen.items()
    }


def _hub_rows(dataset: Dataset | IterableDataset) -> Iterator[Row]:
    if isinstance(dataset, IterableDataset):
        yield from dataset
        return
    for batch in dataset.with_format("arrow").iter(batch_size=1000):
        yield from batch.to_pylist()


def _features(task: Task) -> Features:
    label = {"regression": "float64", "generation": "string"}.get(task.kind, "int64")
    features: dict[str, Any] = {"first": Value("string"), "second": Value("string"), "label": Value(label)}
    if task.kind == "multiple_choice":
        features["choices"] = ListOf(Value("string"))
    return Features({**features, "idx": Value("int64")})


def to_dataset(task: Task, examples: list[Example]) -> Dataset:
    """A Dataset of a task's examples, which `memory.is_examples` recognises."""
    features = _features(task)
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


def _streamed(reader: RowReader, split: Opened, max_rows: int | None, seed: int, val: bool | None) -> Iterator[Example]:
    """The examples of train that are in val (true), not in val (false), or all of them (None)."""
    for position, row in enumerate(islice(split.rows(), max_rows)):
        if val is None or (place(reader.group(row, position), seed) < FRACTION) == val:
            yield reader.example(row, position)


def _stream(task: Task, source: Source, opened: Mapping[str, Opened], seed: int) -> TaskData:
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
        return IterableDataset.from_generator(_streamed, features=_features(task), gen_kwargs={**shared, "val": val})

    held = {name: read_split(task, source, split)[0] for name, split in opened.items() if name != "train"}
    sets = {name: to_dataset(task, rows) for name, rows in held.items()}
    in_train = None if "val" in sets else False
    sets.setdefault("val", stream(True))
    shuffled = stream(in_train).shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
    return TaskData(task=task, train=shuffled, **sets)
