"""Choosing pairs of factors from two pools: from the mean of a prompt to the matrix between the factors.

Shapes: B samples, D features; E factors in each pool, R pairs chosen; F = 2 E rows of the router, W_A above W_B;
P = E R rows of pairs; X numbers of all that is chosen by.

Background. As in `core/routing.py`: fifty operations on a handful of numbers, so their number is what they cost, and
one autograd function takes half of it. Where each sample's gradient is wanted apart, the weights come once for each
sample, B equal ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def choose_pairs(mean_BD: Tensor, weights_BX: Tensor, num_experts: int, r: int, *, scored: bool) -> Tensor:
    """The matrix (B, E, E) with c_k at (s_A(k), s_B(k)) and 0 elsewhere.

        p_A = softmax(W_A m),                              s_A the R most probable, in falling order
        p_B = softmax(W_B m) + sum_i pairs[s_A(i), i],     s_B the R most probable, in falling order
        q_k = p_A[s_A(k)] p_B[s_B(k)];                     c_k = R q_k / sum q if `scored`, else 1

    Args:
        mean_BD: m.
        weights_BX: W_A above W_B (F, D), and after them the pairs (E, R, E), end to end: (1, X), or B times the same.
        num_experts, r: E and R.
        scored: whether the c_k are scores, through which alone there is a gradient.
    """
    # In half precision, probabilities would tie.
    with torch.autocast(mean_BD.device.type, enabled=False):
        matrix_BEE: Tensor = _Choose.apply(mean_BD, weights_BX.to(mean_BD.dtype), num_experts, r, scored)
    return matrix_BEE


class _Choose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean_BD: Tensor, weights_BX: Tensor, num_experts: int, r: int, scored: bool) -> Tensor:
        num_samples, d_in = mean_BD.shape
        num_router = 2 * num_experts * d_in
        router_X, pairs_X = weights_BX[0].split([num_router, weights_BX.shape[1] - num_router])
        router_FD, pairs_PE = router_X.view(-1, d_in), pairs_X.view(-1, num_experts)
        logits_B2E = (mean_BD @ router_FD.t()).view(num_samples, 2, num_experts)
        probs_a_BE, probs_b_BE = torch.softmax(logits_B2E, dim=-1).unbind(1)
        of_a_BR, chosen_a_BR = probs_a_BE.topk(r)
        # Row s_A(i) R + i of the pairs.
        row_BR = torch.add(torch.arange(r, device=mean_BD.device), chosen_a_BR, alpha=r)
        total_BE = probs_b_BE + pairs_PE[row_BR].sum(1)
        of_b_BR, chosen_b_BR = total_BE.topk(r)
        place_BR = torch.add(chosen_b_BR, chosen_a_BR, alpha=num_experts)
        if scored:
            score_BR = of_a_BR * of_b_BR
            weight_BR = score_BR * (r / score_BR.sum(1, keepdim=True))
        else:
            weight_BR = torch.ones_like(of_a_BR)
        matrix_BEE: Tensor = weight_BR.new_zeros(num_samples, num_experts**2).scatter_(1, place_BR, weight_BR)
        matrix_BEE = matrix_BEE.view(num_samples, num_experts, num_experts)
        if scored:
            ctx.save_for_backward(mean_BD, router_FD, probs_b_BE, total_BE, row_BR, matrix_BEE)
            ctx.num_pairs, ctx.apart = len(pairs_PE), len(weights_BX) > 1
        ctx.scored = scored
        return matrix_BEE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BEE: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.scored:
            return None, None, None, None, None
        mean_BD, router_FD, probs_b_BE, total_BE, row_BR, matrix_BEE = ctx.saved_tensors
        # c dL/dc less c times the mean over the choice: the slope of the logarithm of q, of p_A or of p_B.
        slope_BEE = grad_BEE * matrix_BEE
        slope_BEE.addcmul_(matrix_BEE, slope_BEE.sum((1, 2), keepdim=True), value=-1 / row_BR.shape[1])
        # What falls on the logits of W_A sums to 0, so that a softmax passes it on as it is.
        grad_a_BE = slope_BEE.sum(2)
        grad_total_BE = slope_BEE.sum(1).div_(total_BE.clamp_min(torch.finfo(total_BE.dtype).tiny))
        slope_b_BE = probs_b_BE * grad_total_BE
        grad_b_BE = slope_b_BE.addcmul(probs_b_BE, slope_b_BE.sum(1, keepdim=True), value=-1)
        grad_BF = torch.cat([grad_a_BE, grad_b_BE], dim=1)
        took_BP = total_BE.new_zeros(len(total_BE), ctx.num_pairs).scatter_(1, row_BR, 1.0)
        if ctx.apart:
            parts = grad_BF.unsqueeze(2) * mean_BD.unsqueeze(1), took_BP.unsqueeze(2) * grad_total_BE.unsqueeze(1)
        else:
            parts = (grad_BF.t() @ mean_BD).unsqueeze(0), (took_BP.t() @ grad_total_BE).unsqueeze(0)
        return grad_BF @ router_FD, torch.cat([part.flatten(1) for part in parts], dim=1), None, None, None
