"""Initialisations, in place."""

import torch
from torch import Tensor


@torch.no_grad()
def kaiming_uniform_(tensor: Tensor, fan_in: int) -> Tensor:
    """Kaiming-uniform with a = sqrt(5), as torch's own Linear and PEFT's LoRA use it: U(-1, 1) / sqrt(fan_in).

    The fan-in is given, not read off the shape, because a stacked tensor is as wide as all its blocks together.
    """
    bound = fan_in**-0.5
    return tensor.uniform_(-bound, bound)
