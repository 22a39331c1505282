"""Local files of rows: which one holds which split, and reading one row after another."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]
from pyarrow import ArrowException

from lorachord.messages import suggest

SUFFIXES = (".parquet", ".jsonl", ".csv")
Row = dict[str, Any]


def missing(path: Path) -> ValueError:
    """The error for a path that does not exist: what there is beside it, or beside its nearest existing parent."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    wanted = path.absolute().relative_to(folder).parts[0]
    near = suggest(wanted, (entry.name for entry in folder.iterdir()))
    return ValueError(
        f"{path.absolute()} does not exist. {folder} has no {wanted!r}. {near} (A data set on the hub: hub:OWNER/NAME.)"
    )


def data_files(folder: Path) -> dict[str, Path]:
    """The data files of a folder, by their names without suffix.

    Raises:
        ValueError: two files for one name; which of them is meant cannot be known.
    """
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix not in SUFFIXES:
            continue
        if file.stem in found:
            raise ValueError(f"{folder} has both {found[file.stem].name} and {file.name}; remove one of them.")
        found[file.stem] = file
    return found


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of one file, read as they are asked for.

    Raises:
        ValueError: a suffix that is not in `SUFFIXES`, text that is not UTF-8, or a row that does not parse.
    """
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    if path.suffix == ".jsonl":
        return _jsonl_rows(path)
    if path.suffix == ".csv":
        return _csv_rows(path)
    raise ValueError(f"{path} is not one of {', '.join(SUFFIXES)}; convert it, or name another file.")


def _lines(path: Path) -> Iterator[str]:
    # Decoded line by line, so that a stream stops where the fault is, and so that the fault has a byte offset.
    offset = 0
    with path.open("rb") as file:
        for line in file:
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                at = offset + error.start
                raise ValueError(
                    f"{path} is not UTF-8: byte {at} is {line[error.start]:#04x}. Save it as UTF-8, for example with "
                    f"`iconv -f latin1 -t utf-8`."
                ) from None
            yield text.removeprefix("\ufeff") if offset == 0 else text
            offset += len(line)


def _csv_rows(path: Path) -> Iterator[Row]:
    reader = csv.reader(_lines(path), strict=True)
    try:
        header = next(reader, [])
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(values)} values for {len(header)} columns "
                    f"({', '.join(header)}). Quote values that hold a comma."
                )
            yield dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}. Mend it, or save it as parquet or jsonl.") from None


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error.msg}). Write one object a line.") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: a {type(row).__name__}, not an object with named columns.")
        yield row


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                yield from batch.to_pylist()
    except ArrowException as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from None
