"""MALoRA: the A's of a mixture of LoRAs share one subspace, in which each expert has a small matrix of its own.

    y = W0 x + s * sum_{e in top k} g_e(x) B_e P_e S_A drop(x),  s = alpha / rb

with S_A (d, d_in) shared, P_e (rb, d), B_e (d_out, rb), and g the renormalised gates of a softmax router.

Wang et al., "MALoRA: Mixture of Asymmetric Low-Rank Adaptation for Enhanced Multi-Task Learning" (arXiv 2410.22782).
S_A x is computed once for all experts. P_e is Kaiming-uniform, B_e zero.

What it saves: a mixture of E LoRAs of rank r has E r (d_in + d_out) parameters in its factors, this has d d_in +
E rb d_out, and E rb d in the P_e. With E = 8 and r = rb = d = 8 on LLaMA2-7B that is 43.7 % less on q, k, v and o, and
39.8 % less on all seven linears (41.1 % and 37.7 % with the routers counted on both sides). The saving is in A alone,
so on square matrices it cannot reach half; rb = 16 already costs more than the mixture.

Differs from the authors' code, of which no release was at hand: written from the paper's description; the scale of the
`orthogonal` and `svd` starts is a construction.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from lorachord.core import init
from lorachord.core.config import RankConfig, option
from lorachord.core.registry import register
from lorachord.families.routed import RoutedAdapter, require_top_k
from lorachord.families.router import Router, RouterConfig


@register
@final
class MALoRA(RoutedAdapter):
    """`down` is S_A (r, d_in), `up` stacks the B_e (d_out, E rb), `coefficients` holds the P_e (E, rb, r)."""

    method = "malora"
    paper = "MALoRA (arXiv 2410.22782)"
    parameters_formula = "r*d_in + num_experts*expert_rank*(d_out + r) + num_experts*d_in"

    @dataclass(frozen=True, kw_only=True)
    class Config(RouterConfig, RankConfig):
        """
        Args:
            r: d, the dimension of the shared subspace. Default 8; per layer.
            expert_rank: rb, the rank of one expert; the scale is alpha / rb. More than d adds no expressive power.
                Default 8; per layer.
            num_experts: E. Default 8; per layer.
            top_k: K, how many experts a token uses. Default 2.
            balance: weight of the Switch balance loss of each layer. Default 0.001.
            init: how S_A starts: `kaiming` (default); `orthogonal`, orthonormal rows; or `svd`, the first d right
                singular vectors of E stacked Kaiming-uniform A's of rank rb. The rows of all three have the norm that
                Kaiming-uniform ones have in the mean of squares, 1 / sqrt(3).
        """

        expert_rank: int = option(8, low=1, per_layer=True)
        num_experts: int = option(8, low=2, per_layer=True)
        top_k: int = option(2, low=2)
        balance: float = option(0.001, low=0)
        init: str = option("kaiming", choices=("kaiming", "orthogonal", "svd"))

        def __post_init__(self) -> None:
            super().__post_init__()
            require_top_k(self, self.top_k)

    config: Config

    def build(self) -> None:
        config, layer = self.config, self.layer
        num_experts, rank = config.num_experts, config.expert_rank
        self.down = nn.Parameter(torch.empty(config.r, layer.d_in))
        self.up = nn.Parameter(torch.empty(layer.d_out, num_experts * rank))
        self.coefficients = nn.Parameter(torch.empty(num_experts, rank, config.r))
        self.router = Router(layer.d_in, num_experts, config, top_k=config.top_k)

    def reset(self) -> None:
        super().reset()
        init.kaiming_uniform_(self.coefficients, fan_in=self.config.r)
        if self.config.init == "orthogonal":
            nn.init.orthogonal_(self.down, gain=3**-0.5)
        elif self.config.init == "svd":
            stacked_XD = self.down.new_empty(self.config.num_experts * self.config.r, self.layer.d_in)
            init.kaiming_uniform_(stacked_XD, fan_in=self.layer.d_in)
            with torch.no_grad():
                self.down.copy_(torch.linalg.svd(stacked_XD, full_matrices=False).Vh[: self.config.r] * 3**-0.5)

    @property
    def scale(self) -> float:
        return self.config.alpha / self.config.expert_rank

    def up_weight(self) -> Tensor:
        """The B_e P_e side by side (d_out, E r)."""
        # Between the factors the P_e would cost more wherever there are more rows than output features.
        up_EOR: Tensor = self.up.unflatten(1, self.coefficients.shape[:2]).transpose(0, 1) @ self.coefficients
        return up_EOR.transpose(0, 1).flatten(1)
