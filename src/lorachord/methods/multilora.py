"""MultiLoRA: several LoRAs side by side, each behind a learned scale that starts at zero.

    y = W0 x + s * sum_i scale_i * (B_i A_i drop(x)),  i = 1..n,  s = alpha / r

Wang et al., "MultiLoRA: Democratizing LoRA for Better Multi-Task Learning" (arXiv 2311.11501).
A_i and B_i start Kaiming-uniform and scale_i at 0, so that at step 0 only the scales get a gradient.

Differs from the authors' code, of which no release was at hand: written from the paper. The authors leave weight decay
open; here it never touches `scaling`, which it would pull back to the zero start.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from lorachord.core import init
from lorachord.core.adapter import Adapter
from lorachord.core.config import RankConfig, option
from lorachord.core.context import Mixing
from lorachord.core.registry import register


@register
@final
class MultiLoRA(Adapter):
    """`down` stacks the A_i (n r, d_in), `up` the B_i (d_out, n r); `scaling` is (d_out, n), or (1, n) if scalar."""

    method = "multilora"
    paper = "MultiLoRA (arXiv 2311.11501)"
    mixing = Mixing.STATIC
    no_decay = ("scaling",)
    parameters_formula = "num_loras*(r*(d_in + d_out) + (1 if scaling == 'scalar' else d_out))"

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        """
        Args:
            num_loras: n, the number of parallel LoRAs. Default 3; per layer.
            scaling: `vector`, one scale per output feature (default), or `scalar`, one per LoRA.
        """

        num_loras: int = option(3, low=1, per_layer=True)
        scaling: str = option("vector", choices=("vector", "scalar"))

    config: Config

    def build(self) -> None:
        config, layer = self.config, self.layer
        width = config.num_loras * config.r
        self.down = nn.Parameter(torch.empty(width, layer.d_in))
        self.up = nn.Parameter(torch.empty(layer.d_out, width))
        self.scaling = nn.Parameter(torch.empty(1 if config.scaling == "scalar" else layer.d_out, config.num_loras))

    def reset(self) -> None:
        init.kaiming_uniform_(self.down, fan_in=self.layer.d_in)
        init.kaiming_uniform_(self.up, fan_in=self.config.r)
        nn.init.zeros_(self.scaling)

    def up_weight(self) -> Tensor:
        return self.up * self.scaling.repeat_interleave(self.config.r, dim=1)
