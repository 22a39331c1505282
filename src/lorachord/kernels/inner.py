"""The kernel before the core: A' and a router's weight in one product over the layer's input.

Shapes: N rows, D inputs, R rows of A', E rows of a router, X of both, T tasks; I and O as in `kernels/linear.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorachord.kernels.apply import applied
from lorachord.kernels.devices import on_cpu
from lorachord.kernels.linear import rows_linear
from lorachord.kernels.products import Places, lies_rows_last, matmul, products_by_task, weight_gradient


def inner_products(
    dropped: Tensor,
    x: Tensor,
    down_RD: Tensor,
    router_ED: Tensor | None,
    probe_TXD: Tensor | None,
    row_runs: Places | None,
    *,
    through: bool = False,
    rows_last: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """`A' drop(x)` (..., R); the router's logits `W x` (..., E), or None where there is no router; and x.

    Args:
        dropped: (..., D), `drop(x)`; the same object as `x` where nothing is dropped: then both are one product.
        x: (..., D), in the dtype to compute in.
        down_RD, router_ED: A' and W.
        probe_TXD, row_runs: as in `rows_linear`, for A' with W below it.
        through: whether all else that is made of x is made of the x that is returned, by a function that gives its
            gradient away: that of the products is then added to it in place, which saves a pass over it. An accelerator
            ignores it, and so does dropout.
        rows_last: whether the results may lie in memory with their rows last, as routing likes it; so does their
            gradient then. An accelerator ignores it, and so does dropout.
    """
    down_RD, router_ED = down_RD.to(x.dtype), None if router_ED is None else router_ED.to(x.dtype)
    if dropped is not x:
        # The router looks at all of x.
        down_TRD, router_TED = (None, None) if probe_TXD is None else probe_TXD.tensor_split((len(down_RD),), dim=1)
        h = rows_linear(dropped, down_RD, probe_TOI=down_TRD, row_runs=row_runs)
        if router_ED is None:
            return h, None, x
        return h, rows_linear(x, router_ED, probe_TOI=router_TED, row_runs=row_runs), x
    weights = [down_RD] if router_ED is None else [down_RD, router_ED]
    if not on_cpu(x):
        y = rows_linear(x, _stacked(weights), probe_TOI=probe_TXD, row_runs=row_runs)
        if router_ED is None:
            return y, None, x
        h, logits = y.tensor_split((len(down_RD),), dim=-1)
        return h, logits, x
    if probe_TXD is not None:
        # As in `rows_linear`.
        weights, probe_TXD = [weight.detach() for weight in weights], probe_TXD.to(x.dtype)
    through = through and x.requires_grad and torch.is_grad_enabled()
    h, logits, passed = applied(_Inner, x, len(down_RD), probe_TXD, row_runs, through, rows_last, *weights)
    return h, logits, passed if through else x


class _Inner(torch.autograd.Function):
    """`x W^T` of weights stacked as one, in one or two outputs; and x, if others read it from here.

    As operations of autograd's own, split and cat cost a third of the product. What others make of x arrives here as a
    gradient, to which that of the product is added in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        num_first: int,
        probe_TOI: Tensor | None,
        row_runs: Places | None,
        through: bool,
        rows_last: bool,
        *weights: Tensor,
    ) -> tuple[Tensor | None, ...]:
        weight_OI, x_NI = _stacked(weights), x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(x, weight_OI, *weights)
        ctx.row_runs, ctx.num_tasks = row_runs, None if probe_TOI is None else len(probe_TOI)
        y_NO = (weight_OI @ x_NI.t()).t() if rows_last else matmul(x_NI, weight_OI.t())
        parts_NO = (y_NO,) if num_first == len(weight_OI) else y_NO.tensor_split((num_first,), dim=1)
        first, *second = (part_NO.view(*x.shape[:-1], -1) for part_NO in parts_NO)
        return first, second[0] if second else None, x.view_as(x) if through else None

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight_OI, *weights = ctx.saved_tensors
        if len(weights) > 1 and torch.is_grad_enabled():
            # Second derivatives are those of what was stacked.
            weight_OI = torch.cat(weights)
        x_NI, (*products, others) = x.reshape(-1, x.shape[-1]), grads
        parts_NO = [grad.reshape(-1, grad.shape[-1]) for grad in products if grad is not None]
        grad_NO = _side_by_side(parts_NO)
        grad_x = grad_probe = None
        grad_weights: tuple[Tensor | None, ...] = (None,) * len(weights)
        if ctx.needs_input_grad[0] and others is not None:
            grad_x = others.reshape(x_NI.shape).addmm_(grad_NO, weight_OI).view(x.shape)
        elif ctx.needs_input_grad[0]:
            grad_x = matmul(grad_NO, weight_OI).view(x.shape)
        if ctx.needs_input_grad[2]:
            grad_probe = products_by_task(grad_NO, x_NI, ctx.row_runs, ctx.num_tasks)
        elif any(ctx.needs_input_grad[6:]):
            grad_OI = weight_gradient(grad_NO, x_NI)
            grad_weights = grad_OI.split([len(weight) for weight in weights]) if len(weights) > 1 else (grad_OI,)
        return grad_x, None, grad_probe, None, None, None, *grad_weights


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """(N, X) of one or two parts of the rows, in memory as the first part is: they themselves, if they lie so."""
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    if not lies_rows_last(first):
        return torch.cat([first, second], dim=1)
    num_rows, num_first = first.shape
    # By identity: where nothing is computed, as in a compiler's trace, there are no addresses.
    same = first.untyped_storage()._cdata == second.untyped_storage()._cdata
    behind = second.storage_offset() - first.storage_offset() == num_first * num_rows
    if same and behind and first.stride() == second.stride() == (1, num_rows):
        return first.as_strided((num_rows, num_first + second.shape[1]), (1, num_rows))
    return torch.cat([first.t(), second.t()]).t()


def _stacked(weights: Sequence[Tensor]) -> Tensor:
    return weights[0] if len(weights) == 1 else torch.cat([*weights])
