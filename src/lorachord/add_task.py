"""A task that comes later: a finished adapter learns it, and forgets nothing."""

from __future__ import annotations

from functools import partial

import torch
from peft import PeftModel
from torch import Tensor, nn

from lorachord.core.adapter import Adapter
from lorachord.core.context import Mixing
from lorachord.core.registry import get_method
from lorachord.core.tasks import TaskNames
from lorachord.heads import TaskHeads, heads_of, key, of_width
from lorachord.tuner import LorachordConfig
from lorachord.tuner.state import HEADS
from lorachord.tuner.walk import adapted_layers


def add_task(model: PeftModel, task: str, *, num_outputs: int | None = None) -> PeftModel:
    """Give the active adapter one more task, of which alone it learns from now on; in place.

    All that the tasks share is frozen: the factors, and a shared head or the old tasks' heads. The new task gets a core
    of its own between the frozen factors, at the method's start, and with heads per task a new head. The old tasks'
    cores get no gradient; `MultiTaskTrainer` keeps them from weight decay, and a loop of your own must not decay
    `adapter.no_decay`. So the old tasks' predictions on equal batches stay what they were, to the bit. The price: the
    new task has the directions of the old ones' factors and no others.

    Args:
        model: with an active adapter of a method with a core for each task.
        task: the name of the new task; it becomes the last one.
        num_outputs: of its head, where there is a head per task.

    Returns:
        The same model.

    Raises:
        ValueError: a method without parameters of a task, a name that is taken, or `num_outputs` missing or of no use.
    """
    config = model.active_peft_config
    if not isinstance(config, LorachordConfig) or get_method(config.method).mixing is not Mixing.TASK:
        name = config.method if isinstance(config, LorachordConfig) else "PEFT's own adapter"
        raise ValueError(
            f"{name} has no parameters of one task, so learning a new task changes what the old ones get. Either train "
            "an adapter for the new task alone and fuse both (lorachord fuse), which costs a training on its rows "
            "and some of both tasks' scores; or train again on all tasks' rows, which costs a training on all of them."
        )
    names = TaskNames((*config.task_names.names, task), accepts_unknown=config.task_names.accepts_unknown)
    heads = heads_of(model)
    if (heads is None) != (num_outputs is None):
        raise ValueError(
            f"There is a head for each task: give num_outputs, the classes of {task!r}, or 1 for a regression."
            if heads is not None
            else "All tasks share one head, or there is none: leave out num_outputs."
        )
    if num_outputs is not None and num_outputs < 1:
        raise ValueError(f"The head of task {task!r} must have at least one output, not {num_outputs}.")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    (name,) = model.active_adapters
    for layer in adapted_layers(model):
        if name in layer.lorachord_adapter:
            adapter = layer.lorachord_adapter[name]
            assert isinstance(adapter, Adapter)
            _grow(adapter, names)
        layer.shared.task_names[name] = names
    config.tasks = list(names.names)
    if num_outputs is not None:
        _grow_heads(model, task, num_outputs)
    return model


def _grow(adapter: Adapter, names: TaskNames) -> None:
    """One more task in every parameter that has an entry for each; all others stay frozen."""
    like = adapter.down
    fresh = type(adapter)(adapter.layer, adapter.config, names).to(like.device, like.dtype)
    grown = []
    for path, parameter in list(adapter.named_parameters()):
        new = fresh.get_parameter(path).detach()
        if new.shape == parameter.shape:
            continue
        num_old = len(parameter)
        made = nn.Parameter(torch.cat([parameter.detach(), new[num_old:]]))
        made.register_hook(partial(_of_new, num_old))
        place, _, name = path.rpartition(".")
        setattr(adapter.get_submodule(place), name, made)
        grown.append(path)
    adapter.num_tasks = len(names)
    if adapter.aligned is not None:
        adapter.aligned.num_tasks = len(names)
    adapter.task_digest = fresh.task_digest
    vars(adapter)["no_decay"] = (*adapter.no_decay, *grown)


def _of_new(num_old: int, gradient: Tensor) -> Tensor:
    """A gradient by task, with zeros for the old ones."""
    return torch.cat([torch.zeros_like(gradient[:num_old]), gradient[num_old:]])


def _grow_heads(model: nn.Module, task: str, width: int) -> None:
    """One more head in every set of them; in the trained set it is trainable."""
    trained = heads_of(model)
    assert trained is not None
    for heads in [module for module in model.modules() if isinstance(module, TaskHeads)]:
        names = TaskNames((*heads.num_outputs, task))
        heads.heads[key(task)] = of_width(heads.of(names.names[0]), width).requires_grad_(heads is trained[1])
        heads.width = max(heads.width, width)
        heads.shared.task_names[HEADS] = names
