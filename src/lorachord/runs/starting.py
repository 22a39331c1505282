"""`start_from`: a run that goes on from the saved adapter of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from lorachord.baselines import BASELINES, baseline_config
from lorachord.data.task import Task
from lorachord.runs.folder import RunFolder
from lorachord.runs.recipe import Recipe
from lorachord.tuner import LorachordConfig
from lorachord.tuner.adapter_files import load_onto


def check_start(recipe: Recipe, tasks: Sequence[Task]) -> None:
    """Whether the run that `start_from` names has an adapter that this recipe goes on with; nothing large is read.

    Raises:
        ValueError: there is no finished run, or it differs in mode, base, method or tasks; all differences are named.
    """
    assert recipe.start_from is not None
    try:
        found = RunFolder.open(recipe.start_from).require_finished().recipe
    except ValueError as error:
        raise ValueError(f"start_from: {error}") from None
    here, there = _decisive(recipe, tasks), _decisive(found, found.tasks.chosen())
    lines = [f"{name}: {there[name]} there, {here[name]} here" for name in here if here[name] != there[name]]
    if lines:
        raise ValueError(
            f"start_from: the adapter of {recipe.start_from} cannot go on here, since it was made for something else:"
            + "".join(f"\n  {line}" for line in lines)
        )


def _decisive(recipe: Recipe, tasks: Sequence[Task]) -> dict[str, Any]:
    """All that has to be the same where an adapter goes on, in the words of a recipe."""
    part = recipe.model
    method, options = recipe.method["name"], dict(recipe.method)
    for key in ("name", "calibration"):
        options.pop(key, None)
    names = [task.name for task in tasks]
    config: Any = (
        baseline_config(method, **options)
        if method in BASELINES
        else LorachordConfig.build(method, tasks=names, **options)
    )
    return {
        "mode": recipe.mode,
        "model.name": part.name,
        "model.kind": part.kind,
        "model.gguf_file": part.gguf_file,
        "model.heads": part.heads,
        "tasks": ", ".join(names),
        "kinds and labels": [(task.kind, *task.labels) for task in tasks],
        "method.name": method,
        "method": config.to_dict(),
    }


def start_of(recipe: Recipe, task: str) -> Recipe:
    """The recipe of one task of a run of mode `single`, going on from the same task's run."""
    if recipe.start_from is None:
        return recipe
    return replace(recipe, start_from=str(Path(recipe.start_from, task)))


def saved_adapter(recipe: Recipe, base: nn.Module) -> PeftModel:
    """The adapter of the run that `start_from` names, trainable, on a plain model.

    Raises:
        ValueError: the base has other weights than it had there.
    """
    assert recipe.start_from is not None
    return load_onto(base, Path(recipe.start_from, "adapter"), is_trainable=True)
