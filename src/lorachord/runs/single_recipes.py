"""The recipes of mode `single`: each task alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lorachord.runs.arguments import mixture_of
from lorachord.runs.recipe import Recipe
from lorachord.runs.starting import start_of


def single_recipes(recipe: Recipe, sizes: Sequence[int]) -> dict[str, Recipe]:
    """The recipe of each task alone, by its name.

    Args:
        sizes: training rows of each task.
    """
    rows = mixture_of(recipe, sizes).schedule.rows_per_epoch()
    made = {}
    for task, own in zip(recipe.tasks.chosen(), rows, strict=True):
        training = recipe.training
        if training.max_steps:
            training = replace(training, max_steps=max(1, round(training.max_steps * own / sum(rows))))
        weights = {name: weight for name, weight in recipe.tasks.weights.items() if name == task.name}
        tasks = replace(recipe.tasks, only=(task.name,), weights=weights)
        alone = replace(recipe, mode="joint", tasks=tasks, training=training, balance=None)
        made[task.name] = start_of(alone, task.name)
    return made
