"""One run beside another: the scores of both on the tasks that they share, and the differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorachord.messages import table
from lorachord.runs.compare.sample import same_labels
from lorachord.runs.constants import constant_scores
from lorachord.runs.scores import scores_of, shown
from lorachord.runs.use import choose_tasks, open_run, predictions


def beside(
    run: str | Path,
    other: str | Path,
    split: str = "dev",
    *,
    names: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """The scores of two runs, on the tasks of the first that the second has as well.

    Args:
        names: of the tasks to compare. Default: all that both have.
        split, data_dir, again: as for `predictions`, for both runs.

    Returns:
        `runs` (two names), `scores` (a report of each, as `evaluate` has it), `differences` (first minus second, by
        task, and of their `mean`), `majority` (see `constants.py`).

    Raises:
        ValueError: as `predictions`; no task in common, or other metrics or other examples of one.
    """
    folders = [open_run(run), open_run(other)]
    theirs = {task.name: task for task in folders[1].recipe.tasks.chosen()}
    tasks = [task for task in choose_tasks(folders[0], names) if names is not None or task.name in theirs]
    if not tasks:
        raise ValueError(f"{run} and {other} have no task in common; the second has {', '.join(theirs)}.")
    chosen = [task.name for task in tasks]
    choose_tasks(folders[1], chosen)
    for task in tasks:
        metric = theirs[task.name].metric
        if metric != task.metric:
            raise ValueError(f"Task {task.name!r} is scored by {task.metric} in {run}, and by {metric} in {other}.")
    records = [predictions(each.path, split, names=chosen, data_dir=data_dir, again=again) for each in folders]
    for task in tasks:
        same_labels(task, [own[task.name] for own in records])
    first, second = (scores_of(tasks, own) for own in records)
    differences = {name: first["tasks"][name]["score"] - second["tasks"][name]["score"] for name in chosen}
    return {
        "runs": _names(folders[0].path, folders[1].path),
        "scores": [first, second],
        "differences": {"mean": first["mean"] - second["mean"], "tasks": differences},
        "majority": constant_scores(tasks, records[0]),
    }


def _names(run: Path, other: Path) -> list[str]:
    """The folders' names, or whole paths where these are alike."""
    short = [run.absolute().name, other.absolute().name]
    return short if short[0] != short[1] else [str(run), str(other)]


def beside_table(found: dict[str, Any]) -> str:
    """The table of what `beside` returns."""
    first, second = found["scores"]
    rows = [["task", "metric", *found["runs"], "difference", "majority", "examples"]]
    for name, own in first["tasks"].items():
        scores = [shown(own["score"]), shown(second["tasks"][name]["score"])]
        difference = f"{found['differences']['tasks'][name]:+.3f}"
        rows.append([name, own["metric"], *scores, difference, shown(found["majority"][name]), str(own["examples"])])
    means = [shown(first["mean"]), shown(second["mean"]), f"{found['differences']['mean']:+.3f}"]
    return table([*rows, ["mean", "", *means, "", ""]])
