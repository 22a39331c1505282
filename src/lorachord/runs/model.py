"""The model of a run: the base with its heads, and the adapter on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import set_seed

from lorachord.attach import attach
from lorachord.data.task import Task
from lorachord.heads import add_heads, begin_at, unit_of
from lorachord.hub import on_hub
from lorachord.models.pretrained import load_decoder, load_encoder
from lorachord.runs.parts import ModelPart
from lorachord.runs.recipe import Recipe
from lorachord.training.kinds import MODEL_KINDS
from lorachord.training.model_kind import ModelKind
from lorachord.training.positions import longest_row
from lorachord.tuner import Calibration


def base_name(part: ModelPart) -> str:
    """The base's name for `lorachord.models`.

    Recipes have absolute paths, so that any other name is no folder, whatever the working directory holds.

    Raises:
        ValueError: the working directory has a folder of the name of a model that is none.
    """
    if Path(part.name).is_absolute():
        return part.name
    if "/" not in part.name and Path(part.name).exists():
        raise ValueError(
            f"model.name is {part.name}, no folder beside the recipe, but the working directory has "
            f"{Path(part.name).absolute()}, which would be read instead. Name its path, or run in another directory."
        )
    return on_hub(part.name)


def load_plain(
    recipe: Recipe,
    tasks: Sequence[Task],
    *,
    moments: Mapping[str, tuple[float, float]] | None = None,
    trained: bool = False,
) -> tuple[nn.Module, ModelKind]:
    """The base with its heads, and its kind. Seeds torch with the recipe's seed.

    Args:
        moments: mean and variance of the answers of regression tasks, by task: what their new heads start with.
        trained: whether an adapter brings the head, and all that the checkpoint lacks. Default false.
    """
    part = recipe.model
    set_seed(recipe.seed)
    dtype = getattr(torch, part.dtype)
    base: nn.Module
    if part.kind == "encoder":
        width = max(task.num_outputs for task in tasks)
        base, tokenizer = load_encoder(base_name(part), num_labels=width, dtype=dtype, say_new=not trained)
        if part.heads == "per_task":
            base = add_heads(base, {task.name: task.num_outputs for task in tasks})
        for name, (mean, variance) in (moments or {}).items():
            begin_at(base, name, mean, unit_of(variance) if part.heads == "per_task" else 1.0)
    else:
        base, tokenizer = load_decoder(base_name(part), dtype=dtype, gguf_file=part.gguf_file)
        tokenizer.chat_template = part.chat_template or tokenizer.chat_template
    longest = longest_row(base)
    if longest is not None and part.max_length > longest:
        raise ValueError(f"model.max_length is {part.max_length}, but {part.name} takes at most {longest} tokens.")
    return base, MODEL_KINDS[part.kind](tokenizer, tuple(tasks), max_length=part.max_length)


def new_adapter(
    recipe: Recipe, base: nn.Module, tasks: Sequence[Task], calibration: Calibration | None = None
) -> PeftModel:
    """The recipe's adapter on a plain model."""
    options = {key: value for key, value in recipe.method.items() if key not in ("name", "calibration")}
    names = [task.name for task in tasks]
    return attach(base, recipe.method["name"], tasks=names, calibration=calibration, **options)
