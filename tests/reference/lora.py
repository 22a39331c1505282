"""LoRA (arXiv 2106.09685).

y = W0 x + s * B A x,  s = alpha / r
"""

import torch
from torch import Tensor


def forward(x: Tensor, weight: Tensor, *, A: Tensor, B: Tensor, r: int, alpha: float) -> Tensor:
    """x (N, D), weight (O, D), A (r, D), B (O, r); returns y (N, O)."""
    s = alpha / r
    rows = []
    for x_n in x:
        rows.append(weight @ x_n + s * (B @ (A @ x_n)))
    return torch.stack(rows)
