"""Fusion by arithmetic on the task vectors: no data, no training.

Average and task arithmetic are weighted sums and exact as stacked factors. TIES and DARE choose among the entries of
dense updates, so their results are dense.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lorachord.core.config import option
from lorachord.fusion.factors import Update
from lorachord.fusion.merged import Merged
from lorachord.fusion.method import FusionMethod
from lorachord.fusion.predictions import Data
from lorachord.fusion.task_vectors import TaskVectors


def weighted_sum(vectors: TaskVectors, weights: list[float]) -> Merged:
    """`sum_t w_t tau_t`.

    Raises:
        ValueError: not one weight a task.
    """
    if len(weights) != len(vectors.tasks):
        raise ValueError(f"There are {len(weights)} weights for {len(vectors.tasks)} tasks.")
    layers, others = vectors.combine(torch.tensor(weights))
    coefficients = {name: tuple(weights) for name in [*layers, *others]}
    return Merged(vectors, layers, others, coefficients)


def task_arithmetic(vectors: TaskVectors, scale: float = 0.3) -> Merged:
    """`lambda sum_t tau_t` (arXiv 2212.04089)."""
    return weighted_sum(vectors, [scale] * len(vectors.tasks))


def average(vectors: TaskVectors) -> Merged:
    """`1/T sum_t tau_t`."""
    return task_arithmetic(vectors, 1 / len(vectors.tasks))


def trim(delta: Tensor, density: float) -> Tensor:
    """The entries of largest magnitude, the share `density` of them; the others 0."""
    kept = delta.abs().flatten().topk(max(1, int(density * delta.numel()))).indices
    trimmed = torch.zeros_like(delta).flatten()
    trimmed[kept] = delta.flatten()[kept]
    return trimmed.view_as(delta)


def elect(deltas: Tensor) -> Tensor:
    """Those entries of (T, ...) whose sign is that of the sum over tasks; the others 0. A sum of 0 counts as plus."""
    sign = torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
    return deltas * (deltas.sign() == sign)


def disjoint_mean(elected: Tensor) -> Tensor:
    """The mean over the tasks (T, ...) whose entry is not 0."""
    return elected.sum(0) / (elected != 0).sum(0).clamp_min(1)


def ties(vectors: TaskVectors, scale: float = 1.0, density: float = 0.2) -> Merged:
    """`lambda` times the disjoint mean of trimmed and sign-elected task vectors.

    Yadav et al., "TIES-Merging" (arXiv 2306.01708), algorithm 1.

    Differs from the authors' code: each weight is trimmed by itself and not all of a model at once, so that one layer
    is dense at a time; PEFT and mergekit do so too.
    """
    return _dense(vectors, lambda deltas: scale * disjoint_mean(elect(_trimmed(deltas, density))))


def dare(
    vectors: TaskVectors, scale: float = 1.0, density: float = 0.2, seed: int = 0, elect_signs: bool = False
) -> Merged:
    """`lambda sum_t m_t tau_t / density` with m_t Bernoulli(density) entry by entry.

    Yu et al., "Language Models are Super Mario" (arXiv 2311.03099); with `elect_signs` the TIES mean of these in
    place of their sum.
    """
    generator = torch.Generator().manual_seed(seed)

    def drop(deltas: Tensor) -> Tensor:
        kept = torch.stack([torch.bernoulli(torch.full(d.shape, density), generator=generator) for d in deltas])
        rescaled = deltas * kept.to(deltas.device) / density
        return scale * (disjoint_mean(elect(rescaled)) if elect_signs else rescaled.sum(0))

    return _dense(vectors, drop)


def _trimmed(deltas: Tensor, density: float) -> Tensor:
    return torch.stack([trim(delta, density) for delta in deltas])


def _dense(vectors: TaskVectors, make: Callable[[Tensor], Tensor]) -> Merged:
    """One parameter after the other, from the dense (T, ...) of it."""

    def made(name: str) -> Tensor:
        return make(torch.stack([vectors.delta(name, task) for task in range(len(vectors.tasks))]))

    layers: dict[str, Update] = {name: made(name) for name in vectors.layers}
    return Merged(vectors, layers, {name: made(name) for name in vectors.others})


@final
@dataclass(frozen=True, kw_only=True)
class Average(FusionMethod):
    """The plain mean."""

    name = "average"
    paper = "the mean of the task vectors"

    def merge(self, vectors: TaskVectors, data: Data) -> Merged:
        return average(vectors)


@final
@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(FusionMethod):
    """
    Args:
        scale: lambda, the same for all tasks. Default .3.
    """

    name = "task_arithmetic"
    paper = "Task arithmetic (arXiv 2212.04089)"
    scale: float = option(0.3)

    def merge(self, vectors: TaskVectors, data: Data) -> Merged:
        return task_arithmetic(vectors, self.scale)


@final
@dataclass(frozen=True, kw_only=True)
class Ties(FusionMethod):
    """
    Args:
        scale: lambda. Default 1.
        density: share of the entries of each weight that is kept. Default .2.
    """

    name = "ties"
    paper = "TIES-Merging (arXiv 2306.01708)"
    scale: float = option(1.0)
    density: float = option(0.2, above=0, high=1)

    def merge(self, vectors: TaskVectors, data: Data) -> Merged:
        return ties(vectors, self.scale, self.density)


@final
@dataclass(frozen=True, kw_only=True)
class Dare(FusionMethod):
    """
    Args:
        scale: lambda. Default .3, as of task arithmetic, whose expectation this is.
        density: share of the entries that is kept. Default .2.
        elect_signs: elect signs and take the disjoint mean, as in TIES. Default false.
        seed: of the choice. Default 0.
    """

    name = "dare"
    paper = "DARE (arXiv 2311.03099)"
    scale: float = option(0.3)
    density: float = option(0.2, above=0, high=1)
    elect_signs: bool = option(False)
    seed: int = option(0, low=0)

    def merge(self, vectors: TaskVectors, data: Data) -> Merged:
        return dare(vectors, self.scale, self.density, self.seed, self.elect_signs)
