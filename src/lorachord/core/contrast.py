"""A contrastive loss on what experts make of a sequence's tokens, computed without making it.

The outputs of two experts e and f for two tokens, `q = B_e h` and `k = B_f h'`, have the inner product
`h^T (B_e^T B_f) h'`. So the products of all of them come from the vectors h and one Gram matrix of the stacked B's,
whatever the width of the outputs is.

Shapes: B sequences, L tokens of one, M outputs of one (its tokens, times the K experts that each has chosen); E experts
of rank R, S = E R.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorachord.core.precision import without_autocast
from lorachord.core.ranks import across_ranks

EPSILON = 1e-6
"""Added to squared norms, inside the root: B = 0 gives a loss and a gradient that are finite."""


def spread_tokens(mask_BL: Tensor, limit: int) -> tuple[Tensor | None, Tensor]:
    """At most `limit` tokens of each sequence, evenly spaced among those that count.

    Args:
        mask_BL: True for the tokens that count.
        limit: the most tokens of one sequence.

    Returns:
        Positions (B, M) with M = min(L, limit), or None for all as they are; and (B, M), True where there is such a
        token.
    """
    if mask_BL.shape[1] <= limit:
        return None, mask_BL
    count_B1 = mask_BL.sum(1, keepdim=True)
    nth_BM = torch.arange(limit, device=mask_BL.device) * count_B1.clamp_min(limit) // limit
    # The tokens that count come first, in their order.
    order_BL = mask_BL.byte().argsort(dim=1, descending=True, stable=True)
    return order_BL.gather(1, nth_BM), nth_BM < count_B1


def contrastive_loss(
    q_BMS: Tensor, gram_BSS: Tensor, own_BME: Tensor, temperature: float, recording: bool
) -> Tensor | None:
    """InfoNCE within each sequence: the same expert's other outputs are positives, those of other experts negatives.

        mean over q of -log( sum_{k+} exp(q . k+ / tau) / sum_{k != q} exp(q . k / tau) )

    of outputs divided by `sqrt(|.|^2 + 1e-6)`, meaned over the sequences. An output without a positive is a negative
    for others but no term, and a sequence without a term does not count. The mean over sequences is that of all ranks,
    scaled so that the mean of the ranks' gradients is that of one process; that takes one collective.

    Args:
        q_BMS: in each row one expert's h in its own R places, zero elsewhere; in at least float32.
        gram_BSS: Gram matrix of the stacked B's; one, or one for each sequence. Its gradient is symmetric.
        own_BME: 1 at the expert whose output it is, else 0; only zeros for outputs that do not count. In q's dtype.
        temperature: tau, at least 0.025.
        recording: False in a checkpoint's recompute: None is returned.
    """
    with without_autocast(q_BMS):
        loss: Tensor | None = _Contrast.apply(q_BMS, gram_BSS, own_BME, temperature, recording)
    return loss


class _Contrast(torch.autograd.Function):
    """The loss, with its gradients made at once: they need the same exponentials.

    Of the M x M pairs as little as possible is made: what depends on whose outputs they are is products with `own`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_BMS: Tensor,
        gram_BSS: Tensor,
        own_BME: Tensor,
        temperature: float,
        recording: bool,
    ) -> Tensor | None:
        u_BMS = q_BMS @ gram_BSS
        inverse_BM1 = ((u_BMS * q_BMS).sum(-1, keepdim=True) + EPSILON).rsqrt()
        q_BMS, u_BMS = q_BMS * inverse_BM1, u_BMS * inverse_BM1
        # A cosine is at most 1: so no exponential overflows, and from tau = 0.025 on none vanishes in float32.
        least = q_BMS.new_full((), -1 / temperature)
        all_BMM = torch.baddbmm(least, u_BMS, q_BMS.mT, alpha=1 / temperature).exp_()
        all_BMM.diagonal(dim1=1, dim2=2).zero_()
        by_expert_BME = all_BMM @ own_BME
        all_BM1, positive_BM1 = (sums.sum(-1, keepdim=True) for sums in (by_expert_BME, by_expert_BME * own_BME))

        is_term_BM1 = positive_BM1 > 0
        num_B11 = is_term_BM1.sum(1, keepdim=True)
        weight_BM1 = is_term_BM1 / num_B11.clamp_min(1)
        all_BM1, positive_BM1 = (torch.where(is_term_BM1, sums, 1) for sums in (all_BM1, positive_BM1))
        # The slope of a row's term with respect to its cosines over tau is, up to their exponentials, the same for all
        # outputs of one expert. Here of both ways round.
        slope_BME = (weight_BM1 / all_BM1 - weight_BM1 / positive_BM1 * own_BME) / temperature
        both_BMM = torch.cat([slope_BME, own_BME], dim=2) @ torch.cat([own_BME, slope_BME], dim=2).mT
        pull_BMS = all_BMM.mul_(both_BMM) @ q_BMS
        grad_q_BMS = pull_BMS @ gram_BSS
        radial_BM1 = (grad_q_BMS * q_BMS).sum(-1, keepdim=True)
        grad_gram_BSS = (pull_BMS - radial_BM1 * q_BMS).mT @ q_BMS / 2
        if len(gram_BSS) == 1:
            grad_gram_BSS = grad_gram_BSS.sum(0, keepdim=True)
        ctx.save_for_backward(inverse_BM1 * (grad_q_BMS - radial_BM1 * u_BMS), grad_gram_BSS)
        if not recording:
            return None
        num_sequences, num_ranks = across_ranks((num_B11 > 0).sum())
        # On the node, and not among the saved tensors: a recompute does not make it again.
        ctx.factor = num_ranks / num_sequences.clamp_min(1)
        loss: Tensor = ctx.factor * (weight_BM1 * (all_BM1 / positive_BM1).log()).sum()
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_q_BMS, grad_gram_BSS = ctx.saved_tensors
        return grad * ctx.factor * grad_q_BMS, grad * ctx.factor * grad_gram_BSS, None, None, None
