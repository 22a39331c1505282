"""MTL-LoRA's core: a matrix for each task, and each task's mixture of up-projections, in one product.

Shapes: B samples of L rows, T tasks, U up-projections of R ranks, S = U R.
"""

from __future__ import annotations

import torch
from torch import Tensor


def task_matrices(transform_TRR: Tensor, mixture_TU: Tensor, temperature: float) -> Tensor:
    """(T, S, R): Lambda_t, as often as there are up-projections, times softmax(w_t / tau), in at least float32."""
    wide = torch.promote_types(mixture_TU.dtype, torch.float32)
    share_TU = torch.softmax(mixture_TU.to(wide) / temperature, dim=-1)
    # The matrices are tiny, so what counts is the number of operations, and a product is one in both directions.
    matrix_TUQ = torch.bmm(share_TU.unsqueeze(2), transform_TRR.to(wide).flatten(1).unsqueeze(1))
    return matrix_TUQ.view(len(share_TU), -1, transform_TRR.shape[-1])


def by_task(h_BLR: Tensor, matrix_TSR: Tensor, task_ids_B: Tensor) -> Tensor:
    """Each sample's rows times its task's matrix: (B, L, S). One task may stand for all samples."""
    matrix_BRS = matrix_TSR.to(h_BLR.dtype).index_select(0, task_ids_B).mT
    mixed = torch.bmm(h_BLR.reshape(len(matrix_BRS), -1, h_BLR.shape[-1]), matrix_BRS)
    return mixed.view(*h_BLR.shape[:2], -1)
