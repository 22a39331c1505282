"""One plain LoRA for each task of a routed adapter: in each layer the update that is nearest on the task's inputs.

    min_D E_{x of t} |(D - s B' M(x) A') x|^2   =>   D_t = s B' E[M(x) A' x x^T] C_t^-1

with M(x) the core's matrix and C_t the covariance of the layer's inputs, measured in the model with the routed adapter.
Construction, after RegMean (Jin et al., arXiv 2212.09849). Averaging the gates alone (`load_routed`) leaves out that
gates and inputs go together. C_t is damped (`core.covariance.DAMPING`) towards the averaged gates, so that a core that
does not look at its input stays as it is.

Shapes: N rows, D inputs and O outputs of a layer, R rows of A', S columns of B'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from lorachord.core.adapter import Adapter
from lorachord.core.context import Context
from lorachord.families.covariance import DAMPING
from lorachord.fusion.collapse import collapsed
from lorachord.fusion.factors import LowRank
from lorachord.fusion.load_routed import Members, load_members
from lorachord.fusion.predictions import Data, Inputs, predictions
from lorachord.fusion.task_vectors import Stacked, TaskVectors
from lorachord.tuner import on_task

MAX_BYTES = 2 * 1024**3
"""Of all covariances that are held at a time; more layers take more passes over the data."""


def distilled(base: nn.Module, folder: str | Path, data: Data, rank: int | None = None) -> TaskVectors:
    """Task vectors of one saved adapter, each the nearest plain LoRA on its task's inputs.

    Args:
        base: the plain model that it was trained on; it is left as it is.
        folder: the adapter's.
        data: batches of each task; their order is that of the tasks.
        rank: of each layer's update at most. Default: S, the columns of B'.

    Raises:
        ValueError: an adapter that does not fit the base, or a rank below 1.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}; it must be at least 1.")

    def fitted(model: PeftModel, layers: dict[str, Adapter], task: str) -> Members:
        found: Members = {}
        with torch.no_grad():
            for group in _groups(layers):
                moments = {path: _Moments(layers[path]) for path in group}
                _watch(model, moments, task, data[task])
                found |= {path: own.nearest(rank) for path, own in moments.items() if own.num_rows}
        return found

    return load_members(base, folder, tuple(data), fitted)


def _groups(layers: dict[str, Adapter]) -> Iterator[list[str]]:
    """Layers whose covariances are held together."""
    group, room = list[str](), MAX_BYTES
    for path, adapter in layers.items():
        size = 4 * adapter.layer.d_in**2
        if group and size > room:
            yield group
            group, room = [], MAX_BYTES
        group.append(path)
        room -= size
    yield group


def _watch(model: PeftModel, moments: dict[str, _Moments], task: str, batches: Sequence[Inputs]) -> None:
    handles = [own.adapter.register_forward_pre_hook(own.see_input) for own in moments.values()]
    for own in moments.values():
        own.adapter.core = own.core  # type: ignore[method-assign]
        own.adapter.folded_up = _unfolded  # type: ignore[method-assign]
    try:
        for inputs in batches:
            answers = inputs.answer_mask
            prompt = None if answers is None else inputs.tensors["attention_mask"].bool() & ~answers
            with on_task(model, task, prompt_mask=prompt):
                predictions(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
        for own in moments.values():
            del own.adapter.core, own.adapter.folded_up


def _unfolded(ctx: Context, num_rows: int) -> Tensor | None:
    return None


class _Moments:
    """Stands in for the core of one adapter, and sums up products of its inputs and outputs."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter, self.own = adapter, adapter.core
        self.num_rows = 0
        self.seen_ND: Tensor | None = None
        device = adapter.down_weight().device
        self.inputs_DD = torch.zeros(adapter.layer.d_in, adapter.layer.d_in, device=device)
        self.outputs_SD: Tensor | None = None
        self.total_SR: Tensor | None = None

    def see_input(self, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        """Keep the layer's input until its core runs."""
        self.seen_ND = given[0].detach().flatten(0, -2).float()

    def core(self, h_BLR: Tensor, x_BLX: Tensor | None, ctx: Context) -> Tensor:
        """The adapter's own."""
        mixed_BLS = self.own(h_BLR, x_BLX, ctx)
        assert self.seen_ND is not None
        mask_BL = ctx.token_mask_BL
        if mask_BL is None or mask_BL.shape != h_BLR.shape[:2]:
            mask_BL = torch.ones(h_BLR.shape[:2], device=h_BLR.device)
        keep_N = mask_BL.to(h_BLR.device).flatten().bool()
        x_ND, out_NS = self.seen_ND[keep_N], mixed_BLS.flatten(0, 1).float()[keep_N]
        columns = []
        for rank in range(h_BLR.shape[-1]):
            unit_BLR = torch.zeros_like(h_BLR)
            unit_BLR[..., rank] = 1
            columns.append(self.own(unit_BLR, x_BLX, ctx).flatten(0, 1).float()[keep_N].sum(0))
        outputs_SD, total_SR = out_NS.t() @ x_ND, torch.stack(columns, dim=1)
        self.inputs_DD += x_ND.t() @ x_ND
        self.outputs_SD = outputs_SD if self.outputs_SD is None else self.outputs_SD + outputs_SD
        self.total_SR = total_SR if self.total_SR is None else self.total_SR + total_SR
        self.num_rows += len(x_ND)
        self.seen_ND = None
        return mixed_BLS

    def nearest(self, rank: int | None) -> LowRank:
        """The factors of D_t."""
        assert self.outputs_SD is not None
        assert self.total_SR is not None
        adapter = self.adapter
        covariance_DD = self.inputs_DD.double() / self.num_rows
        damping = DAMPING * covariance_DD.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
        covariance_DD.diagonal().add_(damping)
        mean_SD = (self.total_SR.double() / self.num_rows) @ adapter.down_weight().double()
        products_SD = self.outputs_SD.double() / self.num_rows + damping * mean_SD
        down_SD = torch.cholesky_solve(products_SD.t(), torch.linalg.cholesky(covariance_DD)).t()
        found = LowRank(down_SD.float(), (adapter.scale * adapter.up_weight()).detach().float())
        if rank is None or rank >= found.rank:
            return found
        cut, _ = collapsed(Stacked.of([found]), [covariance_DD], rank)
        assert isinstance(cut, LowRank)
        return cut
