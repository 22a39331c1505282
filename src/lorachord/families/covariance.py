"""What a calibration keeps of the inputs of a layer: their uncentred covariance C = X^T X / m, row by row.

`Exact` holds the D x D sums. `Sketch` holds Y = X^T X Omega for K random directions Omega, however wide the layer is.
From these C is known in K directions (the Nystrom approximation of Tropp et al., "Fixed-Rank Approximation of a
Positive-Semidefinite Matrix from Streaming Data", arXiv 1706.05736, algorithm 3), and what it misses of the trace,
which is known exactly, is spread evenly over the others. The error that this makes: leading eigenvalues come out too
small, never too large, and the rest too flat, so that the spectral entropy comes out too large, never too small. Where
C has no more than K directions there is none, but for rounding.

Shapes: N rows, D features, O outputs of the layer, K directions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import final

import torch
from torch import Tensor

DAMPING = 1e-2
"""Share of the mean eigenvalue that is added to every eigenvalue, so that C has an inverse."""


class Covariance(ABC):
    """Sums over rows. Read nothing before the last row is added.

    Attributes:
        num_rows: m, the rows so far.
    """

    def __init__(self, d_in: int) -> None:
        self.d_in = d_in
        self.num_rows = 0

    @abstractmethod
    def add(self, x_ND: Tensor) -> None:
        """Add rows, in at least float32."""

    @abstractmethod
    def eigenvalues(self) -> Tensor:
        """The min(m, D) largest eigenvalues of C, or their estimates, in any order."""

    @abstractmethod
    def damped(self, weight_OD: Tensor) -> Tensor:
        """W (C + DAMPING tr(C) / D I), (O, D)."""

    @cached_property
    def entropy(self) -> float:
        """Spectral entropy from 0 (one direction) to 1 (all directions alike): -sum p log p / log min(m, D)."""
        eigenvalues = self.eigenvalues().double().clamp_min(0)
        share = eigenvalues / eigenvalues.sum()
        return float(torch.special.entr(share).sum() / math.log(max(2, len(eigenvalues))))


@final
class Exact(Covariance):
    """All of C."""

    def __init__(self, d_in: int) -> None:
        super().__init__(d_in)
        self.sum_DD: Tensor | None = None

    def add(self, x_ND: Tensor) -> None:
        product_DD = x_ND.t() @ x_ND
        self.sum_DD = product_DD if self.sum_DD is None else self.sum_DD.add_(product_DD)
        self.num_rows += len(x_ND)

    def matrix(self) -> Tensor:
        """C (D, D)."""
        assert self.sum_DD is not None, "no rows were added"
        return self.sum_DD / self.num_rows

    def eigenvalues(self) -> Tensor:
        values_D: Tensor = torch.linalg.eigvalsh(self.matrix())
        return values_D[-min(self.num_rows, self.d_in) :]

    def damped(self, weight_OD: Tensor) -> Tensor:
        matrix_DD = self.matrix()
        return weight_OD @ matrix_DD + DAMPING * matrix_DD.diagonal().mean() * weight_OD


@final
class Sketch(Covariance):
    """C in K directions.

    Args:
        d_in: D.
        num_directions: K.
    """

    def __init__(self, d_in: int, num_directions: int) -> None:
        super().__init__(d_in)
        # The same for every task and in every process.
        omega_DK = torch.randn(d_in, num_directions, generator=torch.Generator().manual_seed(d_in))
        self.omega_DK: Tensor = torch.linalg.qr(omega_DK).Q
        self.sum_DK: Tensor | None = None
        self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, x_ND: Tensor) -> None:
        self.omega_DK = self.omega_DK.to(x_ND)
        product_DK = x_ND.t() @ (x_ND @ self.omega_DK)
        self.sum_DK = product_DK if self.sum_DK is None else self.sum_DK.add_(product_DK)
        self.squares = self.squares.to(x_ND.device) + x_ND.square().sum()
        self.num_rows += len(x_ND)

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor, Tensor]:
        """The K leading eigenvalues, their vectors (D, K), and the trace that all other directions have together."""
        assert self.sum_DK is not None, "no rows were added"
        y_DK, omega_DK = self.sum_DK.double() / self.num_rows, self.omega_DK.double()
        # A shift, taken back below, keeps the triangle invertible where C has fewer than K directions.
        shift = y_DK.norm() * torch.finfo(self.sum_DK.dtype).eps * math.sqrt(self.d_in)
        y_DK = y_DK + shift * omega_DK
        gram_KK = omega_DK.t() @ y_DK
        triangle_KK = torch.linalg.cholesky((gram_KK + gram_KK.t()) / 2)
        root_DK = torch.linalg.solve_triangular(triangle_KK.t(), y_DK, upper=True, left=False)
        vectors_DK, roots_K, _ = torch.linalg.svd(root_DK, full_matrices=False)
        values_K = (roots_K.square() - shift).clamp_min(0)[: self.num_rows]
        rest = (self.squares / self.num_rows - values_K.sum()).clamp_min(0)
        return values_K, vectors_DK[:, : self.num_rows], rest

    def eigenvalues(self) -> Tensor:
        values_K, _, rest = self.spectrum
        others = min(self.num_rows, self.d_in) - len(values_K)
        return torch.cat([values_K, (rest / max(1, others)).expand(others)])

    def damped(self, weight_OD: Tensor) -> Tensor:
        values_K, vectors_DK, rest = (part.to(weight_OD) for part in self.spectrum)
        each = rest / max(1, self.d_in - len(values_K))
        damping = DAMPING * self.squares.to(weight_OD) / self.num_rows / self.d_in
        return (weight_OD @ vectors_DK * (values_K - each)) @ vectors_DK.t() + (each + damping) * weight_OD
