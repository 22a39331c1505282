"""The record of one operation on the gradients of the tasks.

Shapes: T tasks, N blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorachord.surgery.task_grads import Key


@dataclass(frozen=True)
class Operation:
    """What one operation saw and did.

    Attributes:
        keys: `(layer, factor)` of the N blocks.
        present: indices of the tasks that had a gradient; T of them.
        gramians_NTT: their inner products, before.
        weights_NT: what the rule made of them.
    """

    keys: tuple[Key, ...]
    present: tuple[int, ...]
    gramians_NTT: Tensor
    weights_NT: Tensor

    @property
    def cosines(self) -> Tensor:
        """Cosines (N, T, T) between the tasks' gradients; 0 where one of them is zero."""
        norms_NT = self.gramians_NTT.diagonal(dim1=-2, dim2=-1).sqrt()
        scale_NTT = norms_NT.unsqueeze(-1) * norms_NT.unsqueeze(-2)
        return torch.where(scale_NTT > 0, self.gramians_NTT / scale_NTT, 0)

    @property
    def conflicts(self) -> float:
        """The share of pairs of tasks whose gradients point against each other, over all blocks."""
        num_tasks = len(self.present)
        pairs = len(self.keys) * num_tasks * (num_tasks - 1)
        return float((self.gramians_NTT < 0).sum() / pairs) if pairs else 0.0

    @property
    def moved(self) -> float:
        """How far the rule moved the gradient: |new - sum| / |sum|, over all blocks."""
        change_NT = self.weights_NT - 1
        squared = torch.einsum("nt,nts,ns->", change_NT, self.gramians_NTT, change_NT)
        return float((squared / self.gramians_NTT.sum().clamp_min(1e-38)).clamp_min(0).sqrt())
