"""A split as two columns of 64-bit hashes, in which millions of rows are compared in seconds.

Two texts are equal whatever their case and spacing. Second texts and options belong to a text.

Shapes: N rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b

import numpy as np
from datasets import Dataset  # type: ignore[import-untyped]
from numpy.typing import NDArray

from lorachord.data.task import Task

MOST_ROWS = 2_000_000
"""Rows of a split that are hashed at most, which keeps 32 MB."""
ODD = np.uint64(0x9E3779B97F4A7C15)
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class HashedSplit:
    """
    Attributes:
        rows: in the split.
        texts_N: hashes of the texts of the first rows.
        answers_N: of their texts and labels together.
        classes: rows of each class by its name, of all rows; empty for other kinds of tasks.
    """

    rows: int
    texts_N: Hashes
    answers_N: Hashes
    classes: Mapping[str, int]

    @cached_property
    def texts(self) -> Hashes:
        """The different texts, sorted."""
        return np.unique(self.texts_N)


def hashed(task: Task, rows: Dataset) -> HashedSplit:
    """The hashes of a split, read in batches of a thousand rows.

    Args:
        rows: with the columns of `RowReader.example`.
    """
    size = min(len(rows), MOST_ROWS)
    texts_N, labels_N = np.empty(size, np.uint64), np.empty(size, np.uint64)
    counts: Counter[int] = Counter()
    digest_label, start = lru_cache(_digest), 0
    # By columns, in a third of the time.
    for batch in rows.with_format("arrow").iter(batch_size=1000):
        columns = {name: column.to_pylist() for name, column in zip(batch.column_names, batch.columns, strict=True)}
        if task.labels:
            counts.update(columns["label"])
        stop = min(start + len(columns["label"]), size)
        if start < stop:
            texts = [columns[name][: stop - start] for name in ("first", "second", "choices") if name in columns]
            texts_N[start:stop] = _numbers(_digest(_text(*own)) for own in zip(*texts, strict=True))
            labels_N[start:stop] = _numbers(digest_label(str(label)) for label in columns["label"][: stop - start])
        elif not task.labels:
            break
        start = stop
    # One hash of both: overflow is meant.
    answers_N = texts_N * ODD + labels_N
    return HashedSplit(len(rows), texts_N, answers_N, {name: counts[label] for label, name in enumerate(task.labels)})


def _text(first: str, second: str, options: Sequence[str] = ()) -> str:
    return "\n".join(" ".join(part.split()) for part in (first, second, *options)).casefold()


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _numbers(digests: Iterable[bytes]) -> Hashes:
    return np.frombuffer(b"".join(digests), np.uint64)
