"""Tensors in float64, for cases that are computed by hand."""

import torch
from torch import Tensor


def of(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def close(found: Tensor, wanted: object, atol: float = 1e-9) -> None:
    torch.testing.assert_close(found, wanted if isinstance(wanted, Tensor) else of(wanted), rtol=1e-9, atol=atol)
