"""How much each expert of each router is used."""

from __future__ import annotations

from torch import Tensor, nn

from lorachord.families.router import Router, share
from lorachord.tuner.walk import adapted_layers


def router_load(model: nn.Module, *, forget: bool = False) -> dict[str, Tensor]:
    """The share of choices that fell on each expert in all forward passes since the last time that they were forgotten.

    Padding and the recomputes of checkpointing do not count. It is of this process alone: over several ranks, average.

    Args:
        model: a model with an adapter, however wrapped.
        forget: count from here on.

    Returns:
        By layer, for the active adapters with a token-level router that has seen any row: (E,), or (G, E) where the
        layer has G routers (MoDE). At balance all entries are 1 / E. A dense router has no choices: of it, the mean
        gates.
    """
    loads = {}
    for layer in adapted_layers(model):
        for adapter in layer.active():
            for router in adapter.modules():
                if isinstance(router, Router) and router.total is not None:
                    loads[adapter.layer.name] = share(router.total)
                    if forget:
                        router.forget_load()
    return loads
