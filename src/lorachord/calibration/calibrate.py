"""The front door: a plain model and some inputs of each task in, a calibration out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorachord.calibration.conflict import Loss, measure_conflict, own_loss
from lorachord.calibration.inputs import Batch, Limits, measure_inputs, size_of
from lorachord.core.config import LayerSpec, RankConfig
from lorachord.core.registry import get_method
from lorachord.families.calibrated import Calibrated, FromConflict, FromInputs
from lorachord.messages import suggest
from lorachord.tuner.fingerprint import fingerprint
from lorachord.tuner.peft_config import LorachordConfig
from lorachord.tuner.saved_calibration import TARGETS, Calibration, plain
from lorachord.tuner.targets import infer_task_type, plan
from lorachord.tuner.trained_parts import trained_in_full


def calibrate(
    base: nn.Module,
    method: str,
    *,
    tasks: Sequence[str],
    batches: Mapping[str, Iterable[Batch]],
    max_samples: int = 500,
    limits: Limits | None = None,
    loss: Loss = own_loss,
    **settings: Any,
) -> Calibration:
    """Measure what a method wants to know about its tasks: `lorachord.attach(..., calibration=calibrate(...))`.

    Args:
        base: the plain model; it is left as it was.
        method: name of a method that is fitted to its tasks: `thanora` looks at their inputs, `allot` at the conflict
            of their gradients.
        tasks: ordered, unique task names.
        batches: model inputs (keyword arguments of `base`) of each task; padding is told by `attention_mask`. Where
            gradients are looked at, a step takes two batches of each task, with `labels`.
        max_samples: of each task, the first ones. Default 500.
        limits: of memory; see `Limits`. Default: 2 GiB.
        loss: of a model and a batch of one task, where gradients are looked at. Default: the model's own.
        settings: the method's options, and `target_modules` and its like, as for `attach`.

    Raises:
        ValueError: a method that needs no calibration, batches that do not fit the tasks, or as for `attach`.
    """
    settings.setdefault("task_type", infer_task_type(base))
    config = LorachordConfig.build(method, tasks=list(tasks), **settings)
    cls = get_method(method)
    if not issubclass(cls, Calibrated):
        raise ValueError(f"{method} needs no calibration: attach it as it is.")
    for task in batches:
        config.task_names.index(task)
    for task in tasks:
        if task not in batches:
            raise ValueError(f"There are no batches of the task {task!r}. {suggest(task, batches)}")
    kept = {task: _first(task, batches[task], max_samples) for task in tasks}
    layers = plan(base, config)
    targets = {key: plain(settings[key]) for key in settings.keys() & set(TARGETS)}
    if issubclass(cls, FromInputs):
        found, start, report = _from_inputs(cls, config, base, layers, kept, limits or Limits())
    else:
        assert issubclass(cls, FromConflict)
        (found, report), start = _from_conflict(cls, config, base, layers, kept, loss, targets), {}
    samples = {task: sum(map(size_of, own)) for task, own in kept.items()}
    return Calibration(
        method=method,
        tasks=tuple(tasks),
        settings={**config.options, **targets},
        found=found,
        base_fingerprint=fingerprint(base, layers, trained_in_full(base, config)),
        report={"samples": samples, **report},
        start=start,
    )


def _from_inputs(
    cls: type[FromInputs],
    config: LorachordConfig,
    base: nn.Module,
    layers: Sequence[LayerSpec],
    batches: Mapping[str, Sequence[Batch]],
    limits: Limits,
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Options and start of each layer that saw every task; the others keep the method's own."""
    for layer in layers:
        with _of(layer):
            cls.check(config.options_of(layer), layer, len(batches))
    found: dict[str, dict[str, Any]] = {}
    start: dict[str, dict[str, Tensor]] = {}
    entropies: dict[str, dict[str, float]] = {}
    for group, covariances in measure_inputs(base, layers, batches, limits):
        if not all(covariance.num_rows for covariance in covariances):
            continue
        for layer in group:
            with _of(layer):
                options, tensors = cls.from_inputs(
                    config.options_of(layer), _weight(base.get_submodule(layer.name)), covariances
                )
            for name, value in options.items():
                found.setdefault(name, {})[layer.name] = plain(value)
            if tensors:
                start[layer.name] = tensors
            entropies[layer.name] = {task: own.entropy for task, own in zip(batches, covariances, strict=True)}
    return found, start, {"entropies": entropies}


@contextmanager
def _of(layer: LayerSpec) -> Iterator[None]:
    """Within this block, a ValueError names the layer."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{layer.name}: {error}") from None


def _from_conflict(
    cls: type[FromConflict],
    config: LorachordConfig,
    base: nn.Module,
    layers: Sequence[LayerSpec],
    batches: Mapping[str, Sequence[Batch]],
    loss: Loss,
    targets: Mapping[str, Any],
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    options = config.method_config
    assert isinstance(options, RankConfig)
    conflict = measure_conflict(
        base,
        batches,
        steps=config.options["warmup_steps"],
        learning_rate=config.options["warmup_learning_rate"],
        level=config.options["level"],
        loss=loss,
        r=config.options["r"],
        alpha=config.options["alpha"],
        **targets,
    )
    modules = conflict.of_modules()
    found = cls.from_conflict(options, {layer: modules[layer.name] for layer in layers}, len(batches))
    return found, {"conflict": modules, "pairs": conflict.of_pairs().tolist()}


def _weight(module: nn.Module) -> Tensor:
    """W0 (O, D), at least float32."""
    # What torchao's backend asks for is used to write weights alone.
    backend = resolve_quantization_backend(module, get_apply_tensor_subclass=lambda: None)
    weight = module.get_parameter("weight") if backend is None else backend.get_base_weight(module)
    weight = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    return weight.t() if isinstance(module, Conv1D) else weight


def _first(task: str, batches: Iterable[Batch], max_samples: int) -> list[Batch]:
    """The batches that hold the first samples, the last of them cut."""
    kept, room = [], max_samples
    for batch in batches:
        size = size_of(batch)
        if size > room:
            batch = {
                key: value[:room] if isinstance(value, Tensor) and value.dim() and len(value) == size else value
                for key, value in batch.items()
            }
        kept.append(batch)
        room -= size
        if room <= 0:
            break
    if not kept:
        raise ValueError(f"The task {task!r} has no batches.")
    return kept
