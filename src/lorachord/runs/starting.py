"""`start_from`: a run that goes on from the saved adapter of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from lorachord.add_task import add_task
from lorachord.baselines import BASELINES, baseline_config
from lorachord.core.context import Mixing
from lorachord.core.registry import all_methods, get_method
from lorachord.data.task import Task
from lorachord.families.by_prompt import PromptLevel
from lorachord.families.calibrated import Calibrated
from lorachord.runs.folder import RunFolder
from lorachord.runs.model import load_plain, new_adapter
from lorachord.runs.recipe import Recipe
from lorachord.training.model_kind import ModelKind
from lorachord.tuner import LorachordConfig
from lorachord.tuner.adapter_files import check_adapter, load_onto


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
    known = found.tasks.chosen()
    # Further tasks may follow those of that run.
    first = tasks[: len(known)] if [task.name for task in tasks[: len(known)]] == [t.name for t in known] else tasks
    here, there = _decisive(recipe, first), _decisive(found, known)
    lines = [f"{name}: {there[name]} there, {here[name]} here" for name in here if here[name] != there[name]]
    if lines:
        raise ValueError(
            f"start_from: the adapter of {recipe.start_from} cannot go on here, since it was made for something else:"
            + "".join(f"\n  {line}" for line in lines)
        )
    if recipe.mode == "fused" and len(tasks) == len(known):
        raise ValueError("start_from: mode fused needs a task that the run does not have; there is none.")
    if len(tasks) > len(known):
        _check_growth(recipe, known)


def _check_growth(recipe: Recipe, known: Sequence[Task]) -> None:
    """Whether tasks can follow those of the run that is gone on from.

    Raises:
        ValueError: they cannot.
    """
    method = recipe.method["name"]
    if recipe.mode == "fused":
        return
    if recipe.mode == "single":
        raise ValueError("start_from: in mode single each task has a run of its own; train the new tasks' alone.")
    if freezes(recipe, known):
        if recipe.surgery is not None:
            raise ValueError("surgery works on factors, which are frozen where new tasks alone are learned; leave out.")
    elif is_fitted(method):
        raise ValueError(
            f"start_from: {method} is fitted to its tasks before training, so that no others can follow. Train anew on "
            "all of them."
        )


def is_fitted(method: str) -> bool:
    """Whether a method looks at the rows of its tasks before it is trained on them."""
    cls = all_methods().get(method)
    return cls is not None and (issubclass(cls, Calibrated) or (issubclass(cls, PromptLevel) and cls.embeds))


def routes(method: str) -> bool:
    """Whether a method looks at the input."""
    return method not in BASELINES and get_method(method).mixing is Mixing.INPUT


def by_task(method: str) -> bool:
    """Whether a method has parameters of one task each."""
    return method not in BASELINES and get_method(method).mixing is Mixing.TASK


def freezes(recipe: Recipe, known: Sequence[Task]) -> bool:
    """Whether all that the tasks of an earlier run use stays frozen.

    So it is where a method has parameters of one task each, and new tasks alone are learned.

    Args:
        known: the tasks of the run that is gone on from.
    """
    return by_task(recipe.method["name"]) and min(recipe.tasks.learned()) >= len(known)


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
        # Where adapters are fused, that of several tasks is one of them.
        "mode": "joint" if recipe.mode == "fused" else recipe.mode,
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
    """The recipe of one task of a run of mode `single`, going on from the same task's run.

    A task of mode `fused` begins with a new adapter.
    """
    if recipe.start_from is None:
        return recipe
    if recipe.mode == "fused":
        return replace(recipe, start_from=None)
    return replace(recipe, start_from=str(Path(recipe.start_from, task)))


def started(
    recipe: Recipe, tasks: Sequence[Task], moments: Mapping[str, tuple[float, float]]
) -> tuple[PeftModel, ModelKind]:
    """The model of the run that `start_from` names, with the tasks that follow those of that run.

    Args:
        tasks, moments: of this run; see `model.load_plain`.
    """
    assert recipe.start_from is not None
    known = RunFolder.open(recipe.start_from).recipe.tasks.chosen()
    if len(known) == len(tasks):
        base, kind = load_plain(recipe, tasks, moments=moments)
        return saved_adapter(recipe, base), kind
    if not freezes(recipe, known):
        base, kind = load_plain(recipe, tasks, moments=moments)
        model = new_adapter(recipe, base, tasks)
        _take_over(model, Path(recipe.start_from, "adapter"))
        return model, kind
    old = tasks[: len(known)]
    named = {task.name: moments[task.name] for task in old if task.name in moments}
    base, kind = load_plain(recipe, old, moments=named)
    model, own_heads = saved_adapter(recipe, base), recipe.model.kind == "encoder" and recipe.model.heads == "per_task"
    for task in tasks[len(known) :]:
        add_task(model, task.name, num_outputs=task.num_outputs if own_heads else None)
    return model, type(kind)(kind.tokenizer, tuple(tasks), max_length=kind.max_length)


def _take_over(model: PeftModel, folder: Path) -> None:
    """Put the weights of an adapter of fewer tasks into one of more; in place."""
    check_adapter(folder)
    saved, own = load_file(folder / SAFETENSORS_WEIGHTS_NAME), get_peft_model_state_dict(model)
    set_peft_model_state_dict(model, {name: _grown(name, saved.get(name, value), value) for name, value in own.items()})


def _grown(name: str, saved: Tensor, own: Tensor) -> Tensor:
    """A saved tensor with the entries of further tasks; the names of the tasks stay as they are here."""
    if saved.shape == own.shape or name.endswith("task_digest"):
        return own if name.endswith("task_digest") else saved
    return torch.cat([saved.to(own.device), own[len(saved) :]])


def saved_adapter(recipe: Recipe, base: nn.Module) -> PeftModel:
    """The adapter of the run that `start_from` names, trainable, on a plain model.

    Raises:
        ValueError: the base has other weights than it had there.
    """
    assert recipe.start_from is not None
    return load_onto(base, Path(recipe.start_from, "adapter"), is_trainable=True)
