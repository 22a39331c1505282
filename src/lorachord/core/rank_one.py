"""Experts of rank one: each row is multiplied by a small matrix of gates of its own.

Shapes: B samples, L rows of one, N = B * L rows; R inputs, S outputs, C = R S gates.

Background. As in `core/routing.py`: one autograd function, laid out with gates first. A batch of N tiny matrix products
takes longer than all else that the method adds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorachord.core.routing import rows_last


def gate_rank_one(h_BLR: Tensor, logits_BLC: Tensor) -> Tensor:
    """`sum_r h_r G_rs`, (B, L, S), with G the row-major (R, S) matrix of softmax(logits), in at least float32."""
    gated_BLS: Tensor = _RankOne.apply(h_BLR, logits_BLC)
    return gated_BLS


class _RankOne(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_BLR: Tensor, logits_BLC: Tensor) -> Tensor:
        wide = torch.promote_types(logits_BLC.dtype, torch.float32)
        gates_CN = torch.softmax(rows_last(logits_BLC).to(wide), dim=0)
        h_RN = rows_last(h_BLR)
        ctx.save_for_backward(h_RN, gates_CN)
        ctx.dtype, ctx.batch = logits_BLC.dtype, h_BLR.shape[:2]
        gates_RSN = gates_CN.to(h_RN.dtype).unflatten(0, (len(h_RN), -1))
        gated_NS: Tensor = (gates_RSN * h_RN.unsqueeze(1)).sum(0).t()
        return gated_NS.view(*ctx.batch, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BLS: Tensor) -> tuple[Tensor, Tensor]:
        h_RN, gates_CN = ctx.saved_tensors
        grad_SN = rows_last(grad_BLS)
        gates_RSN = gates_CN.to(h_RN.dtype).unflatten(0, (len(h_RN), -1))
        grad_h_RN = (gates_RSN * grad_SN).sum(1)
        grad_CN = gates_CN * (h_RN.unsqueeze(1) * grad_SN).flatten(0, 1)
        grad_CN = grad_CN - gates_CN * grad_CN.sum(0)
        return grad_h_RN.t().view(*ctx.batch, -1), grad_CN.to(ctx.dtype).t().view(*ctx.batch, -1)
