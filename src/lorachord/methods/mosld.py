"""MoSLD: one shared A whose entries are dropped in training, several B, and a top-k router for each token.

    S = topk(softmax(W_l x), k), renormalised;   A~ = A * mask / (1 - p)
    y = W0 x + s * sum_e S_e B_e A~ x,  s = alpha / r

Zhao et al., "MoSLD: An Extremely Parameter-Efficient Mixture-of-Shared LoRAs for Multi-Task Learning" (arXiv
2412.08946). A is Gaussian with standard deviation 1/r, B zero. One mask is drawn per layer and optimiser step, so that
it is the same in a checkpoint's recompute and over an accumulation window; the input itself is not dropped unless
`dropout` says so.

Differs from the authors' code, of which no release was at hand: written from the paper, whose balance weight is not
given (0.001 is the default of the code that it builds on) and whose experts per layer are given both as 2-4-6-8 from
the bottom up (the default here) and as 8-6-4-2.
"""

from dataclasses import dataclass
from typing import final
from zlib import crc32

import torch
from torch import Tensor, nn

from lorachord.core.config import RankConfig, option
from lorachord.core.registry import register
from lorachord.core.steps import optimizer_steps, steps_before
from lorachord.families.routed import RoutedAdapter, require_top_k
from lorachord.families.router import Router, RouterConfig


@register
@final
class MoSLD(RoutedAdapter):
    """`down` is A (r, d_in), `up` stacks the B_e (d_out, E r), `router.weight` is W_l (E, d_in)."""

    method = "mosld"
    paper = "MoSLD (arXiv 2412.08946)"
    parameters_formula = "r*d_in + num_experts*r*d_out + num_experts*d_in"

    @dataclass(frozen=True, kw_only=True)
    class Config(RouterConfig, RankConfig):
        """
        Args:
            num_experts: E. Default (2, 4, 6, 8), spread over the blocks from the first to the last; per layer.
            top_k: K, how many experts a token uses. Default 2.
            weight_dropout: p, probability of dropping an entry of A. Default 0.1.
            balance: weight of the Switch balance loss of each layer. Default 0.001.
        """

        num_experts: int = option((2, 4, 6, 8), low=2, per_layer=True)
        top_k: int = option(2, low=2)
        weight_dropout: float = option(0.1, low=0, below=1)
        balance: float = option(0.001, low=0)

        def __post_init__(self) -> None:
            super().__post_init__()
            require_top_k(self, self.top_k)

    config: Config

    def build(self) -> None:
        config, layer = self.config, self.layer
        self.down = nn.Parameter(torch.empty(config.r, layer.d_in))
        self.up = nn.Parameter(torch.empty(layer.d_out, config.num_experts * config.r))
        self.router = Router(layer.d_in, config.num_experts, config, top_k=config.top_k)
        self.mask: Tensor | None = None
        # The optimizer step of the mask, and that at which the run began.
        self.mask_step, self.first_step = -1, 0

    def reset(self) -> None:
        nn.init.normal_(self.down, std=1 / self.config.r)
        nn.init.zeros_(self.up)
        self.reset_router()

    def down_weight(self) -> Tensor:
        if not self.training or not self.config.weight_dropout:
            return self.down
        if self.mask is None or self.mask_step != optimizer_steps() or self.mask.device != self.down.device:
            if self.mask_step < 0:
                self.first_step = optimizer_steps() - steps_before()
            # Numbered by the steps of the run, and with its seed: ranks and resumed runs draw the same.
            number = 1 + optimizer_steps() - self.first_step
            seed = crc32(f"{torch.initial_seed()} {self.layer.name} {number}".encode())
            generator = torch.Generator(self.down.device).manual_seed(seed)
            drawn = torch.rand(self.down.shape, generator=generator, device=self.down.device)
            kept = drawn >= self.config.weight_dropout
            self.mask = kept.to(self.down.dtype) / (1 - self.config.weight_dropout)
            self.mask_step = optimizer_steps()
        return self.down * self.mask
