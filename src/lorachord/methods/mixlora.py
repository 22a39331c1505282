"""The method `mixlora`: a LoRA for each prompt, from pools of factors."""

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
    """Each prompt puts a LoRA together from two pools of single factors.

    Equation:
        p_A = softmax(W_A m),                               s_A the r most probable, in falling order
        p_B = softmax(W_B m) + sum_i softmax(W_i a_sA(i)),  s_B the r most probable, in falling order
        y = W0 x + s * sum_k c_k b_sB(k) a_sA(k)^T drop(x),  k = 1..r,  s = alpha / r

    Where:
        m is the mean of the layer's input over the prompt. The pools hold E factors a_e and E factors b_e. With
        q_k = p_A[s_A(k)] p_B[s_B(k)], `scored` has c_k = r q_k / sum q, and `frozen_hash` has c_k = 1. alpha
        is twice E in the paper and by default.

    Paper:
        Shen et al., "Multimodal Instruction Tuning with Conditional Mixture of LoRA" (arXiv 2402.15896).

    Start:
        The a_e and the routers are Kaiming-uniform, and the b_e are zero.

    Defaults:
        r 4, alpha 32, num_experts 16, selection scored, dropout 0.

    Take it when:
        Prompts tell the tasks apart, and one choice for a whole answer is wanted. The choice is made once and kept
        while decoding.

    Leave it when:
        The adapter must merge or export: it equals no single weight. On four GLUE tasks it was 0.036 ± 0.044 behind
        joint LoRA at equal parameters, with 8 factors and alpha 16 (docs/findings.md). It cannot solve tasks that
        contradict each other on the same inputs. With `scored` its routers can outweigh its pools: `count_parameters`
        counts them apart. On a GPU a step took 2.25x that of PEFT's LoRA with small batches, and 0.97x with large ones.

    Differs from the authors' code:
        There the routers give the chosen indices alone (c_k = 1), so no router ever gets a gradient. `frozen_hash` is a
        fixed hash, as theirs is, by the paper's formula. Their selector sums a_sA(i) and W_i over the features apart
        and multiplies the sums; it then applies a second softmax to the sum over i. `scored`, the default, is a
        construction: the c_k sum to r as they do there, and every router learns.

    Parameters:
        down (E, d_in): the pool of the a_e.
        up (d_out, E): the pool of the b_e.
        router (2 E, d_in): W_A above W_B; a buffer with `selection: frozen_hash`.
        router_pairs (r E, d_in): the W_i, stacked; a buffer with `selection: frozen_hash`.

    Shapes:
        E factors in a pool, r of them chosen; B samples, L rows of one sample; F logits of one row.
    """

    method = "mixlora"
    paper = "Conditional mixture of LoRA (arXiv 2402.15896)"
    parameters_formula = "num_experts*(d_in + d_out) + ((2 + r)*num_experts*d_in if selection == 'scored' else 0)"

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        """
        Args:
            r: the pairs of factors that a prompt chooses. Default 4; per layer.
            alpha: numerator of the scale; in the paper twice `num_experts`, which it does not follow. Default 32; per
                layer.
            num_experts: E, the factors in each pool. Default 16; per layer.
            selection: `scored` (default); or `frozen_hash`, a fixed hash, as the authors' is, by the paper's formula.
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
        chosen_BEE = choose_pairs(mean_BD, *weights, probe_BCD, scored=self.learns)
        # A prompt's choice counts once, in the pass over the prompt.
        if ctx.recording and ctx.recalled is None:
            pairs_EE = (chosen_BEE.detach() != 0).sum(0, dtype=mean_BD.dtype)
            self.count(torch.stack([pairs_EE.sum(1), pairs_EE.sum(0)], dim=1))
        return torch.bmm(self.by_sample(h_BLR, len(mean_BD)), chosen_BEE.to(h_BLR.dtype))
