"""Which parameters weight decay must not touch."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from lorachord.core.adapter import Adapter


def undecayed(model: nn.Module) -> Iterator[str]:
    """The names of the adapters' parameters that their method keeps from weight decay."""
    for path, module in model.named_modules():
        if isinstance(module, Adapter):
            yield from (f"{path}.{name}" for name in module.no_decay)
