"""Collapse: in each layer the one weight whose outputs are nearest to those of every task's own.

    min_D  sum_t E_{x of t} |(D - D_t) x|^2 = sum_t |(D - D_t) C_t^(1/2)|^2   =>   D = (sum_t D_t C_t) (sum_t C_t)^-1

with C_t the covariance of the layer's inputs on task t, measured in the model with that task's own adapter. Least
squares by layer on whole weights is RegMean (Jin et al., "Dataless Knowledge Fusion", arXiv 2212.09849).
Construction: on task vectors in factors, D = [B_1, .., B_T] M with M = [A_1 C_1; ..; A_T C_T] (sum_t C_t)^-1, exact at
the stacked rank; a smaller rank is the best one in the metric sum_t C_t, not in the weights' own.

Every C_t is damped (`core.covariance.DAMPING`), which leaves identical task vectors where they are.

Shapes: T tasks; D inputs and O outputs of a layer; R rows of the stacked factors, K a smaller rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lorachord.calibration.inputs import Limits, measure_inputs
from lorachord.core.config import LayerSpec, option
from lorachord.families.covariance import Covariance
from lorachord.fusion.disentanglement import distance_from, references, single
from lorachord.fusion.factors import LowRank, Update
from lorachord.fusion.merged import Merged
from lorachord.fusion.method import FusionMethod
from lorachord.fusion.predictions import Data
from lorachord.fusion.task_vectors import Layer, Stacked, TaskVectors
from lorachord.fusion.updates import layer_spec


def collapsed(vectors: Layer, covariances: Sequence[Tensor], rank: int | None = None) -> tuple[Update, float]:
    """The nearest single update of one layer, and what it is off: `sum_t |(D - D_t) C_t^(1/2)|^2`.

    Args:
        vectors: the layer's task vectors.
        covariances: C_t (D, D) of each task, positive definite.
        rank: of the update at most. Default: the stacked rank.
    """
    if isinstance(vectors, Stacked):
        return _collapsed_factors(vectors, covariances, rank)
    deltas = [vectors.delta(task).double() for task in range(vectors.num_tasks)]
    metric_DD = torch.stack(list(covariances)).sum(0)
    products_OD = torch.stack([delta @ own for delta, own in zip(deltas, covariances, strict=True)]).sum(0)
    update_OD = torch.cholesky_solve(products_OD.t(), torch.linalg.cholesky(metric_DD)).t()
    update: Update = update_OD.float()
    if rank is not None and rank < min(update_OD.shape):
        left_OK = torch.linalg.eigh(update_OD @ metric_DD @ update_OD.t()).eigenvectors[:, -rank:]
        update = LowRank((left_OK.t() @ update_OD).float(), left_OK.float())
        update_OD = left_OK @ (left_OK.t() @ update_OD)
    loss = sum(
        float((((update_OD - delta) @ own) * (update_OD - delta)).sum())
        for delta, own in zip(deltas, covariances, strict=True)
    )
    return update, loss


def _collapsed_factors(vectors: Stacked, covariances: Sequence[Tensor], rank: int | None) -> tuple[LowRank, float]:
    up_OR, down_RD = vectors.up_OR.double(), vectors.down_RD.double()
    downs = down_RD.split(list(vectors.ranks))
    metric_DD = torch.stack(list(covariances)).sum(0)
    products_RD = torch.cat([down @ own for down, own in zip(downs, covariances, strict=True)])
    inner_RD = torch.cholesky_solve(products_RD.t(), torch.linalg.cholesky(metric_DD)).t()
    basis_OR, triangle_RR = torch.linalg.qr(up_OR)
    made = LowRank(inner_RD, up_OR)
    inner_KD = triangle_RR @ inner_RD
    if rank is not None and rank < len(inner_RD):
        # Left singular vectors of D (sum C_t)^(1/2), without the root: those of D (sum C_t) D^T in the basis of `up`.
        left_RK = torch.linalg.eigh(inner_KD @ metric_DD @ inner_KD.t()).eigenvectors[:, -rank:]
        made = LowRank(left_RK.t() @ inner_KD, basis_OR @ left_RK)
        inner_KD = left_RK @ made.down_RD
    loss = 0.0
    for task, own in enumerate(covariances):
        rows_R = (vectors.owners == task).double()
        off_KD = inner_KD - triangle_RR @ (rows_R[:, None] * down_RD)
        loss += float(((off_KD @ own) * off_KD).sum())
    return LowRank(made.down_RD.float(), made.up_OR.float()), loss


def input_covariances(vectors: TaskVectors, data: Data) -> Iterator[tuple[list[LayerSpec], list[Covariance]]]:
    """Groups of layers that are handed the same input, with its covariance on each task under the task's own update."""
    layers = [layer_spec(name, layer) for name, layer in vectors.layers.items()]
    limits = Limits(max_bytes=Limits().max_bytes // len(vectors.tasks))
    owns = [single(vectors, index) for index in range(len(vectors.tasks))]
    streams = [
        measure_inputs(vectors.base, layers, {task: [inputs.tensors for inputs in data[task]]}, limits)
        for task in vectors.tasks
    ]
    while True:
        groups = []
        for own, stream in zip(owns, streams, strict=True):
            with own.model():
                groups.append(next(stream, None))
        found = [group for group in groups if group is not None]
        if not found:
            return
        yield found[0][0], [covariance for _, own in found for covariance in own]


def actual_changes(merged: Merged, data: Data) -> dict[str, float]:
    """How much predictions change where one layer alone takes the fused update and the others stay the task's own.

    The distance of `distance_from`, summed over tasks, on the first batch of each.
    """
    vectors = merged.vectors
    first = {task: batches[:1] for task, batches in data.items()}
    against = references(vectors, first)
    changes = dict.fromkeys(merged.layers, 0.0)
    for index, task in enumerate(vectors.tasks):
        own = single(vectors, index)
        for name, update in merged.layers.items():
            mixed = Merged(vectors, {**own.layers, name: update}, own.others)
            changes[name] += distance_from(mixed, {task: first[task]}, against)[task]
    return changes


@final
@dataclass(frozen=True, kw_only=True)
class Collapse(FusionMethod):
    """
    Args:
        rank: of each layer's update at most. Default 0: the stacked rank.
        measure: compare the predicted losses of the layers with what each changes (`actual_changes`), as a rank
            correlation; a pass for each layer and task. Default true.
    """

    name = "collapse"
    paper = "least squares by layer, after RegMean (arXiv 2212.09849)"
    needs = "inputs"
    rank: int = option(0, low=0)
    measure: bool = option(True)

    def merge(self, vectors: TaskVectors, data: Data) -> Merged:
        layers: dict[str, Update] = {}
        losses: dict[str, float] = {}
        for group, covariances in input_covariances(vectors, data):
            if not all(covariance.num_rows for covariance in covariances):
                continue
            identity_DD = torch.eye(group[0].d_in, device=next(vectors.base.parameters()).device)
            damped = [covariance.damped(identity_DD).double() for covariance in covariances]
            for layer in group:
                made = collapsed(vectors.layers[layer.name], damped, self.rank or None)
                layers[layer.name], losses[layer.name] = made
        mean_T = torch.full((len(vectors.tasks),), 1 / len(vectors.tasks))
        # What no input reached, and what is no linear layer's weight, is averaged.
        others = {name: dense.combine(mean_T) for name, dense in vectors.others.items()}
        ordered = {name: layers.get(name, layer.combine(mean_T)) for name, layer in vectors.layers.items()}
        merged = Merged(vectors, ordered, others, notes={"predicted_loss": losses})
        if not self.measure or len(losses) < 3:
            return merged
        from scipy.stats import spearmanr  # type: ignore[import-untyped]

        changes = actual_changes(merged, data)
        both = [[found[name] for name in losses] for found in (losses, changes)]
        notes = {"actual_change": changes, "rank_correlation": float(spearmanr(*both).statistic)}
        return Merged(vectors, ordered, others, notes={"predicted_loss": losses, **notes})
