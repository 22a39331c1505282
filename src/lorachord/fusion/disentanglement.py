"""How much the tasks' vectors disturb each other in a fused model.

    xi = sum_t E_x dist(f(theta_0 + sum_j lambda_j tau_j)(x), f(theta_0 + tau_t)(x)),   x of task t

The weight-disentanglement error of Ortiz-Jimenez et al., "Task Arithmetic in the Tangent Space" (arXiv 2305.12827), as
R-MTLLMF (arXiv 2411.18220) uses it. Construction: dist is KL(single || fused) between predictive distributions, and
the squared difference of a regression; the single adapter has its full strength, for that is what its user had.
"""

from __future__ import annotations

import torch

from lorachord.fusion.factors import Update
from lorachord.fusion.merged import Merged
from lorachord.fusion.predictions import Data, Predictions, distance, predictions
from lorachord.fusion.task_vectors import TaskVectors
from lorachord.tuner import on_task


def single(vectors: TaskVectors, task: int) -> Merged:
    """One task's own update."""
    weights_T = torch.zeros(len(vectors.tasks))
    weights_T[task] = 1
    layers: dict[str, Update]
    layers, others = vectors.combine(weights_T)
    return Merged(vectors, layers, others)


def references(vectors: TaskVectors, data: Data) -> dict[str, list[Predictions]]:
    """What each task's own update predicts on each of its batches."""
    found = {}
    for index, task in enumerate(vectors.tasks):
        with single(vectors, index).model() as model, on_task(model, task):
            found[task] = [predictions(model, inputs) for inputs in data[task]]
    return found


def disentanglement(merged: Merged, data: Data, against: dict[str, list[Predictions]]) -> dict[str, float]:
    """The term of xi of each task; their sum is xi.

    Args:
        data: batches of each task.
        against: what `references` found on the same batches.
    """
    found = {}
    for task, batches in data.items():
        with merged.model() as model, on_task(model, task):
            terms = [
                (float(distance(predictions(model, inputs), reference, inputs.kind)), len(inputs.num_rows))
                for inputs, reference in zip(batches, against[task], strict=True)
            ]
        found[task] = sum(value * size for value, size in terms) / sum(size for _, size in terms)
    return found
