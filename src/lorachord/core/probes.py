"""Zero leaves with a task axis: where an adapter's gradients of each task arrive.

Shapes: T places (tasks, or two halves of each task's samples); X rows of A' and of a router below it; C the entries of
a core's shared weight; D, O, S, B, N as in `core/adapter.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lorachord.core.context import Context
from lorachord.kernels.devices import moved
from lorachord.kernels.products import Places, Runs


@dataclass(frozen=True, slots=True)
class Probes:
    """The zero leaves of one adapter, all with `requires_grad`.

    Attributes:
        inner_TXD: of A' and, below it, the weight of the router, if there is one.
        up_TOS: of B'.
        core_TC: of the core's shared weight, in its own shape behind T; None where there is none.
        halves: whether each task has two places, 2 t and 2 t + 1, for two halves of its samples.
    """

    inner_TXD: Tensor
    up_TOS: Tensor
    core_TC: Tensor | None
    halves: bool

    def runs(self, ctx: Context) -> Runs:
        """`(place, first sample, past-the-last sample)` of the samples of a pass.

        Raises:
            ValueError: no task was named.
        """
        runs = ctx.half_runs if self.halves else ctx.runs
        if runs is None:
            raise ValueError(
                "Gradients per task need the task of each sample: wrap the call in lorachord.on_task(...)."
            )
        return runs

    def places(self, ctx: Context) -> Tensor:
        """The same as the place of each sample (B,), or of all (1,): what is compiled for one batch does for others.

        Raises:
            ValueError: no task was named.
        """
        if ctx.task_ids_B is None or ctx.halves is not None:
            runs = self.runs(ctx)
            return torch.tensor([place for place, start, stop in runs for _ in range(start, stop)])
        if not self.halves:
            return ctx.task_ids_B
        run_B = F.pad((ctx.task_ids_B[1:] != ctx.task_ids_B[:-1]).cumsum(0), (1, 0))
        same_BB = run_B.unsqueeze(1) == run_B
        nth_B, size_B = same_BB.tril(-1).sum(1), same_BB.sum(1)
        return 2 * ctx.task_ids_B + (nth_B >= (size_B + 1) // 2)

    def row_runs(self, ctx: Context, num_rows: int) -> Places:
        """The same for the rows of a layer; while compiling, `places`."""
        if torch.compiler.is_compiling():
            return self.places(ctx)
        rows = num_rows // (ctx.num_samples or 1)
        return tuple((place, start * rows, stop * rows) for place, start, stop in self.runs(ctx))

    def core_of_samples(self, ctx: Context) -> Tensor:
        """Each sample's share of the core's leaf: (B, *C), zeros."""
        assert self.core_TC is not None
        if torch.compiler.is_compiling():
            return self.core_TC.index_select(0, self.places(ctx))
        places = [place for place, start, stop in self.runs(ctx) for _ in range(start, stop)]
        return self.core_TC.index_select(0, moved(torch.tensor(places), self.core_TC.device))
