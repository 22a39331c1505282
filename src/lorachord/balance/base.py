"""What every balance of losses has in common: the loss of a step from the losses of its tasks.

    loss = 1/|P| sum_{t in P} c_t (w_t L_t + o_t)

over the tasks P that occur in the batch, with the user's own weights c_t, and w_t and o_t (mostly 0) from the balance.

Shapes: T tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lorachord.messages import suggest


class Balance(nn.Module, ABC):
    """One way to weigh losses. Classes are this one, or final.

    What it remembers is in its `state_dict`, what it learns in its `parameters`, which belong in the optimizer.

    Args:
        tasks: names, in order.

    Attributes:
        name: in a recipe.
        least: the number of tasks below which there is nothing to balance.
        again: whether `after` wants the losses of the same batch once more when the optimizer has stepped.
        weights_T: the weights of the last batch.

    Raises:
        ValueError: too few tasks.
    """

    name: ClassVar[str]
    least: ClassVar[int] = 2
    again: ClassVar[bool] = False
    weights_T: Tensor

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        if len(tasks) < self.least:
            raise ValueError(f"{self.name} balances tasks against each other, and there is one alone: leave it out.")
        self.tasks = tuple(tasks)
        self.register_buffer("weights_T", torch.ones(len(tasks)), persistent=False)

    def observe(self, losses_T: Tensor, present_T: Tensor) -> None:
        """Take in the losses of a batch in training, before its weights are asked for.

        Args:
            losses_T: over all ranks, float32; 0 for absent tasks.
            present_T: which tasks occur in the batch of all ranks.
        """
        return

    @abstractmethod
    def weights(self) -> Tensor:
        """The w_t, constants as far as the gradient is concerned, positive."""

    def offsets(self, losses_T: Tensor) -> Tensor | None:
        """The o_t, by whose gradient parameters learn. Default: none."""
        return None

    def before(self, answers: Mapping[int, Tensor]) -> None:
        """Take in the answers of regression tasks before the forward pass; PopArt looks at them."""
        return

    def variances(self) -> dict[int, Tensor]:
        """What squared errors are to be divided by, where the balance has a say in it."""
        return {}

    def after(self, losses: Mapping[str | int, Tensor], counts_T: Tensor | None = None) -> None:
        """Take in the losses of the same batch after the optimizer's step; see `again`."""
        return

    def forward(
        self,
        losses: Mapping[str | int, Tensor],
        counts_T: Tensor | None = None,
        scales: Sequence[float] | None = None,
    ) -> Tensor:
        """The loss to differentiate.

        On several ranks the batch is that of all of them: every rank gets the same weights, and the mean of the ranks'
        gradients, which a data-parallel reducer takes, is the gradient of the whole batch.

        Args:
            losses: the mean loss of each task that occurs on this rank, by name or number.
            counts_T: how many rows each mean is over; matters on several ranks alone. Default: 1 where a task occurs.
            scales: the c_t. Default: 1 each.
        """
        counts_T, totals_T, losses_T = self._over_ranks(losses, counts_T)
        present_T = totals_T > 0
        if self.training:
            self.observe(losses_T, present_T)
        self.weights_T = self.weights().detach()
        num_ranks = dist.get_world_size() if dist.is_initialized() else 1
        shares_T = num_ranks * counts_T / totals_T.clamp_min(1) / present_T.sum()
        scales = scales if scales is not None else (1.0,) * len(self.tasks)
        terms = []
        for task, loss in losses.items():
            index = self.index(task)
            terms.append(scales[index] * self.weights_T[index] * shares_T[index] * loss)
        total = torch.stack(terms).sum()
        offsets_T = self.offsets(losses_T)
        if offsets_T is not None:
            # The same on every rank, so that the ranks' own gradients of the parameters are already their mean.
            total = total + (torch.tensor(scales).to(losses_T) * present_T * offsets_T).sum() / present_T.sum()
        return total

    def index(self, task: str | int) -> int:
        """A task's number.

        Raises:
            ValueError: no such task.
        """
        if isinstance(task, str):
            if task not in self.tasks:
                raise ValueError(f"There is no task {task!r}. {suggest(task, self.tasks)}")
            return self.tasks.index(task)
        return task

    @torch.no_grad()
    def _over_ranks(self, losses: Mapping[str | int, Tensor], counts_T: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The rows of each task here and on all ranks, and its mean loss over these."""
        device = self.weights_T.device
        own_T = torch.zeros(len(self.tasks), device=device)
        occurs_T = torch.zeros(len(self.tasks), device=device)
        for task, loss in losses.items():
            index = self.index(task)
            own_T[index], occurs_T[index] = loss.detach(), 1
        counts_T = occurs_T if counts_T is None else counts_T.to(own_T)
        if not dist.is_initialized():
            return counts_T, counts_T, own_T
        both_2T = torch.stack([counts_T, counts_T * own_T])
        dist.all_reduce(both_2T)
        return counts_T, both_2T[0], both_2T[1] / both_2T[0].clamp_min(1)


def between(name: str, field: str, value: Any, low: float, high: float) -> float:
    """A number inside an open interval.

    Raises:
        ValueError: it is none, or lies outside.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value < high:
        raise ValueError(f"{name}: {field} must be a number between {low:g} and {high:g}; found {value!r}.")
    return float(value)
