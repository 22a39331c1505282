"""What an adapter remembers of the base that it was trained on, so that another base is refused.

Two parts. The *shapes* are a hash over the names and features of the adapted layers. The *sample* is a few weights from
a few of these layers: it tells two bases of one architecture apart, and still knows its own base after a change of
dtype. Quantised, sharded and meta weights have no sample; then the shapes alone are compared.
"""

from __future__ import annotations

import warnings
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from lorachord.core.config import LayerSpec

NUM_LAYERS, NUM_WEIGHTS = 4, 8
OTHER_BASE, OTHER_CHECKPOINT = 0.5, 0.02
"""Relative distance of the samples: rounding to bfloat16 moves it by about 0.002, an unrelated base by about 1.4."""


def fingerprint(model: nn.Module, layers: list[LayerSpec]) -> dict[str, Any]:
    """The fingerprint of a model over the layers to adapt, as plain data."""
    lines = sorted(f"{layer.name} {layer.d_in} {layer.d_out}" for layer in layers)
    shapes = sha256("\n".join(lines).encode()).hexdigest()
    chosen = layers[:: max(1, len(layers) // NUM_LAYERS)][:NUM_LAYERS]
    samples = [_sample(model.get_submodule(layer.name)) for layer in chosen]
    flat = None if any(sample is None for sample in samples) else [x for sample in samples for x in sample or ()]
    return {"shapes": shapes, "sample": flat}


def _sample(module: nn.Module) -> list[float] | None:
    while hasattr(module, "base_layer"):
        module = module.base_layer  # type: ignore[assignment]
    weight = getattr(module, "weight", None)
    # Subclasses of Tensor are quantised or sharded.
    if weight is None or type(weight) not in (Tensor, nn.Parameter) or not weight.is_floating_point() or weight.is_meta:
        return None
    flat = weight.detach().reshape(-1)
    if len(flat) < NUM_WEIGHTS:
        return None
    positions = torch.linspace(0, len(flat) - 1, NUM_WEIGHTS, dtype=torch.float64).long()
    values: list[float] = flat[positions.to(flat.device)].double().tolist()
    return [float(f"{value:.6g}") for value in values]


def check_base(saved: dict[str, Any], found: dict[str, Any], what: str = "This adapter") -> None:
    """Compare a saved fingerprint with that of the base at hand.

    Args:
        what: what was saved with it, for the message.

    Raises:
        ValueError: the adapted layers have other names or sizes, or unrelated weights.

    Warns:
        UserWarning: the weights are near but not equal: another checkpoint of the same model.
    """
    if saved["shapes"] != found["shapes"]:
        raise ValueError(
            f"{what} was made for another base model: the layers that it adapts have other names or sizes here. "
            "Load the base that its model card names."
        )
    if saved["sample"] is None or found["sample"] is None:
        return
    ours, theirs = torch.tensor(saved["sample"]), torch.tensor(found["sample"])
    if ours.shape != theirs.shape:
        raise ValueError(f"The base_fingerprint of the adapter is damaged: {len(ours)} weights, not {len(theirs)}.")
    distance = float((ours - theirs).norm() / ours.norm().clamp_min(1e-12))
    if distance > OTHER_BASE:
        raise ValueError(
            f"{what} was made for another base model: its layers have the same sizes, but other weights "
            f"(relative distance {distance:.2g}). Load the base that its model card names."
        )
    if distance > OTHER_CHECKPOINT:
        warnings.warn(
            f"{what} was made for a base model of slightly other weights (relative distance {distance:.2g}): another "
            "checkpoint of the same model?",
            stacklevel=2,
        )
