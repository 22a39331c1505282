"""MTL-LoRA (arXiv 2410.09437).

y_t = W0 x + s * (sum_i softmax(w_t / tau)_i B_i) Lambda_t A x,  s = alpha / r,  t the task of the row
"""

import torch
from torch import Tensor


def forward(
    x: Tensor,
    weight: Tensor,
    *,
    A: Tensor,
    B: list[Tensor],
    Lambda: Tensor,
    w: Tensor,
    task_ids: list[int],
    tau: float,
    r: int,
    alpha: float,
) -> Tensor:
    """x (N, D), weight (O, D), A (r, D), B_i (O, r), Lambda (T, r, r) or (T, r), w (T, n); returns y (N, O)."""
    s = alpha / r
    rows = []
    for x_n, t in zip(x, task_ids, strict=True):
        Lambda_t = torch.diag(Lambda[t]) if Lambda.ndim == 2 else Lambda[t]
        pi = torch.softmax(w[t] / tau, dim=0)
        B_t = torch.zeros_like(B[0])
        for pi_i, B_i in zip(pi, B, strict=True):
            B_t = B_t + pi_i * B_i
        rows.append(weight @ x_n + s * (B_t @ (Lambda_t @ (A @ x_n))))
    return torch.stack(rows)
