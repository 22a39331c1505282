"""MALoRA (arXiv 2410.22782).

g = topk(softmax(W x), k), renormalised to sum to 1
y = W0 x + (alpha / rb) * sum_e g_e B_e P_e S_A x

Balance loss: MoSLD's, on this router.
"""

import torch
from torch import Tensor

from tests.reference.mosld import balance_loss as balance_loss


def forward(
    x: Tensor, weight: Tensor, *, S_A: Tensor, P: list[Tensor], B: list[Tensor], router: Tensor, k: int, alpha: float
) -> Tensor:
    """x (N, D), weight (O, D), S_A (d, D), P_e (rb, d), B_e (O, rb), router (E, D); returns y (N, O)."""
    s = alpha / len(P[0])
    rows = []
    for x_n in x:
        prob = torch.softmax(router @ x_n, dim=0)
        chosen = prob.topk(k).indices.tolist()
        total = sum(prob[e] for e in chosen)
        y_n = weight @ x_n
        for e in chosen:
            y_n = y_n + s * (prob[e] / total) * (B[e] @ (P[e] @ (S_A @ x_n)))
        rows.append(y_n)
    return torch.stack(rows)


def num_parameters(*, d_in: int, d_out: int, E: int, d: int, rb: int) -> int:
    """Of one matrix, with its router: S_A, E times P_e and B_e, W."""
    return d * d_in + E * (rb * d + d_out * rb) + E * d_in


def num_parameters_of_moe_lora(*, d_in: int, d_out: int, E: int, r: int) -> int:
    """Of one matrix, with its router: E times A_e and B_e, W."""
    return E * (r * d_in + d_out * r) + E * d_in
