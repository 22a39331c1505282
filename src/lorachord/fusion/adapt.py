"""The loop of the methods that adapt: an objective over the tasks' batches, and what is trained in one fused model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lorachord.fusion.predictions import Data, Inputs, Predictions, predictions
from lorachord.fusion.task_vectors import TaskVectors
from lorachord.fusion.updates import Combination, Plus, combination, inside
from lorachord.tuner import on_task

Objective = Callable[[Predictions, Inputs], Tensor]


def new_coefficients(vectors: TaskVectors, granularity: str, start: float) -> dict[str, nn.Parameter]:
    """The lambda_t (T,) of each layer and other parameter: of granularity `task` one and the same."""

    def made() -> nn.Parameter:
        device = next(vectors.base.parameters()).device
        return nn.Parameter(torch.full((len(vectors.tasks),), start, device=device))

    shared, names = made(), [*vectors.layers, *vectors.others]
    return {name: shared if granularity == "task" else made() for name in names}


def combinations(
    vectors: TaskVectors, coefficients: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Combination], dict[str, Plus]]:
    """What puts the vectors, under these coefficients, into the base."""
    adapters = {name: combination(name, layer, coefficients[name]) for name, layer in vectors.layers.items()}
    return adapters, others(vectors, coefficients)


def others(vectors: TaskVectors, coefficients: Mapping[str, nn.Parameter]) -> dict[str, Plus]:
    """The same of the parameters that are no linear layers' weights."""
    return {
        name: Plus(torch.stack([layer.delta(task) for task in range(layer.num_tasks)]), coefficients[name])
        for name, layer in vectors.others.items()
    }


def values(coefficients: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Coefficients as they are now."""
    return {name: parameter.detach().clone() for name, parameter in coefficients.items()}


def plain(coefficients: Mapping[str, Tensor]) -> dict[str, tuple[float, ...]]:
    """Coefficients as plain data."""
    return {name: tuple(value.tolist()) for name, value in coefficients.items()}


def rounds(data: Data, steps: int, seed: int) -> Iterator[dict[str, Inputs]]:
    """One batch of every task a step; a task's batches in a new order in every pass over them."""
    streams = {task: _endless(batches, seed, index) for index, (task, batches) in enumerate(data.items())}
    for _ in range(steps):
        yield {task: next(stream) for task, stream in streams.items()}


def _endless(batches: Sequence[Inputs], seed: int, index: int) -> Iterator[Inputs]:
    generator = torch.Generator().manual_seed(seed * 1009 + index)
    while True:
        for place in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[place]


def minimise(
    model: nn.Module,
    data: Data,
    objective: Objective,
    optimizers: Sequence[Optimizer],
    *,
    steps: int,
    seed: int,
    after: Callable[[int], None],
) -> list[float]:
    """Take steps on the mean over the tasks of an objective.

    Args:
        model: with what is trained inside; in eval mode.
        optimizers: each takes its turn.
        after: called with the step's number after each.

    Returns:
        the objective at each step.
    """
    losses = []
    for step, batches in enumerate(rounds(data, steps, seed)):
        optimizer = optimizers[step % len(optimizers)]
        for each in optimizers:
            each.zero_grad()
        total = torch.zeros(())
        for task, inputs in batches.items():
            with on_task(model, task):
                loss = objective(predictions(model, inputs), inputs) / len(batches)
            # Only what is trained gets a gradient: the base is frozen.
            loss.backward()
            total = total + loss.detach().cpu()
        optimizer.step()
        after(step)
        losses.append(float(total))
    return losses


@contextmanager
def fused_model(
    vectors: TaskVectors, adapters: Mapping[str, Combination], plus: Mapping[str, Plus]
) -> Iterator[nn.Module]:
    """The one model that all batches go through."""
    for adapter in adapters.values():
        adapter.eval()
    with inside(vectors.base, adapters, plus) as model:
        yield model


def clamp(coefficients: Mapping[str, nn.Parameter]) -> None:
    """Into [0, 1], in place."""
    with torch.no_grad():
        for parameter in coefficients.values():
            parameter.clamp_(0, 1)


def distinct(parameters: Mapping[str, nn.Parameter]) -> list[nn.Parameter]:
    """Each parameter once, though several layers may share it."""
    return list({id(parameter): parameter for parameter in parameters.values()}.values())
