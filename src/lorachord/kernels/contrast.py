"""A contrastive loss on what experts make of a sequence's tokens, computed without making it.

The outputs of two experts e and f for two tokens, `q = B_e h` and `k = B_f h'`, have the inner product
`h^T (B_e^T B_f) h'`. So the products of all of them come from the vectors h and one Gram matrix of the stacked B's,
whatever the width of the outputs is.

Shapes: Y layers, B sequences, C of them looked at, Z = Y B; L tokens of a sequence, M outputs of one (its tokens, times
the K experts that each has chosen); E experts of rank R, S = E R.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorachord.distributed import across_ranks
from lorachord.kernels.apply import applied
from lorachord.kernels.devices import moved, without_autocast
from lorachord.kernels.products import weight_gradient

EPSILON = 1e-6
"""Added to squared norms, inside the root: B = 0 gives a loss and a gradient that are finite."""
GOLDEN_RATIO = (5**0.5 - 1) / 2
"""Its multiples, modulo 1, are spread as evenly as can be, and never periodically."""


def spread_sequences(num_sequences: int, limit: int) -> list[int]:
    """At most `limit` of a batch's sequences, spread over it without a period.

    Tasks may take turns in a batch: evenly spaced sequences would be some tasks' alone.

    >>> spread_sequences(16, 8)
    [0, 2, 5, 7, 10, 12, 13, 15]
    """
    return sorted(sorted(range(num_sequences), key=lambda nth: nth * GOLDEN_RATIO % 1)[:limit])


def spread_tokens(mask_BL: Tensor, limit: int, max_sequences: int) -> tuple[Tensor, Tensor, Tensor]:
    """At most `limit` tokens of each of at most `max_sequences` sequences, evenly spaced among those that count.

    Args:
        mask_BL: True for the tokens that count.
        limit: the most tokens of one sequence.
        max_sequences: the most sequences.

    Returns:
        With C = min(B, max_sequences) and M = min(L, limit): (C,) sequences; (C, M) rows, counted through the batch;
        and (C, M), True where there is such a token.
    """
    num_sequences, length = mask_BL.shape
    limit, device = min(limit, length), mask_BL.device
    picked_C = torch.arange(num_sequences, device=device)
    if num_sequences > max_sequences:
        picked_C = moved(torch.tensor(spread_sequences(num_sequences, max_sequences)), device)
    mask_CL = mask_BL[picked_C]
    count_C1 = mask_CL.sum(1, keepdim=True)
    nth_CM = torch.arange(limit, device=device) * count_C1.clamp_min(limit) // limit
    # The tokens that count come first, in their order.
    order_CL = mask_CL.byte().argsort(dim=1, descending=True, stable=True)
    order_CL += length * picked_C.unsqueeze(1)
    return picked_C, order_CL.gather(1, nth_CM), nth_CM < count_C1


def gram_of(up_OS: Tensor) -> Tensor:
    """`B^T B` of the stacked B's of a layer: (S, S), in its dtype.

    Its gradient is taken to be symmetric, as it is of what depends on products of outputs.
    """
    with without_autocast(up_OS):
        gram_SS: Tensor = applied(_Gram, up_OS)
    return gram_SS


def contrastive_loss(h_YBLS: Tensor, gram_YXSS: Tensor, own_YBLKE: Tensor, temperature: float) -> Tensor:
    """InfoNCE within each sequence: the same expert's other outputs are positives, those of other experts negatives.

        mean over q of -log( sum_{k+} exp(q . k+ / tau) / sum_{k != q} exp(q . k / tau) )

    of outputs divided by `sqrt(|.|^2 + 1e-6)`, meaned over the sequences of a layer and summed over layers. An output
    without a positive is a negative for others but no term, and a sequence without a term does not count. The mean over
    sequences is that of all ranks, scaled so that the mean of the ranks' gradients is that of one process; that takes
    one collective.

    Args:
        h_YBLS: each token's h of all experts, side by side; in at least float32.
        gram_YXSS: Gram matrix of the stacked B's of each layer; one (X = 1), or one for each sequence (X = B). Its
            gradient is symmetric.
        own_YBLKE: the K experts whose outputs there are of a token: 1 at the expert, else 0; only zeros for outputs
            that do not count. In h's dtype.
        temperature: tau, at least 0.025.
    """
    with without_autocast(h_YBLS):
        loss: Tensor = applied(_Contrast, h_YBLS, gram_YXSS, own_YBLKE, temperature)
    return loss


def _times(rows_YBMS: Tensor, gram_YXSS: Tensor) -> Tensor:
    """Each sequence's rows times its Gram matrix."""
    if gram_YXSS.shape[1] > 1:
        return rows_YBMS @ gram_YXSS
    return (rows_YBMS.flatten(1, 2) @ gram_YXSS.squeeze(1)).view(rows_YBMS.shape)


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, up_OS: Tensor) -> Tensor:
        ctx.save_for_backward(up_OS)
        return up_OS.t() @ up_OS

    @staticmethod
    def backward(ctx: Any, grad_SS: Tensor) -> Tensor:
        # Laid out as the rest of the gradient of B, to which autograd adds this.
        return weight_gradient(ctx.saved_tensors[0].t(), grad_SS, 2.0)


