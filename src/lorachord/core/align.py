"""A penalty that draws the tasks together in rank space (Align-LoRA, arXiv 2508.05078), for STATIC and TASK methods.

In each layer a Gaussian with independent ranks is fitted to the rows of `h = A' drop(x)` of each task in the batch, and

    penalty = weight * mean over layers and pairs of tasks of (KL(p || q) + KL(q || p)) / 2

A layer's B has no part in the layer's penalty, which acts on A, and on the layers below. Padding counts as no row. A
task with fewer than two rows in the batch of all ranks says nothing. The loss of each rank is scaled so that the mean
of the ranks' gradients is the gradient of one process.

Shapes: B units of L rows, N = B * L rows; R rows of A'; T tasks; Y layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorachord.core.config import Settings, option
from lorachord.core.context import Context
from lorachord.core.rows import mask_of
from lorachord.distributed import across_ranks
from lorachord.kernels.devices import without_autocast


@dataclass(frozen=True, kw_only=True)
class Align(Settings):
    """
    Args:
        weight: of the penalty; 0 turns it off. Default 0.1.
        floor: no variance counts as smaller than this. Default 1e-6.
    """

    weight: float = option(0.1, low=0)
    floor: float = option(1e-6, above=0)


class Moments(NamedTuple):
    """Of the rows of each task: their number, mean, and sums of squared deviations from it."""

    count_T: Tensor
    mean_TR: Tensor
    scatter_TR: Tensor


class Alignment:
    """What one layer's adapter keeps of a pass for the penalty.

    Args:
        settings: of the penalty.
        num_tasks: T. Rows of a task that was not trained are left out.

    Attributes:
        recorded: the moments of the last forward pass in training, with their graph; None before any.
    """

    def __init__(self, settings: Align, num_tasks: int) -> None:
        self.settings, self.num_tasks = settings, num_tasks
        self.recorded: Moments | None = None

    def see(self, h_BLR: Tensor, ctx: Context) -> None:
        """Take the moments of one pass.

        Raises:
            ValueError: no task was named.
        """
        if ctx.task_ids_B is None:
            raise ValueError(
                "The penalty `align` needs the task of each sample in training: wrap the call in "
                "lorachord.on_task(...), or leave the penalty out."
            )
        mask_BL = mask_of(ctx, h_BLR)
        with without_autocast(h_BLR):
            h_NR = h_BLR.reshape(-1, h_BLR.shape[-1])
            h_NR = h_NR.to(torch.promote_types(h_NR.dtype, torch.float32))
            tasks_N = ctx.task_ids_B.repeat_interleave(len(h_NR) // len(ctx.task_ids_B))
            is_task_TN = tasks_N == torch.arange(self.num_tasks, device=tasks_N.device).unsqueeze(1)
            member_TN = (is_task_TN if mask_BL is None else is_task_TN & mask_BL.flatten()).to(h_NR.dtype)
            count_T = member_TN.sum(1)
            mean_TR = member_TN @ h_NR / count_T.clamp_min(1).unsqueeze(1)
            scatter_TR = member_TN @ (h_NR - member_TN.t() @ mean_TR).square()
        # A recompute does as the pass did, and leaves what that has kept.
        if ctx.recording:
            self.recorded = Moments(count_T, mean_TR, scatter_TR)

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle has no part in the graph of the last forward.
        return {**self.__dict__, "recorded": None}


def align_loss(layers: Sequence[Alignment]) -> Tensor | None:
    """The weighted penalty of several layers; None where no pass was recorded."""
    alike: dict[Any, list[Moments]] = {}
    for layer in layers:
        if layer.recorded is not None:
            mean_TR = layer.recorded.mean_TR
            alike.setdefault((layer.settings, mean_TR.shape, mean_TR.device), []).append(layer.recorded)
    sums = [settings.weight * _divergence(moments, settings.floor) for (settings, *_), moments in alike.items()]
    if not sums:
        return None
    total = torch.stack([one.to(sums[0].device) for one in sums]).sum()
    return total / sum(len(moments) for moments in alike.values())


def _divergence(layers: Sequence[Moments], floor: float) -> Tensor:
    """The sum over layers of the mean over pairs of tasks."""
    parts = [torch.stack(parts) for parts in zip(*layers, strict=True)]
    count_YT1, mean_YTR, scatter_YTR, num_ranks = _of_all_ranks(parts[0].unsqueeze(2), parts[1], parts[2])
    speaks_YT1 = (count_YT1 >= 2).to(mean_YTR.dtype)
    variance_YTR = (scatter_YTR / (count_YT1 - 1).clamp_min(1)).clamp_min(floor)
    number_Y11 = speaks_YT1.sum(1, keepdim=True)

    def over_tasks(values_YTR: Tensor) -> Tensor:
        return (values_YTR * speaks_YT1).sum(1, keepdim=True)

    # With c the means less their own mean, the sum over all q of (c_p - c_q)^2 is that of c_q^2 and T c_p^2. So all
    # pairs cost as much as all tasks: of v_p / v_q + (c_p - c_q)^2 / v_q - 1 it is the sum over ordered pairs.
    precision_YTR = speaks_YT1 / variance_YTR
    centred_YTR = mean_YTR - over_tasks(mean_YTR) / number_Y11.clamp_min(1)
    spread_YTR = over_tasks(variance_YTR + centred_YTR.square()) + number_Y11 * centred_YTR.square()
    ordered_Y11 = ((spread_YTR * precision_YTR) - number_Y11 * speaks_YT1).sum((1, 2), keepdim=True)
    num_pairs_Y11 = number_Y11 * (number_Y11 - 1) / 2
    # Exactly nothing of a task alone.
    loss = (ordered_Y11 * (num_pairs_Y11 > 0) / (4 * num_pairs_Y11.clamp_min(1))).sum()
    # Each rank has the gradient of its own rows' share, and the mean over ranks is taken.
    return loss if num_ranks == 1 else loss.detach() + num_ranks * (loss - loss.detach())


def _of_all_ranks(count_YT1: Tensor, mean_YTR: Tensor, scatter_YTR: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """The moments of the rows of all ranks, with the gradient of this one's, and the number of ranks."""
    all_YT1, num_ranks = across_ranks(count_YT1)
    if num_ranks == 1:
        return count_YT1, mean_YTR, scatter_YTR, 1
    joint_YTR = _joint(count_YT1 * mean_YTR) / all_YT1.clamp_min(1)
    # The sum of the squared deviations from their mean does not move with that mean.
    own_YTR = scatter_YTR + count_YT1 * (mean_YTR - joint_YTR.detach()).square()
    return all_YT1, joint_YTR, _joint(own_YTR), num_ranks


def _joint(own: Tensor) -> Tensor:
    """The sum over ranks, with the gradient of this rank's part alone."""
    everyone, _ = across_ranks(own.detach())
    return own + (everyone - own.detach())
