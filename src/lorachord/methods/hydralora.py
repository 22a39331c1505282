"""HydraLoRA: one shared A, several B, mixed by a router for each token.

    y = W0 x + s * sum_e softmax(W_g x)_e B_e A drop(x),  s = alpha / r

Tian et al., "HydraLoRA: An Asymmetric LoRA Architecture for Efficient Fine-Tuning" (arXiv 2404.19245).
The router is dense, token-level, without a bias, and sees the raw input.

Differs from the authors' code: one stacked product in place of a loop over experts; a balance loss is offered (theirs
has none, nor has the default here).
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from lorachord.core.config import RankConfig, option
from lorachord.core.registry import register
from lorachord.families.routed import RoutedAdapter
from lorachord.families.router import Router, RouterConfig


@register
@final
class HydraLoRA(RoutedAdapter):
    """`down` is A (r, d_in), `up` stacks the B_e (d_out, E r), `router.weight` is W_g (E, d_in)."""

    method = "hydralora"
    paper = "HydraLoRA (arXiv 2404.19245)"
    parameters_formula = "r*d_in + num_experts*r*d_out + num_experts*d_in"

    @dataclass(frozen=True, kw_only=True)
    class Config(RouterConfig, RankConfig):
        """
        Args:
            num_experts: E. Default 3; per layer.
        """

        num_experts: int = option(3, low=2, per_layer=True)

    config: Config

    def build(self) -> None:
        config, layer = self.config, self.layer
        self.down = nn.Parameter(torch.empty(config.r, layer.d_in))
        self.up = nn.Parameter(torch.empty(layer.d_out, config.num_experts * config.r))
        self.router = Router(layer.d_in, config.num_experts, config)
