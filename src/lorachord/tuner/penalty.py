"""The penalties of a model's active adapters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lorachord.core.adapter import Adapter
from lorachord.tuner.state import adapted_layers


def penalty(model: nn.Module) -> Tensor:
    """The sum of the active adapters' penalties after a forward pass: a scalar to add to the loss, 0 where none is.

    On several ranks all must ask for it: routers' losses, which are over the rows of all, are made then.

    Raises:
        ValueError: a penalty was recorded without a graph, as under reentrant gradient checkpointing.
    """
    alike: dict[tuple[type[Adapter], bool], list[Adapter]] = {}
    for layer in adapted_layers(model):
        for adapter in layer.active():
            trains = any(parameter.requires_grad for parameter in adapter.parameters())
            alike.setdefault((type(adapter), trains), []).append(adapter)
    terms = []
    for (method, trains), adapters in alike.items():
        for term in method.penalties(adapters):
            if trains and torch.is_grad_enabled() and not term.requires_grad:
                raise ValueError(
                    f"A penalty of {method.method} was recorded without a graph and would train nothing. It was made "
                    "under torch.no_grad() or reentrant gradient checkpointing; use use_reentrant=False."
                )
            terms.append(term)
    if not terms:
        return torch.zeros((), device=next(model.parameters()).device)
    return torch.stack([term.to(terms[0].device) for term in terms]).sum()
