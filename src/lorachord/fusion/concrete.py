"""Concrete subspace fusion: a mask over the entries of the weights, shared by all tasks and learned without labels.

    tau_t' = tau_t * m / mean(m),   m = sigmoid((logit(u) + x) / .5),   u uniform, one logit x per entry
    theta = theta_0 + sum_t lambda_t tau_t',   min_x  mean_t mean_x H(f_theta(x))

Tang et al., "Concrete Subspace Learning based Interference Elimination for Multi-task Model Fusion" (arXiv 2312.06173).
With fixed lambda it is Concrete task arithmetic; with trained ones, in turns with the mask, Concrete AdaMerging.

Differs from the authors' code: mask and coefficients take turns step by step; parameters that are no linear layers'
weights (of whole checkpoints) are summed without a mask.

Background. The mask is shared, so one dense tensor a layer is enough for all tasks, `(sum_t lambda_t tau_t) * m`; it is
made inside the layer's pass and made again in the backward pass, so that a single layer's is alive at a time. What is
inherent are the logits, their gradient and Adam's two moments: four tensors of the size of the adapted weights.

Shapes: D inputs and O outputs of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
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
from lorachord.fusion.task_vectors import Layer, Stacked, TaskVectors
from lorachord.fusion.updates import Combination, layer_spec

TEMPERATURE = 0.5


def masked(delta_OD: Tensor, logits_OD: Tensor, noise_OD: Tensor | None = None) -> Tensor:
    """`delta * m / mean(m)`; without noise, m is the mask that results are evaluated with."""
    shifted = logits_OD if noise_OD is None else noise_OD.logit(eps=1e-6) + logits_OD
    mask_OD = (shifted / TEMPERATURE).sigmoid()
    return delta_OD * (mask_OD / mask_OD.mean())


@dataclass
class Draw:
    """Which sample of the masks holds: all passes of a step, and their recomputation, see the same one."""

    seed: int
    step: int = 0

    def noise(self, layer: int, like: Tensor) -> Tensor:
        """Uniform noise of one layer."""
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
        granularity: of the coefficients: `layer` (default) or `task`, trained in turns with the mask; or `fixed`, which
            is Concrete task arithmetic.
        start: every coefficient at the start. Default .3.
        steps: of the mask; where coefficients are trained, they have as many besides. Default 500.
        learning_rate: of both. Default 1e-3.
        seed: of the masks' samples and the order of batches. Default 0.
    """

    name = "concrete"
    paper = "Concrete subspace fusion (arXiv 2312.06173)"
    needs = "entropy"
    granularity: str = option("layer", choices=("layer", "task", "fixed"))
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

        def after(step: int) -> None:
            clamp(coefficients)
            draw.step = step + 1

        trains = self.granularity != "fixed"
        with fused_model(vectors, dict(adapters), others(vectors, coefficients)) as model:
            parts = [[adapter.logits for adapter in adapters.values()], *([distinct(coefficients)] if trains else [])]
            for parameter in distinct(coefficients):
                parameter.requires_grad_(trains)
            losses = minimise(
                model,
                data,
                lambda found, _: entropy(found),
                [torch.optim.Adam(part, lr=self.learning_rate) for part in parts],
                steps=self.steps * len(parts),
                seed=self.seed,
                after=after,
            )
        found = values(coefficients)
        sums, rest = vectors.combine(found)
        layers: dict[str, Update] = {
            name: masked(dense(sums[name]), adapter.logits.detach()) for name, adapter in adapters.items()
        }
        return Merged(vectors, layers, rest, plain(found), {"entropy": losses})
