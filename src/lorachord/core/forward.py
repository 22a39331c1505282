"""The pass through one adapted layer: how a method's hooks (`core/adapter.py`) become the equation.

    y = W0 x + s * B' core(A' drop(x); x, ctx)

Shapes: B samples, L rows of one sample, N = B * L rows; D inputs and O outputs of the layer; R rows of A', S columns of
B'; E rows of a router; C the entries of a core's shared weight; T tasks; U blocks of rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorachord.core.align import Alignment
from lorachord.core.config import LayerSpec, MethodConfig
from lorachord.core.context import NO_CONTEXT, Context, Mixing
from lorachord.core.prepared import Store, prepare
from lorachord.core.probes import Probes
from lorachord.core.rows import by_unit, laid_out
from lorachord.kernels.blocks import blocks_linear
from lorachord.kernels.inner import inner_products
from lorachord.kernels.linear import add_rows, rows_linear
from lorachord.kernels.products import Places

Frozen = Callable[[Tensor], Tensor]


class Pass(nn.Module, ABC):
    """One layer's pass, of an adapter whose hooks are documented in `Adapter`.

    Attributes:
        by_prompt: whether the core depends on a sample's prompt, so that each row's sample must be known.
        probes: None, or the leaves that receive the factors' gradients per task instead of the factors.
        aligned: None, or what keeps the moments of each task's `A' drop(x)` for a penalty on them.
    """

    method: ClassVar[str]
    mixing: ClassVar[Mixing]
    rows_last: ClassVar[bool]
    by_prompt: ClassVar[bool] = False

    layer: LayerSpec
    config: MethodConfig
    probes: Probes | None
    aligned: Alignment | None

    @property
    @abstractmethod
    def scale(self) -> float: ...

    @abstractmethod
    def down_weight(self) -> Tensor: ...

    @abstractmethod
    def up_weight(self) -> Tensor: ...

    @abstractmethod
    def router_weight(self) -> Tensor | None: ...

    @abstractmethod
    def core_weight(self) -> Tensor | None: ...

    @abstractmethod
    def core(self, h_BLR: Tensor, x_BLX: Tensor | None, ctx: Context) -> Tensor: ...

    @abstractmethod
    def folded_up(self, ctx: Context, num_rows: int) -> Tensor | None: ...

    def forward(self, x: Tensor, frozen: Frozen, ctx: Context = NO_CONTEXT, *, alone: bool = False) -> Tensor:
        """`frozen(x) + s * B' core(A' drop(x))`.

        Args:
            x: (..., D), the layer's input.
            frozen: the frozen layer, from (..., D) to (..., O); or it with other adapters around it.
            ctx: tasks and masks of this pass.
            alone: whether nobody but `frozen` and this adapter has the layer's input and output, nor the gradients of
                these. On a CPU the update and its gradient are then added in place. Default False.

        Raises:
            ValueError: a TASK method without task ids, or rows of samples that are not known.
        """
        if self.mixing is Mixing.TASK and ctx.task_ids_B is None:
            raise ValueError(
                f"{self.method} needs the task of each sample, and none was named. Wrap the call in "
                "`with lorachord.on_task(model, tasks):`, in the thread or coroutine that makes it, or pass "
                "`lorachord_tasks=` to the model."
            )
        if ctx.prepared is not None:
            if self._single(x, ctx):
                return self._lean(x, frozen, ctx, ctx.prepared, alone)
            # What is in there was not compared with the weights.
            ctx = replace(ctx, prepared=None)
        # Where nothing is differentiated, no gradients are collected.
        probes = self.probes if torch.is_grad_enabled() else None
        aligned = self.aligned if self.training else None
        by_task = self.mixing is Mixing.TASK or probes is not None or aligned is not None
        batch, ctx = by_unit(x, ctx.to(x.device), self.layer.name, by_task=by_task, by_prompt=self.by_prompt)
        num_rows = batch[0] * batch[1]
        # Under autocast the frozen layer computes in autocast's dtype; so does the adapter.
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        runs = None if probes is None else probes.row_runs(ctx, num_rows)

        h, seen, passed = self._inner(x, dtype, probes, runs, through=alone)
        if aligned is not None:
            aligned.see(laid_out(h, batch), ctx)
        folded_URO = self.folded_up(ctx, num_rows) if probes is None else None
        if folded_URO is None:
            mixed_BLS = self.core(laid_out(h, batch), laid_out(seen, batch), ctx)
            # Autocast makes some sums wide, and which ones depends on the device.
            h = laid_out(mixed_BLS.to(dtype), x.shape[:-1])
        out = frozen(passed)
        # One product adds to the output in place of two passes over it; but the layer may have a dtype of its own.
        onto, overwrite = out if out.dtype == dtype else None, alone and out.is_contiguous()
        if folded_URO is not None:
            onto = torch.zeros_like(out, dtype=dtype) if onto is None else onto
            y = blocks_linear(h, folded_URO.to(dtype), onto, self.scale, overwrite=overwrite)
        else:
            up_OS, up_TOS = self.up_weight().to(dtype), None if probes is None else probes.up_TOS
            y = rows_linear(h, up_OS, out=onto, scale=self.scale, probe_TOI=up_TOS, row_runs=runs, overwrite=overwrite)
        return y if out.dtype == dtype else out + y.to(out.dtype)

    def _single(self, x: Tensor, ctx: Context) -> bool:
        """Whether a layer's input is one token of each sample of the pass, and nothing is differentiated."""
        batch = ctx.batch
        return (
            batch is not None
            and x.dim() == 3
            and x.shape[:2] == (batch.num_samples, 1)
            and not (self.training or torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type))
            and not torch.compiler.is_compiling()
        )

    def _lean(self, x: Tensor, frozen: Frozen, ctx: Context, store: Store, alone: bool) -> Tensor:
        """The pass over one token (B, 1, D) of each sample, by what was made of the weights for an earlier one."""
        found = store.get(self)
        if found is None or not found.holds(self, x.dtype, ctx.runs):
            inner, routed = (self.down_weight(), self.router_weight()), self.mixing is Mixing.INPUT
            core = None if routed else lambda eye_BRR: self.core(eye_BRR, None, ctx.to(eye_BRR.device))
            found = prepare(self, x.dtype, ctx.runs, inner, self.up_weight(), self.scale, core)
            store[self] = found
        if not found.routed:
            h_B1S = F.linear(x, found.inner_XD)
            if found.matrix_BRS is not None:
                h_B1S = torch.bmm(h_B1S, found.matrix_BRS)
        else:
            y_BX = (found.inner_XD @ x[:, 0].t()).t() if self.rows_last else F.linear(x[:, 0], found.inner_XD)
            h_BR, seen_BX = y_BX.tensor_split((found.num_down,), dim=1)
            seen = x if seen_BX.shape[1] == 0 else seen_BX.unsqueeze(1)
            h_B1S = self.core(h_BR.unsqueeze(1), seen, ctx.to(x.device)).to(x.dtype)
        return add_rows(h_B1S, found.up_SO, frozen(x), found.scale, overwrite=alone)

    def _inner(
        self, given: Tensor, dtype: torch.dtype, probes: Probes | None, runs: Places | None, through: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`A' drop(x)`; what the core sees, the router's logits or x; and x for the frozen layer."""
        x = given.to(dtype)
        drops = self.training and self.config.dropout > 0
        dropped = F.dropout(x, self.config.dropout) if drops else x
        leaf_TXD = None if probes is None else probes.inner_TXD
        weights, through = (self.down_weight(), self.router_weight()), through and x is given
        h, logits, passed = inner_products(
            dropped, x, *weights, leaf_TXD, runs, through=through, rows_last=self.rows_last
        )
        return h, x if logits is None else logits, given if passed is x else passed

    @final
    def shared_core(self, ctx: Context) -> Tensor:
        """`core_weight()` as `core` must use it: (1, *C), or (B, *C) while gradients per task are collected."""
        found = None if ctx.prepared is None else ctx.prepared.get(self)
        if found is not None and found.core_1C:
            return found.core_1C[0]
        weight_C, probe_BC = self.core_weight(), self.core_probe(ctx)
        assert weight_C is not None, "there is no core_weight"
        weight_BC = weight_C.unsqueeze(0) if probe_BC is None else weight_C.detach() + probe_BC
        if found is not None:
            found.core_1C.append(weight_BC)
        return weight_BC

    @final
    def core_probe(self, ctx: Context) -> Tensor | None:
        """Zeros (B, *C) that receive each sample's gradient of `core_weight()`; None where these are not collected."""
        return None if self.probes is None or not torch.is_grad_enabled() else self.probes.core_of_samples(ctx)

    @final
    def attach_probes(self, num_tasks: int, *, halves: bool = False) -> Probes:
        """From now on collect gradients per task, in the returned leaves, and not on the parameters.

        Args:
            num_tasks: T.
            halves: collect those of two halves of each task's samples apart, on an axis of 2 T.
        """
        down_RD, router_ED, core_C = self.down_weight(), self.router_weight(), self.core_weight()
        inner_XD = down_RD if router_ED is None else torch.cat([down_RD, router_ED])

        def zeros(like: Tensor) -> Tensor:
            shape = (2 * num_tasks if halves else num_tasks, *like.shape)
            return torch.zeros(shape, dtype=like.dtype, device=like.device, requires_grad=True)

        core_TC = None if core_C is None else zeros(core_C)
        self.probes = Probes(zeros(inner_XD), zeros(self.up_weight()), core_TC, halves)
        return self.probes

    @final
    def detach_probes(self) -> None:
        """Back to ordinary gradients."""
        self.probes = None
