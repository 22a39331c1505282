"""Lists for the command line, as plain data: methods, suites, tasks of a suite or recipe, runs below a folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorachord.baselines import BASELINES, FORMULAS
from lorachord.core.context import Mixing
from lorachord.core.registry import all_methods
from lorachord.data.suites import SUITES, get_suite
from lorachord.data.task import Task
from lorachord.messages import suggest, table
from lorachord.method_pages import MERGES
from lorachord.runs.folder import RunFolder
from lorachord.runs.recipe import read_recipe
from lorachord.whole import finite

logger = logging.getLogger("lorachord")


def method_rows() -> list[dict[str, Any]]:
    """One row a method: what `lorachord methods --json` prints."""
    rows: list[dict[str, Any]] = [
        {
            "name": cls.method,
            "paper": cls.paper,
            "core": cls.mixing.value,
            "merges": MERGES[cls.mixing],
            "needs_task_ids": cls.mixing is Mixing.TASK,
            "parameters": cls.parameters_formula,
            "options": cls.Config().to_dict(),
        }
        for cls in all_methods().values()
    ]
    rows += [
        {
            "name": name,
            "paper": paper,
            "core": "static",
            "merges": "yes",
            "needs_task_ids": False,
            "parameters": FORMULAS[name],
            "options": {"r": 8, "alpha": 16.0, "dropout": 0.0, "rslora": False},
        }
        for name, paper in BASELINES.items()
    ]
    return rows


def suite_rows() -> list[dict[str, Any]]:
    """The suites with the names of their tasks."""
    return [{"suite": name, "tasks": [task.name for task in tasks]} for name, tasks in SUITES.items()]


def task_rows(of: str, data_dir: str | None = None) -> list[dict[str, Any]]:
    """The tasks of a suite, or of a recipe.

    Args:
        of: a suite's name, or a recipe's path.
        data_dir: where a recipe's classes are read, if it does not name them.

    Raises:
        ValueError: neither a suite nor a file, or a recipe that is wrong.
    """
    if of in SUITES:
        return [_described(task) for task in get_suite(of)]
    if not Path(of).is_file():
        raise ValueError(f"{of} is no suite and no recipe's file. Suites: {suggest(of, SUITES)}")
    return [_described(task) for task in read_recipe(of, (), data_dir).tasks.chosen()]


def _described(task: Task) -> dict[str, Any]:
    return {
        "task": task.name,
        "kind": task.kind,
        "metric": task.metric,
        "text": list(task.text_columns),
        "label": task.label,
        "labels": list(task.labels),
        "source": None if task.source is None else task.source.path,
    }


def run_rows(folder: str | Path) -> list[dict[str, Any]]:
    """The runs below a folder, finished or not, by their paths; those of single tasks stay inside their own run.

    A run that cannot be read is logged and left out.

    Raises:
        ValueError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}: name the one that holds your runs.")
    found: list[dict[str, Any]] = []
    seen: list[Path] = []
    for file in sorted(folder.rglob("recipe.yaml"), key=lambda path: (len(path.parts), path)):
        if any(parent in seen for parent in file.parents):
            continue
        seen.append(file.parent)
        try:
            found.append(_run(RunFolder.open(file.parent)))
        except ValueError as error:
            logger.warning("%s is left out: %s", file.parent, str(error).splitlines()[0])
    return sorted(found, key=lambda row: row["run"])


def _run(run: RunFolder) -> dict[str, Any]:
    recipe = run.recipe
    scores = run.metrics.get("dev", {}) if run.finished else {}
    return {
        "run": str(run.path),
        "method": recipe.method["name"],
        "mode": recipe.mode,
        "model": recipe.model.name,
        "tasks": [task.name for task in recipe.tasks.chosen()],
        "seed": recipe.seed,
        "finished": run.finished,
        "mean": finite(scores.get("mean")),
        "worst": finite(scores.get("worst")),
    }


def as_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Some columns of rows for a terminal."""
    return table([list(columns), *([_cell(row[name]) for name in columns] for row in rows)])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}"
    return (", ".join(map(str, value)) or "-") if isinstance(value, list) else str(value)
