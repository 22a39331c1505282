"""Concrete subspace fusion: a mask over the entries of the weights, shared by all tasks and learned without labels.

    tau_t' = tau_t * m / mean(m),   m = sigmoid((logit(u) + x) / .5),   u uniform, one logit x per entry
    theta = theta_0 + sum_t lambda_t tau_t',   min_x  mean_t mean_x H(f_theta(x))

Tang et al., "Concrete Subspace Learning based Interference Elimination for Multi-task Model Fusion" (arXiv 2312.06173).
With fixed lambda it is Concrete task arithmetic. With trained ones it is Concrete AdaMerging, which is bi-level. Each
step draws u and starts again at lambda = 0.3. An inner step of Adam on lambda sees this mask; its rate is 1, its
moments stay from step to step, and nothing is clamped. A step on x at that lambda follows, on new batches, without a
gradient through the inner one. At the end comes AdaMerging with the mask fixed.

Differs from the authors' code: parameters that are no linear layers' weights (of whole checkpoints) are summed without
a mask. AdaMerging at the end clamps lambda to [0, 1], as it does alone. An option of ours lets mask and lambda take
turns, each step with a sample of its own, and starts neither again.

Background. The mask is shared, so one dense tensor a layer is enough for all tasks, `(sum_t lambda_t tau_t) * m`; it is
made inside the layer's pass and made again in the backward pass, so that a single layer's is alive at a time. What is
inherent are the logits, their gradient and Adam's two moments: four tensors of the size of the adapted weights.

Shapes: D inputs and O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from lorachord.core.config import LayerSpec, option
from lorachord.core.context import NO_CONTEXT, Context
from lorachord.core.forward import Frozen
from lorachord.fusion.adapt import (
    clamp,
    distinct,
    fused_model,
    minimise,
    new_coefficients,
    others,
    plain,
    values,
)
from lorachord.fusion.factors import Update, dense
from lorachord.fusion.merged import Merged
from lorachord.fusion.method import FusionMethod
from lorachord.fusion.predictions import Data, entropy
from lorachord.fusion.task_vectors import Dense, Layer, Stacked, TaskVectors
from lorachord.fusion.updates import Combination, layer_spec

TEMPERATURE = 0.5
INNER_RATE = 1.0
"""Of Adam on the coefficients within a step on the mask."""


def mask_of(logits_OD: Tensor, noise_OD: Tensor | None = None) -> Tensor:
    """m; without noise, the mask that results are evaluated with."""
    shifted = logits_OD if noise_OD is None else noise_OD.logit(eps=1e-6) + logits_OD
    return (shifted / TEMPERATURE).sigmoid()


def masked(delta_OD: Tensor, logits_OD: Tensor, noise_OD: Tensor | None = None) -> Tensor:
    """`delta * m / mean(m)`."""
    mask_OD = mask_of(logits_OD, noise_OD)
    return delta_OD * (mask_OD / mask_OD.mean())


@dataclass
class Draw:
    """Which sample of the masks holds: all passes of a step, and their recomputation, see the same one.

    Attributes:
        seed: of all samples.
        step: the number of the sample; None holds the mask without noise.
    """

    seed: int
    step: int | None = 0

    def noise(self, layer: int, like: Tensor) -> Tensor | None:
        """Uniform noise of one layer."""
        if self.step is None:
            return None
        generator = torch.Generator(like.device).manual_seed((self.seed * 100_003 + self.step) * 10_007 + layer)
        return torch.rand(like.shape, generator=generator, device=like.device)


@final
class MaskedCombination(Combination):
    """`y = W0 x + ((sum_t lambda_t tau_t) * m / mean(m)) x` in one layer."""

    def __init__(self, layer: LayerSpec, index: int, vectors: Layer, coefficients: nn.Parameter, draw: Draw) -> None:
        super().__init__(layer, coefficients)
        self.index, self.draw = index, draw
        self.logits = nn.Parameter(torch.zeros(vectors.shape, device=coefficients.device))
        if isinstance(vectors, Stacked):
            self.register_buffer("stacked_down", vectors.down_RD)
            self.register_buffer("stacked_up", vectors.up_OR)
            self.register_buffer("owners", vectors.owners)
        else:
            self.register_buffer("deltas", torch.stack([vectors.delta(t) for t in range(vectors.num_tasks)]))
        self.is_stacked = isinstance(vectors, Stacked)

    def forward(self, x: Tensor, frozen: Frozen, ctx: Context = NO_CONTEXT, *, alone: bool = False) -> Tensor:
        result: Any = checkpoint(self._add, x, frozen(x), self.logits, self.coefficients, use_reentrant=False)
        assert isinstance(result, Tensor)
        return result

    def _add(self, x: Tensor, out: Tensor, logits_OD: Tensor, coefficients_T: Tensor) -> Tensor:
        if self.is_stacked:
            weighted_OR = self.get_buffer("stacked_up") * coefficients_T[self.get_buffer("owners")]
            sum_OD = weighted_OR @ self.get_buffer("stacked_down")
        else:
            sum_OD = torch.tensordot(coefficients_T, self.get_buffer("deltas"), dims=1)
        delta_OD = masked(sum_OD, logits_OD, self.draw.noise(self.index, logits_OD))
        return out + F.linear(x, delta_OD.to(x.dtype)).to(out.dtype)


@final
@dataclass(frozen=True, kw_only=True)
class Concrete(FusionMethod):
    """
    Args:
        granularity: of the coefficients: `layer` (default) or `task`, which are trained; or `fixed`, which is Concrete
            task arithmetic.
        schedule: of trained coefficients: `bilevel` (default), an inner step of them within each step of the mask, and
            AdaMerging under the final mask; or `turns`, in which mask and coefficients step alternately.
        start: every coefficient at the start. Default .3.
        steps: of the mask; where coefficients are trained, as many of theirs (inner steps not counted). Default 500.
        learning_rate: of both; the inner steps have 1. Default 1e-3.
        seed: of the masks' samples and the order of batches. Default 0.
    """

    name = "concrete"
    paper = "Concrete subspace fusion (arXiv 2312.06173)"
    needs = "entropy"
    granularity: str = option("layer", choices=("layer", "task", "fixed"))
    schedule: str = option("bilevel", choices=("bilevel", "turns"))
    start: float = option(0.3, low=0, high=1)
    steps: int = option(500, low=1)
    learning_rate: float = option(1e-3, above=0)
    seed: int = option(0, low=0)

    def merge(self, vectors: TaskVectors, data: Data) -> Merged:
        coefficients = new_coefficients(vectors, self.granularity, self.start)
        draw = Draw(self.seed)
        adapters = {
            name: MaskedCombination(layer_spec(name, layer), index, layer, coefficients[name], draw)
            for index, (name, layer) in enumerate(vectors.layers.items())
        }
        with fused_model(vectors, dict(adapters), others(vectors, coefficients)) as model:
            logits = [adapter.logits for adapter in adapters.values()]
            losses = self._learn(model, data, logits, coefficients, draw)
        found = values(coefficients)
        sums, rest = vectors.combine(found)
        final = {name: adapter.logits.detach() for name, adapter in adapters.items()}
        layers: dict[str, Update] = {name: masked(dense(sums[name]), own) for name, own in final.items()}
        masks = {name: mask_of(own) for name, own in final.items()}
        notes = {"entropy": losses, "mask_density": {name: float(mask.mean()) for name, mask in masks.items()}}
        return Merged(vectors, layers, rest, plain(found), notes, summed=_masked_vectors(vectors, final), masks=masks)

    def _learn(
        self,
        model: nn.Module,
        data: Data,
        logits: Sequence[nn.Parameter],
        coefficients: Mapping[str, nn.Parameter],
        draw: Draw,
    ) -> list[float]:
        """Train masks and coefficients in place; returns the entropy at each step."""
        lambdas = distinct(coefficients)

        def adapt(optimizers: Sequence[Optimizer], steps: int, after: Callable[[int], None]) -> list[float]:
            return minimise(
                model, data, lambda found, _: entropy(found), optimizers, steps=steps, seed=self.seed, after=after
            )

        def another_sample(step: int) -> None:
            clamp(coefficients)
            draw.step = step + 1

        def start_again(step: int) -> None:
            # The second half of a step, on the mask, has ended.
            if step % 2:
                draw.step = step // 2 + 1
                with torch.no_grad():
                    for parameter in lambdas:
                        parameter.fill_(self.start)

        of_masks = torch.optim.Adam(logits, lr=self.learning_rate)
        if self.granularity == "fixed":
            for parameter in lambdas:
                parameter.requires_grad_(False)
            return adapt([of_masks], self.steps, another_sample)
        of_lambdas = torch.optim.Adam(lambdas, lr=self.learning_rate)
        if self.schedule == "turns":
            return adapt([of_masks, of_lambdas], 2 * self.steps, another_sample)
        losses = adapt([torch.optim.Adam(lambdas, lr=INNER_RATE), of_masks], 2 * self.steps, start_again)
        draw.step = None
        for parameter in logits:
            parameter.requires_grad_(False)
        return losses + adapt([of_lambdas], self.steps, lambda _: clamp(coefficients))


def _masked_vectors(vectors: TaskVectors, logits: Mapping[str, Tensor]) -> TaskVectors:
    """The tau_t', made one at a time when they are read."""

    def made(name: str, layer: Layer) -> Dense:
        return Dense(lambda task: masked(layer.delta(task), logits[name]), layer.shape, len(vectors.tasks))

    return replace(vectors, layers={name: made(name, layer) for name, layer in vectors.layers.items()})
