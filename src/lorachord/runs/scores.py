"""Scores of a run's records, and the tables that show them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorachord.data.task import Task
from lorachord.messages import table
from lorachord.training.model_kind import Record
from lorachord.training.scoring import save_records, score_records, summarise

NORMALISED = "prediction_normalised"


def score_task(task: Task, records: Sequence[Record]) -> dict[str, Any]:
    """The metric of one task, its score, and the number of examples.

    A decoder's choice among options is scored twice: by the options' log-likelihoods (`score`), and by those divided by
    the options' tokens (`score_normalised`).
    """
    scored: dict[str, Any] = {"metric": task.metric, "score": score_records(task, records), "examples": len(records)}
    if NORMALISED in records[0]:
        scored["score_normalised"] = score_records(task, records, NORMALISED)
    return scored


def report(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What `metrics.json` holds for a split: each task's scores, their mean and the worst."""
    summary = summarise({name: scored["score"] for name, scored in tasks.items()})
    return {"mean": summary["mean"], "worst": summary["worst"], "tasks": dict(tasks)}


def save_scored(
    folder: Path, tasks: Sequence[Task], records: Mapping[str, Sequence[Record]], *, write: bool = True
) -> dict[str, Any]:
    """Save the records of a split in `folder`, unless another rank does, and return their scores."""
    if write:
        save_records(folder, records)
    return scores_of(tasks, records)


def scores_of(tasks: Sequence[Task], records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """The report of tasks from the records of each."""
    return report({task.name: score_task(task, records[task.name]) for task in tasks})


def read_records(folder: Path, tasks: Sequence[Task]) -> dict[str, list[Record]]:
    """Saved records by task.

    Raises:
        ValueError: a task's file is missing.
    """
    found = {}
    for task in tasks:
        path = folder / f"{task.name}.jsonl"
        if not path.is_file():
            raise ValueError(f"There are no saved predictions {path}; predict anew with --again.")
        found[task.name] = _records(path)
    return found


def _records(path: Path) -> list[Record]:
    try:
        found: list[Record] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or cut off ({error}); predict anew with --again.") from None
    if not found or not all(isinstance(row, dict) and row.keys() >= {"label", "prediction"} for row in found):
        raise ValueError(f"{path} is damaged or cut off: a record lacks its prediction; predict anew with --again.")
    return found


def score_rows(scores: Mapping[str, Any], constants: Mapping[str, float | None] | None = None) -> list[list[str]]:
    """The cells of the table of a split's scores, below a header.

    Args:
        constants: what one answer to everything would score, by task, to show beside; see `constants.py`. Default:
            without.
    """
    normalised = any("score_normalised" in scored for scored in scores["tasks"].values())
    beside = constants is not None
    rows = [["task", "metric", "score", *["normalised"] * normalised, *["majority"] * beside, "examples"]]
    for name, scored in scores["tasks"].items():
        row = [name, scored["metric"], f"{scored['score']:.3f}"]
        if normalised:
            row.append(f"{scored['score_normalised']:.3f}" if "score_normalised" in scored else "")
        if constants is not None:
            row.append(shown(constants[name]))
        rows.append([*row, str(scored["examples"])])
    blank = [""] * (1 + normalised + beside)
    rows += [["mean", "", f"{scores['mean']:.3f}", *blank], ["worst", "", f"{scores['worst']:.3f}", *blank]]
    return rows


def score_table(scores: Mapping[str, Any], constants: Mapping[str, float | None] | None = None) -> str:
    """The same as text."""
    return table(score_rows(scores, constants))


def shown(score: float | None) -> str:
    """A score in a table, where one may lack."""
    return "-" if score is None else f"{score:.3f}"
