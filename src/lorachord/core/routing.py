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
        logits_BLE = x_BLD @ self.weight.to(x_BLD.dtype).t()
        wide = torch.promote_types(x_BLD.dtype, torch.float32)
        probs_BLE = torch.softmax(logits_BLE, dim=-1, dtype=wide)
        if self.top_k is None:
            gates_BLE, chosen_BLE = probs_BLE, None
        else:
            top = probs_BLE.topk(self.top_k, dim=-1)
            kept = top.values / top.values.sum(dim=-1, keepdim=True)
            gates_BLE = torch.zeros_like(probs_BLE).scatter(-1, top.indices, kept)
            chosen_BLE = torch.zeros_like(probs_BLE).scatter(-1, top.indices, 1.0)
        # A recompute makes the loss too, and drops it: it must save the same tensors as the forward did.
        wanted = self.training and self.balance > 0
        loss = balance_loss(probs_BLE, chosen_BLE, ctx.token_mask_BL) if wanted else None
        if ctx.recording:
            self.recorded = loss
        return gates_BLE.to(x_BLD.dtype)

    def penalty(self) -> Tensor | None:
        """The weighted balance loss of the last forward, or None where there is none."""
        return None if self.recorded is None else self.balance * self.recorded

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle has no part in the graph of the last forward.
        return {**self.__dict__, "recorded": None}


def balance_loss(probs_BLE: Tensor, chosen_BLE: Tensor | None, mask_BL: Tensor | None) -> Tensor:
    """The Switch balance loss `E sum_e f_e P_e` (arXiv 2101.03961, eq. 4), which is 1 at balance.

    `f_e` is the share of rows that chose e, divided by k for top-k; `P_e` the mean probability of e. Gradients flow
    through P alone.

    Args:
        probs_BLE: probabilities over all experts, before the top-k.
        chosen_BLE: 1 for the chosen experts of a row; None (dense gates) counts the most probable one.
        mask_BL: True for the rows that count; ignored where the layer does not see the rows that it speaks of.
    """
    num_experts = probs_BLE.shape[-1]
    probs_NE = probs_BLE.reshape(-1, num_experts)
    if chosen_BLE is None:
        chosen_NE = torch.zeros_like(probs_NE).scatter(-1, probs_NE.argmax(-1, keepdim=True), 1.0)
    else:
        chosen_NE = chosen_BLE.reshape(-1, num_experts)
    weight_N1 = torch.ones_like(probs_NE[:, :1])
    if mask_BL is not None and mask_BL.numel() == len(probs_NE):
        weight_N1 = mask_BL.reshape(-1, 1).to(probs_NE)
    total = weight_N1.sum().clamp_min(1)
    share_E = (chosen_NE * weight_N1).sum(0).detach()
    share_E = share_E / share_E.sum().clamp_min(1)
    mean_E = (probs_NE * weight_N1).sum(0) / total
    return num_experts * (share_E * mean_E).sum()
