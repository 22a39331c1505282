"""Heads for encoders: one per task, in the place of a sequence classifier's own.

Shapes: B samples, D features, C outputs of the widest head.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lorachord.core.context import Context
from lorachord.core.tasks import TaskNames
from lorachord.tuner.state import HEADS, SharedState
from lorachord.tuner.trained_parts import HEAD_NAMES

logger = logging.getLogger(__name__)


class TaskHeads(nn.Module):
    """The heads of several tasks. Each sample goes through the head of its task, which `on_task` names.

    Args:
        head: the head to shape them after; its last linear is replaced by one of the right width.
        num_outputs: outputs of each task's head, in the order of the tasks.
    """

    def __init__(self, head: nn.Module, num_outputs: Mapping[str, int]) -> None:
        super().__init__()
        names = TaskNames(tuple(num_outputs))
        self.heads = nn.ModuleDict({key(task): of_width(head, width) for task, width in num_outputs.items()})
        self.width = max(num_outputs.values())
        self.shared = SharedState()
        self.shared.task_names[HEADS] = names

    @classmethod
    def of_copies(cls, part: nn.Module, tasks: Sequence[str]) -> TaskHeads:
        """A copy of a module for each task, as it is: of a head, or of a pooler that was trained for each."""
        made = cls(part, dict.fromkeys(tasks, _width(part)))
        for task in tasks:
            made.heads[key(task)] = copy.deepcopy(part)
        return made

    def forward(self, features: Tensor) -> Tensor:
        """(B, ..., D) to (B, ..., C). Columns beyond the width of a sample's own head are the dtype's least number.

        So a class that a task does not have is never the likeliest, and a cross-entropy is over the task's own classes.

        Raises:
            ValueError: no tasks were named, or a number of tasks that does not fit the batch.
        """
        ctx: Context | None = self.shared.contexts.get(HEADS)
        if ctx is None or ctx.runs is None:
            raise ValueError("There is a head for each task: name the samples' tasks with lorachord.on_task(...).")
        if ctx.tokens is not None:
            raise ValueError("A head is of a whole sample: name one task for each sample, and not for each token.")
        if ctx.num_named not in (1, len(features)):
            raise ValueError(f"{ctx.num_named} samples have a task, but the heads got {len(features)}.")
        each, heads = len(features) // (ctx.num_samples or 1), list(self.heads.values())
        outputs = []
        for task, start, stop in ctx.runs:
            output = heads[task](features[start * each : stop * each])
            missing = self.width - output.shape[-1]
            outputs.append(nn.functional.pad(output, (0, missing), value=torch.finfo(output.dtype).min))
        return torch.cat(outputs)

    def of(self, task: str) -> nn.Module:
        """The head of one task."""
        return self.heads[key(task)]

    @property
    def num_outputs(self) -> dict[str, int]:
        """Outputs of each task's head, in the order of the tasks."""
        return {task: _width(self.of(task)) for task in self.shared.task_names[HEADS].names}


def key(task: str) -> str:
    """A task's name as a module name, which can neither hold a dot nor be a name that a ModuleDict has itself."""
    if task in dir(nn.ModuleDict()):
        return f"%{ord(task[0]):02X}{task[1:]}"
    return task.replace(".", "%2E")


def head_name(model: nn.Module) -> str:
    """The attribute that holds a sequence classifier's head.

    Raises:
        ValueError: `model` has none.
    """
    for name in HEAD_NAMES:
        if isinstance(getattr(model, name, None), nn.Module):
            return name
    raise ValueError(
        f"{type(model).__name__} has no head called {' or '.join(HEAD_NAMES)}: load it as a sequence classifier "
        "(AutoModelForSequenceClassification)."
    )


