"""Ortho-LoRA (arXiv 2601.09684): PCGrad (arXiv 2001.06782) within one factor.

for i in 1..T:  v_i = g_i;  for j in an order of the others:  if <v_i, g_j> < 0:  v_i -= <v_i, g_j> / |g_j|^2 g_j
result: sum_i v_i

g_j is the original gradient. A zero g_j has no negative product with anything, so it is never divided by.
"""

import torch
from torch import Tensor


def combined(gradients: list[Tensor], orders: list[list[int]]) -> Tensor:
    """T gradients (P,) of one factor, the order of the others for each; returns the sum (P,)."""
    total = torch.zeros_like(gradients[0])
    for g_i, others in zip(gradients, orders, strict=True):
        v_i = g_i
        for j in others:
            dot = v_i @ gradients[j]
            if dot < 0:
                v_i = v_i - dot / (gradients[j] @ gradients[j]) * gradients[j]
        total = total + v_i
    return total


def index_orders(T: int) -> list[list[int]]:
    """Every task's others in the order of their index."""
    return [[j for j in range(T) if j != i] for i in range(T)]


FIRST = [[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]
SECOND = [[1.0, 0.0, 0.0], [-1.0, 2.0, 0.0], [0.0, -1.0, 1.0]]
"""Two sets of task gradients, a row a task."""

KNOWN_FIRST = {
    "mean": [1.0, 1.0, 1.0],
    "pcgrad_sum": [0.5848, 3.8012, 3.8012],
    "mgda": [0.0, 1.0, 1.0],
    "cagrad_0.4": [0.3468, 1.1633, 1.1633],
    "imtl_g": [0.0767, 1.0, 1.0],
    "nash_mtl": [0.0766, 0.9985, 0.9985],
    "aligned_mtl_mean": [0.2133, 0.9673, 0.9673],
    "upgrad_mean": [0.2924, 1.9006, 1.9006],
}
KNOWN_SECOND = {
    "mean": [0.0, 0.3333, 0.3333],
    "pcgrad_sum_in_index_order": [0.4, 1.0, 2.2],
    "mgda": [0.1667, 0.1667, 0.3333],
    "cagrad_0.4": [0.154, 0.2564, 0.4103],
}
"""What rules make of them, to four places."""
