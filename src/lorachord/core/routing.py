"""Routers: gates over experts, and the balance loss that keeps them in use.

Shapes: B samples, L rows of one sample, D inputs, E experts, K experts chosen per row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lorachord.core import init
from lorachord.core.context import Context


class Router(nn.Module):
    """Token-level gates `softmax(W x)` without a bias, dense or top-k renormalised.

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

    def forward(self, x_BLD: Tensor, ctx: Context) -> Tensor:
        """Gates (B, L, E) in the dtype of `x`; the softmax is taken in at least float32."""
        wide = torch.promote_types(x_BLD.dtype, torch.float32)
        logits_BLE = (x_BLD @ self.weight.to(x_BLD.dtype).t()).to(wide)
        chosen_BLK = None
        masked_BLE = logits_BLE
        if self.top_k is not None:
            # Renormalised top-k gates are a softmax over the chosen logits alone.
            chosen_BLK = logits_BLE.detach().topk(self.top_k, dim=-1).indices
            masked_BLE = logits_BLE + torch.full_like(logits_BLE, -torch.inf).scatter_(-1, chosen_BLK, 0.0)
        gates_BLE = torch.softmax(masked_BLE, dim=-1)
        # A recompute makes the loss too, and drops it: it must save the same tensors as the forward did.
        loss = None
        if self.training and self.balance > 0:
            probs_BLE = gates_BLE if chosen_BLK is None else torch.softmax(logits_BLE, dim=-1)
            loss = balance_loss(probs_BLE, chosen_BLK, ctx.token_mask_BL)
        if ctx.recording:
            self.recorded = loss
        return gates_BLE.to(x_BLD.dtype)

    def penalty(self) -> Tensor | None:
        """The weighted balance loss of the last forward, or None where there is none."""
        return None if self.recorded is None else self.balance * self.recorded

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle has no part in the graph of the last forward.
        return {**self.__dict__, "recorded": None}


def balance_loss(probs_BLE: Tensor, chosen_BLK: Tensor | None, mask_BL: Tensor | None) -> Tensor:
    """The Switch balance loss `E sum_e f_e P_e` (arXiv 2101.03961, eq. 4), which is 1 at balance.

    `f_e` is the share of rows that chose e, divided by k for top-k; `P_e` the mean probability of e. Gradients flow
    through P alone.

    Args:
        probs_BLE: probabilities over all experts, before the top-k.
        chosen_BLK: indices of the chosen experts of each row; None (dense gates) counts the most probable one.
        mask_BL: True for the rows that count; ignored where the layer does not see the rows that it speaks of.
    """
    num_experts = probs_BLE.shape[-1]
    probs_NE = probs_BLE.flatten(0, -2)
    chosen_NK = probs_NE.detach().argmax(-1, keepdim=True) if chosen_BLK is None else chosen_BLK.flatten(0, -2)
    if mask_BL is not None and mask_BL.numel() == len(probs_NE):
        weight_N1 = mask_BL.reshape(-1, 1).to(probs_NE)
        mean_E = (probs_NE * weight_N1).sum(0) / weight_N1.sum().clamp_min(1)
        counts_E = probs_NE.new_zeros(num_experts)
        counts_E.index_add_(0, chosen_NK.flatten(), weight_N1.expand_as(chosen_NK).flatten())
    else:
        mean_E = probs_NE.mean(0)
        counts_E = torch.bincount(chosen_NK.flatten(), minlength=num_experts).to(probs_NE)
    return num_experts * (counts_E / counts_E.sum().clamp_min(1) * mean_E).sum()


def gated(gates_BLE: Tensor, h_BLR: Tensor) -> Tensor:
    """`g (x) h`, the core of routed experts that share A: (B, L, E R), each expert's gate times h, side by side."""
    return (gates_BLE.unsqueeze(-1) * h_BLR.contiguous().unsqueeze(-2)).flatten(-2)
