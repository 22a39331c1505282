"""The method `comol`: a router, in rank space, over small matrices between two shared factors."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from lorachord.core import init
from lorachord.core.config import RankConfig, option
from lorachord.core.context import Context
from lorachord.core.registry import register
from lorachord.families.routed import RoutedAdapter
from lorachord.families.router import Router, RouterConfig
from lorachord.kernels.linear import rows_linear


@register
@final
class CoMoL(RoutedAdapter):
    """A router mixes small matrices between the factors of one LoRA for each token.

    Equation:
        h = A drop(x)
        y = W0 x + s * B sum_e softmax(W_r h)_e M_e h,  e = 1..E,  s = alpha / r

    Where:
        The M_e are (r, r). The router is dense, token-level and without a bias, and it sees h, not x.

    Paper:
        Cao et al., "CoMoL: Efficient Mixture of LoRA Experts via Dynamic Core Space Merging" (arXiv
        2603.00573).

    Start:
        A, the M_e and W_r are Kaiming-uniform, and B is zero.

    Defaults:
        r 16, num_experts 8, balance 0, z 0, noise 0, alpha 16, dropout 0.

    Take it when:
        You would take a mixture of LoRAs and want the parameters of one LoRA: the experts cost E r (r + 1) beside
        r (d_in + d_out).

    Leave it when:
        The adapter must merge or export: it equals no single weight. It cannot solve tasks that contradict each other
        on the same inputs. Its router knows an input by r numbers alone, so the smaller r is, the less can it tell
        apart. Nothing was measured on real text yet.

    Differs from the authors' code:
        The experts are one stacked product. A balance loss is offered; theirs has none, nor has the default here.
        Theirs adapts q, k, v, o and down; here `target_modules` decides, as for every method.

    Parameters:
        down (r, d_in): A.
        up (d_out, r): B.
        matrices (r, E r): the M_e side by side.
        router.weight (E, r): W_r.
    """

    method = "comol"
    paper = "CoMoL (arXiv 2603.00573)"
    parameters_formula = "r*(d_in + d_out) + num_experts*r*(r + 1)"

    @dataclass(frozen=True, kw_only=True)
    class Config(RouterConfig, RankConfig):
        """
        Args:
            r: rank of the shared factors, and of the experts between them. Default 16; per layer.
            num_experts: E, the number of matrices. Default 8; per layer.
        """

        r: int = option(16, low=1, per_layer=True)
        num_experts: int = option(8, low=2, per_layer=True)

    config: Config
    router: Router

    def build(self) -> None:
        r, num_experts, layer = self.config.r, self.config.num_experts, self.layer
        self.down = nn.Parameter(torch.empty(r, layer.d_in))
        self.up = nn.Parameter(torch.empty(layer.d_out, r))
        self.matrices = nn.Parameter(torch.empty(r, num_experts * r))
        self.router = Router(r, num_experts, self.config)

    def reset(self) -> None:
        super().reset()
        init.kaiming_uniform_(self.matrices, fan_in=self.config.r)

    def router_weight(self) -> Tensor:
        """W_r A: the logits as a function of the layer's input, beside which the core is linear."""
        return self.router.weight @ self.down

    def core_weight(self) -> Tensor:
        """The M_e side by side, and W_r^T beside them: (r, E r + E)."""
        return torch.cat([self.matrices, self.router.weight.t()], dim=1)

    def core(self, h_BLR: Tensor, x_BLX: Tensor | None, ctx: Context) -> Tensor:
        assert x_BLX is not None
        probes, wide = self.probes if torch.is_grad_enabled() else None, self.matrices.shape[1]
        matrix_TRS = row_TER = runs = None
        if probes is not None:
            assert probes.core_TC is not None
            matrix_TRS, row_TER = probes.core_TC[..., :wide], probes.core_TC[..., wide:].mT
            runs = probes.row_runs(ctx, h_BLR.shape[:2].numel())
        logits_BLE = x_BLX
        if self.training and self.config.dropout:
            # Those of W_r A are of the whole input, and the router sees what is left of it.
            weight_ER = self.router.weight.to(h_BLR.dtype)
            logits_BLE = rows_linear(h_BLR, weight_ER, probe_TOI=row_TER, row_runs=runs)
        gated_BLS = self.router.gate(h_BLR, logits_BLE, ctx).mixed_BLS
        return rows_linear(gated_BLS, self.matrices.to(h_BLR.dtype), probe_TOI=matrix_TRS, row_runs=runs)
