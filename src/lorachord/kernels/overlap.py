"""How far blocks of rows, one a task, point in the same directions: ThanoRA's subspace-preserving penalty.

Shapes: F factors of R rows each, X features.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorachord.kernels.apply import applied
from lorachord.kernels.devices import without_autocast

EPSILON = 1e-6
"""Added to squared norms: a row of zeros has no direction."""


def overlap(factors: Sequence[Tensor], ranks: tuple[int, ...], weight: float) -> Tensor:
    """weight * sum over factors and pairs of tasks of |N_t N_u^T|^2, N_t being task t's rows over sqrt(|.|^2 + 1e-6).

    Args:
        factors: each (R, X), whose first rows are the tasks' blocks in order; what follows is left out.
        ranks: rows of each block.
        weight: lambda.
    """
    first = factors[0]
    total: Tensor = applied(_Overlap, weight, _between(ranks, len(first), first.device, first.dtype), *factors)
    return total


@cache
def _between(ranks: tuple[int, ...], r: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(R, R): 1 for two ranks of different tasks, 0 for two of one task or with what follows."""
    task_R = torch.tensor([task for task, own in enumerate(ranks) for _ in range(own)] + [-1] * (r - sum(ranks)))
    between_RR = (task_R[:, None] != task_R) & (task_R[:, None] >= 0) & (task_R >= 0)
    return between_RR.to(device, dtype)


class _Overlap(torch.autograd.Function):
    """By one Gram for each factor, however many tasks there are.

    With K = A A^T, n = sqrt(diag K + 1e-6), G = K / (n n^T) and G' its part between tasks: the penalty is
    lambda / 2 |G'|^2, and its gradient 2 lambda diag(1/n) (G' - diag(rowsums of G'^2)) diag(1/n) A. The matrices are
    tiny, so what counts is the number of operations: those of all factors are done at once.
    """

    @staticmethod
    def forward(ctx: Any, weight: float, between_RR: Tensor, *rows: Tensor) -> Tensor:
        gram_FRR = between_RR.new_empty(len(rows), *between_RR.shape)
        # Cosines in the parameters' own dtype, whatever the model computes in.
        with without_autocast(between_RR):
            for gram_RR, rows_RX in zip(gram_FRR, rows, strict=True):
                torch.mm(rows_RX, rows_RX.t(), out=gram_RR)
        inverse_FR = (gram_FRR.diagonal(dim1=1, dim2=2) + EPSILON).rsqrt_()
        inverse_FRR = inverse_FR.unsqueeze(2) * inverse_FR.unsqueeze(1)
        gram_FRR *= inverse_FRR
        gram_FRR *= between_RR
        squares_FR = gram_FRR.square().sum(2)
        gram_FRR.diagonal(dim1=1, dim2=2).sub_(squares_FR)
        gram_FRR *= inverse_FRR
        ctx.save_for_backward(gram_FRR, *rows)
        ctx.weight = weight
        return squares_FR.sum() * (weight / 2)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gram_FRR, *rows = ctx.saved_tensors
        scaled_FRR = gram_FRR * (2 * ctx.weight * grad)
        return None, None, *(scaled_RR @ rows_RX for scaled_RR, rows_RX in zip(scaled_FRR, rows, strict=True))
