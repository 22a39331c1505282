"""Experts of rank one: each row is multiplied by a small matrix of gates of its own.

Shapes: B samples, L rows of one sample, N = B * L rows; R inputs, S outputs, C = R S gates; Y layers with the same
input; X is B, or 1 where all samples have the same.

Background. As in `core/routing.py`: one autograd function for all layers with the same input, with rows last,
(Y, C, N), so that its loops run over rows; a batch of N tiny matrix products takes longer than all else that the method
adds. The gates are never made for the way back: all that it needs of them are sums, over S of each expert's share in
the output, which the factors' gradients and those of the weights are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorachord.core.precision import without_autocast


def gate_rank_one(
    h_BLX: Tensor, logits_BLX: Tensor, switches_YX2: Tensor, cosines_BC: Tensor, by_token: float, by_prompt: float
) -> Sequence[Tensor]:
    """`sum_r h_r G_rs` of each layer, (B, L, S), with G a row-major (R, S) matrix, in at least float32:

        G = gate (by_token share softmax(logits) + by_prompt (1 - share) cosines)

    Args:
        h_BLX, logits_BLX: of each row: (B, L, Y R) and (B, L, Y C), one layer's beside the other's.
        switches_YX2: gate and share of each layer.
        cosines_BC: of each sample; without a gradient.
        by_token, by_prompt: the weights of the two parts.
    """
    with without_autocast(h_BLX):
        gated: Sequence[Tensor] = _RankOne.apply(h_BLX, logits_BLX, switches_YX2, cosines_BC, by_token, by_prompt)
    return gated


class _RankOne(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h_BLX: Tensor,
        logits_BLX: Tensor,
        switches_YX2: Tensor,
        cosines_BC: Tensor,
        by_token: float,
        by_prompt: float,
    ) -> tuple[Tensor, ...]:
        wide = torch.promote_types(logits_BLX.dtype, torch.float32)
        num_layers, (num_samples, num_experts) = len(switches_YX2), cosines_BC.shape
        num_rows = h_BLX.shape[:2].numel()
        logits_YCN = _rows_last(logits_BLX).to(wide).view(num_layers, num_experts, num_rows)
        softmax_YCN = torch.softmax(logits_YCN, dim=1)
        h_YRN = _rows_last(h_BLX).view(num_layers, -1, num_rows)
        switches_YX2, cosines_BC = switches_YX2.to(wide), cosines_BC.to(wide)
        ctx.save_for_backward(h_YRN, softmax_YCN, switches_YX2, cosines_BC)
        ctx.constants, ctx.dtype = (by_token, by_prompt), h_BLX.dtype
        token_YX, prompt_YX = _weights(switches_YX2, by_token, by_prompt)
        gates_YCBL = softmax_YCN.unflatten(2, (num_samples, -1)) * token_YX[:, None, :, None]
        gates_YCBL.add_((prompt_YX.unsqueeze(2) * cosines_BC).mT.unsqueeze(3))
        gates_YRSN = gates_YCBL.view(num_layers, h_YRN.shape[1], -1, num_rows)
        gated_YSN = gates_YRSN.mul_(h_YRN.unsqueeze(2)).sum(1).to(h_BLX.dtype)
        return tuple(gated_SN.t().view(*h_BLX.shape[:2], -1) for gated_SN in gated_YSN.unbind())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h_YRN, softmax_YCN, switches_YX2, cosines_BC = ctx.saved_tensors
        (num_layers, num_inputs, num_rows), (num_samples, _) = h_YRN.shape, cosines_BC.shape
        wide, rows, samples = softmax_YCN.dtype, (-1, num_rows), (num_samples, num_rows // num_samples)
        # One tensor of both gradients: the product that they go back through takes them as one.
        num_h, num_logits = h_YRN.shape[:2].numel(), softmax_YCN.shape[:2].numel()
        grad_XN = softmax_YCN.new_empty(num_h + num_logits, num_rows)
        grad_h_YRN, grad_logits_YCN = (part.view(num_layers, *rows) for part in grad_XN.split((num_h, num_logits)))

        grad_Y1SN = torch.stack([_rows_last(grad_BLS) for grad_BLS in grads]).to(wide).unsqueeze(1)
        by_token_YRSN = softmax_YCN.view(num_layers, num_inputs, *grad_Y1SN.shape[2:]) * grad_Y1SN
        by_token_YRN = by_token_YRSN.sum(2)
        cosines_RSB1 = cosines_BC.t().reshape(num_inputs, -1, num_samples, 1)
        by_prompt_YRN = (grad_Y1SN.unflatten(3, samples) * cosines_RSB1).sum(2).view(num_layers, *rows)

        # The samples with the same switches lie side by side.
        token_Y1X1, prompt_Y1X1 = (part_YX[:, None, :, None] for part_YX in _weights(switches_YX2, *ctx.constants))
        blocks = num_layers, -1, switches_YX2.shape[1], num_rows // switches_YX2.shape[1]
        torch.mul(by_token_YRN.view(blocks), token_Y1X1, out=grad_h_YRN.view(blocks))
        grad_h_YRN.view(blocks).addcmul_(by_prompt_YRN.view(blocks), prompt_Y1X1)

        h_YRN = h_YRN.to(wide)
        by_token_YN, by_prompt_YN = (h_YRN * by_token_YRN).sum(1), (h_YRN * by_prompt_YRN).sum(1)
        grad_weights = (part_YN.view(num_layers, *blocks[2:]).sum(2) for part_YN in (by_token_YN, by_prompt_YN))

        weighted_YR1N = (h_YRN.view(blocks) * token_Y1X1).view(num_layers, num_inputs, 1, num_rows)
        torch.mul(by_token_YRSN, weighted_YR1N, out=grad_logits_YCN.view(by_token_YRSN.shape))
        mean_Y1N = (by_token_YN.view(blocks) * token_Y1X1).view(num_layers, *rows)
        grad_logits_YCN.addcmul_(softmax_YCN, mean_Y1N, value=-1)

        grad_h_NX, grad_logits_NX = grad_XN.to(ctx.dtype).t().split((num_h, num_logits), dim=1)
        grad_h, grad_logits = (grad_NX.view(*samples, -1) for grad_NX in (grad_h_NX, grad_logits_NX))
        return grad_h, grad_logits, _through_weights(switches_YX2, *grad_weights, *ctx.constants), None, None, None


def _weights(switches_YX2: Tensor, by_token: float, by_prompt: float) -> tuple[Tensor, Tensor]:
    """Of the two parts, (Y, X) each."""
    gate_YX, share_YX = switches_YX2.unbind(2)
    return by_token * gate_YX * share_YX, by_prompt * gate_YX * (1 - share_YX)


def _through_weights(
    switches_YX2: Tensor, grad_token_YX: Tensor, grad_prompt_YX: Tensor, by_token: float, by_prompt: float
) -> Tensor:
    gate_YX, share_YX = switches_YX2.unbind(2)
    token_YX, prompt_YX = by_token * grad_token_YX, by_prompt * grad_prompt_YX
    return torch.stack([share_YX * token_YX + (1 - share_YX) * prompt_YX, gate_YX * (token_YX - prompt_YX)], dim=2)


def _rows_last(tensor_BLX: Tensor) -> Tensor:
    """(X, N), contiguous."""
    return tensor_BLX.flatten(0, 1).t().contiguous()
