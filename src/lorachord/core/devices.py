"""Small tensors on their way to an accelerator."""

from __future__ import annotations

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, without waiting for an accelerator; towards the CPU, where it would not be there yet, with.

    >>> moved(torch.ones(2), torch.device("cpu")).tolist()
    [1.0, 1.0]
    """
    return tensor.to(device, non_blocking=device.type != "cpu")
