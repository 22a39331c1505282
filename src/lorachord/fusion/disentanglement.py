"""How much the tasks' vectors disturb each other in a fused model, and how far it is from the single adapters.

    xi = sum_t E_x dist(f(theta_0 + sum_j lambda_j tau_j)(x), f(theta_0 + lambda_t tau_t)(x)),   x of task t

xi is the weight-disentanglement error of Ortiz-Jimenez et al., "Task Arithmetic in the Tangent Space" (arXiv
2305.12827), as R-MTLLMF (arXiv 2411.18220) uses it. It needs a weighted sum: a fusion without coefficients has none.
The distance from the own adapters has theta_0 + tau_t on the right, at its full strength, which is what its user had;
it counts a small lambda as a disturbance, and any fusion has it. Construction: dist is KL(alone || fused) between
predictive distributions, and the squared difference of a regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lorachord.fusion.factors import Update
from lorachord.fusion.merged import Merged
from lorachord.fusion.predictions import Data, Inputs, Predictions, distance, predictions
from lorachord.fusion.task_vectors import TaskVectors
from lorachord.tuner import on_task


def single(vectors: TaskVectors, task: int) -> Merged:
    """One task's own update."""
    weights_T = torch.zeros(len(vectors.tasks))
    weights_T[task] = 1
    layers: dict[str, Update]
    layers, others = vectors.combine(weights_T)
    return Merged(vectors, layers, others)


def alone(merged: Merged, task: int) -> Merged:
    """What one task contributes to a weighted sum: `lambda_t tau_t`."""
    summed = merged.summed or merged.vectors
    weights = {}
    for name in [*summed.layers, *summed.others]:
        weights[name] = torch.zeros(len(summed.tasks))
        weights[name][task] = merged.coefficients[name][task]
    layers: dict[str, Update]
    layers, others = summed.combine(weights)
    return Merged(merged.vectors, layers, others)


def answers(merged: Merged, task: str, batches: Sequence[Inputs]) -> list[Predictions]:
    """What a fusion predicts on one task's batches."""
    with merged.model() as model, on_task(model, task):
        return [predictions(model, inputs) for inputs in batches]


def references(vectors: TaskVectors, data: Data) -> dict[str, list[Predictions]]:
    """What each task's own update predicts on each of its batches."""
    return {task: answers(single(vectors, index), task, data[task]) for index, task in enumerate(vectors.tasks)}


def disentanglement_error(merged: Merged, data: Data) -> dict[str, float] | None:
    """The term of xi of each task; their sum is xi. None for a fusion that is no weighted sum.

    Args:
        data: batches of each task.
    """
    if not merged.coefficients:
        return None
    tasks = enumerate(merged.vectors.tasks)
    return distance_from(merged, data, {task: answers(alone(merged, index), task, data[task]) for index, task in tasks})


def distance_from(merged: Merged, data: Data, against: Mapping[str, Sequence[Predictions]]) -> dict[str, float]:
    """How far the predictions on each task are from others, such as those of `references`: of its own adapter.

    Args:
        data: batches of each task.
        against: predictions on the same batches.
    """
    found = {}
    for task, batches in data.items():
        terms = [
            (float(distance(fused, reference, inputs.kind)), len(inputs.num_rows))
            for inputs, fused, reference in zip(batches, answers(merged, task, batches), against[task], strict=True)
        ]
        found[task] = sum(value * size for value, size in terms) / sum(size for _, size in terms)
    return found
