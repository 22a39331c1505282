"""Matrix products as a CPU's BLAS is fast at them, and the gradient of a weight from them, joint or per task.

Shapes: N rows, I inputs, O outputs, T tasks; U runs of M rows each.

Background. The factors of a low-rank update are very narrow, and a CPU's BLAS is slow at narrow products unless they
are put to it in the right way (measured with 8 columns: up to 4 times). So there the narrow operand of a product has
its long side last in memory, and the gradient of a weight is made with its smaller side first. Rows that stand between
the factors may lie in memory with the rows last: then so does their gradient. An accelerator gets products as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorachord.kernels.devices import moved, on_cpu

Runs = tuple[tuple[int, int, int], ...]
Places = Runs | Tensor
"""Runs, or the task of each of U equally large blocks of rows (U,), where it must not be a number to a compiler."""

NARROW = 16
"""Fewer columns than this are narrow for a CPU; from 16 on, what is done for these alone gains nothing."""


def is_narrow(rows: Tensor) -> bool:
    """Whether rows (N, X) have fewer than `NARROW` columns, on a CPU."""
    return rows.shape[1] < NARROW and on_cpu(rows)


def lies_rows_last(rows: Tensor) -> bool:
    """Whether the rows (N, X) lie beside each other in memory, and not one after another."""
    return rows.stride(0) == 1 != rows.stride(1)


def matmul(a_NK: Tensor, b_KM: Tensor, scale: float = 1.0) -> Tensor:
    """`scale * a b`; a narrow b has its long side last in memory."""
    return scaled_matmul(a_NK, b_KM.t().contiguous().t() if is_narrow(b_KM) else b_KM, scale)


def scaled_matmul(a_NK: Tensor, b_KM: Tensor, scale: float) -> Tensor:
    """`scale * a b`, scaled inside the product."""
    if scale == 1:
        return a_NK @ b_KM
    # With a beta of 0 nothing is read of what would be added.
    return torch.addmm(a_NK.new_empty(()), a_NK, b_KM, beta=0, alpha=scale)


def weight_gradient(grad_NO: Tensor, x_NI: Tensor, scale: float = 1.0) -> Tensor:
    """`scale * g^T x`: (O, I); on a CPU the smaller side is first in the product, and so may be last in memory."""
    if on_cpu(x_NI) and x_NI.shape[1] < grad_NO.shape[1]:
        return scaled_matmul(x_NI.t(), grad_NO, scale).t()
    return scaled_matmul(grad_NO.t(), x_NI, scale)


def products_by_task(grad_NO: Tensor, x_NI: Tensor, runs: Places, num_tasks: int) -> Tensor:
    """`g^T x` over each task's rows: (T, O, I)."""
    if isinstance(runs, Tensor):
        grad_UMO, x_UMI = (rows.unflatten(0, (len(runs), -1)) for rows in (grad_NO, x_NI))
        products_UOI = torch.bmm(grad_UMO.mT, x_UMI)
        return products_UOI.new_zeros(num_tasks, *products_UOI.shape[1:]).index_add_(0, runs, products_UOI)
    tasks = [task for task, _, _ in runs]
    if len({stop - start for _, start, stop in runs}) == 1 and len(set(tasks)) == len(tasks):
        # As many rows of each task: one batched product.
        grad_UMO, x_UMI = (rows.unflatten(0, (len(runs), -1)) for rows in (grad_NO, x_NI))
        products_UOI = torch.bmm(x_UMI.mT, grad_UMO).mT if is_narrow(x_NI) else torch.bmm(grad_UMO.mT, x_UMI)
        if tasks == list(range(num_tasks)):
            return products_UOI
        return x_NI.new_zeros(num_tasks, *products_UOI.shape[1:]).index_copy_(
            0, moved(torch.tensor(tasks), x_NI.device), products_UOI
        )
    products_TOI = x_NI.new_zeros(num_tasks, grad_NO.shape[1], x_NI.shape[1])
    for task, start, stop in runs:
        products_TOI[task] += weight_gradient(grad_NO[start:stop], x_NI[start:stop])
    return products_TOI
