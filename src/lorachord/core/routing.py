"""Routers: gates over experts, and the balance loss that keeps them in use.

Shapes: B samples, L rows of one sample, N = B * L rows; D inputs, E experts, K experts chosen per row; R rows of A.

Background. What a router does to a row is a dozen operations on a handful of numbers, so their number is what it costs:
as autograd's own they took as long as the factors' products. Here they are one autograd function, and the logits come
out of the product with A (`Adapter.router_weight`). All is laid out with experts first, (E, N): with 8 experts a
softmax, a sum or a product is then several times faster, since the loops run over rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lorachord.core import init
from lorachord.core.context import Context


class Router(nn.Module):
    """Token-level gates `g = softmax(W x)` without a bias, dense or top-k renormalised, for experts that share A.

    It starts Kaiming-uniform: with equal gates and zero `B` all experts would stay identical for ever.

    Args:
        d_in: D.
        num_experts: E.
        top_k: K, from 2 to E (with 1, renormalised gates are constant and the router gets no gradient); None keeps all.
        balance: weight of the balance loss; 0 records nothing.
    """

    def __init__(self, d_in: int, num_experts: int, *, top_k: int | None = None, balance: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, d_in))
        self.top_k = top_k
        self.balance = balance
        self.recorded: Tensor | None = None

    def reset(self) -> None:
        """Initialise the weight and forget what was recorded."""
        init.kaiming_uniform_(self.weight, fan_in=self.weight.shape[1])
        self.recorded = None

    def mix(self, h_BLR: Tensor, logits_BLE: Tensor, ctx: Context) -> Tensor:
        """`g (x) h`: (B, L, E R), each expert's gate times h, side by side; the gates in at least float32."""
        balance = self.balance if self.training else 0.0
        mask_BL = ctx.token_mask_BL
        if mask_BL is not None and mask_BL.numel() != logits_BLE.shape[0] * logits_BLE.shape[1]:
            # The layer does not see the rows that the mask speaks of.
            mask_BL = None
        # A recompute makes the loss too, and drops it: it must save the same tensors as the forward did.
        mixed_BLS: Tensor
        mixed_BLS, loss = _Route.apply(h_BLR, logits_BLE, self.top_k, balance, mask_BL)
        if ctx.recording:
            self.recorded = loss
        return mixed_BLS

    def penalty(self) -> Tensor | None:
        """The weighted balance loss of the last forward, or None where there is none."""
        return self.recorded

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle has no part in the graph of the last forward.
        return {**self.__dict__, "recorded": None}


def balance_loss(probs_EN: Tensor, chosen_EN: Tensor, mask_N: Tensor | None) -> tuple[Tensor, Tensor]:
    """The Switch balance loss `E sum_e f_e P_e` (arXiv 2101.03961, eq. 4), which is 1 at balance.

    `f_e` is the share of choices that fell on e; `P_e` the mean probability of e. Gradients flow through P alone.

    Args:
        probs_EN: probabilities over all experts, before the top-k.
        chosen_EN: 1 for the experts that a row has chosen, else 0.
        mask_N: True for the rows that count; None where all do.

    Returns:
        The loss, and its gradient (E, N) with respect to the logits of `probs_EN`.
    """
    num_experts, num_rows = probs_EN.shape
    weight_N = probs_EN.new_ones(num_rows) if mask_N is None else mask_N.to(probs_EN)
    weight_N = weight_N / weight_N.sum().clamp_min(1)
    chosen_E = chosen_EN @ weight_N
    share_E = chosen_E * num_experts / chosen_E.sum().clamp_min(1)
    cost_N = share_E @ probs_EN
    return cost_N @ weight_N, probs_EN * (share_E.unsqueeze(1) - cost_N) * weight_N


class _Route(torch.autograd.Function):
    """`(g (x) h, balance loss)` with g the gates of the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        h_BLR: Tensor,
        logits_BLE: Tensor,
        top_k: int | None,
        balance: float,
        mask_BL: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        wide = torch.promote_types(logits_BLE.dtype, torch.float32)
        probs_EN = gates_EN = torch.softmax(_rows_last(logits_BLE).to(wide), dim=0)
        loss = slope_EN = None
        if top_k is not None or balance > 0:
            chosen_KN = probs_EN.topk(top_k or 1, dim=0).indices
            chosen_EN = torch.zeros_like(probs_EN).scatter_(0, chosen_KN, 1.0)
            if top_k is not None:
                gates_EN = probs_EN * chosen_EN
                gates_EN = gates_EN / gates_EN.sum(0)
            if balance > 0:
                loss, slope_EN = balance_loss(probs_EN, chosen_EN, None if mask_BL is None else mask_BL.flatten())
                loss, slope_EN = balance * loss, balance * slope_EN
        ctx.save_for_backward(h_BLR, gates_EN, slope_EN)
        ctx.dtype = logits_BLE.dtype
        mixed_ERN = gates_EN.to(h_BLR.dtype).unsqueeze(1) * _rows_last(h_BLR)
        return mixed_ERN.flatten(0, 1).t().view(*h_BLR.shape[:2], -1), loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BLS: Tensor, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        h_BLR, gates_EN, slope_EN = ctx.saved_tensors
        h_RN = _rows_last(h_BLR)
        grad_ERN = _rows_last(grad_BLS).unflatten(0, (len(gates_EN), len(h_RN)))
        grad_h = (grad_ERN * gates_EN.to(grad_ERN.dtype).unsqueeze(1)).sum(0).t().view_as(h_BLR)
        # The derivative of a softmax, which renormalised top-k gates are too: over the chosen logits alone.
        grad_EN = gates_EN * (grad_ERN * h_RN).sum(1)
        grad_EN = grad_EN - gates_EN * grad_EN.sum(0)
        if slope_EN is not None:
            grad_EN = torch.addcmul(grad_EN, slope_EN, grad_loss)
        return grad_h, grad_EN.to(ctx.dtype).t().view(*h_BLR.shape[:2], -1), None, None, None


def _rows_last(tensor_BLX: Tensor) -> Tensor:
    return tensor_BLX.flatten(0, 1).t().contiguous()
