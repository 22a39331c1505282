"""Small tasks, and files that hold their rows."""

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorachord.data.task import Source, Task

Row = dict[str, Any]


def task(kind: str = "classification", **changes: Any) -> Task:
    """A task of a kind whose columns are those of `rows`."""
    fields: dict[str, Any] = dict(name="toy", kind=kind, source=Source(path="nowhere/toy"), text=("sentence1",))
    if kind == "pair":
        fields["text"] = ("sentence1", "sentence2")
    if kind in ("classification", "pair"):
        fields["labels"] = ("no", "yes")
    return Task(**{**fields, **changes})


def rows(num: int, kind: str = "classification") -> list[Row]:
    """Different rows, of two alternating classes."""
    made: list[Row] = []
    for index in range(num):
        row: Row = {"sentence1": f"text {index}", "sentence2": f"more {index}", "label": index % 2}
        if kind == "regression":
            row["label"] = index / 2
        if kind == "generation":
            row["label"] = f"answer {index}"
        if kind == "chat":
            roles = {"user": row["sentence1"], "assistant": f"answer {index}"}
            row["sentence1"] = [{"role": role, "content": content} for role, content in roles.items()]
        if kind == "multiple_choice":
            row["choices"] = [f"left {index}", f"right {index}"]
        made.append(row)
    return made


def write(path: Path, content: Iterable[Row]) -> Path:
    """Rows as the file that the path's suffix says."""
    content = list(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(content), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(content[0]))
            writer.writeheader()
            writer.writerows(content)
    return path


def folder(path: Path, suffix: str = ".jsonl", kind: str = "classification", **splits: Any) -> Path:
    """A folder with a file a split; by default 40 rows of train and 10 of dev."""
    held = {"train": rows(40, kind), "dev": rows(10, kind), **splits}
    for name, content in held.items():
        if content is not None:
            write(path / f"{name}{suffix}", content)
    return path


def real_data() -> Path:
    """Where the real tasks lie; skips the test where they do not."""
    beside = Path(__file__).parents[4] / "shared" / "data"
    path = Path(os.environ.get("LORACHORD_DATA", beside))
    if not (path / "glue_cola" / "train.parquet").is_file():
        pytest.skip(f"no real data in {path}; set LORACHORD_DATA")
    return path
