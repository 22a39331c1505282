"""From a recipe to what training takes: tasks and their data, then the model. Cheap checks come first."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import set_seed
from transformers.integrations.integration_utils import get_available_reporting_integrations

from lorachord.attach import attach
from lorachord.balance.make import check_balance
from lorachord.baselines import BASELINES, baseline_config
from lorachord.core.adapter import Adapter
from lorachord.core.registry import all_methods
from lorachord.data.sources import TaskData, from_rows, load_task
from lorachord.data.split import cut
from lorachord.data.task import Task
from lorachord.families.calibrated import Calibrated
from lorachord.heads import add_heads, begin_at
from lorachord.messages import suggest
from lorachord.models.pretrained import load_decoder, load_encoder
from lorachord.models.resolve import resolve
from lorachord.runs.folder import FILES, FOLDERS
from lorachord.runs.recipe import Recipe
from lorachord.surgery.surgeon import check_surgery
from lorachord.training.kinds import MODEL_KINDS
from lorachord.training.model_kind import ModelKind
from lorachord.training.trainer import answers
from lorachord.tuner import Calibration, LorachordConfig


@dataclass(frozen=True)
class TaskSet:
    """The tasks of a run with their data.

    Attributes:
        data: one per task.
        weights: of their losses.
    """

    data: tuple[TaskData, ...]
    weights: tuple[float, ...]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks in order."""
        return tuple(part.task for part in self.data)

    @property
    def sizes(self) -> list[int]:
        """Training rows of each task."""
        return [len(part.train) for part in self.data]

    @property
    def offsets(self) -> dict[str, float]:
        """The mean training answer of each regression task."""
        return {task: mean for task, (mean, _) in self.moments.items()}

    @property
    def moments(self) -> dict[str, tuple[float, float]]:
        """Mean and variance of the training answers of each regression task."""
        numbers = {part.task.name: answers(part.train) for part in self.data if part.task.kind == "regression"}
        return {task: (statistics.fmean(own), statistics.pvariance(own)) for task, own in numbers.items()}

    @property
    def variances(self) -> dict[int, float]:
        """The variance of the training answers of each regression task, by its index; 1 where they are all alike."""
        regressions = {index: part for index, part in enumerate(self.data) if part.task.kind == "regression"}
        return {index: statistics.pvariance(answers(part.train)) or 1.0 for index, part in regressions.items()}

    def alone(self, index: int) -> TaskSet:
        """One task of these."""
        return TaskSet(self.data[index : index + 1], self.weights[index : index + 1])

    def split(self, name: str, max_rows: int | None, seed: int) -> list[Any]:
        """One split of every task, at most `max_rows` rows of each.

        Raises:
            ValueError: a task has no such split.
        """
        chosen = []
        for part in self.data:
            rows = getattr(part, name)
            if rows is None:
                raise ValueError(f"Task {part.task.name!r} has no {name} split; take dev or val.")
            chosen.append(rows.select(cut(len(rows), max_rows, seed)))
        return chosen


def check(recipe: Recipe, tasks: Sequence[Task]) -> None:
    """Everything that can be known to be wrong without data or weights.

    Raises:
        ValueError: an unknown method or option, a task that the model cannot have, weights of unknown tasks, a missing
            or incomplete model folder.
    """
    names = [task.name for task in tasks]
    for name in recipe.tasks.weights:
        if name not in names:
            raise ValueError(f"tasks.weights names {name!r}, which is no task of this recipe. {suggest(name, names)}")
    for name in names:
        if name.startswith("/") or ".." in PurePosixPath(name).parts or PurePosixPath(name).parts[0] in FILES + FOLDERS:
            raise ValueError(f"A task cannot be called {name!r}: its name is a path inside the run folder.")
    available = get_available_reporting_integrations()
    for name in recipe.training.report_to:
        if name not in available:
            raise ValueError(f"training.report_to: {name!r} is not installed or not known. {suggest(name, available)}")
    _check_method(recipe, names)
    _check_balance(recipe, tasks)
    if recipe.model.kind == "encoder":
        written = [task.name for task in tasks if task.kind == "generation"]
        if written:
            raise ValueError(f"An encoder writes no text: leave out {', '.join(written)}, or take a decoder.")
        if recipe.model.heads == "shared" and len({task.num_outputs for task in tasks}) > 1:
            widths = ", ".join(f"{task.name} {task.num_outputs}" for task in tasks)
            raise ValueError(f"One shared head needs tasks of one width, and these differ: {widths}. Use per_task.")
    try:
        resolve(recipe.model.name, recipe.model.gguf_file)
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"model: {error}") from error


