"""A linear map over blocks of rows, each block by a weight of its own.

Shapes: B samples of L rows, N = B * L; U blocks of M rows each; R inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lorachord.kernels.apply import applied
from lorachord.kernels.devices import on_cpu


def blocks_linear(h: Tensor, weight_URO: Tensor, out: Tensor, scale: float, *, overwrite: bool = False) -> Tensor:
    """`out + scale * h W_u` for the rows of each block u.

    Args:
        h: (..., R); its N rows fall into U blocks of N / U, in their order.
        weight_URO: the blocks' weights, in the same dtype.
        out: (..., O), what to add to, in the same dtype.
        scale: factor of the product.
        overwrite: as in `rows_linear`.
    """
    if not on_cpu(h):
        h_UMR, out_UMO = _blocks(h, len(weight_URO)), _blocks(out, len(weight_URO))
        return torch.baddbmm(out_UMO, h_UMR, weight_URO, alpha=scale).view(out.shape)
    result: Tensor = applied(_BlocksLinear, h, weight_URO, out, scale, overwrite)
    return result


class _BlocksLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight_URO: Tensor, out: Tensor, scale: float, overwrite: bool) -> Tensor:
        ctx.save_for_backward(h, weight_URO)
        ctx.scale = scale
        h_UMR = _blocks(h, len(weight_URO))
        if overwrite:
            # As in `rows_linear`.
            y = out.detach()
            _blocks(y, len(weight_URO)).baddbmm_(h_UMR, weight_URO, alpha=scale)
            return y
        out_UMO = _blocks(out, len(weight_URO))
        return torch.baddbmm(out_UMO, h_UMR, weight_URO, alpha=scale).view(out.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, weight_URO = ctx.saved_tensors
        needs_h, needs_weight, needs_out = ctx.needs_input_grad[:3]
        grad_UMO = _blocks(grad, len(weight_URO))
        grad_h = grad_weight = None
        if needs_h:
            grad_h = _scaled(grad_UMO, weight_URO.mT, ctx.scale).view(h.shape)
        if needs_weight:
            grad_weight = _scaled(_blocks(h, len(weight_URO)).mT, grad_UMO, ctx.scale)
        return grad_h, grad_weight, grad if needs_out else None, None, None


def _scaled(a_UNK: Tensor, b_UKM: Tensor, scale: float) -> Tensor:
    """`scale * a b` of each block, scaled inside the product."""
    # With a beta of 0 nothing is read of what would be added.
    return torch.baddbmm(a_UNK.new_empty(()), a_UNK, b_UKM, beta=0, alpha=scale)


def _blocks(rows: Tensor, num_blocks: int) -> Tensor:
    blocks: Tensor = rows.reshape(-1, rows.shape[-1]).unflatten(0, (num_blocks, -1))
    return blocks
