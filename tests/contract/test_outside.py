"""A method that lives outside the package: this one file is all that it takes.

y = W0 x + s * B diag(softplus(g)) A drop(x),  s = alpha / r
"""

from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lorachord as lc
from tests.contract.cases import Case
from tests.contract.contract import MethodContract
from tests.contract.surgery import SurgeryContract


@lc.register
@final
class Outside(lc.Adapter):
    """A positive learned gain per rank."""

    method = "outside"
    paper = "made for this test"
    mixing = lc.Mixing.STATIC
    parameters_formula = "r*(d_in + d_out + 1)"

    @dataclass(frozen=True, kw_only=True)
    class Config(lc.RankConfig):
        """
        Args:
            start: initial gain before the softplus. Default 0.
        """

        start: float = lc.option(0.0)

    config: Config

    def build(self) -> None:
        self.down = nn.Parameter(torch.empty(self.config.r, self.layer.d_in))
        self.up = nn.Parameter(torch.empty(self.layer.d_out, self.config.r))
        self.gain = nn.Parameter(torch.empty(self.config.r))

    def reset(self) -> None:
        super().reset()
        nn.init.constant_(self.gain, self.config.start)

    def core_weight(self) -> Tensor:
        return F.softplus(self.gain)

    def core(self, h_BLR: Tensor, x_BLX: Tensor | None, ctx: lc.Context) -> Tensor:
        return h_BLR * self.shared_core(ctx).unsqueeze(1).to(h_BLR.dtype)


def reference(adapter: Any, x: Tensor, weight: Tensor, tasks: list[int]) -> Tensor:
    scale = adapter.config.alpha / adapter.config.r
    gains = torch.log(1 + torch.exp(adapter.gain))
    return torch.stack([weight @ row + scale * adapter.up @ (gains * (adapter.down @ row)) for row in x])


class TestOutside(MethodContract, SurgeryContract):
    cases = [Case("outside", reference, {"r": 3, "start": 0.5})]
