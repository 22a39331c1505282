"""Experts of rank one: each row is multiplied by a small matrix of gates of its own.

Shapes: B samples, L rows of one sample; R inputs, S outputs, C = R S gates; X is B, or 1 where all samples have the
same.

Background. As in `kernels/route.py`: one autograd function with rows last, (C, B, L), so that its loops run over rows;
a batch of tiny matrix products takes longer than all else that the method adds. And of few operations, views among
them: the arithmetic of each takes less time than getting there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorachord.kernels.apply import applied
from lorachord.kernels.devices import without_autocast
from lorachord.kernels.route import through_softmax


def gate_rank_one(
    h_BLR: Tensor,
    logits_BLC: Tensor,
    cosines_BC: Tensor,
    weights_X2: Tensor,
    mask_BL: Tensor | None = None,
    *,
    recording: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`sum_r h_r G_rs`, (B, L, S), with G a row-major (R, S) matrix, in at least float32:

        G = by_token softmax(logits) + by_prompt cosines

    Args:
        h_BLR, logits_BLC: of each row.
        cosines_BC: of each sample; without a gradient.
        weights_X2: `by_token` and `by_prompt`.
        mask_BL: True for the rows that count in the sum. Default: all.
        recording: whether to make the sum. Default false.

    Returns:
        The rows, and the sum of the softmax over the rows that count (C,), without a gradient, or None.
    """
    with without_autocast(h_BLR):
        gated_BLS, load_C = applied(_RankOne, h_BLR, logits_BLC, cosines_BC, weights_X2, mask_BL, recording)
    return gated_BLS, load_C


class _RankOne(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h_BLR: Tensor,
        logits_BLC: Tensor,
        cosines_BC: Tensor,
        weights_X2: Tensor,
        mask_BL: Tensor | None,
        recording: bool,
    ) -> tuple[Tensor, Tensor | None]:
        wide = torch.promote_types(logits_BLC.dtype, torch.float32)
        logits_CBL = logits_BLC.permute(2, 0, 1).to(wide).contiguous()
        softmax_CBL = torch.softmax(logits_CBL, dim=0)
        h_R1BL = h_BLR.permute(2, 0, 1).unsqueeze(1)
        cosines_CB1, weights_X2 = cosines_BC.t().unsqueeze(2).to(wide), weights_X2.to(wide)
        if torch.compiler.is_compiling():
            # Inductor takes the strides of a saved view for those of every batch.
            h_R1BL = h_R1BL.contiguous()
        ctx.save_for_backward(h_R1BL, softmax_CBL, cosines_CB1, weights_X2)
        ctx.dtype = h_BLR.dtype
        token_1X1, prompt_1X1 = weights_X2[None, :, :, None].unbind(2)
        gates_CBL = (softmax_CBL * token_1X1).add_(prompt_1X1 * cosines_CB1)
        gates_RSBL = gates_CBL.view(len(h_R1BL), -1, *gates_CBL.shape[1:])
        load_C = None
        if recording:
            load_C = (softmax_CBL if mask_BL is None else softmax_CBL * mask_BL).sum((1, 2))
            ctx.mark_non_differentiable(load_C)
        return gates_RSBL.mul_(h_R1BL).sum(0).to(h_BLR.dtype).permute(1, 2, 0), load_C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BLS: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        h_R1BL, softmax_CBL, cosines_CB1, weights_X2 = ctx.saved_tensors
        num_inputs, _, num_samples, num_rows = h_R1BL.shape
        num_gates, wide = len(softmax_CBL), softmax_CBL.dtype
        h_RBL, grad_1SBL = h_R1BL.to(wide).squeeze(1), grad_BLS.permute(2, 0, 1).to(wide).unsqueeze(0)
        # One tensor of both gradients: the product that they go back through takes them as one.
        grad_XBL = softmax_CBL.new_empty(num_inputs + num_gates, num_samples, num_rows)
        grad_h_RBL, grad_logits_CBL = grad_XBL.split((num_inputs, num_gates))

        # The gradients of h for either weight being 1.
        slope_RSBL = grad_1SBL * softmax_CBL.view(num_inputs, -1, num_samples, num_rows)
        slopes_2RBL = slope_RSBL.new_empty(2, *h_RBL.shape)
        token_RBL, prompt_RBL = slopes_2RBL.unbind()
        torch.sum(slope_RSBL, 1, out=token_RBL)
        torch.mul(grad_1SBL, cosines_CB1.reshape(num_inputs, -1, num_samples, 1), out=slope_RSBL)
        torch.sum(slope_RSBL, 1, out=prompt_RBL)

        token_1X1, prompt_1X1 = weights_X2[None, :, :, None].unbind(2)
        torch.mul(token_RBL, token_1X1, out=grad_h_RBL).addcmul_(prompt_RBL, prompt_1X1)
        torch.mul(grad_1SBL, (h_RBL * token_1X1).unsqueeze(1), out=slope_RSBL)
        through_softmax(slope_RSBL.reshape(softmax_CBL.shape), softmax_CBL, dim=0, out=grad_logits_CBL)
        every = (1, 3) if len(weights_X2) == num_samples else (1, 2, 3)
        grad_weights_2X = slopes_2RBL.mul_(h_RBL).sum(every).view(2, -1)
        grad_h, grad_logits = (part.permute(1, 2, 0) for part in grad_XBL.to(ctx.dtype).split((num_inputs, num_gates)))
        return grad_h, grad_logits, None, grad_weights_2X.t(), None, None
