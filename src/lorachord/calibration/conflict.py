"""Where the gradients of tasks conflict: measured on a plain LoRA while it takes its first steps.

Each step draws two batches of every task. Their gradients are the two halves that `Significant`'s test asks for, and
all of them together the step. The base is not changed: a copy that shares its frozen weights is trained.

Shapes: N blocks (each A and each B), T tasks, S = 2 T halves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, cycle
from typing import Any

import torch
from torch import Tensor, nn

from lorachord.attach import attach
from lorachord.calibration.inputs import Batch, on_device, size_of
from lorachord.surgery.significant import Significant
from lorachord.surgery.task_grads import OnePass
from lorachord.tuner.callers import Named, naming
from lorachord.tuner.state import HEADS
from lorachord.tuner.walk import states_of

Loss = Callable[[nn.Module, Mapping[str, Any]], Tensor]


def own_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The loss that a transformers model gives for a batch with `labels`.

    Raises:
        ValueError: it gives none.
    """
    loss: Tensor | None = model(**batch).loss
    if loss is None:
        raise ValueError("The model returns no loss: put `labels` into the batches.")
    return loss


@dataclass(frozen=True)
class Conflict:
    """What was found.

    Attributes:
        keys: `(layer, "down" or "up")` of the N blocks.
        statistic_NTT: Student's t of the mean inner product of each pair of tasks; negative in conflict.
        significant_NTT: the pairs whose conflict is significant, all blocks and pairs considered.
    """

    keys: tuple[tuple[str, str], ...]
    statistic_NTT: Tensor
    significant_NTT: Tensor

    def of_modules(self) -> dict[str, float]:
        """How significant the worst conflict of each module is; 0 where none is."""
        worst_N = torch.where(self.significant_NTT, -self.statistic_NTT, 0).amax((1, 2))
        found: dict[str, float] = {}
        for (layer, _), worst in zip(self.keys, worst_N.tolist(), strict=True):
            found[layer] = max(worst, found.get(layer, 0.0))
        return found

    def of_pairs(self) -> Tensor:
        """(T, T): the mean of -t over all blocks."""
        return -self.statistic_NTT.mean(0)


def measure_conflict(
    base: nn.Module,
    batches: Mapping[str, Sequence[Batch]],
    *,
    steps: int,
    learning_rate: float,
    level: float,
    loss: Loss = own_loss,
    **settings: Any,
) -> Conflict:
    """Train a plain LoRA for some steps, and test every pair of tasks in each of its factors.

    Args:
        base: the model.
        batches: of each task, with all that `loss` needs; begun again when they end.
        steps: of the optimiser, AdamW.
        learning_rate: its.
        level: of the test, over all blocks and pairs.
        loss: of a batch of one task. Default: the model's own.
        settings: of the LoRA and its targets, as for `attach`.
    """
    num_tasks = len(batches)
    with _copy(base) as own:
        # The halves are tasks of its own to an adapter that does not look at tasks.
        halves = [f"{task}/{half}" for task in batches for half in (0, 1)]
        model = attach(own, "lora", tasks=halves, **settings).train()
        gradients = OnePass(model, 2 * num_tasks)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
        # Nothing fades in so short a time.
        test = Significant(level=level, memory=1 - 1e-9)
        streams = [cycle(task_batches) for task_batches in batches.values()]
        for _ in range(steps):
            sizes = []
            for place in range(2 * num_tasks):
                batch = on_device(next(streams[place // 2]), model)
                sizes.append(float(size_of(batch)))
                with _on_half(model, place):
                    (loss(model, batch) / (2 * num_tasks)).backward()
            found = gradients.collect()
            flat = [gradient.flatten(1).float() for gradient in found.values()]
            test.observe(torch.stack([gradient @ gradient.t() for gradient in flat]), torch.tensor(sizes))
            for key, gradient in found.items():
                gradients.parameters[key].grad = gradient.sum(0)
            optimizer.step()
            optimizer.zero_grad()
        statistic_NTT, _ = test.statistic()
        assert test.significant_NTT is not None
        keys = tuple((gradients.adapters[layer].layer.name, factor) for layer, factor in found)
        return Conflict(keys, statistic_NTT, test.significant_NTT)


@contextmanager
def _copy(base: nn.Module) -> Iterator[nn.Module]:
    """A copy for this block; parameters and buffers are shared, and get back whether they are trained."""
    tensors = list(chain(base.parameters(), base.buffers()))
    trained = [tensor.requires_grad for tensor in tensors]
    try:
        yield copy.deepcopy(base, {id(tensor): tensor for tensor in tensors})
    finally:
        for tensor, was in zip(tensors, trained, strict=True):
            tensor.requires_grad_(was)


@contextmanager
def _on_half(model: nn.Module, place: int) -> Iterator[None]:
    """Within this block the adapter sees the half `place`, and heads per task, if any, see its task."""
    states = states_of(model)
    named = {}
    for state in states:
        index = place // 2 if HEADS in state.task_names else place
        named[state.caller] = Named(state.resolve(index, list(state.task_names)), state.caller.named.given)
    with naming(named):
        yield
