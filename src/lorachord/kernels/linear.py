"""The kernel: a linear map over rows, with the option of a weight gradient per task.

Shapes: N rows, I inputs, O outputs, T tasks; U runs of M rows each.

Background. Samples of different tasks do not meet inside a layer, so the weight gradient of task t is the product of
that task's rows alone. With rows sorted by task, the T products cost what the joint one costs. To hand them out, the
weight gets a *zero leaf with a task axis*: `probe_TOI`, added in thought to the weight of each row's task. It changes
no output, but its gradient is the weight's gradient per task, so that autograd itself accumulates it, a data-parallel
reducer averages it, and checkpointing and torch.compile see a pure function. While a probe is given, the summed
gradient is not computed.

The factors of a low-rank update are very narrow, and a CPU's BLAS is slow at narrow products unless they are put to it
in the right way (measured with 8 columns: up to 4 times). So there the narrow operand of a product has its long side
last in memory, and the gradient of a weight is made with its smaller side first. Rows that stand between the factors
may lie in memory with the rows last: then so does their gradient. An accelerator gets products as they are, and what
needs no probe as operations of autograd's own: what counts there is how soon the next kernel is launched, and a
function in Python costs more than the kernels it saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorachord.kernels.devices import moved, on_cpu

Runs = tuple[tuple[int, int, int], ...]


NARROW = 16
"""Fewer columns than this are narrow for a CPU; from 16 on, what is done for these alone gains nothing."""


def _narrow(rows: Tensor) -> bool:
    return rows.shape[1] < NARROW and on_cpu(rows)


def _rows_last(rows: Tensor) -> bool:
    """Whether the rows (N, X) lie beside each other in memory, and not one after another."""
    return rows.stride(0) == 1 != rows.stride(1)


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """(N, X) of one or two parts of the rows, in memory as the first part is: they themselves, if they lie so."""
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    if not _rows_last(first):
        return torch.cat([first, second], dim=1)
    num_rows, num_first = first.shape
    # By identity: where nothing is computed, as in a compiler's trace, there are no addresses.
    same = first.untyped_storage()._cdata == second.untyped_storage()._cdata
    behind = second.storage_offset() - first.storage_offset() == num_first * num_rows
    if same and behind and first.stride() == second.stride() == (1, num_rows):
        return first.as_strided((num_rows, num_first + second.shape[1]), (1, num_rows))
    return torch.cat([first.t(), second.t()]).t()


def _matmul(a_NK: Tensor, b_KM: Tensor, scale: float = 1.0) -> Tensor:
    return _scaled(a_NK, b_KM.t().contiguous().t() if _narrow(b_KM) else b_KM, scale)


def _scaled(a_NK: Tensor, b_KM: Tensor, scale: float) -> Tensor:
    """`scale * a b`, scaled inside the product."""
    if scale == 1:
        return a_NK @ b_KM
    # With a beta of 0 nothing is read of what would be added.
    return torch.addmm(a_NK.new_empty(()), a_NK, b_KM, beta=0, alpha=scale)


def weight_gradient(grad_NO: Tensor, x_NI: Tensor, scale: float = 1.0) -> Tensor:
    """`scale * g^T x`: (O, I); on a CPU the smaller side is first in the product, and so may be last in memory."""
    if on_cpu(x_NI) and x_NI.shape[1] < grad_NO.shape[1]:
        return _scaled(x_NI.t(), grad_NO, scale).t()
    return _scaled(grad_NO.t(), x_NI, scale)


def _products_by_task(grad_NO: Tensor, x_NI: Tensor, runs: Runs, num_tasks: int) -> Tensor:
    """`g^T x` over each task's rows: (T, O, I)."""
    tasks = [task for task, _, _ in runs]
    if len({stop - start for _, start, stop in runs}) == 1 and len(set(tasks)) == len(tasks):
        # As many rows of each task: one batched product.
        grad_UMO, x_UMI = (rows.unflatten(0, (len(runs), -1)) for rows in (grad_NO, x_NI))
        products_UOI = torch.bmm(x_UMI.mT, grad_UMO).mT if _narrow(x_NI) else torch.bmm(grad_UMO.mT, x_UMI)
        if tasks == list(range(num_tasks)):
            return products_UOI
        return x_NI.new_zeros(num_tasks, *products_UOI.shape[1:]).index_copy_(
            0, moved(torch.tensor(tasks), x_NI.device), products_UOI
        )
    products_TOI = x_NI.new_zeros(num_tasks, grad_NO.shape[1], x_NI.shape[1])
    for task, start, stop in runs:
        products_TOI[task] += weight_gradient(grad_NO[start:stop], x_NI[start:stop])
    return products_TOI


