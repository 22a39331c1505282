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
    steps = share_of_steps(recipe, sizes)
    made = {}
    for task in recipe.tasks.chosen():
        training = replace(recipe.training, max_steps=steps[task.name])
        weights = {name: weight for name, weight in recipe.tasks.weights.items() if name == task.name}
        tasks = replace(recipe.tasks, only=(task.name,), weights=weights)
        alone = replace(start_of(recipe, task.name), mode="joint", tasks=tasks, training=training, balance=None)
        made[task.name] = alone
    return made


def share_of_steps(recipe: Recipe, sizes: Sequence[int]) -> dict[str, int | None]:
    """How many of `training.max_steps` each task has, by its share of the rows; None where epochs are counted."""
    names, most = [task.name for task in recipe.tasks.chosen()], recipe.training.max_steps
    if not most:
        return dict.fromkeys(names, most)
    rows = mixture_of(recipe, sizes).schedule.rows_per_epoch()
    return {name: max(1, round(most * own / sum(rows))) for name, own in zip(names, rows, strict=True)}
