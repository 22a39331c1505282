"""The method `hydralora`: one down-projection, a router over several up-projections."""

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
    """A router mixes several up-projections of one shared down-projection for each token.

    Equation:
        y = W0 x + s * sum_e softmax(W_g x)_e B_e A drop(x),  e = 1..E,  s = alpha / r

    Where:
        The router is dense, token-level and without a bias. It sees the raw input.

    Paper:
        Tian et al., "HydraLoRA: An Asymmetric LoRA Architecture for Efficient Fine-Tuning" (arXiv 2404.19245).

    Start:
        A and W_g are Kaiming-uniform, and the B_e are zero.

    Defaults:
        num_experts 3, balance 0, z 0, noise 0, r 8, alpha 16, dropout 0.

    Take it when:
        The text itself tells the tasks apart, and no task is known at inference. It is the simplest of the routed
        methods.

    Leave it when:
        The adapter must merge or export: it equals no single weight. On four GLUE tasks it was 0.009 ± 0.028 behind
        joint LoRA at equal parameters: no difference that could be seen (docs/findings.md). It cannot solve tasks that
        contradict each other on the same inputs. On a GPU a step took 1.70x that of PEFT's LoRA with small batches,
        and 0.87x with large ones.

    Differs from the authors' code:
        One stacked product takes the place of a loop over experts. The authors draw a dropout mask for each expert;
        here all experts share one. A balance loss is offered; theirs has none, nor has the default here.

    Parameters:
        down (r, d_in): A.
        up (d_out, E r): the B_e side by side.
        router.weight (E, d_in): W_g.
    """

    method = "hydralora"
    paper = "HydraLoRA (arXiv 2404.19245)"
    parameters_formula = "r*d_in + num_experts*r*d_out + num_experts*d_in"

    @dataclass(frozen=True, kw_only=True)
    class Config(RouterConfig, RankConfig):
        """
        Args:
            num_experts: E, the number of up-projections. Default 3; per layer.
        """

        num_experts: int = option(3, low=2, per_layer=True)

    config: Config

    def build(self) -> None:
        config, layer = self.config, self.layer
        self.down = nn.Parameter(torch.empty(config.r, layer.d_in))
        self.up = nn.Parameter(torch.empty(layer.d_out, config.num_experts * config.r))
        self.router = Router(layer.d_in, config.num_experts, config)
