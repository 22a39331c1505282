"""Whose row is it: the map from the rows of a layer's input to the samples of a pass.

The map is known, or the layer refuses. It is never guessed from a ratio of sizes.

Shapes: B samples, L rows of one sample, N = B * L rows; X features of a row; U units of M rows each, none of which has
rows of two samples.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd, prod

import torch
from torch import Tensor

from lorachord.core.context import Batch, Context
from lorachord.kernels.devices import moved
from lorachord.kernels.products import Runs


def laid_out(rows: Tensor, leading: tuple[int, ...]) -> Tensor:
    """Rows (..., X) as (*leading, X); themselves if they are, since even such a view is a node of the graph."""
    return rows if rows.shape[:-1] == leading else rows.reshape(*leading, rows.shape[-1])


def by_unit(x: Tensor, ctx: Context, where: str, *, by_task: bool, by_prompt: bool) -> tuple[tuple[int, int], Context]:
    """The layout (U, M) of a layer's input x (..., X), and the context of its units.

    A unit is a sample, wherever all samples have equally many rows.

    Args:
        where: the layer's name.
        by_task, by_prompt: whether the layer must know the task of each row, or its sample. Where it need not, any
            layout will do.

    Raises:
        ValueError: it is not known which sample a row is of.
    """
    known = ctx.batch
    sizes_BL0 = known.sizes_BL0 if known is not None and known.plain and ctx.tokens is None else None
    if sizes_BL0 is not None and x.dim() == 3 and len(x) == len(sizes_BL0):
        # As nearly everywhere; and what is compiled here does for other sizes too.
        return (len(x), x.shape[1]), ctx
    num_rows, named = x.numel() // max(x.shape[-1], 1), ctx.num_samples or 1
    batch = _batch(ctx, named > 1 and by_task, by_prompt)
    if batch is None:
        # A sample is a sequence still, for a loss that compares the tokens of one.
        known = known or Batch(named)
        even = _even(x, num_rows, known) if known.num_samples > 1 else None
        num_units = known.num_samples if even is not None else len(x) if x.dim() > 2 else 1
        return (num_units, num_rows // max(num_units, 1)), ctx
    if ctx.tokens is not None:
        if by_prompt or not (x.shape[:-1] == ctx.tokens or (_flat(x) and num_rows == ctx.tokens[0] * ctx.tokens[1])):
            raise _unknown(x, batch, where, "a task for each token asks")
        # Here a unit is a stretch of tokens.
        return (named, num_rows // named), ctx
    images = batch.images
    text = images is None or _within(where, images.text)
    even = _even(x, num_rows, batch)
    if images is None or text:
        shares = {even}
    else:
        shares = {_scaled(share, num_rows) for share in images.shares} - {None}
        if shares and even is not None and not _within(where, images.towers):
            shares.add(even)
    if len(shares) != 1 or None in shares:
        raise _unknown(x, batch, where, "a choice for each prompt asks" if by_prompt else "their different tasks ask")
    rows_B = shares.pop()
    assert rows_B is not None
    if not text:
        # The masks are of text.
        ctx = replace(ctx, token_mask_BL=None, prompt_mask_BL=None)
    if len(set(rows_B)) == 1:
        return (batch.num_samples, rows_B[0]), ctx
    return _ragged(rows_B, ctx)


def mask_of(ctx: Context, rows_BLX: Tensor) -> Tensor | None:
    """True for the rows that count; None where all do, and where a layer does not see the rows that the mask is of."""
    mask_BL = ctx.token_mask_BL
    return mask_BL if mask_BL is not None and mask_BL.numel() == rows_BLX.shape[:-1].numel() else None


def _batch(ctx: Context, by_task: bool, by_prompt: bool) -> Batch | None:
    """None where the samples need not be known, or are not."""
    if ctx.batch is not None:
        return ctx.batch if by_task or by_prompt else None
    # A layer that is called outside of the whole model.
    if by_prompt and ctx.prompt_mask_BL is not None:
        return Batch(len(ctx.prompt_mask_BL))
    return Batch(ctx.num_samples or 1) if by_task else None


def _flat(x: Tensor) -> bool:
    return x.dim() == 2 or (x.dim() == 3 and len(x) == 1)


def _even(x: Tensor, num_rows: int, batch: Batch) -> tuple[int, ...] | None:
    """The rows of each sample, where the samples lie along the first axis or one after another in the known lengths."""
    num_samples = batch.num_samples
    if num_samples == 1:
        return (num_rows,)
    along = x.dim() > 2 and len(x) == num_samples
    if along and batch.tokens_first and x.shape[1] == num_samples:
        # Either axis may be that of the samples.
        return None
    if along or (_flat(x) and num_rows in (num_samples, *(num_samples * length for length in batch.lengths))):
        return (num_rows // num_samples,) * num_samples
    return None


def _scaled(share: tuple[int, ...], num_rows: int) -> tuple[int, ...] | None:
    total = sum(share)
    return tuple(rows * num_rows // total for rows in share) if total and num_rows % total == 0 else None


def _within(where: str, names: tuple[str, ...]) -> bool:
    return any(not name or where == name or where.startswith(f"{name}.") for name in names)


def _ragged(rows_B: tuple[int, ...], ctx: Context) -> tuple[tuple[int, int], Context]:
    """Units of the largest size that divides every sample's rows."""
    size = gcd(*rows_B)
    starts = [0]
    for rows in rows_B:
        starts.append(starts[-1] + rows // size)
    samples_U = torch.tensor([sample for sample, rows in enumerate(rows_B) for _ in range(rows // size)])
    ctx = replace(ctx, samples_U=samples_U)
    if ctx.cosines_BC is not None:
        ctx = replace(ctx, cosines_BC=ctx.cosines_BC.index_select(0, moved(samples_U, ctx.cosines_BC.device)))
    if ctx.task_ids_B is not None and len(ctx.task_ids_B) > 1:
        ctx = replace(
            ctx,
            task_ids_B=ctx.task_ids_B.index_select(0, moved(samples_U, ctx.task_ids_B.device)),
            runs=_moved(ctx.runs, starts),
            halves=_moved(ctx.half_runs, starts),
        )
    return (starts[-1], size), ctx


def _moved(runs: Runs | None, starts: list[int]) -> Runs | None:
    """Runs of samples as runs of their units; a sample may have none."""
    if runs is None:
        return None
    return tuple((task, starts[start], starts[stop]) for task, start, stop in runs if starts[start] < starts[stop])


def _unknown(x: Tensor, batch: Batch, where: str, reason: str) -> ValueError:
    shape = tuple(x.shape[:-1])
    return ValueError(
        f"{where} got {prod(shape)} rows for {batch.num_samples} samples, of shape {shape}, and it is not known which "
        f"sample each is of, as {reason}. Leave this layer out (exclude_modules; of a model with images, adapt the "
        "language model alone), or pass samples of one task, or one sample, at a time."
    )
