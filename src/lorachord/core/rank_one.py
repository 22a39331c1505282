"""Experts of rank one: each row is multiplied by a small matrix of gates of its own.

Shapes: B samples, L rows of one sample, N = B * L rows; R inputs, S outputs, C = R S gates.

Background. As in `core/routing.py`: one autograd function. With gates first, (C, N), its loops run over rows; a batch
of N tiny matrix products takes longer than all else that the method adds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorachord.core.precision import without_autocast
from lorachord.core.routing import through_softmax


def gate_rank_one(
    h_BLR: Tensor, logits_BLC: Tensor, share_B1: Tensor, cosines_BC: Tensor, by_token: float, by_prompt: float
) -> Tensor:
    """`sum_r h_r G_rs`, (B, L, S), with G a row-major (R, S) matrix, in at least float32:

        G = by_token share softmax(logits) + by_prompt (1 - share) cosines

    Args:
        h_BLR, logits_BLC: of each row.
        share_B1: of each sample, or one for all: (1, 1).
        cosines_BC: of each sample; without a gradient.
        by_token, by_prompt: the weights of the two parts.
    """
    with without_autocast(h_BLR):
        gated_BLS: Tensor = _RankOne.apply(h_BLR, logits_BLC, share_B1, cosines_BC, by_token, by_prompt)
    return gated_BLS


class _RankOne(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h_BLR: Tensor,
        logits_BLC: Tensor,
        share_B1: Tensor,
        cosines_BC: Tensor,
        by_token: float,
        by_prompt: float,
    ) -> Tensor:
        wide = torch.promote_types(logits_BLC.dtype, torch.float32)
        softmax_CN = torch.softmax(_rows_last(logits_BLC).to(wide), dim=0)
        h_RN = _rows_last(h_BLR)
        share_wide_B1, cosines_BC = share_B1.to(wide), cosines_BC.to(wide)
        weights = by_token * share_wide_B1, by_prompt * (1 - share_wide_B1), cosines_BC
        ctx.save_for_backward(h_RN, softmax_CN, *weights)
        ctx.batch, ctx.dtypes = h_BLR.shape[:2], (logits_BLC.dtype, share_B1.dtype)
        ctx.by_token, ctx.by_prompt = by_token, by_prompt
        gates_RSN = _gates(softmax_CN, *weights).to(h_RN.dtype).view(len(h_RN), -1, h_RN.shape[1])
        gated_NS: Tensor = (gates_RSN * h_RN.unsqueeze(1)).sum(0).t()
        return gated_NS.view(*ctx.batch, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BLS: Tensor) -> tuple[Tensor | None, ...]:
        h_RN, softmax_CN, by_token_B1, by_prompt_B1, cosines_BC = ctx.saved_tensors
        grad_SN, (num_samples, num_rows) = _rows_last(grad_BLS), ctx.batch
        gates_RSN = _gates(softmax_CN, by_token_B1, by_prompt_B1, cosines_BC).to(h_RN.dtype)
        grad_h_RN = (gates_RSN.view(len(h_RN), -1, h_RN.shape[1]) * grad_SN).sum(1)
        grad_CN = (h_RN.unsqueeze(1) * grad_SN).flatten(0, 1).to(softmax_CN.dtype)
        grad_logits_CN = through_softmax(grad_CN, softmax_CN, dim=0)
        # One share for all samples, or each its own: the rows of a share lie side by side.
        blocks = len(grad_CN), len(by_token_B1), -1
        grad_logits_CN.view(blocks).mul_(by_token_B1)
        grad_by_token_B = (softmax_CN * grad_CN).view(blocks).sum((0, 2))
        grad_of_samples_CB = grad_CN.view(-1, num_samples, num_rows).sum(2)
        grad_by_prompt_B = (grad_of_samples_CB * cosines_BC.t()).reshape(blocks).sum((0, 2))
        grad_share_B1 = (ctx.by_token * grad_by_token_B - ctx.by_prompt * grad_by_prompt_B).unsqueeze(1)
        logits_dtype, share_dtype = ctx.dtypes
        return (
            grad_h_RN.t().view(num_samples, num_rows, -1),
            grad_logits_CN.to(logits_dtype).t().view(num_samples, num_rows, -1),
            grad_share_B1.to(share_dtype),
            None,
            None,
            None,
        )


def _gates(softmax_CN: Tensor, by_token_B1: Tensor, by_prompt_B1: Tensor, cosines_BC: Tensor) -> Tensor:
    """(C, B, L), contiguous."""
    by_token_CBL = softmax_CN.view(len(softmax_CN), len(cosines_BC), -1) * by_token_B1
    return by_token_CBL.add_((by_prompt_B1 * cosines_BC).t().unsqueeze(2))


def _rows_last(tensor_BLX: Tensor) -> Tensor:
    """(X, N), contiguous."""
    return tensor_BLX.flatten(0, 1).t().contiguous()
