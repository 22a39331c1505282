"""An adapter as the plain LoRA that it equals, if it does: the source of merging and exporting.

A core that is linear is its image of the identity, so its matrix is read off by one call.

Shapes: D inputs and O outputs of the layer; R rows of A', S columns of B'.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorachord.core.adapter import Adapter
from lorachord.core.context import NO_CONTEXT, Context, Mixing


def factors(adapter: Adapter, task: int | None = None) -> tuple[Tensor, Tensor]:
    """The plain LoRA that an adapter equals: `(A', s B' M)` with M the core's matrix.

    Args:
        adapter: of a STATIC or TASK method.
        task: index of the task; needed by TASK methods, ignored by STATIC ones.

    Returns:
        down (R, D) and up (O, R), float32 or wider, detached; the update is `up @ down`, the scale is in `up`.

    Raises:
        ValueError: an INPUT method, or a TASK method without a task.
    """
    require_matrix(type(adapter), task)
    was_training = adapter.training
    with torch.no_grad():
        adapter.eval()
        down_RD, up_OS = adapter.down_weight(), adapter.up_weight()
        identity_1RR = torch.eye(len(down_RD), dtype=down_RD.dtype, device=down_RD.device)[None]
        ctx = NO_CONTEXT if task is None else Context.of_tasks([task], down_RD.device)
        matrix_RS = adapter.core(identity_1RR, None, ctx)[0]
        adapter.train(was_training)
        return down_RD.clone(), adapter.scale * up_OS @ matrix_RS.t()


def delta(adapter: Adapter, task: int | None = None) -> Tensor:
    """The dense update (O, D) that merging adds to W0; arguments and errors as in `factors`."""
    down_RD, up_OR = factors(adapter, task)
    return up_OR @ down_RD


def require_matrix(method: type[Adapter], task: int | None) -> None:
    """Raise the ValueError of `factors` if a method's update is no fixed matrix, or not without a task."""
    if method.mixing is Mixing.INPUT:
        raise ValueError(
            f"{method.method} routes by its input, so it equals no single LoRA and can be neither merged nor exported "
            "as one. Serve it as it is (save_pretrained, then PeftModel.from_pretrained with lorachord imported), "
            "or train a method whose core is static or per task: see `lorachord methods`."
        )
    if method.mixing is Mixing.TASK and task is None:
        raise ValueError(
            f"{method.method} has one weight per task, so say which: lorachord.merge(model, task=...), "
            "lorachord.export_lora(model, out, task=...), or merge inside `with lorachord.on_task(model, task):`."
        )
