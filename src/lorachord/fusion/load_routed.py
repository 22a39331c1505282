"""Task vectors of an input-routed adapter: what its routers do on average on the inputs of each task.

    tau_t = s B' E_{x of t}[M(x)] A',   core(h; x) = M(x) h

Construction. The core is linear in h, so a column of its mean matrix is its mean output for a unit vector. It keeps
what differs between tasks and loses what differs between the inputs of one.

Shapes: B samples, L tokens, R rows of A', S columns of B'.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from lorachord.core.adapter import Adapter
from lorachord.core.context import Context
from lorachord.fusion.checkpoints import Checkpoint
from lorachord.fusion.factors import LowRank
from lorachord.fusion.load import assemble, check_number, load_adapter
from lorachord.fusion.predictions import Data, predictions
from lorachord.fusion.saved_heads import missing_parts, own_state, with_heads
from lorachord.fusion.skeleton import skeleton
from lorachord.fusion.task_vectors import TaskVectors
from lorachord.tuner import on_task
from lorachord.tuner.layer import LorachordLinear

Members = dict[str, LowRank]
"""One task's factors, by layer."""


def load_routed_task_vectors(base: nn.Module, folder: str | Path, data: Data) -> TaskVectors:
    """Task vectors of one saved adapter, with its gates averaged on each task's inputs.

    Args:
        base: the plain model that it was trained on; it is left as it is.
        folder: the adapter's.
        data: batches of each task; their order is that of the tasks.

    Raises:
        ValueError: fewer than two tasks, or an adapter that does not fit the base.
    """
    check_number(tuple(data))
    return load_members(base, folder, tuple(data), lambda model, layers, task: _averaged(model, layers, task, data))


def load_members(
    base: nn.Module,
    folder: str | Path,
    tasks: tuple[str, ...],
    member: Callable[[PeftModel, dict[str, Adapter], str], Members],
) -> TaskVectors:
    """Task vectors of one saved adapter, from what `member` makes of its layers for each task.

    Args:
        base: the plain model that it was trained on; it is left as it is.
        folder: the adapter's.
        member: the factors by layer, from the model with the adapter, its adapted layers, and the task.
    """
    model, headed = load_adapter(tasks[0], base, Path(folder))
    name = model.active_adapter
    layers: dict[str, Adapter] = {
        path: layer.lorachord_adapter[name]  # type: ignore[misc]
        for path, layer in model.get_base_model().named_modules()
        if isinstance(layer, LorachordLinear)
    }
    members: list[Members | Checkpoint] = [member(model, layers, task) for task in tasks]
    plain = model.unload()
    parts = missing_parts(base)
    heads = {task: own_state(task, plain, (*parts, *headed)) for task in tasks}
    return assemble(with_heads(skeleton(base), tasks, heads, parts), tasks, members)


def _averaged(model: PeftModel, layers: dict[str, Adapter], task: str, data: Data) -> Members:
    means = {path: _Mean(adapter) for path, adapter in layers.items()}
    with torch.no_grad(), on_task(model, task):
        for mean in means.values():
            mean.adapter.core = mean.core  # type: ignore[method-assign]
        try:
            for inputs in data[task]:
                predictions(model, inputs)
        finally:
            for mean in means.values():
                del mean.adapter.core
        return {path: mean.factors() for path, mean in means.items() if mean.weight}


class _Mean:
    """Stands in for the core of one adapter and sums up its matrix."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter, self.own = adapter, adapter.core
        self.total_SR: Tensor | None = None
        self.weight = 0.0

    def core(self, h_BLR: Tensor, x_BLX: Tensor | None, ctx: Context) -> Tensor:
        """The adapter's own."""
        mask_BL = ctx.token_mask_BL
        if mask_BL is None or mask_BL.shape != h_BLR.shape[:2]:
            mask_BL = torch.ones(h_BLR.shape[:2], device=h_BLR.device)
        columns = []
        for rank in range(h_BLR.shape[-1]):
            unit_BLR = torch.zeros_like(h_BLR)
            unit_BLR[..., rank] = 1
            columns.append((self.own(unit_BLR, x_BLX, ctx) * mask_BL.to(h_BLR)[..., None]).sum((0, 1)))
        total_SR = torch.stack(columns, dim=1)
        self.total_SR = total_SR if self.total_SR is None else self.total_SR + total_SR
        self.weight += float(mask_BL.sum())
        return self.own(h_BLR, x_BLX, ctx)

    def factors(self) -> LowRank:
        """A' and s B' M with the mean M."""
        assert self.total_SR is not None
        adapter = self.adapter
        up_OR = adapter.scale * adapter.up_weight() @ (self.total_SR / self.weight)
        return LowRank(adapter.down_weight().detach().clone(), up_OR.detach())
