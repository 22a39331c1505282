"""Mixtures of experts as loops, in the style of the published codes, with the weights of one of our adapters.

Each takes the place of an adapted layer and computes the same; `step_time.py` compares with them.

Shapes: B samples of L rows; D inputs, O outputs, R columns of a B; E experts, K chosen; T tasks, U up-projections.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
    layer.weight.data.copy_(weight.detach())
    return layer


class Loop(nn.Module):
    """The base layer, and one linear layer for each B.

    Args:
        base: the frozen layer.
        adapter: of ours, whose weights are copied.
        task_ids_B: of the batch.
    """

    def __init__(self, base: nn.Module, adapter: Any, task_ids_B: Tensor) -> None:
        super().__init__()
        self.base, self.config, self.scaling, self.task_ids_B = base, adapter.config, adapter.scale, task_ids_B
        width = getattr(adapter.config, "expert_rank", adapter.config.r)
        self.lora_A: Any = linear(adapter.down)
        self.lora_B: Any = nn.ModuleList(linear(up) for up in adapter.up.split(width, dim=1))
        self.penalty: Tensor | None = None
        self.build(adapter)

    def build(self, adapter: Any) -> None:
        """Copy what the method has besides."""


class LoopOverExperts(Loop):
    """HydraLoRA as in its release, which applies A anew for each expert; the others in the same style."""

    def build(self, adapter: Any) -> None:
        self.lora_route = linear(adapter.router.weight)

    def forward(self, x_BLD: Tensor) -> Tensor:
        result_BLO: Tensor = self.base(x_BLD)
        gates_BLE = self.gates(x_BLD)
        for expert, output_BLO in enumerate(self.outputs(x_BLD)):
            result_BLO = result_BLO + gates_BLE[:, :, expert].unsqueeze(-1) * output_BLO * self.scaling
        return result_BLO

    def gates(self, x_BLD: Tensor) -> Tensor:
        """(B, L, E)."""
        return torch.softmax(self.lora_route(x_BLD), dim=-1, dtype=torch.float32)

    def outputs(self, x_BLD: Tensor) -> Iterator[Tensor]:
        """Of one expert after the other, (B, L, O)."""
        for lora_B in self.lora_B:
            yield lora_B(self.lora_A(x_BLD))


class LoopWithDownOnce(LoopOverExperts):
    """The same, but A is applied once for all experts."""

    def outputs(self, x_BLD: Tensor) -> Iterator[Tensor]:
        h_BLR = self.lora_A(x_BLD)
        for lora_B in self.lora_B:
            yield lora_B(h_BLR)


class LoopOverChosen(LoopOverExperts):
    """With the gates of the K most probable experts, renormalised, and a balance loss."""

    def gates(self, x_BLD: Tensor) -> Tensor:
        gates_BLE = super().gates(x_BLD)
        top = gates_BLE.topk(self.config.top_k, dim=-1)
        share_E = torch.zeros_like(gates_BLE).scatter(-1, top.indices, 1 / self.config.top_k).mean((0, 1))
        self.penalty = self.config.balance * len(share_E) * (share_E * gates_BLE.mean((0, 1))).sum()
        kept_BLK = top.values / top.values.sum(dim=-1, keepdim=True)
        return torch.zeros_like(gates_BLE).scatter(-1, top.indices, kept_BLK)


class LoopOfMoSLD(LoopOverChosen):
    """A is masked, once for all experts, and applied anew for each."""

    def outputs(self, x_BLD: Tensor) -> Iterator[Tensor]:
        masked_RD = F.dropout(self.lora_A.weight, self.config.weight_dropout, self.training)
        for lora_B in self.lora_B:
            yield lora_B(F.linear(x_BLD, masked_RD))


class LoopOfMoELoRA(LoopOverChosen):
    """Every expert has an A of its own; the contrastive loss is left out."""

    def build(self, adapter: Any) -> None:
        super().build(adapter)
        self.lora_A = nn.ModuleList(linear(down) for down in adapter.down.split(adapter.config.r))

    def outputs(self, x_BLD: Tensor) -> Iterator[Tensor]:
        for lora_A, lora_B in zip(self.lora_A, self.lora_B, strict=True):
            yield lora_B(lora_A(x_BLD))


class LoopOfMALoRA(LoopOverChosen):
    """Every expert has coefficients in a subspace that all share."""

    def build(self, adapter: Any) -> None:
        super().build(adapter)
        self.lora_P = nn.ModuleList(linear(coefficients) for coefficients in adapter.coefficients)

    def outputs(self, x_BLD: Tensor) -> Iterator[Tensor]:
        for lora_P, lora_B in zip(self.lora_P, self.lora_B, strict=True):
            yield lora_B(lora_P(self.lora_A(x_BLD)))


class LoopOfMoDE(LoopOverExperts):
    """Every column of a B has a gate of its own."""

    def forward(self, x_BLD: Tensor) -> Tensor:
        result_BLO: Tensor = self.base(x_BLD)
        gates_BLER = torch.softmax(self.lora_route(x_BLD).unflatten(-1, (len(self.lora_B), -1)), dim=-2)
        for expert, lora_B in enumerate(self.lora_B):
            result_BLO = result_BLO + lora_B(gates_BLER[:, :, expert] * self.lora_A(x_BLD)) * self.scaling
        return result_BLO


class LoopOverTasks(Loop):
    """MTL-LoRA as a loop over tasks and one over up-projections."""

    def build(self, adapter: Any) -> None:
        self.lora_lambda = nn.ModuleList(linear(transform) for transform in adapter.transform)
        self.lora_B_w = nn.Parameter(adapter.mixture.detach().clone())

    def forward(self, x_BLD: Tensor) -> Tensor:
        result_BLO: Tensor = self.base(x_BLD)
        h_BLR = self.lora_A(x_BLD)
        transformed_BLR = torch.zeros_like(h_BLR)
        for task, lora_lambda in enumerate(self.lora_lambda):
            rows_B = self.task_ids_B == task
            transformed_BLR[rows_B] = lora_lambda(h_BLR[rows_B])
        share_BU = torch.softmax(self.lora_B_w / self.config.temperature, dim=-1)[self.task_ids_B]
        for up, lora_B in enumerate(self.lora_B):
            result_BLO = result_BLO + share_BU[:, up, None, None] * lora_B(transformed_BLR) * self.scaling
        return result_BLO


class ReleasedTasks(Loop):
    """MTL-LoRA as in its release: mixed up-projections, copied for each sample."""

    def build(self, adapter: Any) -> None:
        self.lora_lambda = nn.Parameter(adapter.transform.detach().clone())
        self.lora_B_w = nn.Parameter(adapter.mixture.detach().clone())
        self.lora_B = nn.Parameter(torch.stack([up.weight.detach() for up in self.lora_B]))

    def forward(self, x_BLD: Tensor) -> Tensor:
        share_TU = torch.softmax(self.lora_B_w / self.config.temperature, dim=-1)
        mixed_TOR = (share_TU @ self.lora_B.flatten(1)).unflatten(1, self.lora_B.shape[1:])
        down_BDR = self.lora_A.weight.t().expand(len(x_BLD), -1, -1)
        h_BLR = torch.bmm(torch.bmm(x_BLD, down_BDR), self.lora_lambda[self.task_ids_B].mT)
        update_BLO = torch.bmm(h_BLR, mixed_TOR[self.task_ids_B].mT) * self.scaling
        result_BLO: Tensor = self.base(x_BLD) + update_BLO
        return result_BLO


LOOPS: dict[str, dict[str, type[Loop]]] = {
    "mtl_lora (8 ups)": {"loop": LoopOverTasks, "released": ReleasedTasks},
    "hydralora": {"loop": LoopOverExperts, "loop, A once": LoopWithDownOnce},
    "mosld": {"loop": LoopOfMoSLD},
    "mode (8 experts)": {"loop": LoopOfMoDE},
    "malora": {"loop": LoopOfMALoRA},
    "moelora (no contrast)": {"loop": LoopOfMoELoRA},
}
"""By case of `step_time.py`, and by row."""
