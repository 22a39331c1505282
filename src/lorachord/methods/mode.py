"""MoDE: one shared A, and for each rank slot of it a router of its own over several up-projections.

    y = W0 x + sum_j sum_e softmax(W_j x)_e sum_{i in block j} (a_i . drop(x)) b_{e,i}

with a_i the rows of A, b_{e,i} the columns of B_e, and block j the p consecutive slots from j p on. There is no alpha.

Ning et al., "MoDE: Effective Multi-task Parameter Efficient Fine-Tuning with a Mixture of Dyadic Experts" (arXiv
2408.01505), which has p = 1. With p = r the slots share one router (a mixture of LoRAs with a shared A); with one
expert it is LoRA, and no router is made. A is Gaussian with standard deviation 0.01, B zero.

Differs from the authors' code, of which no release was at hand: written from the paper; losses on the routers are
offered (the paper has none, nor has the default here).
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from lorachord.core.config import option
from lorachord.core.registry import register
from lorachord.families.routed import RoutedAdapter
from lorachord.families.router import Router, RouterConfig


@register
@final
class MoDE(RoutedAdapter):
    """`down` is A (r, d_in), `up` stacks the B_e (d_out, m r).

    `router.weight` stacks the W_j (m r / p, d_in) experts first: row e r / p + j is expert e's of block j.
    """

    method = "mode"
    paper = "MoDE (arXiv 2408.01505)"
    parameters_formula = "r*d_in + num_experts*r*d_out + (num_experts*(r//block)*d_in if num_experts > 1 else 0)"

    @dataclass(frozen=True, kw_only=True)
    class Config(RouterConfig):
        """
        Args:
            r: rank slots of A. Default 8; per layer.
            num_experts: m, the up-projections of a slot. Default 4; per layer.
            block: p, how many consecutive slots share a router; divides r. Default 1.
        """

        r: int = option(8, low=1, per_layer=True)
        num_experts: int = option(4, low=1, per_layer=True)
        block: int = option(1, low=1)

        def __post_init__(self) -> None:
            super().__post_init__()
            for r in self.values_of("r"):
                if r % self.block:
                    raise ValueError(
                        f"MoDE.Config: block = {self.block} does not divide r = {r}. Take a divisor of r: 1 gives each "
                        "slot a router of its own, r gives all slots one."
                    )

    config: Config

    def build(self) -> None:
        config, layer = self.config, self.layer
        m, r = config.num_experts, config.r
        self.down = nn.Parameter(torch.empty(r, layer.d_in))
        self.up = nn.Parameter(torch.empty(layer.d_out, m * r))
        self.router = Router(layer.d_in, m, config, groups=r // config.block) if m > 1 else None

    def reset(self) -> None:
        nn.init.normal_(self.down, std=0.01)
        nn.init.zeros_(self.up)
        self.reset_router()

    @property
    def scale(self) -> float:
        return 1.0
