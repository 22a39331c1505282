"""Methods that live outside the package: this one file is all that they take.

y = W0 x + s * B diag(softplus(g)) A drop(x),  s = alpha / r
"""

from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lorachord as lc
from lorachord.families import PromptLevel
from tests.contract.cases import Case, clusters, fit_clusters, with_cosines
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


@lc.register
@final
class OutsidePrompts(PromptLevel):
    """A gain per rank by the cluster of the prompt: y = W0 x + s B diag(G^T c) A x, c the cosines to the centroids."""

    method = "outside_prompts"
    paper = "made for this test"
    embeds = True
    parameters_formula = "r*(d_in + d_out) + 3*r"

    @dataclass(frozen=True, kw_only=True)
    class Config(lc.RankConfig):
        """r, alpha and dropout."""

    config: Config

    @classmethod
    def num_clusters(cls, config: lc.MethodConfig) -> int:
        return 3

    def build(self) -> None:
        self.down = nn.Parameter(torch.empty(self.config.r, self.layer.d_in))
        self.up = nn.Parameter(torch.empty(self.layer.d_out, self.config.r))
        self.gain = nn.Parameter(torch.empty(3, self.config.r))

    def reset(self) -> None:
        super().reset()
        nn.init.ones_(self.gain)

    def core_weight(self) -> Tensor:
        return self.gain

    def core(self, h_BLR: Tensor, x_BLX: Tensor | None, ctx: lc.Context) -> Tensor:
        assert ctx.cosines_BC is not None
        h_BLR = self.by_sample(h_BLR, len(ctx.cosines_BC))
        gain_BR = (ctx.cosines_BC.unsqueeze(2).to(self.gain.dtype) * self.shared_core(ctx)).sum(1)
        return h_BLR * gain_BR.unsqueeze(1).to(h_BLR.dtype)


def reference_of_prompts(adapter: Any, x: Tensor, weight: Tensor, tasks: list[int]) -> Tensor:
    embeddings, centroids = clusters(adapter, num_clusters=3)
    outputs = []
    for index, row in enumerate(x):
        prompt = embeddings[index * 4 // len(x)]
        cosines = torch.stack([prompt @ centroid / (prompt.norm() * centroid.norm()) for centroid in centroids])
        outputs.append(weight @ row + adapter.scale * adapter.up @ ((cosines @ adapter.gain) * (adapter.down @ row)))
    return torch.stack(outputs)


class TestOutside(MethodContract, SurgeryContract):
    cases = [
        Case("outside", reference, {"r": 3, "start": 0.5}),
        Case(
            "outside_prompts",
            reference_of_prompts,
            {"r": 3},
            context=lambda adapter, ctx: with_cosines(adapter, ctx, num_clusters=3),
            fit=fit_clusters,
        ),
    ]
