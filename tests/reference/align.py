"""The penalty of Align-LoRA, in its KL form (arXiv 2508.05078).

weight * mean over layers and pairs of tasks of (KL(p || q) + KL(q || p)) / 2, with p and q Gaussians of independent
dimensions that are fitted to the tasks' rows of A x.
"""

from itertools import combinations

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence


def penalty(layers: list[tuple[Tensor, list[int]]], *, weight: float, floor: float) -> float | Tensor:
    """A layer is its rows of A x (N, r) and the task of each; a task below 0 stands for padding."""
    of_layers = []
    for h, tasks in layers:
        fitted = []
        for task in sorted({task for task in tasks if task >= 0}):
            rows = torch.stack([row for row, own in zip(h, tasks, strict=True) if own == task])
            if len(rows) >= 2:
                fitted.append(Normal(rows.mean(0), rows.var(0).clamp_min(floor).sqrt()))
        pairs = [(kl_divergence(p, q).sum() + kl_divergence(q, p).sum()) / 2 for p, q in combinations(fitted, 2)]
        of_layers.append(torch.stack(pairs).mean() if pairs else h.sum() * 0)
    return weight * torch.stack(of_layers).mean()
