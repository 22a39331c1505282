"""ThanoRA (arXiv 2505.18640); entropies, SVD blocks and normalisation are a construction.

C_t = X_t^T X_t / m;  p = its eigenvalues, divided by their sum (min(m, D) can differ from 0)
H_t = -sum p log p / log min(m, D),  with 0 log 0 = 0
r_c = floor(r / (T + 1));  r_t = 1 + the share of r - r_c - T by softmax_t(H_t / tau), rounded by largest remainder
C'_t = C_t + 1e-2 tr(C_t) / D I;  U S V^T = svd(P W0 C'_t), P = I - sum of u u^T over the directions u of earlier tasks
n_j = |u_j^T W0|;  b_j = u_j sqrt(n_j / s),  a_j = u_j^T W0 / sqrt(n_j s), for the r_t leading u_j of task t
y = W0 x + s * (sum_t B_t A_t x - sum_t B0_t A0_t x),  s = alpha / r,  A0 and B0 the frozen start of the SVD blocks
SPR = lambda * sum_{t<u} |A_t A_u^T|_F^2 (and/or |B_t^T B_u|_F^2), rows of A and columns of B over sqrt(|.|^2 + 1e-6)
"""

import math

import torch
from torch import Tensor


def spectral_entropy(X: Tensor) -> Tensor:
    """X (m, D), the inputs of one task; returns H_t, from 0 to 1."""
    m, D = X.shape
    sigma = torch.linalg.eigvalsh(X.T @ X / m)
    p = [s_i / sigma.sum() for s_i in sigma if s_i > 0]
    return -torch.stack([p_i * torch.log(p_i) for p_i in p]).sum() / math.log(min(m, D))


def ranks(entropies: list[float], r: int, tau: float) -> tuple[list[int], int]:
    """The r_t of each task and r_c of the cooperative block; of equal remainders the lower task's comes first."""
    T = len(entropies)
    r_c = r // (T + 1)
    if r - r_c < T:
        raise ValueError(f"r={r} leaves {r - r_c} ranks for {T} tasks; the smallest r is {T}")
    shares = ((r - r_c - T) * torch.softmax(torch.tensor(entropies, dtype=torch.float64) / tau, dim=0)).tolist()
    r_t = [1 + math.floor(share) for share in shares]
    by_remainder = sorted(range(T), key=lambda t: (math.floor(shares[t]) - shares[t], t))
    for t in by_remainder[: r - r_c - sum(r_t)]:
        r_t[t] += 1
    return r_t, r_c


def svd_blocks(weight: Tensor, C: list[Tensor], ranks: list[int], s: float) -> list[tuple[Tensor, Tensor]]:
    """weight (O, D), C_t (D, D); returns (A_t (r_t, D), B_t (O, r_t)) of each task, each pair of vectors up to sign."""
    blocks = []
    P = torch.eye(len(weight), dtype=weight.dtype)
    for C_t, r_t in zip(C, ranks, strict=True):
        damped = C_t + 1e-2 * torch.trace(C_t) / len(C_t) * torch.eye(len(C_t), dtype=C_t.dtype)
        U, _, _ = torch.linalg.svd(P @ weight @ damped)
        A, B = [], []
        for u in U.T[:r_t]:
            n = torch.linalg.norm(u @ weight)
            A.append(u @ weight / torch.sqrt(n * s))
            B.append(u * torch.sqrt(n / s))
            P = P - torch.outer(u, u)
        blocks.append((torch.stack(A), torch.stack(B, dim=1)))
    return blocks


def forward(
    x: Tensor, weight: Tensor, *, A: list[Tensor], B: list[Tensor], A0: list[Tensor], B0: list[Tensor], s: float
) -> Tensor:
    """x (N, D), weight (O, D), A_t (r_t, D) and B_t (O, r_t), the cooperative block among them; returns y (N, O).

    A0_t, B0_t: the tasks' blocks at the start, or no blocks at all where B starts at 0.
    """
    rows = []
    for x_n in x:
        y_n = weight @ x_n
        for A_t, B_t in zip(A, B, strict=True):
            y_n = y_n + s * (B_t @ (A_t @ x_n))
        for A0_t, B0_t in zip(A0, B0, strict=True):
            y_n = y_n - s * (B0_t @ (A0_t @ x_n))
        rows.append(y_n)
    return torch.stack(rows)


def spr(A: Tensor, B: Tensor, ranks: list[int], side: str, lam: float) -> Tensor:
    """A (R, D), B (O, R), whose first sum(ranks) rows and columns are the tasks'; side `A`, `B` or `both`."""
    loss = A.new_zeros(())
    for factor in {"A": [A], "B": [B.T], "both": [A, B.T]}[side]:
        rows = [row / torch.sqrt(row @ row + 1e-6) for row in factor]
        tasks = [t for t, r_t in enumerate(ranks) for _ in range(r_t)]
        for t, one in zip(tasks, rows, strict=False):
            for u, other in zip(tasks, rows, strict=False):
                if t < u:
                    loss = loss + lam * (one @ other) ** 2
    return loss