def _check_method(recipe: Recipe, names: Sequence[str]) -> None:
    options = {key: value for key, value in recipe.method.items() if key not in ("name", "calibration")}
    method = recipe.method["name"]
    try:
        if "calibration" in recipe.method and not issubclass(all_methods().get(method, Adapter), Calibrated):
            raise ValueError(f"{method} needs no calibration; leave it out.")
        for key in options.keys() & {"tasks", "format_version", "base_fingerprint", "centroids"}:
            raise ValueError(f"{key} is not for a recipe to say; it follows from the tasks and the model.")
        if method in BASELINES:
            baseline_config(method, **options)
        elif method in all_methods():
            encoder = LorachordConfig.build(method, tasks=names, **options).options.get("encoder", "base")
            if encoder != "base":
                resolve(encoder)
        else:
            raise ValueError(f"there is no method {method!r}. {suggest(method, [*all_methods(), *BASELINES])}")
    except (ImportError, RuntimeError, ValueError) as error:
        raise ValueError(f"method: {error}") from None
    if recipe.surgery is not None:
        try:
            check_surgery(**recipe.surgery)
        except ValueError as error:
            raise ValueError(f"surgery: {error}") from None
        if method in BASELINES:
            raise ValueError(f"surgery: {method} hands out no gradients of tasks; take the method `lora` instead.")


def _check_balance(recipe: Recipe, tasks: Sequence[Task]) -> None:
    if recipe.balance is None:
        return
    regressions = [task.name for task in tasks if task.kind == "regression"]
    own_heads = recipe.model.kind == "encoder" and recipe.model.heads == "per_task"
    try:
        for option in recipe.balance.keys() & {"tasks", "model", "regressions", "start", "per_task_heads"}:
            raise ValueError(f"{option} is not for a recipe to say; it follows from the tasks and the model.")
        check_balance(
            tasks=[task.name for task in tasks], regressions=regressions, per_task_heads=own_heads, **recipe.balance
        )
    except ValueError as error:
        raise ValueError(f"balance: {error}") from None


def load_data(recipe: Recipe, tasks: Sequence[Task], data_dir: str | Path | None) -> TaskSet:
    """Read, check and split the data of all tasks.

    Raises:
        ValueError: as `data.sources.load_task`.
    """
    part = recipe.tasks
    weights = [1.0] * len(tasks)
    if part.lab is not None:
        lab = part.lab.generate()
        index_of = {task.name: index for index, task in enumerate(lab.tasks)}
        data = tuple(from_rows(task, lab.splits(index_of[task.name]), seed=part.seed) for task in tasks)
        weights = [lab.loss_weights[index_of[task.name]] for task in tasks]
    else:
        data = tuple(load_task(task, data_dir=data_dir, seed=part.seed) for task in tasks)
    return TaskSet(
        data, tuple(part.weights.get(task.name, weight) for task, weight in zip(tasks, weights, strict=True))
    )


def load_plain(
    recipe: Recipe, tasks: Sequence[Task], *, offsets: Mapping[str, float] | None = None
) -> tuple[nn.Module, ModelKind]:
    """The base with its heads, and its kind. Seeds torch with the recipe's seed.

    Args:
        offsets: what the new heads of regression tasks start with, by task.
    """
    part = recipe.model
    set_seed(recipe.seed)
    dtype = getattr(torch, part.dtype)
    base: nn.Module
    if part.kind == "encoder":
        width = max(task.num_outputs for task in tasks)
        base, tokenizer = load_encoder(part.name, num_labels=width, dtype=dtype)
        if part.heads == "per_task":
            base = add_heads(base, {task.name: task.num_outputs for task in tasks})
        for name, offset in (offsets or {}).items():
            begin_at(base, name, offset)
    else:
        base, tokenizer = load_decoder(part.name, dtype=dtype, gguf_file=part.gguf_file)
    longest = getattr(base.config, "max_position_embeddings", None)
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
