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
from torch import Tensor, nn

from lorachord.core.adapter import Adapter
from lorachord.core.context import Context, Mixing
from lorachord.core.registry import register
from lorachord.core.routing import Router
from lorachord.core.settings import RankConfig, option


@register
@final
class HydraLoRA(Adapter):
    """`down` is A (r, d_in), `up` stacks the B_e (d_out, E r), `router.weight` is W_g (E, d_in)."""

    method = "hydralora"
    paper = "HydraLoRA (arXiv 2404.19245)"
    mixing = Mixing.INPUT
    parameters_formula = "r*d_in + num_experts*r*d_out + num_experts*d_in"

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        """
        Args:
            num_experts: E. Default 3; per layer.
            balance: weight of the Switch balance loss of each layer. Default 0, as in the authors' code.
        """

        num_experts: int = option(3, low=2, per_layer=True)
        balance: float = option(0.0, low=0)

    config: Config

    def build(self) -> None:
        config, layer = self.config, self.layer
        self.down = nn.Parameter(torch.empty(config.r, layer.d_in))
        self.up = nn.Parameter(torch.empty(layer.d_out, config.num_experts * config.r))
        self.router = Router(layer.d_in, config.num_experts, balance=config.balance)

    def reset(self) -> None:
        super().reset()
        self.router.reset()

    def router_weight(self) -> Tensor:
        return self.router.weight

    def core(self, h_BLR: Tensor, x_BLX: Tensor | None, ctx: Context) -> Tensor:
        assert x_BLX is not None
        return self.router.mix(h_BLR, x_BLX, ctx)

    def penalty(self) -> Tensor | None:
        return self.router.penalty()

    @property
    def records_penalty(self) -> bool:
        return self.config.balance > 0
