"""Conditional mixture of LoRA, MixLoRA (arXiv 2402.15896).

For each sample, with hbar the mean of the layer's input over the prompt:
    p_A = softmax(W_A hbar),  s_A its r largest, in falling order
    p_B = softmax(W_B hbar) + sum_i softmax(a_{s_A(i)} W_AB[i]),  s_B its r largest, in falling order
    y = W0 x + s * sum_k c_k (a_{s_A(k)} . x) b_{s_B(k)},  s = alpha / r,  alpha = 2 E

c_k = 1 as the authors code it (`frozen_hash`: no router gets a gradient), or
c_k = r q_k / sum q, q_k = p_A[s_A(k)] p_B[s_B(k)] (`scored`, a construction: every router learns, the c_k sum to r).
"""

import torch
from torch import Tensor


def forward(
    x: Tensor,
    weight: Tensor,
    *,
    prompt_mask: Tensor,
    a: Tensor,
    b: Tensor,
    W_A: Tensor,
    W_B: Tensor,
    W_AB: Tensor,
    selection: str,
    alpha: float | None = None,
) -> Tensor:
    """x (B, L, D), weight (O, D), prompt_mask (B, L) bool, a (E, D), b (E, O); returns y (B, L, O).

    W_A (E, D), W_B (E, D), W_AB (r, D, E); selection `scored` or `frozen_hash`; alpha is 2 E unless given.
    """
    E, r = len(a), len(W_AB)
    s = (2 * E if alpha is None else alpha) / r
    samples = []
    for x_b, is_prompt in zip(x, prompt_mask, strict=True):
        hbar = torch.stack([x_l for x_l, counts in zip(x_b, is_prompt, strict=True) if counts]).mean(dim=0)
        p_A = torch.softmax(W_A @ hbar, dim=0)
        s_A = p_A.topk(r).indices.tolist()
        p_B = torch.softmax(W_B @ hbar, dim=0)
        for i in range(r):
            p_B = p_B + torch.softmax(a[s_A[i]] @ W_AB[i], dim=0)
        s_B = p_B.topk(r).indices.tolist()
        c = [x.new_ones(())] * r
        if selection == "scored":
            q = [p_A[s_A[k]] * p_B[s_B[k]] for k in range(r)]
            c = [r * q_k / sum(q) for q_k in q]
        rows = []
        for x_l in x_b:
            y_l = weight @ x_l
            for k in range(r):
                y_l = y_l + s * c[k] * (a[s_A[k]] @ x_l) * b[s_B[k]]
            rows.append(y_l)
        samples.append(torch.stack(rows))
    return torch.stack(samples)
