"""The gradients of tasks from batches of one task each, which add their ordinary gradients to the task's share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from torch import Tensor, nn

from lorachord.surgery.task_grads import Key, TaskGradients
from lorachord.tuner.walk import states_of


@final
class MicroBatches(TaskGradients):
    """From batches of one task each: call `end_of(task)` after each backward pass."""

    def __init__(self, model: nn.Module, num_tasks: int) -> None:
        super().__init__(model, num_tasks)
        self.sums, self.states = self._zeros(), states_of(model)

    def _count_as_trained(self, trained: bool) -> None:
        for state in self.states:
            state.trained = trained

    def _zeros(self) -> dict[Key, Tensor]:
        return {key: p.new_zeros(self.num_tasks, *p.shape) for key, p in self.parameters.items()}

    def end_of(self, task: int) -> None:
        """Book what the last backward pass has left in the parameters' `.grad` on a task's account."""
        for key, parameter in self.parameters.items():
            if parameter.grad is not None:
                self.sums[key][task] += parameter.grad
                parameter.grad = None
        # Penalties may be asked for once in a step, which several passes are here.
        self._count_as_trained(False)

    def collect(self) -> dict[Key, Tensor]:
        self._count_as_trained(True)
        found, self.sums = self.sums, self._zeros()
        return found

    def reset(self) -> None:
        self._count_as_trained(True)
        self.sums = self._zeros()

    def held(self) -> Iterator[tuple[str, Tensor]]:
        for (layer, _), gradients in self.sums.items():
            yield layer, gradients

    def close(self) -> None:
        self.sums = {}
