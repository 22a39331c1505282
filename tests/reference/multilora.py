"""MultiLoRA (arXiv 2311.11501).

y = W0 x + s * sum_i scale_i * (B_i A_i x),  s = alpha / r
"""

import torch
from torch import Tensor


def forward(
    x: Tensor, weight: Tensor, *, A: list[Tensor], B: list[Tensor], scale: list[Tensor], r: int, alpha: float
) -> Tensor:
    """x (N, D), weight (O, D), A_i (r, D), B_i (O, r), scale_i (O,) or (); returns y (N, O)."""
    s = alpha / r
    rows = []
    for x_n in x:
        y_n = weight @ x_n
        for A_i, B_i, scale_i in zip(A, B, scale, strict=True):
            y_n = y_n + s * scale_i * (B_i @ (A_i @ x_n))
        rows.append(y_n)
    return torch.stack(rows)
