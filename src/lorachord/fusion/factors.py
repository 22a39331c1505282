"""Low-rank updates as two factors, and the best smaller ones, without a dense matrix.

Shapes: D inputs and O outputs of a layer, R and K ranks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LowRank(NamedTuple):
    """The update `up @ down` of a weight (O, D).

    Attributes:
        down_RD, up_OR: the factors; a scale is in `up`.
    """

    down_RD: Tensor
    up_OR: Tensor

    @property
    def rank(self) -> int:
        """R."""
        return len(self.down_RD)

    def dense(self) -> Tensor:
        """The update (O, D)."""
        return self.up_OR @ self.down_RD


Update = LowRank | Tensor
"""What is added to one weight: factors, or a dense tensor in the orientation of a linear layer's weight."""


def dense(update: Update) -> Tensor:
    """The update as one tensor."""
    return update.dense() if isinstance(update, LowRank) else update


def norm(update: Update) -> float:
    """The Frobenius norm; of factors from their R x R Gramians."""
    if isinstance(update, LowRank):
        down_RD, up_OR = update.down_RD.double(), update.up_OR.double()
        return float(((up_OR.t() @ up_OR) * (down_RD @ down_RD.t())).sum().clamp_min(0).sqrt())
    return float(update.double().norm())


def svd(update: Update) -> tuple[Tensor, Tensor, Tensor]:
    """U (O, R), the singular values (R,) in falling order, and V^T (R, D), in float64.

    Of factors, the singular values are those of a small matrix between their QR factors.
    """
    if not isinstance(update, LowRank):
        u_OR, s_R, vh_RD = torch.linalg.svd(update.double(), full_matrices=False)
        return u_OR, s_R, vh_RD
    left_OK, inner_KR = torch.linalg.qr(update.up_OR.double())
    right_DK, inner_QR = torch.linalg.qr(update.down_RD.double().t())
    u_KR, s_R, vh_RQ = torch.linalg.svd(inner_KR @ inner_QR.t(), full_matrices=False)
    return left_OK @ u_KR, s_R, vh_RQ @ right_DK.t()


def truncate(update: Update, rank: int) -> tuple[LowRank, float]:
    """The nearest update of at most this rank in the Frobenius norm (Eckart and Young), and its distance. In float64.

    Returns:
        the factors, with the roots of the singular values in both, and `|update - result| / |update|`.
    """
    u_OR, s_R, vh_RD = svd(update)
    total = float(s_R.norm())
    error = float(s_R[rank:].norm()) / total if total else 0.0
    root_R = s_R[:rank].sqrt()
    dtype = update.up_OR.dtype if isinstance(update, LowRank) else update.dtype
    return LowRank((root_R[:, None] * vh_RD[:rank]).to(dtype), (u_OR[:, :rank] * root_R).to(dtype)), error
