"""HydraLoRA (arXiv 2404.19245).

y = W0 x + s * sum_e softmax(W_g x)_e B_e A x,  s = alpha / r

Balance loss (Switch, arXiv 2101.03961): E * sum_e f_e P_e, with f_e the share of tokens whose most probable expert
is e and P_e the mean probability of e.
"""

import torch
from torch import Tensor


def forward(x: Tensor, weight: Tensor, *, A: Tensor, B: list[Tensor], router: Tensor, r: int, alpha: float) -> Tensor:
    """x (N, D), weight (O, D), A (r, D), B_e (O, r), router (E, D); returns y (N, O)."""
    s = alpha / r
    rows = []
    for x_n in x:
        gate = torch.softmax(router @ x_n, dim=0)
        y_n = weight @ x_n
        for gate_e, B_e in zip(gate, B, strict=True):
            y_n = y_n + s * gate_e * (B_e @ (A @ x_n))
        rows.append(y_n)
    return torch.stack(rows)


def balance_loss(x: Tensor, *, router: Tensor, mask: Tensor | None = None) -> Tensor:
    """x (N, D), router (E, D), mask (N,) bool, True for the tokens that count; returns a scalar."""
    tokens = [x_n for n, x_n in enumerate(x) if mask is None or mask[n]]
    probs = [torch.softmax(router @ x_n, dim=0) for x_n in tokens]
    E = len(router)
    loss = x.new_zeros(())
    for e in range(E):
        f_e = sum(int(p.argmax()) == e for p in probs) / len(probs)
        P_e = torch.stack([p[e] for p in probs]).mean()
        loss = loss + E * f_e * P_e
    return loss
