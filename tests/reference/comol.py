"""CoMoL (arXiv 2603.00573).

h = A drop(x);  y = W0 x + s * B sum_e softmax(W_r h)_e M_e h,  s = alpha / r
"""

import torch
from torch import Tensor


def forward(
    x: Tensor,
    weight: Tensor,
    *,
    A: Tensor,
    B: Tensor,
    M: list[Tensor],
    W_r: Tensor,
    r: int,
    alpha: float,
    dropped: Tensor | None = None,
) -> Tensor:
    """x (N, D), weight (O, D), A (r, D), B (O, r), M_e (r, r), W_r (E, r), dropped x (N, D); returns y (N, O)."""
    rows = []
    for x_n, dropped_n in zip(x, x if dropped is None else dropped, strict=True):
        h = A @ dropped_n
        gate = torch.softmax(W_r @ h, dim=0)
        mixed = torch.zeros_like(h)
        for gate_e, M_e in zip(gate, M, strict=True):
            mixed = mixed + gate_e * (M_e @ h)
        rows.append(weight @ x_n + (alpha / r) * (B @ mixed))
    return torch.stack(rows)
