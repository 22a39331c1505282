"""The faults of data that no single row shows: leaks, duplicates, contradictions, cut texts, texts that tasks share.

Rows are compared by hashes; see `hashed.py`.

Shapes: N rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from datasets import Dataset  # type: ignore[import-untyped]

from lorachord.data.assemble import TaskData
from lorachord.data.hashed import HashedSplit, Hashes, hashed
from lorachord.data.metrics import WRITTEN
from lorachord.data.row_reader import Example
from lorachord.data.split import cut

MEASURED = 1000
"""Rows of a split whose tokens are counted at most."""
SEEN: dict[str, tuple[str, ...]] = {"train": (), "val": ("train",), "dev": ("train", "val"), "test": ("train", "val")}
"""The splits whose rows a model has learned from, or was chosen by, when it is scored on a split."""
HELD_OUT = ("val", "dev", "test")
CountTokens = Callable[[int, Sequence[Example]], Sequence[int]]
"""From the index of a task and some of its examples to the tokens of each, if nothing were cut."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of the rows of a split, if nothing were cut.

    Attributes:
        measured: rows that were looked at: all, or a random choice.
        limit: tokens of a row at most.
        median, longest: tokens.
        cut: rows that are longer than the limit.
        lost: the share of all tokens that lies beyond it.
    """

    measured: int
    limit: int
    median: int
    longest: int
    cut: int
    lost: float


@dataclass(frozen=True, kw_only=True)
class SplitAudit:
    """One split of one task.

    Attributes:
        rows: in the split.
        compared: of these, the first that were looked at for equal texts.
        duplicates: rows whose text an earlier row of the split has.
        contradictions: rows whose text has several classes in the split; 0 for numbers and written answers, which may
            differ.
        leaked: rows of val whose text is in train as well; of dev and test, in train or val.
        leaked_otherwise: of these, rows whose label their text does not have there.
        classes: rows of each class by its name; empty for other kinds of tasks.
        lengths: of its rows; None where nobody counts tokens.
    """

    rows: int
    compared: int
    duplicates: int
    contradictions: int
    leaked: int
    leaked_otherwise: int
    classes: Mapping[str, int]
    lengths: Lengths | None


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Texts that two tasks share.

    Attributes:
        tasks: their names.
        train: different texts that are in train of both.
        held_out: different texts that are in dev or test of one and in train of the other.
    """

    tasks: tuple[str, str]
    train: int
    held_out: int


@dataclass(frozen=True, kw_only=True)
class DataAudit:
    """
    Attributes:
        tasks: by name, the audit of each split that is there.
        shared: the pairs of tasks that share texts.
    """

    tasks: Mapping[str, Mapping[str, SplitAudit]]
    shared: tuple[Shared, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def alone(self, task: str) -> DataAudit:
        """The audit of one of the tasks."""
        return DataAudit(tasks={task: self.tasks[task]})


def audit(
    data: Sequence[TaskData], *, count_tokens: CountTokens | None = None, max_length: int = 0, seed: int = 0
) -> DataAudit:
    """Compare the rows of all splits and tasks, and measure their lengths.

    Two million rows of a split are compared, and a thousand measured, at most; the result says how many.

    Args:
        data: one per task, with map-style splits.
        count_tokens: how long rows are. Default: not measured.
        max_length: tokens of a row at most, where they are measured.
        seed: of the choice of rows to measure. Default 0.
    """
    found: dict[str, dict[str, SplitAudit]] = {}
    hashes: dict[str, dict[str, HashedSplit]] = {}
    for index, part in enumerate(data):
        splits = {name: getattr(part, name) for name in ("train", *HELD_OUT)}
        splits = {name: rows for name, rows in splits.items() if rows is not None}
        own = hashes[part.task.name] = {name: hashed(part.task, rows) for name, rows in splits.items()}
        found[part.task.name] = {
            name: SplitAudit(
                rows=split.rows,
                compared=len(split.texts_N),
                duplicates=len(split.texts_N) - len(split.texts),
                contradictions=0 if part.task.kind in ("regression", *WRITTEN) else _contradictions(split),
                **_leaks(split, [own[each] for each in SEEN[name]]),
                classes=split.classes,
                lengths=None
                if count_tokens is None
                else _lengths(splits[name], lambda some: count_tokens(index, some), max_length, seed),  # noqa: B023
            )
            for name, split in own.items()
        }
    return DataAudit(tasks=found, shared=tuple(_shared(hashes)))


def _examples(rows: Dataset) -> Iterator[Example]:
    for batch in rows.with_format("arrow").iter(batch_size=1000):
        yield from batch.to_pylist()


def _contradictions(split: HashedSplit) -> int:
    # Of each text, as many entries as it has different labels.
    _, first = np.unique(split.answers_N, return_index=True)
    texts, labels = np.unique(split.texts_N[first], return_counts=True)
    return int(np.isin(split.texts_N, texts[labels > 1]).sum())


def _leaks(split: HashedSplit, seen: Sequence[HashedSplit]) -> dict[str, int]:
    there_N, same_N = np.zeros((2, len(split.texts_N)), bool)
    for other in seen:
        there_N |= np.isin(split.texts_N, other.texts)
        same_N |= np.isin(split.answers_N, other.answers_N)
    return {"leaked": int(there_N.sum()), "leaked_otherwise": int((there_N & ~same_N).sum())}


def _lengths(
    rows: Dataset, count_tokens: Callable[[Sequence[Example]], Sequence[int]], limit: int, seed: int
) -> Lengths:
    chosen = rows.select(cut(len(rows), MEASURED, seed))
    tokens_N = np.array(count_tokens(list(_examples(chosen))))
    beyond_N = np.maximum(tokens_N - limit, 0)
    return Lengths(
        measured=len(tokens_N),
        limit=limit,
        median=int(np.median(tokens_N)),
        longest=int(tokens_N.max()),
        cut=int((beyond_N > 0).sum()),
        lost=float(beyond_N.sum() / max(1, tokens_N.sum())),
    )


def _shared(hashes: Mapping[str, Mapping[str, HashedSplit]]) -> Iterator[Shared]:
    """The pairs of tasks with texts in common; only texts that occur in several tasks are compared pair by pair."""
    trains = {task: splits["train"].texts for task, splits in hashes.items()}
    helds = {
        task: np.unique(np.concatenate([splits[name].texts for name in ("dev", "test") if name in splits]))
        for task, splits in hashes.items()
    }
    texts, counts = np.unique(np.concatenate([*trains.values(), *helds.values()]), return_counts=True)
    common = texts[counts > 1]
    trains, helds = ({task: _both(own, common) for task, own in each.items()} for each in (trains, helds))
    for first, second in combinations(hashes, 2):
        train = len(_both(trains[first], trains[second]))
        crossed = [_both(helds[first], trains[second]), _both(helds[second], trains[first])]
        held_out = len(np.unique(np.concatenate(crossed)))
        if train or held_out:
            yield Shared(tasks=(first, second), train=train, held_out=held_out)


def _both(one: Hashes, other: Hashes) -> Hashes:
    return np.intersect1d(one, other, assume_unique=True)
