"""How much each expert of each router is used."""

from __future__ import annotations

from torch import Tensor, nn

from lorachord.families.by_prompt import PromptLevel
from lorachord.families.router import Router, share
from lorachord.tuner.walk import adapted_layers


def router_load(model: nn.Module, *, forget: bool = False) -> dict[str, Tensor]:
    """The share of choices that fell on each expert in all forward passes since the last time that they were forgotten.

    Padding and the recomputes of checkpointing do not count. It is of this process alone: over several ranks, average.

    Args:
        model: a model with an adapter, however wrapped.
        forget: count from here on.

    Returns:
        By layer, for the active adapters that choose and have seen any row: (E,), or (G, E) where the layer has G
        routers. At balance all entries are 1 / E. A dense router has no choices: of it, the mean gates.
        MoDE has a router for each block of rank slots. MixLoRA has two rows, the factors a and the factors b, over
        prompts. MoR1E has two rows, the mean gates of tokens and the prompts' nearest clusters.
    """
    loads = {}
    for layer in adapted_layers(model):
        for adapter in layer.active():
            for router in adapter.modules():
                if isinstance(router, Router | PromptLevel) and router.total is not None:
                    loads[adapter.layer.name] = share(router.total)
                    if forget:
                        router.forget_load()
    return loads
