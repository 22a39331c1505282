"""The method `lora`: one low-rank update."""

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
    """All tasks share one low-rank update.

    Equation:
        y = W0 x + s * B A drop(x),  s = alpha / r

    Paper:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), eq. 3.

    Start:
        A is Kaiming-uniform and B is zero.

    Defaults:
        r 8, alpha 16, dropout 0.

    Take it when:
        You start, or the tasks do not contradict each other. On four GLUE tasks with MiniLM, at equal parameters, no
        method was visibly ahead of joint LoRA (docs/findings.md). Its update merges into one weight and needs no task
        at inference.

    Leave it when:
        One input has different answers in different tasks. On generated tasks in full contradiction its mean accuracy
        was 0.5, which is chance. `mtl_lora` and `allot` solved them.

    Differs from the authors' code:
        Parameters are float32, and the computation is in the input's dtype.

    Parameters:
        down (r, d_in): A.
        up (d_out, r): B.
    """

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
