"""What someone should know who trains a recipe, beside the faults of its data, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from lorachord.core.config import LayerSpec
from lorachord.runs.forecast.parameters import config_class, options_of
from lorachord.runs.forecast.step_memory import Memory
from lorachord.runs.recipe import Recipe
from lorachord.runs.tasksets import TaskSet

FEW = 50
"""Rows of dev below which it is said that one row weighs much."""


def of_data(data: TaskSet) -> list[str]:
    """Whether scores and answers say something."""
    found = []
    for part in data.data:
        size = len(part.dev)
        if size < FEW:
            found.append(f"{part.task.name}: dev has {size} rows, so that one row moves a score by {1 / size:.1%}")
    for task, (mean, variance) in data.moments.items():
        if not variance:
            found.append(f"{task}: all answers of train are {mean:g}, so there is nothing to learn")
    return found


def of_ranks(recipe: Recipe, layers: Sequence[LayerSpec]) -> list[str]:
    """Whether the adapter's rank is more than its layers can use."""
    config = config_class(recipe.method["name"]).from_dict(options_of(recipe))
    if "r" not in {spec.name for spec in fields(config)}:
        return []
    rank = max(config.values_of("r"))
    narrow = [layer for layer in layers if min(layer.d_in, layer.d_out) < rank]
    if not narrow:
        return []
    first = narrow[0]
    return [
        f"rank {rank} is over the width of {len(narrow)} layers ({first.name} has {min(first.d_in, first.d_out)}): it "
        "costs parameters there and cannot do more than that width"
    ]


def of_memory(memory: Memory | None) -> list[str]:
    """Whether a step fits."""
    if memory is None or memory.total <= memory.available:
        return []
    needed, free = (size / 2**30 for size in (memory.total, memory.available))
    return [
        f"a step needs about {needed:.1f} GiB, and {memory.device} has {free:.1f} free: take a smaller "
        "training.batch_size, training.accumulation, training.gradient_checkpointing, or model.dtype bfloat16"
    ]
