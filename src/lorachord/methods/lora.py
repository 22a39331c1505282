"""LoRA: one low-rank update, shared by all tasks.

    y = W0 x + s * B A drop(x),  s = alpha / r

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), eq. 3.

Differs from the authors' code: computes in the input's dtype with float32 parameters.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from lorachord.core.adapter import Adapter
from lorachord.core.config import RankConfig
from lorachord.core.context import Mixing
from lorachord.core.registry import register


@register
@final
class LoRA(Adapter):
    """`down` is A (r, d_in), `up` is B (d_out, r)."""

    method = "lora"
    paper = "LoRA (arXiv 2106.09685)"
    mixing = Mixing.STATIC
    parameters_formula = "r*(d_in + d_out)"

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        """r, alpha and dropout."""

    config: Config

    def build(self) -> None:
        r, layer = self.config.r, self.layer
        self.down = nn.Parameter(torch.empty(r, layer.d_in))
        self.up = nn.Parameter(torch.empty(layer.d_out, r))
