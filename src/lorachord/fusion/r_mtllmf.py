"""R-MTLLMF: fusion that leaves sensitive layers alone and realigns itself on a few labelled examples.

    theta = theta_0 + sum_t lambda_t^l tau_t^l  for l not protected,   min_lambda  mean_t mean_{k shots} loss_t(theta)

"R-MTLLMF: Resilient Multi-Task Large Language Model Fusion at the Wireless Edge" (arXiv 2411.18220).

Construction: the abstract tells of noise on the task vectors, of protected layers and of a few-shot realignment of the
fused model. Here what is realigned are the coefficients, as in AdaMerging but on labels, and what is protected is named
by the user. `noise.with_noise` is the channel (`lorachord fuse --noise`), `disentanglement_error` the diagnostic,
benchmarks/noise.py the curve.
"""

from __future__ import annotations

from dataclasses import dataclass
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
from lorachord.fusion.merged import Merged
from lorachord.fusion.method import FusionMethod
from lorachord.fusion.predictions import Data, supervised
from lorachord.fusion.task_vectors import TaskVectors


@final
@dataclass(frozen=True, kw_only=True)
class RMTLLMF(FusionMethod):
    """
    Args:
        protect: layers, or blocks of them (`layer.0`), whose task vectors are left out. Default none.
        granularity: of the coefficients: `layer` (default) or `task`.
        start: every coefficient at the start. Default .3.
        steps: of Adam, each on a batch of every task's examples. Default 100.
        learning_rate: Default 1e-2.
        seed: of the order of batches. Default 0.
    """

    name = "r_mtllmf"
    paper = "R-MTLLMF (arXiv 2411.18220), a construction"
    needs = "labels"
    protect: tuple[str, ...] = option((), items=str)
    granularity: str = option("layer", choices=("layer", "task"))
    start: float = option(0.3, low=0, high=1)
    steps: int = option(100, low=1)
    learning_rate: float = option(1e-2, above=0)
    seed: int = option(0, low=0)

    def merge(self, vectors: TaskVectors, data: Data) -> Merged:
        used = vectors.without(self.protect)
        coefficients = new_coefficients(used, self.granularity, self.start)
        with fused_model(used, *combinations(used, coefficients)) as model:
            losses = minimise(
                model,
                data,
                supervised,
                [torch.optim.Adam(distinct(coefficients), lr=self.learning_rate)],
                steps=self.steps,
                seed=self.seed,
                after=lambda _: clamp(coefficients),
            )
        found = values(coefficients)
        return Merged(vectors, *used.combine(found), plain(found), {"loss": losses}, summed=used)