class _Contrast(torch.autograd.Function):
    """The loss, with its gradients made at once: they need the same exponentials.

    All is a function of the products of outputs, `P = q G q^T`, whose diagonal has their squared norms. So the outputs
    themselves, which are mostly zeros, are the factors of a few matrix products and nothing else; and of the M x M
    pairs, what depends on whose outputs they are is products with `own`.
    """

    @staticmethod
    def forward(ctx: Any, h_YBLS: Tensor, gram_YXSS: Tensor, own_YBLKE: Tensor, temperature: float) -> Tensor:
        num_layers, num_sequences, *_, num_experts = own_YBLKE.shape
        h_YBL1ER = h_YBLS.unflatten(3, (num_experts, -1)).unsqueeze(3)
        # In each row one expert's h, zero elsewhere.
        q_YBMS = (own_YBLKE.unsqueeze(5) * h_YBL1ER).flatten(4).flatten(2, 3)
        q_ZMS, own_ZME = q_YBMS.flatten(0, 1), own_YBLKE.flatten(2, 3).flatten(0, 1)
        qg_ZMS = _times(q_YBMS, gram_YXSS).flatten(0, 1)
        cosine_ZMM = torch.bmm(qg_ZMS, q_ZMS.mT)
        inverse_ZM1 = (cosine_ZMM.diagonal(dim1=1, dim2=2) + EPSILON).rsqrt().unsqueeze(2)
        cosine_ZMM.mul_(inverse_ZM1).mul_(inverse_ZM1.mT)
        # A cosine is at most 1: so no exponential overflows, and from tau = 0.025 on none vanishes in float32.
        all_ZMM = (cosine_ZMM - 1).mul_(1 / temperature).exp_()
        all_ZMM.diagonal(dim1=1, dim2=2).zero_()
        by_expert_ZME = all_ZMM @ own_ZME
        all_ZM1, positive_ZM1 = (sums.sum(-1, keepdim=True) for sums in (by_expert_ZME, by_expert_ZME * own_ZME))

        is_term_ZM1 = positive_ZM1 > 0
        num_YB = is_term_ZM1.view(num_layers, num_sequences, -1).sum(2)
        counted_Y1, num_ranks = across_ranks((num_YB > 0).sum(1, keepdim=True))
        weight_YB = num_ranks / (num_YB.clamp_min(1) * counted_Y1.clamp_min(1))
        weight_ZM1 = is_term_ZM1 * weight_YB.view(-1, 1, 1)
        all_ZM1, positive_ZM1 = (torch.where(is_term_ZM1, sums, 1) for sums in (all_ZM1, positive_ZM1))
        loss: Tensor = (weight_ZM1 * (all_ZM1 / positive_ZM1).log()).sum()

        # The slope of a row's term with respect to its cosines is, up to their exponentials, the same for all outputs
        # of one expert. Here of both ways round; then of P.
        slope_ZME = (weight_ZM1 / all_ZM1 - weight_ZM1 / positive_ZM1 * own_ZME) / temperature
        one_way_ZMM = slope_ZME @ own_ZME.mT
        slope_ZMM = all_ZMM.mul_(one_way_ZMM + one_way_ZMM.mT)
        slope_ZMM.diagonal(dim1=1, dim2=2).copy_(-cosine_ZMM.mul_(slope_ZMM).sum(2))
        slope_ZMM.mul_(inverse_ZM1).mul_(inverse_ZM1.mT)
        pull_YBMS = torch.bmm(slope_ZMM, q_ZMS).view(q_YBMS.shape)
        grad_q_YBLKER = torch.bmm(slope_ZMM, qg_ZMS).view(*own_YBLKE.shape, -1)
        # Of each output its expert's part.
        grad_h_YBLER = grad_q_YBLKER.mul_(own_YBLKE.unsqueeze(5)).sum(3)
        if gram_YXSS.shape[1] == 1:
            # Over all sequences of a layer.
            pull_YBMS, q_YBMS = pull_YBMS.flatten(1, 2).unsqueeze(1), q_YBMS.flatten(1, 2).unsqueeze(1)
        ctx.save_for_backward(grad_h_YBLER.flatten(3), pull_YBMS.mT @ q_YBMS / 2)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_h_YBLS, grad_gram_YXSS = ctx.saved_tensors
        return grad * grad_h_YBLS, grad * grad_gram_YXSS, None, None
