"""Gates over experts for each row, their product with the rows, and the sums that a router's losses are made of.

Shapes: B samples, L rows of one sample, N = B * L rows; R rows of h, S of the result; E experts, K of them chosen per
row; G groups of rank slots, each with gates of its own, P slots in a group; X is E where each expert gates a block of
its own, else 1.

Background. A router does a dozen operations to a row's few numbers, so their number is their cost: as autograd's own
they took as long as the factors' products. Here they are one autograd function. All has rows last, (E, G, N): on a CPU,
whose loops are fast where the last axis is long, a softmax over 8 experts takes a tenth of the time that way, and
gating a fifth. Products make and take such rows as fast as others (`kernels/linear.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorachord.kernels.apply import applied
from lorachord.kernels.devices import on_cpu

FEW_ROWS = 64
"""With fewer of them one sort is faster than several searches, as it is one operation."""


class Routed(NamedTuple):
    """The result of `route`; None where it was not asked for.

    Attributes:
        mixed_BLS: `g (x) h`, experts side by side.
        load_EG: choices by expert and group, summed over the rows that count; of dense gates the gates. No gradient.
        chosen_EG: choices, of dense gates that of the most probable expert. No gradient.
        probs_EG: probabilities, through which gradients flow.
        squares_G: logsumexp squared, through which gradients flow.
        sampled_BMR: h of the sampled rows.
        choices_EGN: the choices of the sampled rows, as 0 and 1. No gradient.
    """

    mixed_BLS: Tensor
    load_EG: Tensor | None
    chosen_EG: Tensor | None
    probs_EG: Tensor | None
    squares_G: Tensor | None
    sampled_BMR: Tensor | None
    choices_EGN: Tensor | None


def route(
    h_BLR: Tensor,
    logits_BLX: Tensor,
    *,
    groups: int,
    own_blocks: bool,
    top_k: int | None,
    mask_BL: Tensor | None,
    recording: bool,
    tallied: bool,
    with_squares: bool,
    rows_BM: Tensor | None,
) -> Routed:
    """`g (x) h` with g the softmax gates of the logits, in at least float32; and what is asked for beside it.

    Args:
        h_BLR: the rows that all experts share, then S = E R; or the experts' own blocks side by side, then S = R.
        logits_BLX: (B, L, E G), experts first.
        groups, own_blocks: G, and whether each expert gates a block of its own (with one group only).
        top_k: K, the gates renormalised over the chosen; None keeps all.
        mask_BL: True for the rows that count in the sums; None where all do.
        recording: whether to make `load_EG`.
        tallied: whether to make `chosen_EG` and `probs_EG` as well, if recording.
        with_squares: whether to make `squares_G` as well, if tallied.
        rows_BM: the rows to sample, counted through the batch. As an operation of its own, sampling would make
            gradients for all other rows too.
    """
    options = groups, own_blocks, top_k, mask_BL, recording, tallied, tallied and with_squares, rows_BM
    return Routed(*applied(_Route, h_BLR, logits_BLX, *options))


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h_BLR: Tensor,
        logits_BLX: Tensor,
        groups: int,
        own_blocks: bool,
        top_k: int | None,
        mask_BL: Tensor | None,
        recording: bool,
        tallied: bool,
        with_squares: bool,
        rows_BM: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        wide = torch.promote_types(logits_BLX.dtype, torch.float32)
        num_experts, num_rows = logits_BLX.shape[-1] // groups, h_BLR.shape[:2].numel()
        logits_EGN = logits_BLX.to(wide).reshape(num_rows, -1).t().contiguous().view(num_experts, groups, num_rows)
        probs_EGN = gates_EGN = torch.softmax(logits_EGN, dim=0)
        mask_N = None if mask_BL is None else mask_BL.flatten().to(wide)

        def over_rows(values: Tensor) -> Tensor:
            # No matrix product: under autocast it would count in half precision.
            return (values if mask_N is None else values * mask_N).sum(2)

        chosen_EGN = _most_probable(probs_EGN, top_k or 1) if top_k is not None or tallied else gates_EGN
        if top_k is not None:
            gates_EGN = probs_EGN * chosen_EGN
            gates_EGN.div_(gates_EGN.sum(0, keepdim=True))

        load_EG = chosen_EG = probs_EG = squares_G = lse_1GN = None
        if recording:
            load_EG = over_rows(gates_EGN if top_k is None else chosen_EGN)
        if recording and tallied:
            chosen_EG, probs_EG = over_rows(chosen_EGN), over_rows(probs_EGN)
        if with_squares:
            lse_1GN = logits_EGN.logsumexp(0, keepdim=True)
            squares_G = over_rows(lse_1GN.square()).squeeze(0) if recording else None
        h_RN = h_BLR.reshape(num_rows, -1).t()
        h_XGPN = h_RN.reshape(num_experts if own_blocks else 1, groups, -1, num_rows)
        if torch.compiler.is_compiling():
            # Inductor takes the strides of a saved view for those of every batch.
            h_XGPN = h_XGPN.contiguous()
        # A recompute saves as much as the pass, whether it records or not.
        ctx.save_for_backward(h_XGPN, gates_EGN, probs_EGN if tallied else None, lse_1GN, mask_N, rows_BM)
        ctx.shapes, ctx.dtype = (h_BLR.shape, logits_BLX.shape), logits_BLX.dtype
        mixed_EGPN = h_BLR.new_empty(num_experts, groups, h_XGPN.shape[2], num_rows)
        torch.mul(h_XGPN, gates_EGN.to(h_BLR.dtype).unsqueeze(2), out=mixed_EGPN)
        mixed_BLS = mixed_EGPN.flatten(0, 2).t().view(*h_BLR.shape[:2], -1)
        sampled_BMR = choices_EGN = None
        if rows_BM is not None:
            rows_N = rows_BM.flatten()
            sampled_BMR = h_RN.index_select(1, rows_N).t().unflatten(0, rows_BM.shape)
            choices_EGN = chosen_EGN.index_select(2, rows_N)
        constant = (load_EG, chosen_EG, choices_EGN)
        ctx.mark_non_differentiable(*(part for part in constant if part is not None))
        ctx.set_materialize_grads(False)
        return mixed_BLS, load_EG, chosen_EG, probs_EG, squares_G, sampled_BMR, choices_EGN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        h_XGPN, gates_EGN, probs_EGN, lse_1GN, mask_N, rows_BM = ctx.saved_tensors
        grad_BLS, _, _, grad_probs_EG, grad_squares_G, grad_BMR, _ = grads
        num_rows = gates_EGN.shape[2]
        num_h, num_logits = h_XGPN.shape[:3].numel(), gates_EGN.shape[:2].numel()
        if grad_BLS is None:
            grad_EGPN = h_XGPN.new_zeros(*gates_EGN.shape[:2], *h_XGPN.shape[2:])
        else:
            grad_EGPN = grad_BLS.reshape(num_rows, -1).t().reshape(*gates_EGN.shape[:2], -1, num_rows)
        # One tensor of both gradients: the product that they go back through takes them as one.
        grad_h_RN, grad_logits_XN = h_XGPN.new_empty(num_h + num_logits, num_rows).split((num_h, num_logits))
        gates_EG1N = gates_EGN.to(h_XGPN.dtype).unsqueeze(2)
        if h_XGPN.shape[0] == 1:
            torch.sum(grad_EGPN * gates_EG1N, 0, keepdim=True, out=grad_h_RN.view(h_XGPN.shape))
        else:
            torch.mul(grad_EGPN, gates_EG1N, out=grad_h_RN.view(h_XGPN.shape))
        slope_EGPN = grad_EGPN * h_XGPN
        # Of blocks of one row there is nothing to sum.
        slope_EGN = (slope_EGPN.squeeze(2) if h_XGPN.shape[2] == 1 else slope_EGPN.sum(2)).to(gates_EGN.dtype)
        # Renormalised top-k gates are a softmax too, over the chosen logits alone.
        grad_EGN = through_softmax(slope_EGN, gates_EGN, dim=0)
        if grad_probs_EG is not None:
            cost_EGN = through_softmax(grad_probs_EG.unsqueeze(2).expand_as(probs_EGN), probs_EGN, dim=0)
            grad_EGN.add_(cost_EGN if mask_N is None else cost_EGN * mask_N)
        if grad_squares_G is not None:
            cost_EGN = probs_EGN * (lse_1GN * (2 * grad_squares_G)[None, :, None])
            grad_EGN.add_(cost_EGN if mask_N is None else cost_EGN * mask_N)
        grad_logits_XN.copy_(grad_EGN.flatten(0, 1))
        if grad_BMR is not None:
            rows_N = rows_BM.flatten()
            grad_h_RN.index_add_(1, rows_N, grad_BMR.reshape(len(rows_N), num_h).t())
        h_shape, logits_shape = ctx.shapes
        grad_h, grad_logits = grad_h_RN.t().view(h_shape), grad_logits_XN.t().view(logits_shape).to(ctx.dtype)
        return grad_h, grad_logits, *(None,) * 8


def _most_probable(probs_EGN: Tensor, top_k: int) -> Tensor:
    """1 for the experts of the K highest probabilities, else 0."""
    chosen_EGN = torch.zeros_like(probs_EGN)
    if not on_cpu(probs_EGN) or probs_EGN.shape[2] < FEW_ROWS:
        return chosen_EGN.scatter_(0, probs_EGN.topk(top_k, dim=0).indices, 1.0)
    # A CPU is slow at sorting a few numbers many times: faster are the highest of all, then that of the others, below
    # which a probability less 2 lies.
    for nth in range(top_k):
        left_EGN = torch.sub(probs_EGN, chosen_EGN, alpha=2) if nth else probs_EGN
        chosen_EGN.scatter_(0, left_EGN.max(0, keepdim=True).indices, 1.0)
    return chosen_EGN


def through_softmax(grad: Tensor, probs: Tensor, dim: int, out: Tensor | None = None) -> Tensor:
    """The gradient of the logits of a softmax over `dim` from that of its probabilities, as autograd has it."""
    return torch._softmax_backward_data(grad, probs, dim, probs.dtype, grad_input=out)
