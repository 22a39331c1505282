"""A contrastive loss on what experts make of a sequence's tokens, computed without making it.

The outputs of two experts e and f for two tokens, `q = B_e h` and `k = B_f h'`, have the inner product
`h^T (B_e^T B_f) h'`. So the products of all of them come from the vectors h and one Gram matrix of the stacked B's,
whatever the width of the outputs is.

Shapes: Y layers, B sequences, Z = Y B; L tokens of a sequence, M outputs of one (its tokens, times the K experts that
each has chosen); E experts of rank R, S = E R.
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


def contrastive_loss(q_YBMS: Tensor, gram_YXSS: Tensor, own_YBME: Tensor, temperature: float) -> Tensor:
    """InfoNCE within each sequence: the same expert's other outputs are positives, those of other experts negatives.

        mean over q of -log( sum_{k+} exp(q . k+ / tau) / sum_{k != q} exp(q . k / tau) )

    of outputs divided by `sqrt(|.|^2 + 1e-6)`, meaned over the sequences of a layer and summed over layers. An output
    without a positive is a negative for others but no term, and a sequence without a term does not count. The mean over
    sequences is that of all ranks, scaled so that the mean of the ranks' gradients is that of one process; that takes
    one collective.

    Args:
        q_YBMS: in each row one expert's h in its own R places, zero elsewhere; in at least float32.
        gram_YXSS: Gram matrix of the stacked B's of each layer; one (X = 1), or one for each sequence (X = B). Its
            gradient is symmetric.
        own_YBME: 1 at the expert whose output it is, else 0; only zeros for outputs that do not count. In q's dtype.
        temperature: tau, at least 0.025.
    """
    with without_autocast(q_YBMS):
        loss: Tensor = _Contrast.apply(q_YBMS, gram_YXSS, own_YBME, temperature)
    return loss


def _times(rows_YBMS: Tensor, gram_YXSS: Tensor) -> Tensor:
    """Each sequence's rows times its Gram matrix."""
    if gram_YXSS.shape[1] > 1:
        return rows_YBMS @ gram_YXSS
    return (rows_YBMS.flatten(1, 2) @ gram_YXSS.squeeze(1)).view(rows_YBMS.shape)


class _Contrast(torch.autograd.Function):
    """The loss, with its gradients made at once: they need the same exponentials.

    Of the M x M pairs as little as possible is made: what depends on whose outputs they are is products with `own`.
    """

    @staticmethod
    def forward(ctx: Any, q_YBMS: Tensor, gram_YXSS: Tensor, own_YBME: Tensor, temperature: float) -> Tensor:
        u_YBMS = _times(q_YBMS, gram_YXSS)
        inverse_YBM1 = ((u_YBMS * q_YBMS).sum(-1, keepdim=True) + EPSILON).rsqrt()
        q_YBMS, u_YBMS = q_YBMS * inverse_YBM1, u_YBMS * inverse_YBM1
        q_ZMS, u_ZMS, own_ZME = (rows.flatten(0, 1) for rows in (q_YBMS, u_YBMS, own_YBME))
        # A cosine is at most 1: so no exponential overflows, and from tau = 0.025 on none vanishes in float32.
        least = q_ZMS.new_full((), -1 / temperature)
        all_ZMM = torch.baddbmm(least, u_ZMS, q_ZMS.mT, alpha=1 / temperature).exp_()
        all_ZMM.diagonal(dim1=1, dim2=2).zero_()
        by_expert_ZME = all_ZMM @ own_ZME
        all_ZM1, positive_ZM1 = (sums.sum(-1, keepdim=True) for sums in (by_expert_ZME, by_expert_ZME * own_ZME))

        is_term_ZM1 = positive_ZM1 > 0
        num_Z11 = is_term_ZM1.sum(1, keepdim=True)
        weight_ZM1 = is_term_ZM1 / num_Z11.clamp_min(1)
        all_ZM1, positive_ZM1 = (torch.where(is_term_ZM1, sums, 1) for sums in (all_ZM1, positive_ZM1))
        # The slope of a row's term with respect to its cosines over tau is, up to their exponentials, the same for all
        # outputs of one expert. Here of both ways round.
        slope_ZME = (weight_ZM1 / all_ZM1 - weight_ZM1 / positive_ZM1 * own_ZME) / temperature
        both_ZMM = torch.cat([slope_ZME, own_ZME], dim=2) @ torch.cat([own_ZME, slope_ZME], dim=2).mT
        pull_YBMS = (all_ZMM.mul_(both_ZMM) @ q_ZMS).view(q_YBMS.shape)
        grad_q_YBMS = _times(pull_YBMS, gram_YXSS)
        radial_YBM1 = (grad_q_YBMS * q_YBMS).sum(-1, keepdim=True)
        outer = pull_YBMS - radial_YBM1 * q_YBMS, q_YBMS
        if gram_YXSS.shape[1] == 1:
            # Over all sequences of a layer.
            outer = outer[0].flatten(1, 2).unsqueeze(1), q_YBMS.flatten(1, 2).unsqueeze(1)
        grad_gram_YXSS = outer[0].mT @ outer[1] / 2

        num_YB11 = num_Z11.view(*q_YBMS.shape[:2], 1, 1)
        num_sequences, num_ranks = across_ranks((num_YB11 > 0).sum(1, keepdim=True))
        factor_Y111 = num_ranks / num_sequences.clamp_min(1)
        grad_q_YBMS = inverse_YBM1 * (grad_q_YBMS - radial_YBM1 * u_YBMS)
        ctx.save_for_backward(factor_Y111 * grad_q_YBMS, factor_Y111 * grad_gram_YXSS)
        loss_YBM1 = (weight_ZM1 * (all_ZM1 / positive_ZM1).log()).view(*q_YBMS.shape[:3], 1)
        loss: Tensor = (factor_Y111 * loss_YBM1).sum()
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_q_YBMS, grad_gram_YXSS = ctx.saved_tensors
        return grad * grad_q_YBMS, grad * grad_gram_YXSS, None, None
