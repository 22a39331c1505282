"""Mode `sequence`: tasks learned one after the other, and the scores of all of them after each.

A stage is a run of its own, in `stages/1`, `stages/2`, ...; the last one is the model of the whole run. A method with
parameters of one task freezes all that is shared after the first stage and gives each later task a new core, so that
nothing is lost. All other methods go on with the same adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from lorachord.runs.folder import RunFolder
from lorachord.runs.recipe import Recipe
from lorachord.runs.single_recipes import share_of_steps
from lorachord.runs.starting import by_task

STAGES = "stages"
Scores = Mapping[str, float | None]
"""Of tasks by their name; None for a task that has no core yet."""


def order_of(recipe: Recipe) -> list[str]:
    """The names of the tasks in the order in which they are learned."""
    names = [task.name for task in recipe.tasks.chosen()]
    seed = recipe.seed if recipe.training.order_seed is None else recipe.training.order_seed
    return [names[index] for index in np.random.default_rng([seed, 2]).permutation(len(names))]


def stage_recipes(recipe: Recipe, sizes: Sequence[int], folder: str | Path) -> dict[str, Recipe]:
    """The recipe of each stage by the name of the task that it learns, in order.

    Args:
        sizes: training rows of each task, in the recipe's order.
        folder: of the whole run, absolute.
    """
    order, steps = order_of(recipe), share_of_steps(recipe, sizes)
    grows = by_task(recipe.method["name"])
    made: dict[str, Recipe] = {}
    for number, task in enumerate(order):
        known = tuple(order[: number + 1]) if grows else recipe.tasks.only
        weights = {name: weight for name, weight in recipe.tasks.weights.items() if not grows or name in (known or ())}
        made[task] = replace(
            recipe,
            mode="joint",
            tasks=replace(recipe.tasks, only=known, learn=(task,), weights=weights),
            training=replace(recipe.training, max_steps=steps[task]),
            start_from=None if number == 0 else str(stage_folder(folder, number)),
        )
    return made


def stage_folder(folder: str | Path, number: int) -> Path:
    """The run of a stage, numbered from 1."""
    return Path(folder, STAGES, str(number))


def last_stage(run: RunFolder) -> RunFolder:
    """The run that holds the model of a run: of mode `sequence` its last stage, else itself."""
    if run.recipe.mode != "sequence":
        return run
    return RunFolder.open(stage_folder(run.path, len(run.recipe.tasks.chosen())))


def lost(order: Sequence[str], stages: Sequence[Scores]) -> dict[str, float]:
    """What each earlier task has lost in the end: its score after its own stage, less its score after the last.

    Args:
        order: of the tasks.
        stages: the scores after each.
    """
    found = {}
    for number, task in enumerate(order[:-1]):
        first, last = stages[number][task], stages[-1][task]
        assert first is not None
        assert last is not None
        found[task] = first - last
    return found


def sequence_metrics(order: Sequence[str], splits: Mapping[str, Sequence[Scores]]) -> dict[str, Any]:
    """What `metrics.json` says of a sequence.

    Args:
        splits: the scores after each stage, by split.

    Returns:
        `order`, `stages` (the scores by split) and `loss_of_earlier_tasks` on dev (each task, and their mean; 0 where
        there is one task).
    """
    tasks = lost(order, splits["dev"])
    return {
        "order": list(order),
        "stages": {split: [dict(scores) for scores in stages] for split, stages in splits.items()},
        "loss_of_earlier_tasks": {"tasks": tasks, "mean": fmean(tasks.values()) if tasks else 0.0},
    }


def sequence_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """The scores on dev after each stage, a row each, and the loss of earlier tasks; the first row is the header."""
    order, lost_of = metrics["order"], metrics["loss_of_earlier_tasks"]
    rows = [["after", *order, "mean"]]
    for task, scores in zip(order, metrics["stages"]["dev"], strict=True):
        known = [score for score in scores.values() if score is not None]
        cells = ["-" if scores[name] is None else f"{scores[name]:.3f}" for name in order]
        rows.append([task, *cells, f"{fmean(known):.3f}"])
    losses = [f"{lost_of['tasks'][name]:.3f}" if name in lost_of["tasks"] else "-" for name in order]
    return [*rows, ["lost", *losses, f"{lost_of['mean']:.3f}"]]
