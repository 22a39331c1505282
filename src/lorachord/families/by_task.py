"""Cores with a matrix for each task, and MTL-LoRA's choice of these matrices.

Shapes: B samples of L rows, N = B * L; T tasks; U blocks of rows that share a task; R ranks in, S ranks out; P
up-projections of R ranks each.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import final

import torch
from torch import Tensor

from lorachord.core.adapter import Adapter
from lorachord.core.context import Context, Mixing


class TaskCore(Adapter):
    """An adapter whose core is a matrix for each task.

    Background. The matrix is applied to the rows, or, where a block of rows is large beside it, folded into B' first:
    the product with O outputs then has R inputs and not S, which halved its time for MTL-LoRA's 24 and 8.
    """

    mixing = Mixing.TASK

    @abstractmethod
    def matrices(self) -> Tensor | None:
        """(T, S, R), in at least float32; None where all are the identity."""

    @final
    def core(self, h_BLR: Tensor, x_BLX: Tensor | None, ctx: Context) -> Tensor:
        matrix_TSR = self.matrices()
        if matrix_TSR is None:
            return h_BLR
        assert ctx.task_ids_B is not None
        matrix_BRS = matrix_TSR.to(h_BLR.dtype).index_select(0, ctx.task_ids_B).mT
        # One task may stand for all samples.
        mixed = torch.bmm(h_BLR.reshape(len(matrix_BRS), -1, h_BLR.shape[-1]), matrix_BRS)
        return mixed.view(*h_BLR.shape[:2], -1)

    @final
    def folded_up(self, ctx: Context, num_rows: int) -> Tensor | None:
        if torch.compiler.is_compiling() and torch.is_grad_enabled():
            # What is compiled for one order of the tasks must do for all.
            return None
        up_OS = self.up_weight()
        rank, wide = len(self.down_weight()), up_OS.shape[1]
        tasks_U = block_tasks(ctx)
        if num_rows // len(tasks_U) * (wide - rank) <= rank * wide:
            return None
        matrix_TSR = self.matrices()
        if matrix_TSR is None:
            return None
        matrix_URS = matrix_TSR.index_select(0, tasks_U).mT
        return (matrix_URS.reshape(-1, wide) @ up_OS.t()).view(len(tasks_U), rank, -1)


def block_tasks(ctx: Context) -> Tensor:
    """The task of each block (U,): where all runs of a pass are of one length a block is a run, else a sample."""
    assert ctx.task_ids_B is not None
    assert ctx.runs is not None
    lengths = {stop - start for _, start, stop in ctx.runs}
    return ctx.task_ids_B[:: lengths.pop()] if len(lengths) == 1 else ctx.task_ids_B


def task_matrices(transform_TRR: Tensor, mixture_TP: Tensor, temperature: float) -> Tensor:
    """MTL-LoRA's: (T, S, R), Lambda_t as often as there are up-projections, times softmax(w_t / tau)."""
    wide = torch.promote_types(mixture_TP.dtype, torch.float32)
    share_TP = torch.softmax(mixture_TP.to(wide) / temperature, dim=-1)
    # The matrices are tiny, so what counts is the number of operations, and a product is one in both directions.
    matrix_TPQ = torch.bmm(share_TP.unsqueeze(2), transform_TRR.to(wide).flatten(1).unsqueeze(1))
    return matrix_TPQ.view(len(share_TP), -1, transform_TRR.shape[-1])
