"""What the layers of one pass share in reading the prompt.

Shapes: B samples, L rows of one sample, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorachord.core.neighbours import Same


class Reading:
    """Each token's share in a mean over the prompt, and the last mean: queries, keys and values have the same input.

    It belongs to one pass. A part of it that is checkpointed has one of its own, so that its recompute finds as much
    of it done as the part itself did.
    """

    def __init__(self) -> None:
        self._shares: tuple[Tensor, Tensor] | None = None
        self._same = Same()
        self._mean_BD: Tensor | None = None

    def shares(self, mask_BL: Tensor, dtype: torch.dtype) -> Tensor:
        """`shares_of` the mask, made once."""
        if self._shares is None or self._shares[0] is not mask_BL or self._shares[1].dtype != dtype:
            self._shares = mask_BL, shares_of(mask_BL, dtype)
        return self._shares[1]

    def mean_of(self, x: Tensor) -> Tensor | None:
        """The mean that was kept of this very tensor, unless it has changed since; else None."""
        return self._mean_BD if self._same(x) else None

    def keep(self, x: Tensor, mean_BD: Tensor) -> None:
        """Keep the mean of x, and no longer that of another."""
        self._same.note(x)
        self._mean_BD = mean_BD

    def end(self) -> None:
        """Let go of all: the graph of a pass must not hold on to itself."""
        self._same.note(None)
        self._shares = self._mean_BD = None


def shares_of(mask_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """`mask / tokens of the prompt`; zeros for a sample without any.

    >>> shares_of(torch.tensor([[True, True, False], [False, False, False]]), torch.float32)
    tensor([[0.5000, 0.5000, 0.0000],
            [0.0000, 0.0000, 0.0000]])
    """
    mask_BL = mask_BL.to(dtype)
    return mask_BL / mask_BL.sum(1, keepdim=True).clamp_min(1)
