"""The inputs of each layer on each task: one covariance a task, streamed through hooks on the frozen base.

Layers that are handed the same tensor (q, k and v; gate and up) share one. Memory does not depend on the number of
samples: only token ids are kept, and as many layers are watched in one pass over them as `max_bytes` allows.

Shapes: B samples, L tokens, N rows, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorachord.core.config import LayerSpec
from lorachord.families.covariance import Covariance, Exact, Sketch
from lorachord.tuner.on_task import on_task
from lorachord.tuner.walk import states_of

Batch = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """
    Args:
        max_bytes: of all covariances that are held at a time. Default 2 GiB.
        max_width: features of an input whose covariance is held in full; wider ones are sketched, as are those of which
            one for each task exceeds `max_bytes`. Default 2048.
        num_directions: of a sketch. Default 256.
    """

    max_bytes: int = 2 * 1024**3
    max_width: int = 2048
    num_directions: int = 256


def measure_inputs(
    base: nn.Module, layers: Sequence[LayerSpec], batches: Mapping[str, Sequence[Batch]], limits: Limits
) -> Iterator[tuple[list[LayerSpec], list[Covariance]]]:
    """Each group of layers that share their input, with its covariance on every task.

    Args:
        base: the model.
        layers: to be watched.
        batches: model inputs by task; an `attention_mask` (B, L) says which tokens count.
        limits: of memory.

    Raises:
        ValueError: `max_bytes` does not even hold the sketches of one input.
    """
    groups = _sharing(base, layers, next(iter(batches.items())))
    size = _dtype(base).itemsize * len(batches)
    waiting = [(group, *_kind(group[0], size, limits)) for group in groups]
    while waiting:
        room, taken = limits.max_bytes, []
        while waiting and waiting[0][1] <= room:
            group, cost, make = waiting.pop(0)
            room -= cost
            taken.append((group, [make() for _ in batches]))
        for index, (task, own) in enumerate(batches.items()):
            watched = {group[0].name: covariances[index] for group, covariances in taken}
            _stream(base, watched, task, own)
        yield from taken


def _kind(layer: LayerSpec, size: int, limits: Limits) -> tuple[int, Callable[[], Covariance]]:
    """The bytes of a layer's covariances, and how to make one."""
    full, narrow = (size * layer.d_in * width for width in (layer.d_in, limits.num_directions))
    if layer.d_in <= limits.max_width and full <= limits.max_bytes:
        return full, partial(Exact, layer.d_in)
    if narrow > limits.max_bytes:
        raise ValueError(
            f"max_bytes = {limits.max_bytes:,} holds no sketches of the inputs of {layer.name} (they take {narrow:,}): "
            "give more, or fewer num_directions."
        )
    return narrow, partial(Sketch, layer.d_in, limits.num_directions)


def _sharing(
    base: nn.Module, layers: Sequence[LayerSpec], sample: tuple[str, Sequence[Batch]]
) -> list[list[LayerSpec]]:
    """The layers by what they are handed, told by the identity of the tensors in one pass."""
    seen: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    task, batches = sample
    with _hooks(base, {name: tensors.append for name, tensors in seen.items()}):
        _forward(base, task, batches[0])
    groups: dict[tuple[object, ...], list[LayerSpec]] = {}
    for layer in layers:
        # All tensors are still held, so that no two share an id.
        key = tuple(map(id, seen[layer.name])) or (layer.name,)
        groups.setdefault(key, []).append(layer)
    return list(groups.values())


def _stream(base: nn.Module, watched: Mapping[str, Covariance], task: str, batches: Sequence[Batch]) -> None:
    for batch in batches:
        add = {name: partial(_add, own, batch.get("attention_mask"), _dtype(base)) for name, own in watched.items()}
        with _hooks(base, add):
            _forward(base, task, batch)


def _add(covariance: Covariance, mask_BL: Tensor | None, dtype: torch.dtype, x: Tensor) -> None:
    """Add the rows of tokens that count."""
    x_ND = x.detach().flatten(0, -2).to(dtype)
    # A pooler has one row a sample.
    if mask_BL is not None and mask_BL.numel() == len(x_ND):
        x_ND = x_ND[mask_BL.flatten().bool().to(x_ND.device)]
    covariance.add(x_ND)


@contextmanager
def _hooks(base: nn.Module, watch: Mapping[str, Callable[[Tensor], None]]) -> Iterator[None]:
    """Within this block, every input of the named modules is shown to their functions."""

    def hook(see: Callable[[Tensor], None], module: nn.Module, args: tuple[Any, ...]) -> None:
        see(args[0])

    handles = [base.get_submodule(name).register_forward_pre_hook(partial(hook, see)) for name, see in watch.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _forward(base: nn.Module, task: str, batch: Batch) -> None:
    was_training = base.training
    base.eval()
    try:
        # Heads per task want to know it.
        with on_task(base, task) if states_of(base) else nullcontext():
            base(**on_device(batch, base))
    finally:
        base.train(was_training)


def on_device(batch: Batch, model: nn.Module) -> dict[str, Any]:
    """A batch with its tensors where the model is."""
    device = next(model.parameters()).device
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def size_of(batch: Batch) -> int:
    """Samples of a batch."""
    return next(len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim())


def _dtype(base: nn.Module) -> torch.dtype:
    floating = next(parameter.dtype for parameter in base.parameters() if parameter.is_floating_point())
    return torch.promote_types(floating, torch.float32)
