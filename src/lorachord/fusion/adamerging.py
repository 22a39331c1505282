"""AdaMerging: coefficients of the task vectors, learned without labels.

    theta = theta_0 + sum_t lambda_t^l tau_t^l,   min_lambda  mean_t mean_x H(f_theta(x))

Yang et al., "AdaMerging: Adaptive Model Merging for Multi-Task Learning" (arXiv 2310.02575), layer-wise and task-wise.

Differs from the authors' code: the task vectors of low-rank adapters stay factors, with the coefficients between them
(`updates.StackedCombination`), so that no weight is ever merged while adapting; entropies are taken by example and then
averaged (some public code takes the entropy of the batch's mean prediction); by default it adapts on a held-out split
and not on the test set, which is the caller's choice of batches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch

from lorachord.core.config import option
from lorachord.fusion.adapt import (
    clamp,
    combinations,
    distinct,
    fused_model,
    minimise,
    new_coefficients,
    plain,
    values,
)
from lorachord.fusion.arithmetic import elect, trim
from lorachord.fusion.merged import Merged
from lorachord.fusion.method import FusionMethod
from lorachord.fusion.predictions import Data, entropy
from lorachord.fusion.task_vectors import Dense, TaskVectors, held


@final
@dataclass(frozen=True, kw_only=True)
class AdaMerging(FusionMethod):
    """
    Args:
        granularity: `layer`, a coefficient for each task in each adapted weight (default), or `task`.
        start: every coefficient at the start. Default .3.
        steps: of Adam, each on a batch of every task. Default 500.
        learning_rate: Default 1e-3.
        density: below 1, the task vectors are trimmed to this share of their entries and sign-elected first, as in
            TIES; .2 is the paper's AdaMerging++. That makes them dense: T tensors a weight are held. Default 1.
        seed: of the order of batches. Default 0.
    """

    name = "adamerging"
    paper = "AdaMerging (arXiv 2310.02575)"
    needs = "entropy"
    granularity: str = option("layer", choices=("layer", "task"))
    start: float = option(0.3, low=0, high=1)
    steps: int = option(500, low=1)
    learning_rate: float = option(1e-3, above=0)
    density: float = option(1.0, above=0, high=1)
    seed: int = option(0, low=0)

    def merge(self, vectors: TaskVectors, data: Data) -> Merged:
        used = vectors if self.density == 1 else elected(vectors, self.density)
        coefficients = new_coefficients(used, self.granularity, self.start)
        adapters, plus = combinations(used, coefficients)
        optimizer = torch.optim.Adam(distinct(coefficients), lr=self.learning_rate)
        with fused_model(used, adapters, plus) as model:
            losses = minimise(
                model,
                data,
                lambda found, _: entropy(found),
                [optimizer],
                steps=self.steps,
                seed=self.seed,
                after=lambda _: clamp(coefficients),
            )
        found = values(coefficients)
        return Merged(vectors, *used.combine(found), plain(found), {"entropy": losses}, summed=used)


def elected(vectors: TaskVectors, density: float) -> TaskVectors:
    """Each task's vector trimmed, and without the entries whose sign the other tasks outweigh; dense, in memory."""

    def made(name: str) -> Dense:
        deltas = [trim(vectors.delta(name, task), density) for task in range(len(vectors.tasks))]
        return held(elect(torch.stack(deltas)))

    return replace(
        vectors,
        layers={name: made(name) for name in vectors.layers},
        others={name: made(name) for name in vectors.others},
    )
