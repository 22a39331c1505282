"""Choosing pairs of factors from two pools: from the mean of a prompt to the matrix between the factors.

Shapes: B samples, D features; E factors in each pool, R pairs chosen; F = 2 E rows of the router, W_A above W_B;
P = E R pairs of a factor and a place; C = F + P + E rows of all weights.

Background. As in `kernels/route.py`: dozens of operations on a handful of numbers, between products that push their
code out of the caches. So all is one autograd function, and of few kinds of operations: the first of a kind takes
several times as long as the next.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorachord.kernels.apply import applied
from lorachord.kernels.devices import without_autocast
from lorachord.kernels.route import through_softmax


def choose_pairs(
    mean_BD: Tensor, router_FD: Tensor, places_PD: Tensor, pool_ED: Tensor, probe_BCD: Tensor | None, *, scored: bool
) -> Tensor:
    """Matrices (B, E, E) with c_k at (s_A(k), s_B(k)) and 0 elsewhere.

        p_A = softmax(W_A m),                                 s_A the R most probable, in falling order
        p_B = softmax(W_B m) + sum_i softmax(W_i a_sA(i)),    s_B the R most probable, in falling order
        q_k = p_A[s_A(k)] p_B[s_B(k)];                        c_k = R q_k / sum q if `scored`, else 1

    Args:
        mean_BD: m.
        router_FD: W_A above W_B.
        places_PD: the W_i of all R places, one below the other.
        pool_ED: the a_e.
        probe_BCD: zeros that receive each sample's gradient of all weights, one below the other, which then get none;
            None where these are not collected.
        scored: whether the c_k are scores, through which alone there is a gradient.
    """
    weights = [weight.to(mean_BD.dtype) for weight in (router_FD, places_PD, pool_ED)]
    if not scored:
        mean_BD, weights = mean_BD.detach(), [weight.detach() for weight in weights]
    if probe_BCD is not None:
        # As in the kernel's `rows_linear`.
        weights, probe_BCD = [weight.detach() for weight in weights], probe_BCD.to(mean_BD.dtype)
    # In half precision, probabilities would tie.
    with without_autocast(mean_BD):
        matrix_BEE: Tensor = applied(_Choose, mean_BD, probe_BCD, scored, *weights)
    return matrix_BEE


class _Choose(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mean_BD: Tensor,
        probe_BCD: Tensor | None,
        scored: bool,
        router_FD: Tensor,
        pairs_PD: Tensor,
        pool_ED: Tensor,
    ) -> Tensor:
        num_samples, num_experts = len(mean_BD), len(pool_ED)
        r = len(pairs_PD) // num_experts
        logits_BF = mean_BD @ router_FD.t()
        probs_a_BE, probs_b_BE = torch.softmax(logits_BF.view(num_samples, 2, num_experts), dim=-1).unbind(1)
        logits_EP = pool_ED @ pairs_PD.t()
        probs_ERE = torch.softmax(logits_EP.view(num_experts, r, num_experts), dim=-1)
        of_a_BR, chosen_a_BR = probs_a_BE.topk(r)
        # The factors that were chosen for A, and in which place: the sum over them is a product.
        took_BER = mean_BD.new_zeros(num_samples, num_experts, r)
        took_BER.scatter_(1, chosen_a_BR.unsqueeze(1), 1.0)
        total_BE = torch.addmm(probs_b_BE, took_BER.flatten(1), probs_ERE.flatten(0, 1))
        of_b_BR, chosen_b_BR = total_BE.topk(r)
        weight_BR = of_a_BR * of_b_BR if scored else torch.ones_like(of_a_BR)
        if scored:
            weight_BR = weight_BR / weight_BR.mean(1, keepdim=True)
        place_BR = torch.add(chosen_b_BR, chosen_a_BR, alpha=num_experts)
        matrix_BX = mean_BD.new_zeros(num_samples, num_experts**2).scatter_(1, place_BR, weight_BR)
        matrix_BEE = matrix_BX.view(num_samples, num_experts, num_experts)
        given = mean_BD, router_FD, pairs_PD, pool_ED
        ctx.save_for_backward(*given, probs_b_BE, probs_ERE, total_BE, took_BER, matrix_BEE)
        ctx.apart = probe_BCD is not None
        return matrix_BEE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BEE: Tensor) -> tuple[Tensor | None, ...]:
        mean_BD, router_FD, pairs_PD, pool_ED, probs_b_BE, probs_ERE, total_BE, took_BER, matrix_BEE = ctx.saved_tensors
        r = took_BER.shape[2]
        # c dL/dc less c times the mean over the choice: the slope of the logarithm of q, of p_A or of p_B.
        slope_BEE = grad_BEE * matrix_BEE
        slope_BEE.addcmul_(matrix_BEE, slope_BEE.flatten(1).sum(1)[:, None, None], value=-1 / r)
        # Where nothing is chosen the slope is 0; the probability may be, too.
        grad_total_BE = slope_BEE.sum(1) / (total_BE + torch.finfo(total_BE.dtype).tiny)
        # The slopes of the logits of W_A sum to 0, so that a softmax passes them on as they are.
        grad_BF = torch.cat([slope_BEE.sum(2), through_softmax(grad_total_BE, probs_b_BE, dim=-1)], dim=1)
        grad_mean_BD = grad_BF @ router_FD
        if not ctx.apart:
            grad_ERE = (took_BER.flatten(1).t() @ grad_total_BE).view(probs_ERE.shape)
            grad_EP = through_softmax(grad_ERE, probs_ERE, dim=-1).flatten(1)
            return grad_mean_BD, None, None, grad_BF.t() @ mean_BD, grad_EP.t() @ pool_ED, grad_EP @ pairs_PD
        grad_BERE = took_BER.unsqueeze(3) * grad_total_BE[:, None, None]
        grad_BEP = through_softmax(grad_BERE, probs_ERE.expand_as(grad_BERE), dim=-1).flatten(2)
        by_sample = grad_BF.unsqueeze(2) * mean_BD.unsqueeze(1), grad_BEP.mT @ pool_ED, grad_BEP @ pairs_PD
        return grad_mean_BD, torch.cat(by_sample, dim=1), None, None, None, None
