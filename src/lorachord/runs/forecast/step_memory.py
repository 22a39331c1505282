"""The memory of a training step, as a sum of parts that can be checked one by one.

Shapes: B rows, L tokens, D features of a block, H of its inner layer, V words.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]
import torch
from torch import nn

from lorachord.runs.recipe import Recipe

FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes.

    Attributes:
        weights: of the frozen base, in its dtype.
        adapter: of all that is trained, in float32.
        gradients: as many.
        optimizer: AdamW's two moments of these.
        activations: of a batch of the longest rows, kept for the backward pass.
        measured: whether the activations were measured in a step, and not computed from the model's shape.
        available: on the device that would train.
        device: its name.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    measured: bool
    available: int
    device: str

    @property
    def total(self) -> int:
        """The sum. Libraries, and buffers that the device's allocator keeps, take more."""
        return self.weights + self.adapter + self.gradients + self.optimizer + self.activations


def memory_of(
    recipe: Recipe, base: nn.Module, *, trainable: int, rows: int, length: int, measured: int | None
) -> Memory:
    """The memory of one step of a recipe.

    Args:
        base: plain; it may be on the meta device.
        trainable: parameters.
        rows: B of one forward pass.
        length: L of the longest rows.
        measured: bytes of activations, where they were measured.
    """
    size = torch.finfo(getattr(torch, recipe.model.dtype)).bits // 8
    available, device = available_memory()
    activations = activations_by_shape(recipe, base, rows=rows, length=length) if measured is None else measured
    return Memory(
        weights=size * sum(parameter.numel() for parameter in base.parameters()),
        adapter=FLOAT32 * trainable,
        gradients=FLOAT32 * trainable,
        optimizer=2 * FLOAT32 * trainable,
        activations=activations,
        measured=measured is not None,
        available=available,
        device=device,
    )


def activations_by_shape(recipe: Recipe, base: nn.Module, *, rows: int, length: int) -> int:
    """Bytes that a step keeps, from the sizes of the model alone.

    A block keeps, for each token, about 8 D for its norms and attention, whose kernel keeps no attention weights, and
    2 H for its inner layer, or 4 H where that is gated. With gradient checkpointing it keeps its input, and one block
    is recomputed at a time. A decoder keeps its logits and their gradient, 2 V.
    """
    config = base.config
    size = FLOAT32 if recipe.training.precision == recipe.model.dtype == "float32" else 2
    width, blocks = int(config.hidden_size), int(config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
    inner = int(getattr(config, "intermediate_size", None) or 4 * width)
    gated = any(path.endswith("gate_proj") for path, _ in base.named_modules())
    block = 8 * width + (4 if gated else 2) * inner
    kept = blocks * width + block if recipe.training.gradient_checkpointing else blocks * block
    if recipe.model.kind == "decoder":
        kept += 2 * int(config.vocab_size)  # type: ignore[union-attr, arg-type]
    return size * rows * length * kept


def available_memory() -> tuple[int, str]:
    """Free bytes, and the device whose they are: the accelerator's, or else this machine's."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], torch.cuda.get_device_name()
    return int(psutil.virtual_memory().available), "CPU"
