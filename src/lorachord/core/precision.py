"""Out of autocast, where half precision would change what is chosen or counted."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_AS_IT_IS = nullcontext()


def without_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """A context in which autocast leaves operations on `tensor`'s device alone.

    Autocast's own context costs more than many of the operations inside, so it is entered only where autocast is on.
    """
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _AS_IT_IS
