"""MoDE (arXiv 2408.01505), generalised to m x r x p: m experts, r rank slots, p slots to a router.

y = W0 x + s * sum_j sum_e softmax(W_j x)_e sum_{i in block j} (a_i . x) b_{i,e}

a_i is row i of the shared A, b_{i,e} is column i of B_e, and block j holds the slots jp, ..., jp + p - 1, from 0. The
paper has p = 1 and s = 1.
"""

import torch
from torch import Tensor


def forward(x: Tensor, weight: Tensor, *, A: Tensor, B: list[Tensor], routers: list[Tensor], s: float = 1.0) -> Tensor:
    """x (N, D), weight (O, D), A (r, D), m matrices B_e (O, r), r / p matrices W_j (m, D); returns y (N, O)."""
    p = len(A) // len(routers)
    rows = []
    for x_n in x:
        y_n = weight @ x_n
        for j, W_j in enumerate(routers):
            gate = torch.softmax(W_j @ x_n, dim=0)
            for gate_e, B_e in zip(gate, B, strict=True):
                for i in range(j * p, (j + 1) * p):
                    y_n = y_n + s * gate_e * (A[i] @ x_n) * B_e[:, i]
        rows.append(y_n)
    return torch.stack(rows)
