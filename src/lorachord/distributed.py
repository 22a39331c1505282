"""What data-parallel ranks, which are taken to hold different rows, tell each other."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

Value = TypeVar("Value")


def _alone() -> bool:
    return not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1


def from_first(value: Value) -> Value:
    """The first rank's value, on all ranks: where each has worked out the same, equal to the bit. It is pickled."""
    if _alone():
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def across_ranks(counts: Tensor) -> tuple[Tensor, int]:
    """The sum of `counts` over all ranks, without a gradient, and how many ranks there are."""
    if _alone():
        return counts, 1
    counts = counts.clone()
    dist.all_reduce(counts)
    return counts, dist.get_world_size()


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP has sharded the model or parts of it, whose weights are then whole while these compute alone."""
    if not dist.is_available() or not dist.is_initialized():
        return False
    return any(isinstance(module, FSDPModule | FullyShardedDataParallel) for module in model.modules())
