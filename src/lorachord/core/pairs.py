"""Choosing pairs of factors from two pools: from the mean of a prompt to the matrix between the factors.

Shapes: B samples, D features; E factors in each pool, R pairs chosen; F = 2 E rows of the router, W_A above W_B;
P = E R pairs of a factor and a place; C = F + P + E rows of all weights; Y layers with the same input.

Background. As in `core/routing.py`: dozens of operations on a handful of numbers, between products that push their code
out of the caches. So all is one autograd function, and of few kinds of operations: the first of a kind takes several
times as long as the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorachord.core.precision import without_autocast
from lorachord.core.routing import through_softmax


def choose_pairs(
    mean_BD: Tensor,
    routers: Sequence[Tensor],
    places: Sequence[Tensor],
    pools: Sequence[Tensor],
    probe_BCD: Tensor | None,
    *,
    scored: bool,
) -> Tensor:
    """For each of the Y layers with this input matrices (Y, B, E, E) with c_k at (s_A(k), s_B(k)) and 0 elsewhere.

        p_A = softmax(W_A m),                                 s_A the R most probable, in falling order
        p_B = softmax(W_B m) + sum_i softmax(W_i a_sA(i)),    s_B the R most probable, in falling order
        q_k = p_A[s_A(k)] p_B[s_B(k)];                        c_k = R q_k / sum q if `scored`, else 1

    Args:
        mean_BD: m.
        routers: W_A above W_B (F, D), of each layer.
        places: the W_i of all R places, one below the other (P, D).
        pools: the a_e (E, D).
        probe_BCD: zeros that receive each sample's gradient of all weights, one below the other, which then get none;
            of one layer alone. None where these are not collected.
        scored: whether the c_k are scores, through which alone there is a gradient.
    """
    weights = [weight.to(mean_BD.dtype) for weight in (*routers, *places, *pools)]
    if not scored:
        mean_BD, weights = mean_BD.detach(), [weight.detach() for weight in weights]
    if probe_BCD is not None:
        # As in the kernel's `rows_linear`.
        weights, probe_BCD = [weight.detach() for weight in weights], probe_BCD.to(mean_BD.dtype)
    # In half precision, probabilities would tie.
    with without_autocast(mean_BD):
        matrix_YBEE: Tensor = _Choose.apply(mean_BD, probe_BCD, scored, *weights)
    return matrix_YBEE


def _stacked(weights: Sequence[Tensor]) -> Tensor:
    return weights[0].unsqueeze(0) if len(weights) == 1 else torch.stack([*weights])


class _Choose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean_BD: Tensor, probe_BCD: Tensor | None, scored: bool, *weights: Tensor) -> Tensor:
        num_layers, num_samples = len(weights) // 3, len(mean_BD)
        kinds = (weights[kind * num_layers : (kind + 1) * num_layers] for kind in range(3))
        router_YFD, pairs_YPD, pool_YED = (_stacked(kind) for kind in kinds)
        num_experts = pool_YED.shape[1]
        r = pairs_YPD.shape[1] // num_experts
        logits_YBF = torch.bmm(mean_BD.expand(num_layers, -1, -1), router_YFD.mT)
        probs_YB2E = torch.softmax(logits_YBF.view(num_layers, num_samples, 2, num_experts), dim=-1)
        logits_YEP = torch.bmm(pool_YED, pairs_YPD.mT)
        probs_YERE = torch.softmax(logits_YEP.view(num_layers, num_experts, r, num_experts), dim=-1)
        probs_a_YBE, probs_b_YBE = probs_YB2E.unbind(2)
        of_a_YBR, chosen_a_YBR = probs_a_YBE.topk(r)
        # The factors that were chosen for A, and in which place: the sum over them is a product.
        took_YBER = mean_BD.new_zeros(num_layers, num_samples, num_experts, r)
        took_YBER.scatter_(2, chosen_a_YBR.unsqueeze(2), 1.0)
        total_YBE = torch.baddbmm(probs_b_YBE, took_YBER.flatten(2), probs_YERE.flatten(1, 2))
        of_b_YBR, chosen_b_YBR = total_YBE.topk(r)
        weight_YBR = of_a_YBR * of_b_YBR if scored else torch.ones_like(of_a_YBR)
        if scored:
            weight_YBR = weight_YBR / weight_YBR.mean(2, keepdim=True)
        place_YBR = torch.add(chosen_b_YBR, chosen_a_YBR, alpha=num_experts)
        matrix_YBX = mean_BD.new_zeros(num_layers, num_samples, num_experts**2).scatter_(2, place_YBR, weight_YBR)
        matrix_YBEE = matrix_YBX.view(num_layers, num_samples, num_experts, num_experts)
        stacked = mean_BD, router_YFD, pairs_YPD, pool_YED
        ctx.save_for_backward(*stacked, probs_b_YBE, probs_YERE, total_YBE, took_YBER, matrix_YBEE)
        ctx.apart, ctx.num_weights = probe_BCD is not None, len(weights)
        return matrix_YBEE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_YBEE: Tensor) -> tuple[Tensor | None, ...]:
        mean_BD, router_YFD, pairs_YPD, pool_YED, probs_b_YBE, probs_YERE, total_YBE, took_YBER, matrix_YBEE = (
            ctx.saved_tensors
        )
        num_layers, r = len(took_YBER), took_YBER.shape[3]
        # c dL/dc less c times the mean over the choice: the slope of the logarithm of q, of p_A or of p_B.
        slope_YBEE = grad_YBEE * matrix_YBEE
        slope_YBEE.addcmul_(matrix_YBEE, slope_YBEE.flatten(2).sum(2)[:, :, None, None], value=-1 / r)
        # Where nothing is chosen the slope is 0; the probability may be, too.
        grad_total_YBE = slope_YBEE.sum(2) / (total_YBE + torch.finfo(total_YBE.dtype).tiny)
        # What falls on the logits of W_A sums to 0, so that a softmax passes it on as it is.
        grad_YBF = torch.cat([slope_YBEE.sum(3), through_softmax(grad_total_YBE, probs_b_YBE, dim=-1)], dim=2)
        grad_mean_YBD = torch.bmm(grad_YBF, router_YFD)
        grad_mean_BD = grad_mean_YBD.squeeze(0) if num_layers == 1 else grad_mean_YBD.sum(0)
        if not ctx.apart:
            grad_YERE = torch.bmm(took_YBER.flatten(2).mT, grad_total_YBE).view(probs_YERE.shape)
            grad_YEP = through_softmax(grad_YERE, probs_YERE, dim=-1).flatten(2)
            of_routers = torch.bmm(grad_YBF.mT, mean_BD.expand(num_layers, -1, -1))
            of_places, of_pools = torch.bmm(grad_YEP.mT, pool_YED), torch.bmm(grad_YEP, pairs_YPD)
            return grad_mean_BD, None, None, *of_routers.unbind(), *of_places.unbind(), *of_pools.unbind()
        # Of one layer.
        (pairs_PD,), (pool_ED,), (took_BER,), (grad_BF,), (grad_total_BE,) = (
            stacked.unbind() for stacked in (pairs_YPD, pool_YED, took_YBER, grad_YBF, grad_total_YBE)
        )
        grad_BERE = took_BER.unsqueeze(3) * grad_total_BE[:, None, None]
        grad_BEP = through_softmax(grad_BERE, probs_YERE.expand_as(grad_BERE), dim=-1).flatten(2)
        by_sample = grad_BF.unsqueeze(2) * mean_BD.unsqueeze(1), grad_BEP.mT @ pool_ED, grad_BEP @ pairs_PD
        return grad_mean_BD, torch.cat(by_sample, dim=1), None, *(None,) * ctx.num_weights
