"""The penalties of a model's active adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lorachord.core.adapter import Adapter
from lorachord.core.align import align_loss
from lorachord.families.joint_penalty import JointPenalty
from lorachord.tuner.walk import adapted_layers, states_of


def penalty(model: nn.Module) -> Tensor:
    """The sum of the active adapters' penalties after a forward pass: a scalar to add to the loss, 0 where none is.

    On several ranks all must ask for it: routers' losses, which are over the rows of all, are made then.

    Raises:
        ValueError: a penalty was recorded without a graph, as under reentrant gradient checkpointing.
    """
    terms = list(penalties(model).values())
    if not terms:
        return torch.zeros((), device=next(model.parameters()).device)
    return torch.stack([term.to(terms[0].device) for term in terms]).sum()


def penalties(model: nn.Module) -> dict[str, Tensor]:
    """The parts of `penalty` by name (`balance`, `z`, `contrastive`, `subspace`, `align`), summed over layers.

    A penalty that its method gives no name has the method's.

    Raises:
        ValueError: as `penalty`.
    """
    for state in states_of(model):
        state.penalty_asked = True
    alike: dict[tuple[type[Adapter], bool], list[Adapter]] = {}
    for layer in adapted_layers(model):
        for adapter in layer.active():
            trains = any(parameter.requires_grad for parameter in adapter.parameters())
            alike.setdefault((type(adapter), trains), []).append(adapter)
    terms: dict[str, list[Tensor]] = {}
    for (method, trains), adapters in alike.items():
        for name, term in _of_layers(method, adapters):
            if trains and torch.is_grad_enabled() and not term.requires_grad:
                raise ValueError(
                    f"A penalty of {method.method} was recorded without a graph and would train nothing. It was made "
                    "under torch.no_grad() or reentrant gradient checkpointing; use use_reentrant=False."
                )
            terms.setdefault(name, []).append(term)
    return {name: torch.stack([term.to(own[0].device) for term in own]).sum() for name, own in terms.items()}


def _of_layers(method: type[Adapter], adapters: Sequence[Adapter]) -> list[tuple[str, Tensor]]:
    aligned = align_loss([one.aligned for one in adapters if one.aligned is not None])
    found: list[tuple[str, Tensor]] = [] if aligned is None else [("align", aligned)]
    if issubclass(method, JointPenalty):
        return [*found, *method.penalties(adapters).items()]  # type: ignore[arg-type]
    for adapter in adapters:
        own = adapter.penalty()
        if own is not None:
            found += own.items() if isinstance(own, Mapping) else [(method.method, own)]
    return found
