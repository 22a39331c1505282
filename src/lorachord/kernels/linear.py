"""The kernel: a linear map over rows, with the option of a weight gradient per task.

Shapes: N rows, I inputs, O outputs, T tasks.

Background. Samples of different tasks do not meet inside a layer, so the weight gradient of task t is the product of
that task's rows alone. With rows sorted by task, the T products cost as much as the joint one. To hand them out, the
weight gets a *zero leaf with a task axis*: `probe_TOI`, added in thought to the weight of each row's task. It changes
no output, but its gradient is the weight's gradient per task, so that autograd itself accumulates it, a data-parallel
reducer averages it, and checkpointing and torch.compile see a pure function. While a probe is given, the summed
gradient is not computed.

On an accelerator, a product without a probe is a chain of autograd's own operations: the next kernel must be launched
soon, and a function in Python costs more than the kernels it saves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lorachord.kernels.apply import applied
from lorachord.kernels.devices import on_cpu
from lorachord.kernels.products import Places, lies_rows_last, matmul, products_by_task, scaled_matmul, weight_gradient


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
        row_runs: Places | None,
        overwrite: bool,
    ) -> Tensor:
        places_U = row_runs if isinstance(row_runs, Tensor) else None
        ctx.save_for_backward(x, weight_OI, places_U)
        ctx.scale, ctx.row_runs = scale, row_runs if places_U is None else None
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
            y_NO = matmul(x_NI, weight_OI.t(), scale)
        else:
            y_NO = torch.addmm(out.reshape(-1, num_out), x_NI, weight_OI.t(), alpha=scale)
        return y_NO.view(*x.shape[:-1], num_out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI, places_U = ctx.saved_tensors
        num_out, num_in = weight_OI.shape
        x_NI, grad_NO = x.reshape(-1, num_in), grad.reshape(-1, num_out)
        needs_x, needs_weight, needs_out, needs_probe = ctx.needs_input_grad[:4]
        grad_x = grad_weight = grad_probe = None
        if needs_x and lies_rows_last(x_NI):
            grad_x = scaled_matmul(weight_OI.t(), grad_NO.t(), ctx.scale).t().view(x.shape)
        elif needs_x:
            grad_x = matmul(grad_NO, weight_OI, ctx.scale).view(x.shape)
        if needs_probe:
            grad_probe = products_by_task(grad_NO, x_NI, ctx.row_runs if places_U is None else places_U, ctx.num_tasks)
            grad_probe = grad_probe if ctx.scale == 1 else grad_probe * ctx.scale
        elif needs_weight:
            grad_weight = weight_gradient(grad_NO, x_NI, ctx.scale)
        return grad_x, grad_weight, grad if needs_out else None, grad_probe, None, None, None


def rows_linear(
    x: Tensor,
    weight_OI: Tensor,
    *,
    out: Tensor | None = None,
    scale: float = 1.0,
    probe_TOI: Tensor | None = None,
    row_runs: Places | None = None,
    overwrite: bool = False,
) -> Tensor:
    """`out + scale * x W^T` over rows.

    Args:
        x: (..., I), the rows, in the dtype to compute in.
        weight_OI: the weight, in the same dtype.
        out: (..., O), what to add to, in the same dtype; None adds nothing.
        scale: factor of the product.
        probe_TOI: a zero leaf; it then receives the weight's gradient per task, and the weight receives none.
        row_runs: with a probe, `(task, first row, past-the-last row)` of runs of rows that together cover all rows; or
            `Places`.
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
    result: Tensor = applied(_RowsLinear, x, weight_OI, out, probe_TOI, scale, row_runs, overwrite)
    return result


def add_rows(h: Tensor, weight_IO: Tensor, out: Tensor, scale: float, *, overwrite: bool) -> Tensor:
    """`out + scale * h W` over rows, where nothing is differentiated: over `out` where it may be written over.

    Args:
        h: (..., I), the rows.
        weight_IO: the weight, with its long side last in memory.
        out: (..., O), in any dtype.
        scale: factor of the product.
        overwrite: whether the result may be written over `out`.
    """
    num_in, num_out = weight_IO.shape
    h_NI = h.reshape(-1, num_in)
    if out.dtype != h.dtype:
        return out + (h_NI @ weight_IO * scale).view(out.shape).to(out.dtype)
    if overwrite and out.is_contiguous():
        out.view(-1, num_out).addmm_(h_NI, weight_IO, alpha=scale)
        return out
    return torch.addmm(out.reshape(-1, num_out), h_NI, weight_IO, alpha=scale).view(out.shape)
