"""The method `mode`: a router for each rank slot."""

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
    """Each rank slot of a shared A has its own router over several up-projections.

    Equation:
        y = W0 x + sum_j sum_e softmax(W_j x)_e sum_{i in block j} (a_i . drop(x)) b_{e,i},  e = 1..m

    Where:
        The a_i are the rows of A, the b_{e,i} the columns of B_e. Block j has the p consecutive slots from j p on.
        There is no alpha: s = 1.

    Paper:
        Ning et al., "MoDE: Effective Multi-task Parameter Efficient Fine-Tuning with a Mixture of Dyadic Experts"
        (arXiv 2408.01505), which has p = 1.

    Start:
        A is Gaussian with standard deviation 0.01, the B_e are zero, and the W_j are Kaiming-uniform.

    Defaults:
        r 8, num_experts 4, block 1, balance 0, z 0, noise 0, dropout 0.

    Take it when:
        You want the finest routing of the field without task ids. With p = r all slots share one router, which is a
        mixture of LoRAs with a shared A. With one expert it is LoRA, and no router is made.

    Leave it when:
        The adapter must merge or export: it equals no single weight. On four GLUE tasks it was 0.015 ± 0.015 behind
        joint LoRA at equal parameters (docs/findings.md). A learning rate of 1e-3 brought it to 0.762, beside LoRA's
        0.765. It cannot solve tasks that contradict each other on the same inputs. Its routers can outweigh its
        factors: `count_parameters` counts them apart. On a GPU a step took 1.73x that of PEFT's LoRA with small
        batches, and 0.88x with large ones.

    Differs from the authors' code:
        No release was at hand: this follows the paper. Losses on the routers are offered; the paper has none, nor has
        the default here.

    Parameters:
        down (r, d_in): A.
        up (d_out, m r): the B_e side by side.
        router.weight (m r / p, d_in): the W_j, experts first; row e r / p + j belongs to expert e of block j.
    """

    method = "mode"
    paper = "MoDE (arXiv 2408.01505)"
    parameters_formula = "r*d_in + num_experts*r*d_out + (num_experts*(r//block)*d_in if num_experts > 1 else 0)"

    @dataclass(frozen=True, kw_only=True)
    class Config(RouterConfig):
        """
        Args:
            r: the number of rank slots of A. Default 8; per layer.
            num_experts: m, the up-projections of a slot. Default 4; per layer.
            block: p, the consecutive slots that share a router; divides r. Default 1.
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
