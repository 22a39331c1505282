"""Calls of the kernels' autograd functions: without autograd where nothing is differentiated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Forgetful:
    """In the place of autograd's context, where no backward pass can follow."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Saves nothing."""

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """Marks nothing."""

    def set_materialize_grads(self, value: bool) -> None:
        """There are no gradients."""


def applied(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply(*args)`.

    Autograd's way into a function takes 20 to 40 us, which is as long as a layer's own product on single tokens.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function.apply(*args)
    return function.forward(_Forgetful(), *args)
