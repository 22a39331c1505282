"""Training curves of tasks, from the logs of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorachord.runs.drawing import Drawing, line
from lorachord.runs.folder import RunFolder
from lorachord.runs.sequence import order_of, stage_folder

Curve = tuple[list[int], list[float]]
"""Steps, and the values at these."""
LOG = "log.jsonl"
FEW = 4
"""Curves at most whose ends are all told."""
DOTTED = 30
"""Points at most of a line that shows each of them."""


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a run's log; none where there is no log.

    Raises:
        ValueError: it is damaged.
    """
    if not path.is_file():
        return []
    try:
        found = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or cut off ({error}): there are no training curves.") from None
    return [entry for entry in found if isinstance(entry, dict) and isinstance(entry.get("step"), int)]


def curves_of(run: RunFolder, prefix: str) -> dict[str, Curve]:
    """What a run has logged of each task: its `loss_`, or with `eval_` its scores on val.

    A run of mode `single` or `sequence` has a log for each task. Tasks of which nothing was logged are left out.
    """
    tasks = [task.name for task in run.recipe.tasks.chosen()]
    if run.recipe.mode == "single":
        logs = {task: read_log(run.path / task / LOG) for task in tasks}
    elif run.recipe.mode == "sequence":
        order = order_of(run.recipe)
        logs = {task: read_log(stage_folder(run.path, order.index(task) + 1) / LOG) for task in tasks}
    else:
        logs = dict.fromkeys(tasks, read_log(run.path / LOG))
    found = {task: _curve(logs[task], f"{prefix}{task}") for task in tasks}
    return {task: curve for task, curve in found.items() if curve[0]}


def draw_losses(run: RunFolder) -> Drawing:
    """The loss of each task by step.

    Raises:
        ValueError: nothing was logged.
    """
    curves = curves_of(run, "loss_")
    if not curves:
        raise ValueError("The run logged no losses of tasks, so there are no training curves.")
    return draw_curves("losses", "Training loss of each task", "loss", curves, "Lower is better.")


def draw_scores_on_val(run: RunFolder) -> Drawing | None:
    """The score of each task on val by step; None where the run was not scored on the way."""
    curves = curves_of(run, "eval_")
    if not curves:
        return None
    return draw_curves("val_scores", "Score of each task on val while training", "score", curves, "Higher is better.")


def draw_curves(name: str, title: str, what: str, curves: Mapping[str, Curve], meaning: str) -> Drawing:
    """Lines over the steps of training.

    Args:
        name, title, meaning: of the drawing.
        what: the values are.
        curves: by what they are of.
    """
    rows = [["", "points", f"first {what}", f"last {what}", f"lowest {what}", f"highest {what}"]]
    data = []
    for at, (of, (steps, values)) in enumerate(curves.items()):
        numbers = [f"{value:.3f}" for value in (values[0], values[-1], min(values), max(values))]
        rows.append([of, str(len(steps)), *numbers])
        # A point for each step is a thick line.
        drawn = line(of, steps, values, at)
        data.append(drawn if len(steps) <= DOTTED else {**drawn, "mode": "lines"})
    layout = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": what}}, "showlegend": True}
    return Drawing(name, title, _ends(curves, what), meaning, rows, data, layout)


def _ends(curves: Mapping[str, Curve], what: str) -> str:
    """Where the curves end: all of them, or of many the lowest and the highest."""
    last = {of: values[-1] for of, (_, values) in curves.items()}
    if len(curves) <= FEW:
        ends = ", ".join(f"of {of} from {values[0]:.3f} to {values[-1]:.3f}" for of, (_, values) in curves.items())
        return f"From the first to the last logged step the {what} goes: {ends}."
    low, high = min(last, key=lambda of: last[of]), max(last, key=lambda of: last[of])
    return f"At the end {low} has the lowest {what}, {last[low]:.3f}, and {high} the highest, {last[high]:.3f}."


def _curve(log: Sequence[Mapping[str, Any]], key: str) -> Curve:
    known = [(entry["step"], float(entry[key])) for entry in log if isinstance(entry.get(key), (int, float))]
    return [step for step, _ in known], [value for _, value in known]
