"""Choosing pairs of factors from two pools: from the mean of a prompt to the matrix between the factors.

Shapes: B samples, D features; E factors in each pool, R pairs chosen; F = 2 E rows of the router, W_A above W_B.

Background. As in `core/routing.py`: fifty operations on a handful of numbers, so their number is what they cost, and
one autograd function takes half of it. Where each sample's gradient is wanted apart, the weights come once for each
sample, B equal ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def choose_pairs(mean_BD: Tensor, router_BFD: Tensor, pairs_BERE: Tensor, *, scored: bool) -> Tensor:
    """The matrix (B, E, E) with c_k at (s_A(k), s_B(k)) and 0 elsewhere.

        p_A = softmax(W_A m),                              s_A the R most probable, in falling order
        p_B = softmax(W_B m) + sum_i pairs[s_A(i), i],     s_B the R most probable, in falling order
        q_k = p_A[s_A(k)] p_B[s_B(k)];                     c_k = R q_k / sum q if `scored`, else 1

    Args:
        mean_BD: m.
        router_BFD: (1, F, D), or B times the same.
        pairs_BERE: (1, E, R, E), or B times the same.
        scored: whether the choice has weights, through which alone there is a gradient.
    """
    # In half precision, probabilities would tie.
    with torch.autocast(mean_BD.device.type, enabled=False):
        matrix_BEE: Tensor = _Choose.apply(
            mean_BD, *(weights.to(mean_BD.dtype) for weights in (router_BFD, pairs_BERE)), scored
        )
    return matrix_BEE


class _Choose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean_BD: Tensor, router_BFD: Tensor, pairs_BERE: Tensor, scored: bool) -> Tensor:
        num_samples, (num_experts, r) = len(mean_BD), pairs_BERE.shape[1:3]
        logits_BF = mean_BD @ router_BFD[0].t()
        probs_B2E = torch.softmax(logits_BF.unflatten(1, (2, num_experts)), dim=-1)
        of_a_BR, chosen_a_BR = probs_B2E[:, 0].topk(r)
        # Row s_A(i) R + i of the pairs.
        row_BR = torch.add(torch.arange(r, device=mean_BD.device), chosen_a_BR, alpha=r)
        given_BRE = pairs_BERE[0].flatten(0, 1)[row_BR]
        of_b_BR, chosen_b_BR = (probs_B2E[:, 1] + given_BRE.sum(1)).topk(r)
        place_BR = torch.add(chosen_b_BR, chosen_a_BR, alpha=num_experts)
        if scored:
            score_BR = of_a_BR * of_b_BR
            share_B1 = r / score_BR.sum(1, keepdim=True)
            weight_BR = score_BR * share_B1
            chosen_B2R = torch.stack([chosen_a_BR, chosen_b_BR], dim=1)
            # Of a product, each factor's slope is the other.
            slope_B2R = torch.stack([of_b_BR, of_a_BR], dim=1) * share_B1.unsqueeze(1)
            ctx.save_for_backward(mean_BD, router_BFD, probs_B2E, slope_B2R, weight_BR, row_BR, chosen_B2R, place_BR)
            ctx.pairs_shape = pairs_BERE.shape
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
        apart, size = len(router_BFD) > 1, ctx.pairs_shape[1] * ctx.pairs_shape[2]
        if apart:
            row_BR = torch.arange(0, size * len(row_BR), size, device=row_BR.device).unsqueeze(1) + row_BR
        rows_XE = probs_B2E.new_zeros(ctx.pairs_shape[:3].numel(), num_experts)
        rows_XE = rows_XE.index_add(0, row_BR.flatten(), given_BRE.reshape(-1, num_experts))
        slope_B2E = probs_B2E * grad_B2E
        grad_BF = torch.addcmul(slope_B2E, probs_B2E, slope_B2E.sum(-1, keepdim=True), value=-1).flatten(1)
        grad_router_BFD = grad_BF.unsqueeze(2) * mean_BD.unsqueeze(1) if apart else (grad_BF.t() @ mean_BD).unsqueeze(0)
        grad_mean_BD = grad_BF @ router_BFD[0]
        return grad_mean_BD, grad_router_BFD, rows_XE.view(ctx.pairs_shape), None
