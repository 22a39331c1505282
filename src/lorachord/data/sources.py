"""From a task to its datasets: hub names, local folders and files, rows in memory.

Three splits with three jobs: `train`; `val`, to choose by (early stopping, learning rates); `dev` and `test`, to report
alone. Where the source has no val, it is a tenth of train, in whole groups, so that no group is on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from datasets import Dataset, IterableDataset, load_dataset  # type: ignore[import-untyped]

from lorachord.data.assemble import TaskData, assemble, read_split, to_dataset
from lorachord.data.class_features import own_names, with_named_labels
from lorachord.data.files import SUFFIXES, Row
from lorachord.data.labels import infer_labels
from lorachord.data.locate import REQUIRED, Opened, choose_splits, describe, open_local
from lorachord.data.memory import RowsInMemory, in_memory, opened_rows
from lorachord.data.streams import stream_task
from lorachord.data.task import SPLITS, Source, Task
from lorachord.hub import hub_name, local_path, say_asked
from lorachord.messages import suggest


def load_task(task: Task, *, data_dir: str | Path | None = None, seed: int = 0, streaming: bool = False) -> TaskData:
    """Read, check and split a task's rows.

    A local folder needs a file for train and one for dev. Of a single file, a tenth is drawn for dev first, as val is.
    `task.max_rows` is a random choice among train's rows, made before val is drawn: train and val together hold them.

    Args:
        data_dir: a folder with a folder per task, named as the task, in place of the task's own source.
        seed: of every random choice here. Default 0.
        streaming: train as an `IterableDataset`, shuffled through a buffer of 1,000 rows (`set_epoch` gives
            another order). Then a row is checked when it is read, `max_rows` are the first ones, a group is in val if
            its hash is in the lowest tenth, and val is a stream too unless the source has one. Default false.

    Raises:
        ValueError: neither source nor folder; a file, split or column that is missing; an empty split; a label or
            option list that does not fit; one class only in train; text that is not UTF-8.
    """
    source = _source(task, data_dir)
    if task.needs_labels:
        raise ValueError(f"Task {task.name!r}: write the names of its classes, labels=('...', '...').")
    opened = open_local(task, source)
    if opened is None:
        opened = _open_hub(task, source, streaming)
    if streaming:
        return stream_task(task, source, opened, seed)
    return TaskData(task=task, **assemble(task, source, opened, seed))


def load_split(task: Task, split: str, *, data_dir: str | Path | None = None, seed: int = 0) -> Dataset:
    """One split of a task, as `load_task` has it; of a local folder, its other files are then not needed.

    Args:
        split: train, val, dev or test.
        data_dir, seed: as in `load_task`.

    Raises:
        ValueError: as `load_task`, or there is no such split.
    """
    source = _source(task, data_dir)
    # Rows for train may have to be left to val and dev.
    opened = open_local(task, source, split) if split != "train" else None
    if opened and split in opened:
        return to_dataset(task, read_split(task, source, opened[split])[0])
    found = None
    # A test split is never drawn.
    if opened is None or split != "test":
        found = getattr(load_task(task, data_dir=data_dir, seed=seed), split)
    if found is None:
        raise ValueError(f"Task {task.name!r} has no {split} split; take dev or val.")
    return found


def open_source(task: Task, *, data_dir: str | Path | None = None) -> tuple[Source, dict[str, Opened]]:
    """A task's source, or its folder in a data directory, and its splits, whose rows are not read yet.

    Raises:
        ValueError: neither source nor folder; a file or a split that is missing.
    """
    source = _source(task, data_dir)
    return source, open_local(task, source) or _open_hub(task, source, streaming=False)


def _source(task: Task, data_dir: str | Path | None) -> Source:
    if data_dir is not None:
        return Source(path=str(Path(data_dir).expanduser().absolute() / task.name))
    if task.source is None:
        raise ValueError(
            f"Task {task.name!r} has no source: give it one (source=Source(path=...)), or a folder with a folder of "
            "files per task (data_dir=..., --data on the command line), or its rows in memory (from_rows, or "
            "train_data of MultiTaskTrainer)."
        )
    return task.source


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
    opened = {name: opened_rows(rows, describe(name, task, "in memory"), task) for name, rows in splits.items()}
    task = infer_labels(task, opened, in_memory(task))
    return TaskData(task=task, **assemble(task, in_memory(task), opened, seed))


def _open_hub(task: Task, source: Source, streaming: bool) -> dict[str, Opened]:
    # A clone of a hub repository lies in a folder.
    clone = local_path(source.path, suffixes=SUFFIXES)
    path = hub_name(source.path) if clone is None else str(clone)
    origin = path if source.name is None else f"{path}, {source.name}"
    if clone is None:
        say_asked(origin)
    try:
        found = load_dataset(path, source.name, streaming=streaming)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Task {task.name!r}: {origin} is neither a local folder or file nor a dataset that the hub could give: "
            f"{error}. A path with a dot before it is never taken for a name on the hub: ./{path}"
        ) from error
    chosen = choose_splits(source, found, origin, REQUIRED)
    return {
        ours: _open_dataset(found[name], describe(ours, task, origin), task, source) for ours, name in chosen.items()
    }


def _open_dataset(dataset: Dataset | IterableDataset, where: str, task: Task, source: Source) -> Opened:
    names = own_names(dataset.features, task, source)
    return Opened(where, lambda: with_named_labels(_plain_rows(dataset), names, task, source), names)


def _plain_rows(dataset: Dataset | IterableDataset) -> Iterator[Row]:
    if isinstance(dataset, IterableDataset):
        yield from dataset
        return
    for batch in dataset.with_format("arrow").iter(batch_size=1000):
        yield from batch.to_pylist()
