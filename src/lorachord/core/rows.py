"""Whose row is it: how the rows of a layer's input fall to the samples of a pass.

Shapes: B samples, L rows of one sample, N = B * L rows; X features of a row.
"""

from __future__ import annotations

from torch import Tensor

from lorachord.core.context import Context


def laid_out(rows: Tensor, leading: tuple[int, ...]) -> Tensor:
    """Rows (..., X) as (*leading, X); themselves if they are, since even such a view is a node of the graph."""
    return rows if rows.shape[:-1] == leading else rows.reshape(*leading, rows.shape[-1])


def batch_of(x: Tensor, ctx: Context, where: str) -> tuple[int, int]:
    """B and L of a layer's input x (..., X).

    Where no task was named, or one for all, the first axis of three or more is that of the samples.

    Args:
        where: the layer's name, for the error.

    Raises:
        ValueError: the rows do not divide among the samples that have a task.
    """
    num_rows = x.numel() // max(x.shape[-1], 1)
    named = ctx.num_samples or 1
    if num_rows % named:
        raise ValueError(
            f"{named} samples have a task, but {where} got {num_rows} rows, which is not a multiple of that. Name one "
            "task per sample of the batch, or one for all."
        )
    num_samples = len(x) if named == 1 and x.dim() > 2 else named
    return num_samples, num_rows // max(num_samples, 1)


def mask_of(ctx: Context, rows_BLX: Tensor) -> Tensor | None:
    """True for the rows that count; None where all do, and where a layer does not see the rows that the mask is of."""
    mask_BL = ctx.token_mask_BL
    return mask_BL if mask_BL is not None and mask_BL.numel() == rows_BLX.shape[:-1].numel() else None
