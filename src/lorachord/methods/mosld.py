"""The method `mosld`: a mixture of up-projections behind a thinned, shared A."""

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

NOT_BEGUN = torch.iinfo(torch.int64).min


@register
@final
class MoSLD(RoutedAdapter):
    """A router picks up-projections for each token; dropout thins the shared A in training.

    Equation:
        S = topk(softmax(W_l x), K), renormalised;   A~ = A * mask / (1 - p)
        y = W0 x + s * sum_e S_e B_e A~ x,  e = 1..E,  s = alpha / r

    Where:
        The mask drops entries of the weight A, each with probability p. One mask is drawn for each layer and optimizer
        step, so it is the same in a checkpoint's recompute and over an accumulation window. The input itself is not
        dropped unless `dropout` says so.

    Paper:
        Zhao et al., "MoSLD: An Extremely Parameter-Efficient Mixture-of-Shared LoRAs for Multi-Task Learning" (arXiv
        2412.08946). The paper calls A the upper projection and B the lower, which is swapped against LoRA. A here is
        the down-projection, as in LoRA.

    Start:
        A is Gaussian with standard deviation 1/r, the B_e are zero, and W_l is Kaiming-uniform.

    Defaults:
        num_experts (2, 4, 6, 8), top_k 2, weight_dropout 0.1, balance 0.001, z 0, noise 0, r 8, alpha 16, dropout 0.

    Take it when:
        You would take HydraLoRA, and training rows are few, so that A may overfit. That is the authors' reason for
        the dropout; it was not measured here.

    Leave it when:
        The adapter must merge or export: it equals no single weight. On four GLUE tasks it was 0.006 ± 0.008 behind
        joint LoRA at equal parameters: no difference that could be seen (docs/findings.md). It cannot solve tasks that
        contradict each other on the same inputs. On a GPU a step took 1.89x that of PEFT's LoRA with small batches,
        and 0.89x with large ones.

    Differs from the authors' code:
        No release was at hand: this follows the paper. The paper gives no balance weight, and 0.001 is the default of
        the code that it builds on. It gives the experts by layer both as 2-4-6-8 from the bottom up, the default here,
        and as 8-6-4-2.

    Parameters:
        down (r, d_in): A.
        up (d_out, E r): the B_e side by side.
        router.weight (E, d_in): W_l.
    """

    method = "mosld"
    paper = "MoSLD (arXiv 2412.08946)"
    parameters_formula = "r*d_in + num_experts*r*d_out + num_experts*d_in"

    @dataclass(frozen=True, kw_only=True)
    class Config(RouterConfig, RankConfig):
        """
        Args:
            num_experts: E, the number of up-projections, spread over the blocks from the first to the last. Default
                (2, 4, 6, 8); per layer.
            top_k: K, the experts that a token uses. Default 2.
            weight_dropout: p, the probability of dropping an entry of A. Default 0.1.
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
        self.mask_step = -1
        # Of the layer, and the optimizer step at which its run began.
        self.numbers = torch.tensor([crc32(layer.name.encode()), NOT_BEGUN])

    def reset(self) -> None:
        nn.init.normal_(self.down, std=1 / self.config.r)
        nn.init.zeros_(self.up)
        self.reset_router()

    def down_weight(self) -> Tensor:
        if not self.training or not self.config.weight_dropout:
            return self.down
        if torch.compiler.is_compiling():
            # The step is no constant of what is compiled.
            mask: Tensor = _operation(self.down.detach(), self.numbers, self.config.weight_dropout)
            return self.down * mask
        if self.mask is None or self.mask_step != optimizer_steps() or self.mask.device != self.down.device:
            self.mask, self.mask_step = _mask_of(self.down, self.numbers, self.config.weight_dropout), optimizer_steps()
        return self.down * self.mask


def _mask_of(weight: Tensor, numbers: Tensor, share: float) -> Tensor:
    """The mask of a weight in this step: 0 for a share of the entries, else 1 / (1 - share).

    Numbered by the steps of the run, and with its seed: ranks and resumed runs draw the same.

    Args:
        numbers: that of the layer, and the step at which its run began, which is written there when it does.
    """
    layer, first = numbers.tolist()
    if first == NOT_BEGUN:
        first = optimizer_steps() - steps_before()
        numbers[1] = first
    seed = crc32(f"{torch.initial_seed()} {layer} {1 + optimizer_steps() - first}".encode())
    generator = torch.Generator(weight.device).manual_seed(seed)
    drawn = torch.rand(weight.shape, generator=generator, device=weight.device)
    return (drawn >= share).to(weight.dtype) / (1 - share)


_operation = torch.library.custom_op("lorachord::step_mask", _mask_of, mutates_args=("numbers",))
_operation.register_fake(lambda weight, numbers, share: torch.empty_like(weight))
