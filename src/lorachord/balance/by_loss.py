"""Balances that look at losses alone.

Those with a memory learn of a task when it occurs: an absent task keeps what is known of it.

Shapes: T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from lorachord.balance.base import Balance, between
from lorachord.messages import suggest

SMALLEST = 1e-8
"""Added to losses, or put in their place, where they are divided by or their logarithm is taken."""


@final
class Equal(Balance):
    """w_t = 1."""

    name = "equal"
    least = 1

    def weights(self) -> Tensor:
        return torch.ones_like(self.weights_T)


@final
class Fixed(Balance):
    """w_t given.

    Args:
        tasks: as in `Balance`.
        weights: by the tasks' names. Default: 1 each.

    Raises:
        ValueError: a weight of an unknown task, or one that is no number above or equal to 0.
    """

    name = "fixed"
    least = 1
    fixed_T: Tensor

    def __init__(self, tasks: Sequence[str], weights: Mapping[str, float]) -> None:
        super().__init__(tasks)
        if not isinstance(weights, Mapping):
            raise ValueError(f"{self.name}: weights must map tasks to numbers; found {weights!r}.")
        for task, weight in weights.items():
            if task not in self.tasks:
                raise ValueError(f"{self.name}: weights names {task!r}, which is no task. {suggest(task, self.tasks)}")
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
                raise ValueError(f"{self.name}: the weight of {task!r} must be a number from 0 on; found {weight!r}.")
        fixed_T = torch.tensor([float(weights.get(task, 1.0)) for task in self.tasks])
        self.register_buffer("fixed_T", fixed_T, persistent=False)

    def weights(self) -> Tensor:
        return self.fixed_T


@final
class RunningScale(Balance):
    """w_t = 1 / m_t, with m_t the running mean of the task's own loss, the batch at hand included.

    m_t has fading weights that sum to 1 from the first batch on, so nothing has to be guessed for a start.

    Args:
        tasks: as in `Balance`.
        memory: share of the past that is kept from batch to batch. Default .99.
    """

    name = "running_scale"
    sums_T: Tensor
    known_T: Tensor

    def __init__(self, tasks: Sequence[str], memory: float = 0.99) -> None:
        super().__init__(tasks)
        self.memory = between(self.name, "memory", memory, 0, 1)
        self.register_buffer("sums_T", torch.zeros(len(tasks)))
        self.register_buffer("known_T", torch.zeros(len(tasks)))

    def observe(self, losses_T: Tensor, present_T: Tensor) -> None:
        # A loss that is no number would stay in the mean for good; its step is lost anyway.
        seen_T = present_T & losses_T.isfinite()
        self.sums_T = torch.where(seen_T, self.memory * self.sums_T + (1 - self.memory) * losses_T, self.sums_T)
        self.known_T = torch.where(seen_T, self.memory * self.known_T + (1 - self.memory), self.known_T)

    def weights(self) -> Tensor:
        return torch.where(self.known_T > 0, self.known_T / self.sums_T.clamp_min(SMALLEST), 1.0)


@final
class Uncertainty(Balance):
    """Kendall, Gal and Cipolla (arXiv 1705.07115), eq. 10 with s_t = log sigma_t^2 learned:

        exp(-s_t) L_t + s_t / 2

    for every task. The paper has another 1/2 before the loss of a regression, which only moves its s_t by log 2. From
    s_t = 0 on, weights tend to 1 / (2 L_t).
    """

    name = "uncertainty"

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(tasks)
        self.log_variance = nn.Parameter(torch.zeros(len(tasks)))

    def weights(self) -> Tensor:
        return torch.exp(-self.log_variance)

    def offsets(self, losses_T: Tensor) -> Tensor:
        # Its value is s/2; its gradient in s that of the whole, with the losses of all ranks.
        weights_T = torch.exp(-self.log_variance)
        return (weights_T - weights_T.detach()) * losses_T + self.log_variance / 2


@final
class DWA(Balance):
    """Dynamic weight average (arXiv 1803.10704), eq. 7: tasks whose loss falls slowly get more weight.

        w_t = T softmax_t(r_t / temperature),   r_t = L_t(k - 1) / L_t(k - 2)

    with L_t(k) the mean loss in period k. The weights are 1 until two periods are over.

    Args:
        tasks: as in `Balance`.
        temperature: default 2, the paper's.
        period: batches; the paper's is an epoch. Default 100.
    """

    name = "dwa"
    sums_T: Tensor
    counts_T: Tensor
    means_2T: Tensor
    batches: Tensor

    def __init__(self, tasks: Sequence[str], temperature: float = 2.0, period: int = 100) -> None:
        super().__init__(tasks)
        self.temperature = between(self.name, "temperature", temperature, 0, math.inf)
        if isinstance(period, bool) or not isinstance(period, int) or period < 1:
            raise ValueError(f"{self.name}: period must be a whole number of batches from 1 on; found {period!r}.")
        self.period = period
        self.register_buffer("sums_T", torch.zeros(len(tasks)))
        self.register_buffer("counts_T", torch.zeros(len(tasks)))
        self.register_buffer("means_2T", torch.full((2, len(tasks)), math.nan))
        self.register_buffer("batches", torch.tensor(0))

    def observe(self, losses_T: Tensor, present_T: Tensor) -> None:
        # A period ends before the first batch of the next one: its weights know of it.
        over = (self.batches > 0) & (self.batches % self.period == 0)
        newest_T = torch.where(self.counts_T > 0, self.sums_T / self.counts_T, self.means_2T[1])
        self.means_2T = torch.where(over, torch.stack([self.means_2T[1], newest_T]), self.means_2T)
        seen_T = present_T & losses_T.isfinite()
        self.sums_T = torch.where(over, 0, self.sums_T) + torch.where(seen_T, losses_T, 0)
        self.counts_T = torch.where(over, 0, self.counts_T) + seen_T
        self.batches = self.batches + 1

    def weights(self) -> Tensor:
        rates_T = self.means_2T[1] / self.means_2T[0].clamp_min(SMALLEST)
        rates_T = torch.where(rates_T.isfinite(), rates_T, 1.0)
        return len(self.tasks) * torch.softmax(rates_T / self.temperature, dim=0)


@final
class FAMO(Balance):
    """Fast adaptive multitask optimization (arXiv 2306.03792), algorithm 1: losses fall at equal rates.

        w_t = T (z_t / L_t) / sum_j (z_j / L_j),   z = softmax(xi)

    and xi follows Adam on how far each log L_t fell over the step, measured on the same batch: `after` wants the
    losses once more, which costs one forward pass a step. The factor T is ours: a mean over the tasks undoes it.
    An absent task takes part with its last loss, and did not change.

    Args:
        tasks: as in `Balance`.
        learning_rate: of xi. Default .025, the paper's.
        weight_decay: of xi. Default 1e-3, the paper's algorithm; the authors' code has 1e-5.
    """

    name = "famo"
    again = True
    logits_T: Tensor
    last_T: Tensor

    def __init__(self, tasks: Sequence[str], learning_rate: float = 0.025, weight_decay: float = 1e-3) -> None:
        super().__init__(tasks)
        rate = between(self.name, "learning_rate", learning_rate, 0, math.inf)
        if weight_decay != 0:
            between(self.name, "weight_decay", weight_decay, 0, math.inf)
        self.learning_rate, self.weight_decay = rate, float(weight_decay)
        self.register_buffer("logits_T", torch.zeros(len(tasks)))
        self.register_buffer("last_T", torch.full((len(tasks),), math.nan))
        # Made at the first step, when the logits are on their device.
        self.adam: torch.optim.Adam | None = None

    def observe(self, losses_T: Tensor, present_T: Tensor) -> None:
        self.last_T = torch.where(present_T & losses_T.isfinite(), losses_T, self.last_T)

    def weights(self) -> Tensor:
        shares_T = torch.softmax(self.logits_T, dim=0) / (self.last_T + SMALLEST)
        shares_T = torch.where(self.last_T.isnan(), 0, shares_T)
        return len(self.tasks) * shares_T / shares_T.sum().clamp_min(SMALLEST)

    @torch.no_grad()
    def after(self, losses: Mapping[str | int, Tensor], counts_T: Tensor | None = None) -> None:
        _, totals_T, losses_T = self._over_ranks(losses, counts_T)
        fall_T = torch.log(self.last_T + SMALLEST) - torch.log(losses_T + SMALLEST)
        fall_T = torch.where((totals_T > 0) & fall_T.isfinite(), fall_T, 0)
        z_T = torch.softmax(self.logits_T, dim=0)
        # The gradient of sum_t z_t fall_t in the logits.
        self.logits_T.grad = z_T * (fall_T - (z_T * fall_T).sum())
        self._adam().step()
        self.logits_T.grad = None

    def _adam(self) -> torch.optim.Adam:
        if self.adam is None:
            self.adam = torch.optim.Adam([self.logits_T], lr=self.learning_rate, weight_decay=self.weight_decay)
        return self.adam

    def get_extra_state(self) -> Any:
        """Adam's moments."""
        return self._adam().state_dict()

    def set_extra_state(self, state: Any) -> None:
        """Take them back."""
        self._adam().load_state_dict(state)
