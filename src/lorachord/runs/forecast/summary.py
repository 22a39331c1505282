"""The forecast of a recipe: data, steps, parameters, memory, time, warnings, and what is not going to work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from lorachord.core.config import LayerSpec
from lorachord.data.audit import DataAudit
from lorachord.data.audit_words import warnings_of
from lorachord.data.task import Task
from lorachord.heads import add_heads
from lorachord.models.pretrained import load_shape
from lorachord.runs.arguments import mixture_of
from lorachord.runs.auditing import audit_of
from lorachord.runs.checks import check
from lorachord.runs.forecast.faults import of_data, of_memory, of_ranks
from lorachord.runs.forecast.parameters import Parameters, adapted_layers_of, parameters_of
from lorachord.runs.forecast.speed import Speed, speed_by_shape, timed_speed
from lorachord.runs.forecast.step_memory import Memory, memory_of
from lorachord.runs.model import base_name
from lorachord.runs.recipe import Recipe
from lorachord.runs.single_recipes import single_recipes
from lorachord.runs.tasksets import TaskSet, load_data
from lorachord.training.kinds import MODEL_KINDS
from lorachord.training.model_checks import check_special_tokens
from lorachord.training.model_kind import ModelKind
from lorachord.training.positions import longest_row
from lorachord.whole import finite

FITS = 0.8
"""The share of the free memory that a model may need to be timed."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """
    Attributes:
        tasks: the names of those whose data could be read.
        data: the audit of these.
        steps_per_epoch: optimizer steps; None where no data could be read.
        steps: of the whole run, over all tasks in mode single.
        parameters: by method, the recipe's own first; empty where the adapter has no place.
        memory: of a step; None likewise.
        speed: of a step; None where there are problems, or nobody asked for it.
        seconds: of the whole run, with its evaluations as far as they could be timed; None without `speed`.
        warnings: what should be known, in words.
        problems: what is not going to work, in words: training ends with these.
    """

    tasks: tuple[str, ...]
    data: DataAudit
    steps_per_epoch: int | None
    steps: int | None
    parameters: tuple[Parameters, ...]
    memory: Memory | None
    speed: Speed | None
    seconds: float | None
    warnings: tuple[str, ...]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without NaN; totals are written out."""
        plain: dict[str, Any] = finite(asdict(self))
        for counted, parameters in zip(plain["parameters"], self.parameters, strict=True):
            counted["total"] = parameters.total
        if self.memory is not None:
            plain["memory"]["total"] = self.memory.total
        return plain


def forecast(
    recipe: Recipe, data_dir: str | Path | None = None, *, timed: bool = True, seconds: float = 10.0
) -> Forecast:
    """Find out what a recipe is going to do. Nothing is trained or written.

    Args:
        data_dir: a folder with a folder of files per task. Default: the tasks' own sources.
        timed: whether a few steps are run to estimate the time. Default true.
        seconds: to spend on steps, and again on predictions, about. Default 10.

    Raises:
        ValueError: as `checks.check`: errors of the recipe itself, which no data are read for.
    """
    tasks = recipe.tasks.chosen()
    check(recipe, tasks)
    problems: list[str] = []
    data = _readable(recipe, tasks, data_dir, problems)
    base, tokenizer = _shape(recipe, tasks)
    kind = MODEL_KINDS[recipe.model.kind](tokenizer, tasks, recipe.model.max_length)
    layers = _layers(recipe, base, kind, problems)
    if not data.data:
        return _without_data(recipe, base, layers, tasks, problems)
    audited = audit_of(recipe, data, kind)
    warnings = [*warnings_of(audited), *of_data(data), *of_ranks(recipe, layers)]
    steps_per_epoch, steps = _steps(recipe, data, problems)
    names = [task.name for task in tasks]
    parameters = parameters_of(recipe, base, layers, names) if layers else ()
    lengths = [split.lengths for splits in audited.tasks.values() for split in splits.values() if split.lengths]
    longest = min(recipe.model.max_length, max(each.longest for each in lengths))
    own = parameters[0].total if parameters else None
    rows = recipe.training.batch_size // recipe.training.accumulation
    memory = None
    if own is not None:
        of_one = own // parameters[0].runs
        memory = memory_of(recipe, base, trainable=of_one, rows=rows, length=longest, measured=None)
    speed = None
    if timed and memory is not None and not problems:
        if memory.total <= FITS * memory.available:
            speed = timed_speed(recipe, data, seconds=seconds)
            memory = memory_of(recipe, base, trainable=of_one, rows=rows, length=longest, measured=speed.activations)
        else:
            ordinary = sum(min(each.median, each.limit) for each in lengths) / len(lengths)
            speed = speed_by_shape(recipe, base, tokens=ordinary)
    warnings += of_memory(memory)
    return Forecast(
        tasks=tuple(task.name for task in data.tasks),
        data=audited,
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        parameters=parameters,
        memory=memory,
        speed=speed,
        seconds=_seconds(recipe, steps, speed),
        warnings=tuple(warnings),
        problems=tuple(problems),
    )


