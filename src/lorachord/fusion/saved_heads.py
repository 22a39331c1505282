"""Heads of finished adapters: one is kept for each task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import Tensor, nn

from lorachord.heads import TaskHeads, add_heads, keep_head, key
from lorachord.tuner.parts import HEAD_NAMES
from lorachord.tuner.state import HEADS

Heads = dict[str, dict[str, Tensor]]
"""The state of each task's head."""


def head_state(task: str, model: Any) -> dict[str, Tensor]:
    """The state of a task's head: its own, or the one that there is."""
    head = _head(model)
    if isinstance(head, TaskHeads):
        names = head.shared.task_names[HEADS].names
        head = head.of(task if task in names else names[0])
    return {} if head is None else head.state_dict()


def head_widths(base: nn.Module, folder: Path) -> dict[str | None, int]:
    """Outputs of the saved heads by task, or of the one saved head under None; empty where none is saved."""
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        names = [name.removeprefix("base_model.model.") for name in file.keys()]  # noqa: SIM118 - no mapping
        trained = [name for name in names if ".lora_" not in name and ".lorachord_" not in name]
        head = _head(base)
        last = "" if head is None else [n for n, part in head.named_modules() if isinstance(part, nn.Linear)][-1]
        widths: dict[str | None, int] = {}
        for name in trained:
            first, _, rest = name.partition(".")
            if first not in HEAD_NAMES or head is None:
                raise ValueError(
                    f"{folder} holds {name}, trained in full. Of such modules fusion keeps the head of a sequence "
                    "classifier alone: merge the adapter, save that model, and fuse the folder of the whole model."
                )
            owner, own = None, rest
            if rest.startswith("heads."):
                _, owner, own = rest.split(".", 2)
                owner = owner.replace("%2E", ".")
            if own == (f"{last}.weight" if last else "weight"):
                widths[owner] = file.get_slice(f"base_model.model.{name}").get_shape()[0]
        return widths


def _head(model: nn.Module) -> nn.Module | None:
    found = [getattr(model, name, None) for name in HEAD_NAMES]
    return next((module for module in found if isinstance(module, nn.Module)), None)


def with_heads(base: Any, tasks: tuple[str, ...], heads: Heads) -> Any:
    """A head for each task in place of the base's own; a task without a saved one gets a copy of the base's.

    Args:
        base: a skeleton, changed in place.
    """
    if not heads:
        return base
    own = _head(base)
    assert own is not None
    if isinstance(own, TaskHeads):
        keep_head(base, 0)
        own = _head(base)
        assert own is not None
    states = {task: heads.get(task, own.state_dict()) for task in tasks}
    last = [name for name, part in own.named_modules() if isinstance(part, nn.Linear)][-1]
    weight = f"{last}.weight" if last else "weight"
    add_heads(base, {task: len(state[weight]) for task, state in states.items()})
    made = _head(base)
    assert isinstance(made, TaskHeads)
    for task in tasks:
        made.heads[key(task)].load_state_dict(states[task])
    return base.requires_grad_(False).eval()
