"""What an adapter remembers of the base that it was trained on, so that another base is refused.

The *shapes* are a hash over the names and features of the adapted layers. The *sample* is a few weights from a few of
these layers: it tells two bases of one architecture apart, and still knows its own base after a change of dtype. The
*outside* has a few weights from each linear layer beside the numbered blocks that is not trained in full, such as a
pooler: two checkpoints may differ there alone. Quantised, sharded and meta weights have no sample; then the shapes
alone are compared.
"""

from __future__ import annotations

import warnings
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorachord.core.config import LayerSpec
from lorachord.tuner.layer import linear_features
from lorachord.tuner.trained_parts import inside, own_modules

NUM_LAYERS, NUM_WEIGHTS = 4, 8
OTHER_BASE, OTHER_CHECKPOINT = 0.5, 0.02
"""Relative distance of the samples: rounding to bfloat16 moves it by about 0.002, an unrelated base by about 1.4."""


def fingerprint(model: nn.Module, layers: list[LayerSpec], trained: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fingerprint of a model over the layers to adapt, as plain data.

    Args:
        trained: names of the modules that are trained in full and saved with the adapter.
    """
    lines = sorted(f"{layer.name} {layer.d_in} {layer.d_out}" for layer in layers)
    shapes = sha256("\n".join(lines).encode()).hexdigest()
    chosen = layers[:: max(1, len(layers) // NUM_LAYERS)][:NUM_LAYERS]
    samples = [_sample(model.get_submodule(layer.name)) for layer in chosen]
    flat = None if any(sample is None for sample in samples) else [x for sample in samples for x in sample or ()]
    outside = {name: _sample(model.get_submodule(name)) for name in _outside(model, trained)}
    return {"shapes": shapes, "sample": flat, "outside": outside}


def _outside(model: nn.Module, trained: tuple[str, ...]) -> list[str]:
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return [
        name
        for name, module in own_modules(model)
        if linear_features(module) is not None
        and module is not output
        and not inside(name, trained)
        and not any(part.isdigit() for part in name.split("."))
    ]


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
    if saved["sample"] is not None and found["sample"] is not None:
        _check_samples(saved, found, what)
    elsewhere = found.get("outside", {})
    for name, sample in saved.get("outside", {}).items():
        if sample is not None and elsewhere.get(name) is not None and _distance(sample, elsewhere[name]) > OTHER_BASE:
            raise ValueError(
                f"{what} was made for another base model: {name} has other weights here. Where the checkpoint lacks "
                "them, they are drawn anew each time: name the module in modules_to_save, and train again."
            )


def _check_samples(saved: dict[str, Any], found: dict[str, Any], what: str) -> None:
    if len(saved["sample"]) != len(found["sample"]):
        raise ValueError(
            f"The base_fingerprint of the adapter is damaged: {len(saved['sample'])} weights, not "
            f"{len(found['sample'])}."
        )
    distance = _distance(saved["sample"], found["sample"])
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


def _distance(ours: list[float], theirs: list[float]) -> float:
    if len(ours) != len(theirs):
        return float("inf")
    sample, other = torch.tensor(ours), torch.tensor(theirs)
    return float((sample - other).norm() / sample.norm().clamp_min(1e-12))
