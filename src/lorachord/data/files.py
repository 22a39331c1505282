"""Local files of rows: which one holds which split, and reading one row after another."""

from __future__ import annotations

import codecs
import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]
from pyarrow import ArrowException

from lorachord.messages import suggest

SUFFIXES = (".parquet", ".jsonl", ".csv")
LONGEST_VALUE = 2**31 - 1
"""Letters of a value in a CSV file at most."""
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
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
            if offset == 0 and (line[:2] in UTF16_MARKS or b"\0" in line[:4]):
                raise ValueError(
                    f"{path} is UTF-16, as Excel's 'Unicode text' is. Save it as UTF-8, for example with "
                    "`iconv -f utf-16 -t utf-8`."
                )
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


def refuse_repeated(columns: Iterable[str], where: object) -> None:
    """
    Raises:
        ValueError: a column occurs more than once; which of them is meant cannot be known.
    """
    counts = Counter(name for name in columns if name)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        names = ", ".join(map(repr, repeated))
        raise ValueError(f"{where} has a column more than once, a repeated {names}: rename or remove one of each.")


def _csv_rows(path: Path) -> Iterator[Row]:
    # Python's own limit on a value, 131,072 letters, is none of the file's.
    csv.field_size_limit(LONGEST_VALUE)
    reader = csv.reader(_lines(path), strict=True)
    try:
        header = next(reader, [])
        refuse_repeated(header, path)
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


def other_separator(columns: Iterable[str]) -> str:
    """Advice, where the one column of a CSV file looks like several; else nothing."""
    names = list(columns)
    signs = {";": "semicolons", "\t": "tabs"} if len(names) == 1 else {}
    found = next((word for sign, word in signs.items() if sign in str(names[0])), None)
    return f"Its values seem to be separated by {found}: save the file with commas." if found else ""


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=partial(_object, f"{path}, line {number}"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error.msg}). Write one object a line.") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: a {type(row).__name__}, not an object with named columns.")
        yield row


def _object(where: str, pairs: list[tuple[str, Any]]) -> Row:
    refuse_repeated([name for name, _ in pairs], where)
    return dict(pairs)


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            refuse_repeated(file.schema_arrow.names, path)
            for batch in file.iter_batches(batch_size=1000):
                yield from batch.to_pylist()
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from None
