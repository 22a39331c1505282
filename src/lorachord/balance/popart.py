"""PopArt (arXiv 1602.07714; for several tasks 1809.04474): regressions learn in units that follow their answers.

A head's output is s n + m with n = w h + b, and its squared error is taken of n, that is, over s^2. When the running
mean and standard deviation of the answers move from (m, s) to (m', s'), the head is rescaled, eq. 10-11:

    w' = w s / s',   b' = (s b + m - m') / s'

so that its outputs stay what they were. To everyone outside, the head is an ordinary linear: it puts out answers in
their own units, and it saves and loads plain weights, s w and s b + m.

Shapes: T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lorachord.balance.base import Balance, between
from lorachord.balance.by_loss import RunningScale
from lorachord.heads import heads_of, key
from lorachord.messages import suggest

SMALLEST_STD = 1e-4
"""The papers' bound: answers may all be the same."""


@final
class PopArtLinear(nn.Linear):
    """The last linear of a regression's head, trained in units of the answers' standard deviation.

    Attributes:
        mean, std: m and s, scalars; what `rescale` was last given.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, linear: nn.Linear) -> PopArtLinear:
        """With the parameters of a linear, and the same outputs.

        Raises:
            ValueError: it has no bias, which would have to take up the mean.
        """
        if linear.bias is None:
            raise ValueError("popart moves the bias of a regression's head, and this one has none.")
        made = cls(linear.in_features, linear.out_features, device="meta")
        made.weight, made.bias = linear.weight, linear.bias
        like = torch.zeros(
            (), device=linear.weight.device, dtype=torch.promote_types(linear.weight.dtype, torch.float32)
        )
        made.register_buffer("mean", like, persistent=False)
        made.register_buffer("std", like + 1, persistent=False)
        return made

    def forward(self, features: Tensor) -> Tensor:
        """Answers in their own units."""
        normalised = F.linear(features, self.weight, self.bias)
        return (normalised * self.std + self.mean).to(normalised.dtype)

    @torch.no_grad()
    def rescale(self, mean: Tensor, std: Tensor) -> None:
        """Other statistics, the same outputs."""
        self.weight.mul_(self.std / std)
        self.bias.mul_(self.std / std).add_((self.mean - mean) / std)
        self.mean.copy_(mean)
        self.std.copy_(std)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = (self.weight * self.std).detach()
        destination[prefix + "bias"] = (self.bias * self.std + self.mean).detach()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, offset in (("weight", torch.zeros_like(self.mean)), ("bias", self.mean)):
            if prefix + name in state_dict:
                value = state_dict[prefix + name]
                state_dict[prefix + name] = (value - offset.to(value.device)) / self.std.to(value.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


@final
class PopArt(Balance):
    """PopArt for regressions with a head of their own; for the other tasks, `RunningScale`, its scale without its mean.

    In place in the model: call it after the adapter is attached and before the optimizer is made. Adam's moments are
    not rescaled, as in the papers. Within an accumulation window, the head's gradients keep the units of their batch.

    Args:
        tasks: as in `Balance`.
        model: with a head for each task.
        regressions: names of the tasks whose answers are numbers.
        memory: share of the past that is kept from batch to batch, of statistics and of losses. Default .99. (The
            papers' .9997 is for reinforcement learning, where answers drift.)
        start: mean and variance of the answers to begin with, by task. Default: 0 and 1, the papers'.

    Raises:
        ValueError: no regression, or no heads per task.
    """

    name = "popart"
    least = 1
    mean_T: Tensor
    variance_T: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        model: nn.Module,
        regressions: Sequence[str],
        memory: float = 0.99,
        start: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        super().__init__(tasks)
        self.memory = between(self.name, "memory", memory, 0, 1)
        self.linears = _take_over(model, self.tasks, regressions)
        # Its weights alone are asked for: with one task there is nothing to balance, but a head to rescale.
        self.scale = RunningScale(tasks, self.memory) if len(tasks) > 1 else None
        self.register_buffer("mean_T", torch.zeros(len(tasks)))
        self.register_buffer("variance_T", torch.ones(len(tasks)))
        for task, (mean, variance) in (start or {}).items():
            self.mean_T[self.index(task)], self.variance_T[self.index(task)] = mean, variance
        self._rescale()

    def observe(self, losses_T: Tensor, present_T: Tensor) -> None:
        if self.scale is not None:
            self.scale.observe(losses_T, present_T)

    def weights(self) -> Tensor:
        weights_T = torch.ones_like(self.weights_T) if self.scale is None else self.scale.weights()
        # The errors of regressions are in units of their answers already.
        weights_T[list(self.linears)] = 1.0
        return weights_T

    def variances(self) -> dict[int, Tensor]:
        return {index: linear.std**2 for index, linear in self.linears.items()}

    @torch.no_grad()
    def before(self, answers: Mapping[int, Tensor]) -> None:
        """Move the statistics by the answers of a batch, and rescale the heads. In training alone.

        Args:
            answers: of the regressions on this rank, by the task's number.
        """
        if not self.training:
            return
        # About the present mean, so that nothing cancels: how many, their sum and their sum of squares.
        sums_3T = torch.zeros(3, len(self.tasks), device=self.mean_T.device)
        for index, values in answers.items():
            away = values.to(sums_3T) - self.mean_T[index]
            sums_3T[:, index] = torch.stack([torch.tensor(float(len(away))).to(away), away.sum(), (away**2).sum()])
        if dist.is_initialized():
            dist.all_reduce(sums_3T)
        count_T, away_T, squares_T = sums_3T
        away_T, squares_T = away_T / count_T.clamp_min(1), squares_T / count_T.clamp_min(1)
        # The running second moment less the square of the running mean, written so that nothing cancels.
        fresh = 1 - self.memory
        variance_T = self.memory * self.variance_T + fresh * (squares_T - fresh * away_T**2)
        seen_T = count_T > 0
        self.variance_T.copy_(torch.where(seen_T, variance_T, self.variance_T))
        self.mean_T.copy_(torch.where(seen_T, self.mean_T + fresh * away_T, self.mean_T))
        self._rescale()

    def _rescale(self) -> None:
        std_T = self.variance_T.clamp_min(SMALLEST_STD**2).sqrt()
        for index, linear in self.linears.items():
            linear.rescale(self.mean_T[index].to(linear.mean), std_T[index].to(linear.std))

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._rescale()


def _take_over(model: nn.Module, tasks: Sequence[str], regressions: Sequence[str]) -> dict[int, PopArtLinear]:
    """The last linear of each regression's head, by the task's number, made a `PopArtLinear` in the model."""
    found = heads_of(model)
    if not regressions or found is None:
        missing = "a regression" if not regressions else "a head for each task (lorachord.add_heads)"
        raise ValueError(f"popart rescales the heads of regressions: it needs {missing}. running_scale needs neither.")
    _, heads = found
    linears = {}
    for task in regressions:
        if task not in tasks:
            raise ValueError(f"popart: there is no task {task!r}. {suggest(task, tasks)}")
        head = heads.of(task)
        name, last = [(name, module) for name, module in head.named_modules() if isinstance(module, nn.Linear)][-1]
        made = PopArtLinear.of(last)
        heads.set_submodule(".".join(part for part in ("heads", key(task), name) if part), made)
        linears[tasks.index(task)] = made
    return linears
