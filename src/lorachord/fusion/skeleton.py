"""A model's modules around weights that it shares with another."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def skeleton(model: nn.Module) -> Any:
    """A copy of a model's modules around the same weights, frozen."""
    shared: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        # Quantised and sharded parameters are subclasses that cannot be made anew.
        plain = type(parameter) is nn.Parameter
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False) if plain else parameter
    return copy.deepcopy(model, shared).eval()
