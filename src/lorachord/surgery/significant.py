"""Projection where a conflict is real: a test before the scalpel.

The inner product of two noisy gradients is negative about half of the time even if both estimate the same one, and
PCGrad then projects noise. This rule is ours: it projects as Ortho-LoRA does, but only pairs whose conflict is
significant in the factor (or group of factors) at hand.

Each task's samples are split in two halves, whose gradients a and b come from the same backward pass. With s = a + b
and d = a - b, d has the noise of s but not its mean, and is independent of it. For tasks i and j,

    z = <s_i, s_j>  has mean <mu_i, mu_j>  and variance  V = E<s_i, d_j>^2 + E<d_i, s_j>^2 - E<d_i, d_j>^2,

and V is at least half of its first two terms. So a step says something unbiased of the mean and of its error. Both are
averaged over recent steps with fading weights; a difference of averages can come out far too small, so V is taken as
the larger of the estimate and of that bound. A conflict is significant if the mean lies below 0 at the level asked for,
by Student's t with as many degrees of freedom as steps are remembered, corrected for the number of pairs and of factors
(Bonferroni). Halves of unequal size are weighted so that all this still holds.

Shapes: N Gramians, T tasks, S = 2 T halves (of task 0, of task 0, of task 1, ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from scipy.special import stdtrit  # type: ignore[import-untyped]
from torch import Tensor

from lorachord.surgery.rules import OrthoLora, Rule, Tasks

MIN_STEPS = 8.0
"""Steps that must be remembered before anything is projected."""
SUMS = ("products", "crossed", "noise", "weight", "squared")
"""What is remembered, by pair: of z, of the first two terms of V, of the third, of the weights, of their squares."""


@final
class Significant(Rule):
    """Ortho-LoRA's projection for significant conflicts alone.

    Args:
        level: the chance that a step projects anything although nothing conflicts. Default .05.
        memory: share of the past that is kept from step to step; .95 remembers about 39 steps. Default .95.
        order, reduction, seed: as in `OrthoLora`.

    Attributes:
        significant_NTT: which conflicts were significant at the last observation.

    Raises:
        ValueError: a level or memory outside (0, 1).
    """

    name = "significant"
    needs_halves = True

    def __init__(
        self,
        level: float = 0.05,
        memory: float = 0.95,
        order: str = "random",
        reduction: str = "sum",
        seed: int = 0,
    ) -> None:
        for field, value in (("level", level), ("memory", memory)):
            if not 0 < value < 1:
                raise ValueError(f"{self.name}: {field} is {value}; it must lie between 0 and 1.")
        self.level, self.memory = level, memory
        self.projection = OrthoLora(order=order, reduction=reduction, seed=seed)
        self.significant_NTT: Tensor | None = None
        self.sums: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None = None

    def observe(self, gramians_NSS: Tensor, sizes_S: Tensor) -> None:
        """Take in one step.

        Args:
            gramians_NSS: inner products of the halves' gradients, in at least float32.
            sizes_S: samples in each half; a task with an empty half says nothing in this step. Nor does any if the
                products are not finite: mixed precision will skip that step.
        """
        finite = gramians_NSS.isfinite().all()
        gramians_NSS = torch.where(finite, gramians_NSS, 0).double()
        first_T, second_T = sizes_S.to(gramians_NSS).view(-1, 2).unbind(1)
        known_T = (first_T > 0) & (second_T > 0) & finite
        balance_T = torch.where(known_T, (second_T / first_T.clamp_min(1)).sqrt(), 1.0)
        # Rows: the sum and the difference of the two halves of each task.
        rows_T22 = torch.ones(len(first_T), 2, 2).to(gramians_NSS)
        rows_T22[:, 1, 0], rows_T22[:, 1, 1] = balance_T, -1 / balance_T.clamp_min(1e-12)
        transform_SS = torch.block_diag(*rows_T22)
        products = (transform_SS @ gramians_NSS @ transform_SS.t()).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        z_NTT, noise_NTT = products[:, :, 0, :, 0], products[:, :, 1, :, 1]
        crossed_NTT = products[:, :, 0, :, 1] ** 2 + products[:, :, 1, :, 0] ** 2

        now_TT = (known_T[:, None] & known_T[None, :]).to(gramians_NSS)
        if self.sums is None:
            zero_NTT, zero_TT = torch.zeros_like(z_NTT), torch.zeros_like(now_TT)
            self.sums = (zero_NTT, zero_NTT, zero_NTT, zero_TT, zero_TT)
        # What is not seen does not fade either.
        kept_TT = torch.where(now_TT > 0, self.memory, 1.0)
        z, crossed, noise, weight, squared = self.sums
        self.sums = (
            kept_TT * z + now_TT * z_NTT,
            kept_TT * crossed + now_TT * crossed_NTT,
            kept_TT * noise + now_TT * noise_NTT**2,
            kept_TT * weight + now_TT,
            kept_TT**2 * squared + now_TT,
        )
        self.significant_NTT = self._test()

    def state(self) -> dict[str, Tensor]:
        """The fading sums, by name."""
        return {} if self.sums is None else dict(zip(SUMS, self.sums, strict=True))

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        if state:
            z, crossed, noise, weight, squared = (state[name].double() for name in SUMS)
            self.sums = (z, crossed, noise, weight, squared)

    def statistic(self) -> tuple[Tensor, Tensor]:
        """Student's t of each pair (N, T, T), and how many steps it is of (T, T).

        t is the mean inner product over its standard error, and 0 where nothing is known.
        """
        assert self.sums is not None, "observe() comes first"
        z_NTT, crossed_NTT, noise_NTT, weight_TT, squared_TT = self.sums
        steps_TT = weight_TT**2 / squared_TT.clamp_min(1e-12)
        variance_NTT = torch.maximum(crossed_NTT - noise_NTT, crossed_NTT / 2)
        # The mean over its standard error, without dividing by the weights: they cancel.
        error_NTT = (variance_NTT * squared_TT / weight_TT.clamp_min(1e-12)).clamp_min(0).sqrt()
        return torch.where(error_NTT > 0, z_NTT / error_NTT, 0), steps_TT

    def _test(self) -> Tensor:
        t_NTT, steps_TT = self.statistic()
        num_blocks, num_tasks, _ = t_NTT.shape
        num_tests = max(1, num_blocks * num_tasks * (num_tasks - 1) // 2)
        critical_TT = torch.as_tensor(stdtrit(steps_TT.cpu().clamp_min(1).numpy(), self.level / num_tests)).to(t_NTT)
        found = (steps_TT >= MIN_STEPS) & (t_NTT < critical_TT)
        # Above .5 a level would call agreement a conflict.
        return found & (t_NTT < 0) & ~torch.eye(num_tasks, dtype=torch.bool, device=found.device)

    def weights(self, gramians_NTT: Tensor, step: int, present: Tasks | None = None) -> Tensor:
        assert self.significant_NTT is not None, "observe() comes first"
        return self.projection.weights(gramians_NTT, step, present, self.significant_NTT)
