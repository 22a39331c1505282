"""Conditional mixture of LoRA: each prompt puts a LoRA together from pools of single factors.

    p_A = softmax(W_A m),                               s_A the r most probable, in falling order
    p_B = softmax(W_B m) + sum_i softmax(a_sA(i) W_i),  s_B the r most probable, in falling order
    y = W0 x + s * sum_k c_k b_sB(k) a_sA(k)^T drop(x),  s = alpha / r

Shen et al., "Multimodal Instruction Tuning with Conditional Mixture of LoRA" (arXiv 2402.15896). m is the mean of the
layer's input over the prompt; alpha is twice the number of factors, A starts Kaiming-uniform, B zero.

Differs from the authors' code: there the chosen indices are all that the routers give (c_k = 1), so that no router ever
gets a gradient and the choice is a fixed hash of the prompt: `frozen_hash`. Here, by default, c_k = r q_k / sum q with
q_k = p_A[s_A(k)] p_B[s_B(k)] (`scored`, a construction): the c_k sum to r as they do there, and every router learns.

Shapes: E factors in a pool, r of them chosen; B samples, L rows of one sample; F logits of one row.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from lorachord.core import init
from lorachord.core.config import RankConfig, option
from lorachord.core.context import Context
from lorachord.core.registry import register
from lorachord.families.by_prompt import PromptLevel
from lorachord.kernels.pairs import choose_pairs


@register
@final
class MixLoRA(PromptLevel):
    """`down` is the pool of the a_e (E, d_in), `up` that of the b_e (d_out, E).

    `router` stacks W_A and W_B (2 E, d_in), `router_pairs` the W_i (r E, d_in); frozen ones are buffers.
    """

    method = "mixlora"
    paper = "Conditional mixture of LoRA (arXiv 2402.15896)"
    parameters_formula = "num_experts*(d_in + d_out) + ((2 + r)*num_experts*d_in if selection == 'scored' else 0)"

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        """
        Args:
            r: how many pairs of factors a prompt chooses. Default 4; per layer.
            alpha: numerator of the scale; in the paper twice `num_experts`, which it does not follow. Default 32; per
                layer.
            num_experts: E, the factors in each pool. Default 16; per layer.
            selection: `scored` (default), or `frozen_hash`, as in the authors' code.
        """

        r: int = option(4, low=1, per_layer=True)
        alpha: float = option(32.0, above=0, per_layer=True)
        num_experts: int = option(16, low=1, per_layer=True)
        selection: str = option("scored", choices=("scored", "frozen_hash"))

        def __post_init__(self) -> None:
            super().__post_init__()
            most, fewest = max(self.values_of("r")), min(self.values_of("num_experts"))
            if most > fewest:
                raise ValueError(f"MixLoRA.Config: r = {most}, but a pool has only num_experts = {fewest} factors.")

    config: Config
    router: Tensor
    router_pairs: Tensor

    def build(self) -> None:
        config, layer = self.config, self.layer
        self.down = nn.Parameter(torch.empty(config.num_experts, layer.d_in))
        self.up = nn.Parameter(torch.empty(layer.d_out, config.num_experts))
        routers = {
            "router": torch.empty(2 * config.num_experts, layer.d_in),
            "router_pairs": torch.empty(config.r * config.num_experts, layer.d_in),
        }
        for name, tensor in routers.items():
            if self.learns:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    @property
    def learns(self) -> bool:
        """Whether the routers do."""
        return self.config.selection == "scored"

    def reset(self) -> None:
        super().reset()
        for tensor in (self.router, self.router_pairs):
            init.kaiming_uniform_(tensor, fan_in=self.layer.d_in)

    def core_weight(self) -> Tensor | None:
        return torch.cat([self.router, self.router_pairs, self.down]) if self.learns else None

    def core(self, h_BLR: Tensor, x_BLX: Tensor | None, ctx: Context) -> Tensor:
        assert x_BLX is not None
        # Not logits of rows and then their mean: on small layers a product with 2 E columns for each row is dear.
        mean_BD = self.prompt_mean(x_BLX if self.learns else x_BLX.detach(), ctx)
        probe_BCD = self.core_probe(ctx) if self.learns else None
        weights = self.router, self.router_pairs, self.down
        chosen_BEE = choose_pairs(mean_BD, *weights, probe_BCD, scored=self.learns).to(h_BLR.dtype)
        return torch.bmm(self.by_sample(h_BLR, len(mean_BD)), chosen_BEE)
