"""Choosing pairs of factors from two pools: from the mean of a prompt to the matrix between the factors.

Shapes: B samples, D features; E factors in each pool, R pairs chosen; F = 2 E rows of the router, W_A above W_B.

Background. As in `core/routing.py`: fifty operations on a handful of numbers, so their number is what they cost, and
one autograd function takes half of it. The weights have a leading axis of 1, or of B where each sample's gradient is
wanted apart.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def choose_pairs(mean_BD: Tensor, router_BFD: Tensor, pairs_BREE: Tensor, *, scored: bool) -> Tensor:
    """The matrix (B, E, E) with c_k at (s_A(k), s_B(k)) and 0 elsewhere.

        p_A = softmax(W_A m),                              s_A the R most probable, in falling order
        p_B = softmax(W_B m) + sum_i pairs[i, s_A(i)],     s_B the R most probable, in falling order
        q_k = p_A[s_A(k)] p_B[s_B(k)];                     c_k = R q_k / sum q if `scored`, else 1

    Args:
        mean_BD: m.
        router_BFD: (1 or B, F, D).
        pairs_BREE: (1 or B, R, E, E).
        scored: whether the choice has weights, through which alone there is a gradient.
    """
    # In half precision, probabilities would tie.
    with torch.autocast(mean_BD.device.type, enabled=False):
        matrix_BEE: Tensor = _Choose.apply(
            mean_BD, *(weights.to(mean_BD.dtype) for weights in (router_BFD, pairs_BREE)), scored
        )
    return matrix_BEE


class _Choose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean_BD: Tensor, router_BFD: Tensor, pairs_BREE: Tensor, scored: bool) -> Tensor:
        num_samples, (r, num_experts) = len(mean_BD), pairs_BREE.shape[1:3]
        logits_BF = (router_BFD.expand(num_samples, -1, -1) @ mean_BD.unsqueeze(2)).squeeze(2)
        probs_B2E = torch.softmax(logits_BF.unflatten(1, (2, num_experts)), dim=-1)
        of_a_BR, chosen_a_BR = probs_B2E[:, 0].topk(r)
        # Row i E + s_A(i) of the pairs; those of sample b stand R E further on each.
        row_BR = chosen_a_BR + num_experts * torch.arange(r, device=mean_BD.device)
        if len(pairs_BREE) > 1:
            row_BR = row_BR + r * num_experts * torch.arange(num_samples, device=mean_BD.device).unsqueeze(1)
        given_BRE = pairs_BREE.flatten(0, 2)[row_BR]
        of_b_BR, chosen_b_BR = (probs_B2E[:, 1] + given_BRE.sum(1)).topk(r)
        place_BR = chosen_a_BR * num_experts + chosen_b_BR
        if scored:
            score_BR = of_a_BR * of_b_BR
            share_B1 = r / score_BR.sum(1, keepdim=True)
            weight_BR = score_BR * share_B1
            chosen_B2R = torch.stack([chosen_a_BR, chosen_b_BR], dim=1)
            # Of a product, each factor's slope is the other.
            slope_B2R = torch.stack([of_b_BR, of_a_BR], dim=1) * share_B1.unsqueeze(1)
            ctx.save_for_backward(mean_BD, router_BFD, probs_B2E, slope_B2R, weight_BR, row_BR, chosen_B2R, place_BR)
            ctx.pairs_shape = pairs_BREE.shape
        else:
            weight_BR = torch.ones_like(of_a_BR)
        matrix_BF = weight_BR.new_zeros(num_samples, num_experts**2).scatter_(1, place_BR, weight_BR)
        ctx.scored = scored
        return matrix_BF.view(num_samples, num_experts, num_experts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BEE: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.scored:
            return None, None, None, None
        mean_BD, router_BFD, probs_B2E, slope_B2R, weight_BR, row_BR, chosen_B2R, place_BR = ctx.saved_tensors
        num_experts = probs_B2E.shape[2]
        grad_BR = grad_BEE.flatten(1).gather(1, place_BR)
        grad_BR = grad_BR - (grad_BR * weight_BR).mean(1, keepdim=True)
        grad_B2E = torch.zeros_like(probs_B2E).scatter(2, chosen_B2R, slope_B2R * grad_BR.unsqueeze(1))
        # The sum over i gives each chosen row of the pairs what the sum of both gets.
        given_BRE = grad_B2E[:, 1:].expand(-1, row_BR.shape[1], -1)
        rows_XE = probs_B2E.new_zeros(ctx.pairs_shape[:3].numel(), num_experts)
        rows_XE = rows_XE.index_add(0, row_BR.flatten(), given_BRE.reshape(-1, num_experts))
        slope_B2E = probs_B2E * grad_B2E
        grad_BF = torch.addcmul(slope_B2E, probs_B2E, slope_B2E.sum(-1, keepdim=True), value=-1).flatten(1)
        if len(router_BFD) == 1:
            grad_mean_BD, grad_router_BFD = grad_BF @ router_BFD[0], (grad_BF.t() @ mean_BD).unsqueeze(0)
        else:
            grad_mean_BD = (grad_BF.unsqueeze(1) @ router_BFD).squeeze(1)
            grad_router_BFD = grad_BF.unsqueeze(2) * mean_BD.unsqueeze(1)
        return grad_mean_BD, grad_router_BFD, rows_XE.view(ctx.pairs_shape), None
