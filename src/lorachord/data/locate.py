"""Which rows of a source are which of our splits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lorachord.data.class_features import file_features, own_names, with_named_labels
from lorachord.data.files import SUFFIXES, Row, data_files, missing, read_rows
from lorachord.data.task import Source, Task
from lorachord.hub import local_path
from lorachord.messages import suggest

REQUIRED: dict[str, tuple[str, ...]] = {"train": ("train",), "dev": ("dev", "validation")}
LOCAL: dict[str, tuple[str, ...]] = {**REQUIRED, "val": ("val",), "test": ("test",)}


@dataclass(frozen=True, slots=True)
class Opened:
    """One split of a source.

    Attributes:
        where: what it is, for errors.
        rows: its rows, from the start at each call.
        class_names: what the source calls the task's classes, in its order. Default: it has no names of its own.
    """

    where: str
    rows: Callable[[], Iterable[Row]]
    class_names: tuple[str, ...] = ()


def describe(split: str, task: Task, origin: object) -> str:
    """What the rows are, for errors."""
    return f"{split} of task {task.name!r} ({origin})"


def choose_splits(
    source: Source,
    available: Collection[str],
    origin: object,
    usual: Mapping[str, tuple[str, ...]],
    only: str | None = None,
) -> dict[str, str]:
    """Our split -> its name in the source.

    Args:
        available: the names in the source.
        origin: the source's name, for errors.
        usual: our split -> the names to try where the source does not say.
        only: one split, if it is there. Default: all, of which train and dev have to be there.

    Raises:
        ValueError: a split that the source names, or train or dev, is not there.
    """
    chosen = {}
    for split in LOCAL if only is None else (only,):
        if split in source.splits and source.splits[split] is None and split not in REQUIRED and only is None:
            continue
        named = source.splits.get(split)
        candidates = (named,) if named is not None else usual.get(split, ())
        found = [name for name in candidates if name in available]
        if found:
            chosen[split] = found[0]
        elif named is not None or (only is None and split in REQUIRED):
            wanted = " or ".join(repr(name) for name in candidates)
            raise ValueError(
                f"{origin} has no {wanted} for our split {split!r}. {suggest(candidates[0], available)} "
                f"Name it in the source's splits: {{{split!r}: ...}}."
            )
    return chosen


def open_local(task: Task, source: Source, only: str | None = None) -> dict[str, Opened] | None:
    """The splits of a local folder, or the one file as train; None if the source is the hub's, or a clone of it.

    Args:
        only: as in `choose_splits`.

    Raises:
        ValueError: a local path that does not exist, or a folder that lacks train or dev.
    """
    path = local_path(source.path, suffixes=SUFFIXES)
    if path is None:
        return None
    if path.is_file():
        return {"train": _open_file(path, "train", task, source)}
    if path.is_dir():
        if source.name is not None:
            return None
        files = data_files(path)
        chosen = choose_splits(source, files, f"{path} ({' | '.join(SUFFIXES)})", LOCAL, only)
        return {split: _open_file(files[name], split, task, source) for split, name in chosen.items()}
    raise missing(path)


def _open_file(file: Path, split: str, task: Task, source: Source) -> Opened:
    names = own_names(file_features(file), task, source)
    return Opened(describe(split, task, file), lambda: with_named_labels(read_rows(file), names, task, source), names)
