"""The method `malora`: a mixture of LoRAs in a shared subspace."""

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
    """A router picks experts for each token, and all experts share one input subspace.

    Equation:
        y = W0 x + s * sum_{e in top K} g_e(x) B_e P_e S_A drop(x),  e = 1..E,  s = alpha / rb

    Where:
        S_A (d, d_in) is shared, P_e is (rb, d) and B_e is (d_out, rb). The g_e are the renormalised gates of a softmax
        router W. S_A x is computed once for all experts.

    Paper:
        Wang et al., "MALoRA: Mixture of Asymmetric Low-Rank Adaptation for Enhanced Multi-Task Learning" (arXiv
        2410.22782).

    Start:
        S_A is Kaiming-uniform unless `init` says otherwise. The P_e and W are Kaiming-uniform, and the B_e are zero.

    Defaults:
        expert_rank 8, num_experts 8, top_k 2, balance 0.001, init kaiming, r 8, z 0, noise 0, alpha 16, dropout 0.

    Take it when:
        You want a mixture of LoRAs with fewer parameters. A mixture of E LoRAs of rank r has E r (d_in + d_out) in its
        factors. MALoRA has d d_in + E rb d_out in its factors, and E rb d in the P_e. With E = 8 and r = rb = d = 8 on
        LLaMA2-7B that is 43.7 % less on q, k, v and o. On all seven linears it is 39.8 % less. With the routers
        counted on both sides these are 41.1 % and 37.7 %.

    Leave it when:
        The adapter must merge or export: it equals no single weight. On four GLUE tasks it was 0.004 ± 0.032 behind
        joint LoRA at equal parameters: no difference that could be seen (docs/findings.md). It cannot solve tasks that
        contradict each other on the same inputs. The saving is in A alone, so on square matrices it cannot reach half;
        rb = 16 already costs more than the mixture. On a GPU a step took 2.25x that of PEFT's LoRA with small batches,
        and 0.90x with large ones.

    Differs from the authors' code:
        No release was at hand: this follows the paper's description. The `orthogonal` and `svd` starts have a scale of
        our construction. The `svd` start stacks E r Kaiming-uniform rows, and not E blocks of rank rb.

    Parameters:
        down (r, d_in): S_A; r is d.
        up (d_out, E rb): the B_e side by side.
        coefficients (E, rb, r): the P_e.
        router.weight (E, d_in): W.
    """

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
            num_experts: E, the number of experts. Default 8; per layer.
            top_k: K, the experts that a token uses. Default 2.
            balance: weight of the Switch balance loss of each layer. Default 0.001.
            init: the start of S_A: `kaiming` (default); `orthogonal`, orthonormal rows; or `svd`, the first d right
                singular vectors of E r stacked Kaiming-uniform rows. The rows of all three have the norm that
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
