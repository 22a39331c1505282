"""What finished adapters have trained in full: heads, and parts that the base's checkpoint lacks.

One of each is kept for each task.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import Tensor, nn

from lorachord.heads import TaskHeads, add_heads, keep_head
from lorachord.tuner.state import HEADS
from lorachord.tuner.trained_parts import HEAD_NAMES, inside, lacking

Heads = dict[str, dict[str, Tensor]]
"""Of each task, the tensors of its head and parts, by their names in the plain model."""


def head_path(model: nn.Module) -> str | None:
    """The name of a sequence classifier's head; None of another model."""
    return next((name for name in HEAD_NAMES if isinstance(getattr(model, name, None), nn.Module)), None)


def missing_parts(base: nn.Module) -> tuple[str, ...]:
    """The names of the parts beside the head that the base's checkpoint lacks."""
    return tuple(name for name in lacking(base) if not inside(name, HEAD_NAMES))


def own_state(task: str, model: nn.Module, paths: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of some modules of a model: those of a task where it has its own."""
    state: dict[str, Tensor] = {}
    for path in paths:
        module = model.get_submodule(path)
        if isinstance(module, TaskHeads):
            names = module.shared.task_names[HEADS].names
            module = module.of(task if task in names else names[0])
        state |= {f"{path}.{name}": value for name, value in module.state_dict().items()}
    return state


def head_widths(base: nn.Module, folder: Path) -> dict[str | None, int]:
    """Outputs of the saved heads by task, or of the one saved head under None; empty where none is saved.

    Raises:
        ValueError: the folder holds other modules that were trained in full, or lacks parts that the base lacks too.
    """
    parts, head = missing_parts(base), head_path(base)
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        names = [name.removeprefix("base_model.model.") for name in file.keys()]  # noqa: SIM118 - no mapping
        trained = [name for name in names if ".lora_" not in name and ".lorachord_" not in name]
        for part in parts:
            if not any(inside(name, (part,)) for name in trained):
                raise ValueError(
                    f"The checkpoint of the base lacks {part}, which is drawn at random, and {folder} was saved "
                    "without it. Train the adapter again; or merge it in the run that it was trained in, and fuse the "
                    "folder of the whole model."
                )
        last = "" if head is None else _last_linear(base.get_submodule(head))
        widths: dict[str | None, int] = {}
        for name in trained:
            first, _, rest = name.partition(".")
            if inside(name, parts):
                continue
            if first != head:
                raise ValueError(
                    f"{folder} holds {name}, trained in full. Of such modules fusion keeps the head of a sequence "
                    "classifier, and what the checkpoint of the base lacks: merge the adapter, save that model, and "
                    "fuse the folder of the whole model."
                )
            owner, own = None, rest
            if rest.startswith("heads."):
                _, owner, own = rest.split(".", 2)
                owner = owner.replace("%2E", ".")
            if own == (f"{last}.weight" if last else "weight"):
                widths[owner] = file.get_slice(f"base_model.model.{name}").get_shape()[0]
        return widths


def with_heads(base: Any, tasks: tuple[str, ...], heads: Heads, parts: tuple[str, ...]) -> Any:
    """A head and parts for each task in place of the base's own; a task without saved ones gets copies of the base's.

    Args:
        base: a skeleton, changed in place.
        parts: names of the modules that its checkpoint lacks.
    """
    head = head_path(base)
    if head is not None and isinstance(base.get_submodule(head), TaskHeads):
        keep_head(base, 0)
    for path in (*parts, *([] if head is None else [head])):
        inner = {task: _within(heads.get(task, {}), path) for task in tasks}
        if not any(inner.values()):
            continue
        own = base.get_submodule(path)
        states = {task: state or own.state_dict() for task, state in inner.items()}
        if path == head:
            last = _last_linear(own)
            weight = f"{last}.weight" if last else "weight"
            add_heads(base, {task: len(state[weight]) for task, state in states.items()})
        else:
            base.set_submodule(path, TaskHeads.of_copies(own, tasks))
        for task, state in states.items():
            base.get_submodule(path).of(task).load_state_dict(state)
    return base.requires_grad_(False).eval()


def _within(state: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{path}."): value for name, value in state.items() if inside(name, (path,))}


def _last_linear(module: nn.Module) -> str:
    """
    Raises:
        ValueError: there is none.
    """
    names: list[str] = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    if not names:
        raise ValueError(
            f"The head, a {type(module).__name__}, has no linear layer, so the classes of its outputs are not known: "
            "merge each adapter, save the models, and fuse their folders."
        )
    return names[-1]
