"""Experts of rank one: each row is multiplied by a small matrix of gates of its own.

Shapes: B samples, L rows of one sample; R inputs, S outputs, C = R S gates; Y layers with the same input; X is B, or 1
where all samples have the same.

Background. As in `core/routing.py`: one autograd function for all layers with the same input, with rows last,
(Y, C, B, L), so that its loops run over rows; a batch of tiny matrix products takes longer than all else that the
method adds. And of few operations, views among them: what one of them does takes less time than getting there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorachord.core.precision import without_autocast
from lorachord.core.routing import through_softmax


def gate_rank_one(
    h_BLX: Tensor, logits_BLX: Tensor, cosines_BC: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """`sum_r h_r G_rs` of each layer, (B, L, S), with G a row-major (R, S) matrix, in at least float32:

        G = by_token softmax(logits) + by_prompt cosines

    Args:
        h_BLX, logits_BLX: of each row, (B, L, Y R) and (B, L, Y C): one layer's beside the other's.
        cosines_BC: of each sample; without a gradient.
        weights: `by_token` and `by_prompt` of each layer (X, 2).
    """
    with without_autocast(h_BLX):
        gated: tuple[Tensor, ...] = _RankOne.apply(h_BLX, logits_BLX, cosines_BC, *weights)
    return gated


class _RankOne(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h_BLX: Tensor, logits_BLX: Tensor, cosines_BC: Tensor, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        num_layers, batch, num_experts = len(weights), h_BLX.shape[:2], cosines_BC.shape[1]
        wide = torch.promote_types(logits_BLX.dtype, torch.float32)
        logits_YCBL = logits_BLX.permute(2, 0, 1).to(wide).reshape(num_layers, num_experts, *batch)
        softmax_YCBL = torch.softmax(logits_YCBL, dim=1)
        h_YR1BL = h_BLX.permute(2, 0, 1).reshape(num_layers, -1, 1, *batch)
        cosines_CB1 = cosines_BC.t().unsqueeze(2).to(wide)
        weights_YX2 = _together(weights).to(wide)
        ctx.save_for_backward(h_YR1BL, softmax_YCBL, cosines_CB1, weights_YX2)
        ctx.dtype = h_BLX.dtype
        token_Y1X1, prompt_Y1X1 = weights_YX2.unsqueeze(1).unsqueeze(3).unbind(4)
        gates_YCBL = (softmax_YCBL * token_Y1X1).add_(prompt_Y1X1 * cosines_CB1)
        gates_YRSBL = gates_YCBL.view(num_layers, h_YR1BL.shape[1], -1, *batch)
        gated_YSBL = gates_YRSBL.mul_(h_YR1BL).sum(1).to(h_BLX.dtype)
        return tuple(gated_SBL.permute(1, 2, 0) for gated_SBL in gated_YSBL.unbind())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h_YR1BL, softmax_YCBL, cosines_CB1, weights_YX2 = ctx.saved_tensors
        num_layers, num_inputs, _, num_samples, num_rows = h_YR1BL.shape
        h_YRBL, wide = h_YR1BL.to(softmax_YCBL.dtype).squeeze(2), softmax_YCBL.dtype
        grad_Y1SBL = _together([grad_BLS.permute(2, 0, 1) for grad_BLS in grads]).to(wide).unsqueeze(1)
        # One tensor of both gradients: the product that they go back through takes them as one.
        num_h, num_logits = num_layers * num_inputs, num_layers * len(cosines_CB1)
        grad_XBL = softmax_YCBL.new_empty(num_h + num_logits, num_samples, num_rows)
        grad_h_XBL, grad_logits_XBL = grad_XBL.split((num_h, num_logits))

        # The gradients of h for either weight being 1.
        slope_YRSBL = grad_Y1SBL * softmax_YCBL.view(num_layers, num_inputs, -1, num_samples, num_rows)
        slopes_2YRBL = slope_YRSBL.new_empty(2, *h_YRBL.shape)
        token_YRBL, prompt_YRBL = slopes_2YRBL.unbind()
        torch.sum(slope_YRSBL, 2, out=token_YRBL)
        torch.mul(grad_Y1SBL, cosines_CB1.reshape(num_inputs, -1, num_samples, 1), out=slope_YRSBL)
        torch.sum(slope_YRSBL, 2, out=prompt_YRBL)

        token_Y1X1, prompt_Y1X1 = weights_YX2.unsqueeze(1).unsqueeze(3).unbind(4)
        torch.mul(token_YRBL, token_Y1X1, out=grad_h_XBL.view(h_YRBL.shape)).addcmul_(prompt_YRBL, prompt_Y1X1)
        torch.mul(grad_Y1SBL, (h_YRBL * token_Y1X1).unsqueeze(2), out=slope_YRSBL)
        shape = softmax_YCBL.shape
        through_softmax(slope_YRSBL.view(shape), softmax_YCBL, dim=1, out=grad_logits_XBL.view(shape))
        every = (2, 4) if weights_YX2.shape[1] == num_samples else (2, 3, 4)
        grad_weights_2YX = slopes_2YRBL.mul_(h_YRBL).sum(every).view(2, num_layers, -1)
        grad_h, grad_logits = (part.permute(1, 2, 0) for part in grad_XBL.to(ctx.dtype).split((num_h, num_logits)))
        return grad_h, grad_logits, None, *grad_weights_2YX.permute(1, 2, 0).unbind()


def _together(parts: Sequence[Tensor]) -> Tensor:
    """Stacked; a view of a single one."""
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack([*parts])
