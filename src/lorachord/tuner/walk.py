"""Walks through a model, however wrapped: its adapted layers, active adapters and shared states."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from lorachord.tuner.layer import LorachordLinear
from lorachord.tuner.state import SharedState


def modules_of(model: nn.Module) -> Iterator[nn.Module]:
    """As `model.modules()`, which also makes each one's name: in half the time, several times a step."""
    seen: set[nn.Module] = set()
    left = [model]
    while left:
        module = left.pop()
        if module not in seen:
            seen.add(module)
            yield module
            left.extend(child for child in reversed(module._modules.values()) if child is not None)


def adapted_layers(model: nn.Module) -> Iterator[LorachordLinear]:
    """The adapted layers of `model`, which may be wrapped (PeftModel, DistributedDataParallel, a compiled module)."""
    return (module for module in modules_of(model) if isinstance(module, LorachordLinear))


def active_adapters(model: nn.Module) -> list[str]:
    """The names of the adapters that are active in `model`."""
    return next((list(layer.active_adapters) for layer in adapted_layers(model)), [])


def states_of(model: nn.Module) -> list[SharedState]:
    """The states in `model`: one for each model inside it that was injected into, and one for heads per task."""
    found = [vars(module).get("shared") for module in modules_of(model)]
    return list({id(state): state for state in found if isinstance(state, SharedState)}.values())
