"""Where a tensor is, and the way there."""

from __future__ import annotations

import torch
from torch import Tensor


def on_cpu(tensor: Tensor) -> bool:
    """Whether its products are a CPU's.

    >>> on_cpu(torch.ones(2)), on_cpu(torch.ones(2, device="meta"))
    (True, False)
    """
    return tensor.is_cpu


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, without waiting for a GPU to have it: what is launched later finds it there.

    >>> moved(torch.ones(2), torch.device("cpu")).tolist()
    [1.0, 1.0]
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
