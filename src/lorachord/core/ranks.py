"""Sums over data-parallel ranks, which are taken to hold different rows."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def across_ranks(counts: Tensor) -> tuple[Tensor, int]:
    """The sum of `counts` over all ranks, without a gradient, and how many ranks there are."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return counts, 1
    counts = counts.clone()
    dist.all_reduce(counts)
    return counts, dist.get_world_size()