class _RowsLinear(torch.autograd.Function):
    """out + scale * x W^T, over `out` if that may be, with dL/dW per task where a probe asks for it.

    The rows are laid out in here, where a view is no node of the graph.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_OI: Tensor,
        out: Tensor | None,
        probe_TOI: Tensor | None,
        scale: float,
        row_runs: Runs | None,
        overwrite: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight_OI)
        ctx.scale, ctx.row_runs = scale, row_runs
        ctx.num_tasks = None if probe_TOI is None else len(probe_TOI)
        num_out, num_in = weight_OI.shape
        x_NI = x.reshape(-1, num_in)
        if out is not None and overwrite:
            # An in-place operation of autograd's own is dear where `out` is a view. Detached, it shares the version of
            # `out`: so autograd refuses to go back by way of that.
            y = out.detach()
            y.view(-1, num_out).addmm_(x_NI, weight_OI.t(), alpha=scale)
            return y
        if out is None:
            y_NO = _matmul(x_NI, weight_OI.t(), scale)
        else:
            y_NO = torch.addmm(out.reshape(-1, num_out), x_NI, weight_OI.t(), alpha=scale)
        return y_NO.view(*x.shape[:-1], num_out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI = ctx.saved_tensors
        num_out, num_in = weight_OI.shape
        x_NI, grad_NO = x.reshape(-1, num_in), grad.reshape(-1, num_out)
        needs_x, needs_weight, needs_out, needs_probe = ctx.needs_input_grad[:4]
        grad_x = grad_weight = grad_probe = None
        if needs_x and _rows_last(x_NI):
            grad_x = _scaled(weight_OI.t(), grad_NO.t(), ctx.scale).t().view(x.shape)
        elif needs_x:
            grad_x = _matmul(grad_NO, weight_OI, ctx.scale).view(x.shape)
        if needs_probe:
            grad_probe = _products_by_task(grad_NO, x_NI, ctx.row_runs, ctx.num_tasks)
            grad_probe = grad_probe if ctx.scale == 1 else grad_probe * ctx.scale
        elif needs_weight:
            grad_weight = weight_gradient(grad_NO, x_NI, ctx.scale)
        return grad_x, grad_weight, grad if needs_out else None, grad_probe, None, None, None


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
        row_runs: Runs | None,
        through: bool,
        rows_last: bool,
        *weights: Tensor,
    ) -> tuple[Tensor | None, ...]:
        weight_OI, x_NI = _stacked(weights), x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(x, weight_OI, *weights)
        ctx.row_runs, ctx.num_tasks = row_runs, None if probe_TOI is None else len(probe_TOI)
        y_NO = (weight_OI @ x_NI.t()).t() if rows_last else _matmul(x_NI, weight_OI.t())
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
            grad_x = _matmul(grad_NO, weight_OI).view(x.shape)
        if ctx.needs_input_grad[2]:
            grad_probe = _products_by_task(grad_NO, x_NI, ctx.row_runs, ctx.num_tasks)
        elif any(ctx.needs_input_grad[6:]):
            grad_OI = weight_gradient(grad_NO, x_NI)
            grad_weights = grad_OI.split([len(weight) for weight in weights]) if len(weights) > 1 else (grad_OI,)
        return grad_x, None, grad_probe, None, None, None, *grad_weights


def rows_linear(
    x: Tensor,
    weight_OI: Tensor,
    *,
    out: Tensor | None = None,
    scale: float = 1.0,
    probe_TOI: Tensor | None = None,
    row_runs: Runs | None = None,
    overwrite: bool = False,
) -> Tensor:
    """`out + scale * x W^T` over rows.

    Args:
        x: (..., I), the rows, in the dtype to compute in.
        weight_OI: the weight, in the same dtype.
        out: (..., O), what to add to, in the same dtype; None adds nothing.
        scale: factor of the product.
        probe_TOI: a zero leaf; it then receives the weight's gradient per task, and the weight receives none.
        row_runs: with a probe, `(task, first row, past-the-last row)` of runs of rows that together cover all rows.
        overwrite: whether the result may be written over a contiguous `out`, which saves a pass over it; an accelerator
            leaves it as it is.

    Returns:
        (..., O). The gradient of the weight is `scale * g^T x`; of the probe, the same product over each task's rows.
    """
    if probe_TOI is not None:
        assert row_runs is not None, "a probe needs the rows of each task"
        # The weight gets no gradient, and a data-parallel reducer must not wait for one.
        weight_OI = weight_OI.detach()
        probe_TOI = probe_TOI.to(weight_OI.dtype)
    elif not on_cpu(x):
        num_out, num_in = weight_OI.shape
        x_NI, weight_IO = x.reshape(-1, num_in), weight_OI.t()
        if out is not None:
            y_NO = torch.addmm(out.reshape(-1, num_out), x_NI, weight_IO, alpha=scale)
        else:
            y_NO = x_NI @ weight_IO if scale == 1 else x_NI @ weight_IO * scale
        return y_NO.view(*x.shape[:-1], num_out)
    result: Tensor = _RowsLinear.apply(x, weight_OI, out, probe_TOI, scale, row_runs, overwrite)
    return result


def inner_products(
    dropped: Tensor,
    x: Tensor,
    down_RD: Tensor,
    router_ED: Tensor | None,
    probe_TXD: Tensor | None,
    row_runs: Runs | None,
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
    if probe_TXD is not None:
        # As in `rows_linear`.
        weights, probe_TXD = [weight.detach() for weight in weights], probe_TXD.to(x.dtype)
    elif not on_cpu(x):
        y = rows_linear(x, _stacked(weights))
        if router_ED is None:
            return y, None, x
        h, logits = y.tensor_split((len(down_RD),), dim=-1)
        return h, logits, x
    through = through and x.requires_grad and torch.is_grad_enabled()
    h, logits, passed = _Inner.apply(x, len(down_RD), probe_TXD, row_runs, through, rows_last, *weights)
    return h, logits, passed if through else x


def _stacked(weights: Sequence[Tensor]) -> Tensor:
    return weights[0] if len(weights) == 1 else torch.cat([*weights])