def add_heads(model: nn.Module, num_outputs: Mapping[str, int]) -> nn.Module:
    """Give a sequence classifier one head per task, in place, before an adapter is attached.

    Args:
        model: a transformers ForSequenceClassification model.
        num_outputs: outputs of each task's head: its number of classes, or 1 for a regression.

    Raises:
        ValueError: `model` has no head, or an adapter already; or a width is below 1.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError("The model has an adapter already: call lc.add_heads on the base, before lc.attach.")
    for task, width in num_outputs.items():
        if width < 1:
            raise ValueError(f"The head of task {task!r} must have at least one output, not {width}.")
    name = head_name(model)
    setattr(model, name, TaskHeads(getattr(model, name), num_outputs))
    return model


def heads_of(model: nn.Module) -> tuple[str, TaskHeads] | None:
    """The path and the module of the trained heads per task in `model`, if it has any."""
    found = all_by_task(model)
    return found[-1] if found else None


def all_by_task(model: nn.Module) -> list[tuple[str, TaskHeads]]:
    """The paths and modules of all that there is a copy of for each task: parts such as poolers, and last the heads."""
    return [(path, module) for path, module in model.named_modules() if isinstance(module, TaskHeads)]


def check_heads(model: nn.Module, num_outputs: Mapping[str, int]) -> None:
    """Whether a sequence classifier has the heads that tasks need.

    Args:
        num_outputs: outputs of each task's head, in the order of the tasks.

    Raises:
        ValueError: one head of another width, or heads per task for other tasks, widths or in another order; the
            message has the call that makes them.
    """
    wanted, call = dict(num_outputs), f"lc.add_heads(base, {dict(num_outputs)}), before lc.attach"
    found = heads_of(model)
    if found is None:
        width: int = model.config.num_labels  # type: ignore[union-attr, assignment]
        if set(wanted.values()) != {width}:
            needed = ", ".join(f"{task} {outputs}" for task, outputs in wanted.items())
            raise ValueError(
                f"The model has one head, with {width} output(s), and the tasks need other widths: {needed}. Give each "
                f"task a head of its own: {call}."
            )
        if len(wanted) > 1:
            logger.info("All tasks share one head. To give each its own: %s.", call)
    elif list(found[1].num_outputs.items()) != list(wanted.items()):
        raise ValueError(
            f"The model has heads for {found[1].num_outputs}, and the tasks, in their order, need {wanted}: {call}."
        )


def begin_at(model: nn.Module, task: str, value: float, unit: float = 1.0) -> None:
    """Let the head of a regression start with `value` for every input, up to its random weights; in place.

    From 0, a head has a long way to a mean of, say, 2.7, and would pull the adapter along meanwhile.

    Args:
        model: a sequence classifier, before an adapter is attached.
        value: the mean of the task's answers.
        unit: of the answers, in which the random weights are drawn: see `unit_of`. Default 1.
    """
    found = heads_of(model)
    head = found[1].of(task) if found is not None else getattr(model, head_name(model))
    last = [module for module in head.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(unit)
    if last.bias is not None:
        nn.init.constant_(last.bias, value)


def unit_of(variance: float) -> float:
    """The unit in which a head learns answers of a variance: the power of 2 next to their standard deviation.

    Weights are taken to such units and back without rounding, so that saving changes no bit.
    """
    return 1.0 if variance <= 0 else 2.0 ** round(math.log2(variance) / 2)


def keep_head(model: nn.Module, task: str | int | None) -> nn.Module:
    """Put the head of one task in the place of the heads per task, in a model without adapters; in place.

    Raises:
        ValueError: there is a head per task, and no task was named.
    """
    for path, heads in all_by_task(model):
        head = heads.of(_named(heads, task))
        model.set_submodule(path, head)
        if path in HEAD_NAMES:
            width = _width(head)
            model.config.num_labels = model.num_labels = width  # type: ignore[union-attr, assignment]
    return model


def only_head(model: nn.Module, tensors: Mapping[str, Tensor], task: str | int | None) -> dict[str, Tensor]:
    """Saved tensors with the heads of the other tasks left out, and the task's under the classifier's own name.

    Raises:
        ValueError: there is a head per task, and no task was named.
    """
    found = heads_of(model)
    if found is None:
        return dict(tensors)
    name = _named(found[1], task)
    own = f".heads.{key(name)}."
    return {path.replace(own, "."): value for path, value in tensors.items() if ".heads." not in path or own in path}


def _named(heads: TaskHeads, task: str | int | None) -> str:
    names = heads.shared.task_names[HEADS]
    if task is None:
        raise ValueError(f"There is a head for each task, so say which task: {', '.join(names.names)}.")
    return names.names[names.index(task)]


def _width(head: nn.Module) -> int:
    return [module for module in head.modules() if isinstance(module, nn.Linear)][-1].out_features


def of_width(head: nn.Module, width: int) -> nn.Module:
    """A new head of a number of outputs, shaped after another."""
    if isinstance(head, nn.Linear):
        return _linear_like(head, width)
    made = copy.deepcopy(head)
    name, last = [(name, module) for name, module in made.named_modules() if isinstance(module, nn.Linear)][-1]
    made.set_submodule(name, _linear_like(last, width))
    return made


def _linear_like(linear: nn.Linear, width: int) -> nn.Linear:
    made = nn.Linear(linear.in_features, width, linear.bias is not None, linear.weight.device, linear.weight.dtype)
    nn.init.normal_(made.weight, std=0.02)
    if made.bias is not None:
        nn.init.zeros_(made.bias)
    return made
