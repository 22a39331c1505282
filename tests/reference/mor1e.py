"""Intuition-MoR1E, T-REX (arXiv 2404.08985).

y = W0 x + sigmoid(100 g) * B (R^T (A x))
R = 32 w softmax(W_r x) + 4 (1 - w) c,  w = sigmoid(100 omega),  as a row-major (r1, r2) matrix

c_k is the cosine of the prompt's embedding to centroid k. The paper's 32 is its number of clusters, r1 r2 = 4 * 8, and
stands here as r1 r2 for any ranks; its 4 is a constant whose origin is not given, and stays 4.
"""

import torch
from torch import Tensor


def forward(
    x: Tensor,
    weight: Tensor,
    *,
    A: Tensor,
    B: Tensor,
    router: Tensor,
    g: Tensor,
    omega: Tensor,
    embeddings: Tensor,
    centroids: Tensor,
    router_factor: float | None = None,
    cosine_factor: float = 4.0,
) -> Tensor:
    """x (N, D), weight (O, D), A (r1, D), B (O, r2), router (r1 r2, D), g and omega (), returns y (N, O).

    embeddings (N, F) of the prompt of each row, centroids (r1 r2, F); router_factor is r1 r2 unless given.
    """
    r1, r2 = len(A), B.shape[1]
    factor = r1 * r2 if router_factor is None else router_factor
    w = torch.sigmoid(100 * omega)
    rows = []
    for x_n, u in zip(x, embeddings, strict=True):
        cosines = torch.stack([(u @ c_k) / (u.norm() * c_k.norm()) for c_k in centroids])
        flat = factor * w * torch.softmax(router @ x_n, dim=0) + cosine_factor * (1 - w) * cosines
        h, mixed = A @ x_n, []
        for j in range(r2):
            mixed.append(sum(flat[i * r2 + j] * h[i] for i in range(r1)))
        rows.append(weight @ x_n + torch.sigmoid(100 * g) * (B @ torch.stack(mixed)))
    return torch.stack(rows)
