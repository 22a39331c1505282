"""Where a tensor is, the way there, and out of autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_AS_IT_IS = nullcontext()


def on_cpu(tensor: Tensor) -> bool:
    """Whether its products are a CPU's, called one by one: a compiler lays out its own.

    >>> on_cpu(torch.ones(2)), on_cpu(torch.ones(2, device="meta"))
    (True, False)
    """
    return tensor.is_cpu and not torch.compiler.is_compiling()


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, without waiting for a GPU to have it: what is launched later finds it there.

    >>> moved(torch.ones(2), torch.device("cpu")).tolist()
    [1.0, 1.0]
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def without_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """A context in which autocast leaves operations on `tensor`'s device alone: half precision would miscount or tie.

    Autocast's own context costs more than many of the operations inside, so it is entered only where autocast is on.
    """
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _AS_IT_IS
