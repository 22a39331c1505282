"""MoSLD (arXiv 2412.08946).

S = topk(softmax(W_l x), k), renormalised to sum to 1
A~ = A * mask / (1 - p) in training (the entries of the weight A are dropped), A~ = A otherwise
y = W0 x + s * sum_e S_e B_e A~ x,  s = alpha / r

Balance loss (Switch, arXiv 2101.03961): E * sum_e f_e P_e, with f_e the share of tokens that have e among their k
experts, divided by k, and P_e the mean probability of e (over all experts, before the top-k).
"""

import torch
from torch import Tensor


def forward(
    x: Tensor,
    weight: Tensor,
    *,
    A: Tensor,
    B: list[Tensor],
    router: Tensor,
    k: int,
    r: int,
    alpha: float,
    mask: Tensor | None = None,
    p: float = 0.0,
) -> Tensor:
    """x (N, D), weight (O, D), A (r, D), B_e (O, r), router (E, D), mask (r, D), 1 = kept; returns y (N, O)."""
    s = alpha / r
    A_tilde = A if mask is None else A * mask / (1 - p)
    rows = []
    for x_n in x:
        prob = torch.softmax(router @ x_n, dim=0)
        chosen = prob.topk(k).indices.tolist()
        total = sum(prob[e] for e in chosen)
        y_n = weight @ x_n
        for e in chosen:
            y_n = y_n + s * (prob[e] / total) * (B[e] @ (A_tilde @ x_n))
        rows.append(y_n)
    return torch.stack(rows)


def balance_loss(x: Tensor, *, router: Tensor, k: int, mask: Tensor | None = None) -> Tensor:
    """x (N, D), router (E, D), mask (N,) bool, True for the tokens that count; returns a scalar."""
    tokens = [x_n for n, x_n in enumerate(x) if mask is None or mask[n]]
    probs = [torch.softmax(router @ x_n, dim=0) for x_n in tokens]
    E = len(router)
    loss = x.new_zeros(())
    for e in range(E):
        f_e = sum(e in prob.topk(k).indices.tolist() for prob in probs) / len(probs) / k
        P_e = torch.stack([prob[e] for prob in probs]).mean()
        loss = loss + E * f_e * P_e
    return loss
