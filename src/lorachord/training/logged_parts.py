"""What a step is logged with: the parts of its loss, the weights of a balance, the last operation of a surgeon."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorachord.balance.base import Balance
from lorachord.balance.by_loss import Equal
from lorachord.surgery.operation import Operation
from lorachord.training.units import say_zero


class LoggedMixin:
    """The log's part of `StepsByTask`."""

    task_names: tuple[str, ...]
    task_weights: Sequence[float]
    balance: Balance
    operation: Operation | None
    bad_steps: int

    def start_log(self) -> None:
        """Begin to collect."""
        # Each step's losses by name, until they are logged; tensors, so that no step waits for the device.
        self._parts: dict[str, list[Tensor]] = {}
        # When it was logged last, and the steps since then whose loss is in no sum.
        self._logged_at = self._skipped = 0

    def log(self, logs: dict[str, float], *args: Any, **keywords: Any) -> None:
        """With the parts of the loss, the weights of a balance, and the last operation of a surgeon.

        `loss_<task>` and `penalty_<kind>` (balance, z, contrastive, subspace) are means since the last time.
        `weight_<task>` is the last factor of the task's loss. `surgery_conflicts` is the share of pairs of tasks with a
        negative cosine, over all factors; `surgery_moved` the distance of the gradient from the plain sum, relative to
        it.
        """
        trainer: Any = self
        if "train_loss" in logs:
            # The Trainer's own leaves out what was before a checkpoint.
            logs["train_loss"] = trainer._total_loss_scalar / max(1, trainer.state.global_step - self.bad_steps)
        if "loss" in logs:
            logs.update({name: float(torch.stack(parts).mean()) for name, parts in sorted(self._parts.items())})
            self._parts.clear()
            if self._logged_at == 0:
                say_zero(self.task_names, logs)
            steps = trainer.state.global_step - self._logged_at
            if self._skipped:
                logs["loss"] = logs["loss"] * steps / (steps - self._skipped) if steps > self._skipped else math.nan
            self._logged_at, self._skipped = trainer.state.global_step, 0
            if not isinstance(self.balance, Equal):
                for name, weight, scale in zip(self.task_names, self.balance.weights_T, self.task_weights, strict=True):
                    logs[f"weight_{name}"] = float(weight) * scale
            if self.operation is not None:
                logs["surgery_conflicts"] = self.operation.conflicts
                logs["surgery_moved"] = self.operation.moved
        super().log(logs, *args, **keywords)  # type: ignore[misc]
