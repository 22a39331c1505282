"""What `lorachord fuse` is given: adapters by task, what is known of the tasks, and the base below them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedTokenizerBase

from lorachord.core.context import Mixing
from lorachord.core.registry import get_method
from lorachord.data.task import Task
from lorachord.models.pretrained import load_decoder, load_encoder
from lorachord.runs.folder import RunFolder
from lorachord.runs.model import base_name
from lorachord.runs.parts import EvaluationPart, ModelPart
from lorachord.runs.recipe import Recipe, read_recipe
from lorachord.runs.sequence import last_stage
from lorachord.runs.tasksets import TaskSet, load_data
from lorachord.training.kinds import MODEL_KINDS
from lorachord.training.model_kind import ModelKind
from lorachord.tuner import LorachordConfig


@dataclass(frozen=True)
class Given:
    """One task's adapter.

    Attributes:
        task: its name.
        folder: the adapter's, or a whole model's.
        recipe: what knows the task and its data; None where nothing does.
        data_dir: where the data lay when it was trained.
    """

    task: str
    folder: Path
    recipe: Recipe | None = None
    data_dir: str | None = None

    @property
    def described(self) -> Task | None:
        """The task, if the recipe has it."""
        tasks = self.recipe.tasks.chosen() if self.recipe else ()
        return next((task for task in tasks if task.name == self.task), None)


def find(adapters: Sequence[str], recipe: str | Path | None = None) -> list[Given]:
    """The adapters by task.

    Args:
        adapters: each a folder, or `TASK=FOLDER`: of a plain LoRA, a LoRAchord adapter, a whole model, or a run. A run
            of mode `single` gives an adapter for each of its tasks, and so does a joint run of a method with weights
            by task. Without `TASK=`, an adapter's task is called as its folder.
        recipe: a recipe that describes the tasks and the base of adapters that are no runs.

    Raises:
        ValueError: a run that is not finished or is one adapter for several tasks; two adapters of one task.
    """
    known = None if recipe is None else read_recipe(recipe)
    found: list[Given] = []
    for text in adapters:
        name, given, path = text.rpartition("=")
        folder = Path(path)
        if (folder / "recipe.yaml").is_file():
            found += _of_run(RunFolder.open(folder).require_finished(), name if given else None)
        else:
            found.append(Given(name if given else folder.absolute().name, folder, known))
    names = [each.task for each in found]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"There are several adapters of {', '.join(repeated)}; name each task once, as TASK=FOLDER.")
    return found


def _of_run(run: RunFolder, name: str | None) -> list[Given]:
    run = last_stage(run)
    tasks = [task.name for task in run.recipe.tasks.chosen()]
    if name is not None and name not in tasks:
        raise ValueError(f"{run.path} is no run of the task {name!r}; it has {', '.join(tasks)}.")
    wanted = tasks if name is None else [name]
    if run.recipe.mode == "single":
        return [Given(task, run.path / task / "adapter", run.recipe, run.data_dir) for task in wanted]
    method = run.recipe.method["name"]
    config = PeftConfig.from_pretrained(str(run.path / "adapter"))
    by_task = isinstance(config, LorachordConfig) and get_method(method).mixing is not Mixing.STATIC
    if len(tasks) > 1 and not by_task:
        raise ValueError(
            f"{run.path} is one {method} adapter for {', '.join(tasks)}: it is fused already. Give single-task runs "
            "(mode: single), or a run of a method with weights by task."
        )
    return [Given(task, run.path / "adapter", run.recipe, run.data_dir) for task in wanted]


@dataclass(frozen=True)
class Tasks:
    """The tasks that are known, and the kind of the base.

    Attributes:
        data: one per task; None where no recipe describes them all.
        kind: of the base; its tasks are all tasks, in their order.
        evaluation: how the runs were scored.
        seed: of the choice of rows to score.
    """

    data: TaskSet | None
    kind: ModelKind | None
    evaluation: EvaluationPart
    seed: int = 0


def load_base(given: Sequence[Given], base: str | None) -> tuple[nn.Module, PreTrainedTokenizerBase, ModelPart]:
    """The plain model, its tokenizer, and how it is used.

    Args:
        base: its name. Default: that of the runs.

    Raises:
        ValueError: no base is named, or runs of different bases.
    """
    models = {each.recipe.model.name: each.recipe.model for each in given if each.recipe}
    if len(models) > 1 and base is None:
        raise ValueError(f"The adapters were trained on different bases: {', '.join(models)}. They cannot be fused.")
    if base is None and not models:
        raise ValueError("Which model were the adapters trained on? Name it by --base.")
    part = next(iter(models.values())) if models else ModelPart(name=str(base), kind=_kind(given))
    name = base_name(part) if base is None else base
    part = replace(part, name=name)
    dtype = getattr(torch, part.dtype)
    if part.kind == "encoder":
        return *load_encoder(name, num_labels=2, dtype=dtype, say_new=False), part
    return *load_decoder(name, dtype=dtype, gguf_file=part.gguf_file), part


def _kind(given: Sequence[Given]) -> Any:
    for each in given:
        if (each.folder / "adapter_config.json").is_file():
            task_type = PeftConfig.from_pretrained(str(each.folder)).task_type
            if task_type in ("SEQ_CLS", "CAUSAL_LM"):
                return "encoder" if task_type == "SEQ_CLS" else "decoder"
    raise ValueError("No adapter says what kind of model its base is (task_type): give a recipe by --recipe.")


def load_tasks(
    given: Sequence[Given], tokenizer: PreTrainedTokenizerBase, part: ModelPart, data_dir: str | None
) -> Tasks:
    """The tasks' data and the kind of the base, where every task is described.

    Args:
        data_dir: where the data lie. Default: where they lay when the runs were made.
    """
    described = [each.described for each in given]
    if not all(described):
        return Tasks(None, None, EvaluationPart())
    tasks = tuple(task for task in described if task is not None)
    parts, recipe = [], given[0].recipe
    assert recipe is not None
    for each, task in zip(given, tasks, strict=True):
        assert each.recipe is not None
        parts.append(load_data(each.recipe, [task], data_dir or each.data_dir).data[0])
    data = TaskSet(tuple(parts), (1.0,) * len(parts))
    kind = MODEL_KINDS[part.kind](tokenizer, tasks, max_length=part.max_length)
    return Tasks(data, kind, recipe.evaluation, recipe.tasks.seed)


def is_routed(given: Sequence[Given]) -> bool:
    """Whether all of them are one input-routed adapter."""
    if len({each.folder for each in given}) > 1 or not (given[0].folder / "adapter_config.json").is_file():
        return False
    config = PeftConfig.from_pretrained(str(given[0].folder))
    return isinstance(config, LorachordConfig) and get_method(config.method).mixing is Mixing.INPUT


def folders(given: Sequence[Given]) -> Mapping[str, Path]:
    """What `load_task_vectors` takes."""
    return {each.task: each.folder for each in given}