def _readable(recipe: Recipe, tasks: Sequence[Task], data_dir: str | Path | None, problems: list[str]) -> TaskSet:
    """The data of the tasks that can be read; the others' errors are problems."""
    found: list[TaskSet] = []
    for task in tasks:
        try:
            found.append(load_data(recipe, [task], data_dir))
        except ValueError as error:
            problems.append(str(error))
    return TaskSet(tuple(each.data[0] for each in found), tuple(each.weights[0] for each in found))


def _shape(recipe: Recipe, tasks: Sequence[Task]) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    part = recipe.model
    if part.kind == "decoder":
        return load_shape(base_name(part), gguf_file=part.gguf_file)
    base, tokenizer = load_shape(base_name(part), num_labels=max(task.num_outputs for task in tasks))
    if part.heads == "per_task":
        add_heads(base, {task.name: task.num_outputs for task in tasks})
    return base, tokenizer


def _layers(recipe: Recipe, base: nn.Module, kind: ModelKind, problems: list[str]) -> list[LayerSpec]:
    """The layers to adapt; what the model cannot do is added to the problems."""
    longest = longest_row(base)
    if longest is not None and recipe.model.max_length > longest:
        problems.append(
            f"model.max_length is {recipe.model.max_length}, but {recipe.model.name} takes at most {longest} tokens."
        )
    try:
        check_special_tokens(kind.tokenizer, base)
        kind.check(base)
    except ValueError as error:
        problems.append(str(error))
    try:
        return adapted_layers_of(recipe, base)
    except ValueError as error:
        problems.append(str(error))
        return []


def _without_data(
    recipe: Recipe, base: nn.Module, layers: Sequence[LayerSpec], tasks: Sequence[Task], problems: Sequence[str]
) -> Forecast:
    return Forecast(
        tasks=(),
        data=DataAudit(tasks={}),
        steps_per_epoch=None,
        steps=None,
        parameters=parameters_of(recipe, base, layers, [task.name for task in tasks]) if layers else (),
        memory=None,
        speed=None,
        seconds=None,
        warnings=tuple(of_ranks(recipe, layers)),
        problems=tuple(problems),
    )


def _steps(recipe: Recipe, data: TaskSet, problems: list[str]) -> tuple[int | None, int | None]:
    """Optimizer steps of an epoch and of the run."""
    try:
        batches = mixture_of(recipe, data.sizes).schedule.length
        steps_per_epoch = math.ceil(batches / recipe.training.accumulation)
        if recipe.mode == "joint" or problems:
            return steps_per_epoch, _steps_of(recipe, steps_per_epoch)
        steps = 0
        for size, alone in zip(data.sizes, single_recipes(recipe, data.sizes).values(), strict=True):
            batches = mixture_of(alone, [size]).schedule.length
            steps += _steps_of(alone, math.ceil(batches / recipe.training.accumulation))
        return steps_per_epoch, steps
    except ValueError as error:
        problems.append(str(error))
        return None, None


def _steps_of(recipe: Recipe, steps_per_epoch: int) -> int:
    part = recipe.training
    return part.max_steps if part.max_steps is not None else steps_per_epoch * (part.epochs or 1)


def _seconds(recipe: Recipe, steps: int | None, speed: Speed | None) -> float | None:
    if speed is None or steps is None:
        return None
    every = recipe.training.eval_every
    # Val and dev in the end, and val alone in between: at most as long.
    scored = 1 + (steps // every if every else 0)
    return steps * speed.step_seconds + scored * (speed.scoring_seconds or 0.0)
