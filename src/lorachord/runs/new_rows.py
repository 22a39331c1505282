"""Rows to predict and their answers, as files and streams: CSV, JSON lines, parquet, plain lines."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from lorachord.data.files import SUFFIXES, Row, missing, read_rows
from lorachord.runs.predictor import ANSWER_COLUMNS, load
from lorachord.runs.progress import Progress
from lorachord.whole import finite, new_file

STDIN = "-"


def answer_file(
    model: str | Path, given: str, out: str | None, *, task: str | None = None, task_column: str | None = None
) -> int:
    """Answer the rows of a file or of stdin, into a file or to stdout. Faults are said before a model is read.

    Args:
        model: as `predictor.load` takes it.
        given: as `read_new_rows`.
        out: the file to make; None for stdout, as CSV where the rows were CSV, and as JSON lines otherwise.
        task, task_column: as `Predictor.predict`.

    Returns:
        The number of rows.

    Raises:
        ValueError: as `load`, `read_new_rows`, `check_out` and `Predictor.predict`.
    """
    predictor, where = load(model), "stdin" if given == STDIN else given
    found = read_new_rows(given, sys.stdin.buffer)
    check_out(out, found)
    _, rows = predictor.check(found, task, task_column, where)
    with Progress(len(rows), stream=sys.stderr) as progress:
        answers = predictor.predict(rows, task, task_column=task_column, where=where, progress=progress)
    together = [{**row, **own} for row, own in zip(rows, answers, strict=True)]
    write_rows(out, together, sys.stdout, as_csv=given.endswith(".csv"))
    return len(rows)


def read_new_rows(path: str, stream: Any) -> list[Row] | list[str]:
    """The rows of a file, or of a stream of lines.

    Args:
        path: a file, whose suffix says its format; or `-` for the stream.
        stream: of bytes. JSON objects, one a line or in one list, are rows; other lines are a text each.

    Raises:
        ValueError: no such file, another suffix, no rows, or something that does not parse, with its line.
    """
    if path == STDIN:
        try:
            return _of_text(stream.read().decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ValueError(f"stdin is not UTF-8: {error}.") from None
    file = Path(path)
    if not file.is_file():
        raise missing(file) if not file.exists() else ValueError(f"{file} is a folder; name one of its files.")
    found = list(read_rows(file))
    if not found:
        raise ValueError(f"{file} is empty: it holds no rows.")
    return found


def _of_text(text: str) -> list[Row] | list[str]:
    if not text.strip():
        raise ValueError("stdin is empty: give a text or a JSON object a line.")
    lines = text.splitlines()
    whole = _json(text) if text.lstrip()[0] == "[" else None
    if isinstance(whole, list):
        return [_row(value, f"stdin, entry {number}") for number, value in enumerate(whole)]
    if not isinstance(_json(next(line for line in lines if line.strip())), dict):
        return lines
    return [_row(_json(line), f"stdin, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: this is no JSON object with named columns, as the first is. Write one a line.")
    return value


def check_out(out: str | None, rows: Sequence[Row] | Sequence[str]) -> None:
    """Whether answers can be written beside rows, before any is made.

    Raises:
        ValueError: another suffix than the formats have, a file that exists, a folder that does not, or a column of the
            rows that an answer has as well.
    """
    if out is not None:
        path = Path(out)
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{out} is not one of {', '.join(SUFFIXES)}: the suffix says the format.")
        if path.exists():
            raise ValueError(f"{out} exists: name another file, or remove it first.")
        if not path.absolute().parent.is_dir():
            raise ValueError(f"There is no folder {path.absolute().parent} for {path.name}; make it first.")
    taken = [name for name in ANSWER_COLUMNS if any(not isinstance(row, str) and name in row for row in rows)]
    if taken:
        raise ValueError(
            f"The rows have the columns {', '.join(taken)}, which answers have as well: rename them first."
        )


def write_rows(out: str | None, rows: Sequence[Mapping[str, Any]], stream: Any, *, as_csv: bool) -> None:
    """Write rows in their order, each with all its columns.

    Args:
        out: the file, whole or not at all; None for the stream.
        stream: of text.
        as_csv: whether the stream gets CSV, and not JSON lines.
    """
    if out is None:
        stream.write(_csv(rows) if as_csv else _jsonl(rows))
        return
    path = Path(out)
    with new_file(path) as scratch:
        if path.suffix == ".parquet":
            columns = _columns(rows)
            pq.write_table(pa.table({name: [_flat(row.get(name)) for row in rows] for name in columns}), scratch)
        else:
            text = _csv(rows) if path.suffix == ".csv" else _jsonl(rows)
            scratch.write_text(text, encoding="utf-8", newline="")


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = (json.dumps(finite(dict(row)), ensure_ascii=False, allow_nan=False, default=str) for row in rows)
    return "".join(f"{line}\n" for line in lines)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    columns = _columns(rows)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if row.get(name) is None else _cell(row[name]) for name in columns])
    return text.getvalue()


def _cell(value: Any) -> Any:
    return json.dumps(finite(value), ensure_ascii=False, default=str) if isinstance(value, (dict, list)) else value


def _flat(value: Any) -> Any:
    """A value for parquet, whose columns have one type: mappings, which differ by task, are texts."""
    return _cell(value) if isinstance(value, dict) else value
