"""Equal parameters: what an adapter costs, and which rank spends a budget. Counted on the meta device."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorachord.core.config import LayerSpec
from lorachord.core.registry import get_method
from lorachord.core.tasks import TaskNames


@dataclass(frozen=True, slots=True)
class Count:
    """Trainable parameters of an adapter over all its layers.

    Attributes:
        factors: in the low-rank factors, `down` and `up`.
        routers: in routers.
        cores: in all else (per-task matrices, mixtures, scales).
    """

    factors: int
    routers: int
    cores: int

    @property
    def total(self) -> int:
        """All trainable parameters."""
        return self.factors + self.routers + self.cores


@dataclass(frozen=True, slots=True)
class Fit:
    """The answer of `fit_rank`.

    Attributes:
        r: the rank.
        count: what the adapter has at that rank.
        target: what was asked for.
    """

    r: int
    count: Count
    target: int

    @property
    def error(self) -> float:
        """Relative deviation from the target; 0 where it is met exactly."""
        return self.count.total / self.target - 1


Counter = Callable[[LayerSpec, Mapping[str, Any]], Count]
_COUNTERS: dict[str, Counter] = {}


def register_counter(name: str, counter: Counter) -> None:
    """Let what is no method of ours be counted: `counter` tells one layer's parameters from the layer and options."""
    _COUNTERS[name] = counter


def count_parameters(
    method: str, layers: Sequence[LayerSpec], *, num_tasks: int = 0, options: Mapping[str, Any] | None = None
) -> Count:
    """Count an adapter's trainable parameters without making it.

    Args:
        method: name of a registered method, or of a baseline of PEFT's.
        layers: the layers that it would adapt.
        num_tasks: T.
        options: the method's options, as for `LorachordConfig`.
    """
    counter = _COUNTERS.get(method) or _counter_of(method, num_tasks)
    counts = [counter(layer, options or {}) for layer in layers]
    return Count(*(sum(getattr(count, kind) for count in counts) for kind in ("factors", "routers", "cores")))


def _counter_of(method: str, num_tasks: int) -> Counter:
    cls = get_method(method)
    tasks = TaskNames(tuple(str(task) for task in range(num_tasks)))

    def counter(layer: LayerSpec, options: Mapping[str, Any]) -> Count:
        counts = {"factors": 0, "routers": 0, "cores": 0}
        with torch.device("meta"):
            for name, parameter in cls(layer, cls.Config.from_dict(options), tasks).named_parameters():
                first = name.partition(".")[0]
                kind = "factors" if first in ("down", "up") else "routers" if "router" in first else "cores"
                counts[kind] += parameter.numel()
        return Count(**counts)

    return counter


def _ranks(method: str, layer: LayerSpec, width: int, num_tasks: int, options: Mapping[str, Any]) -> Sequence[int]:
    """The ranks up to a width that go with the other options, in rising order.

    Raises:
        ValueError: none does.
    """
    if method in _COUNTERS:
        return range(1, width + 1)
    config = get_method(method).Config
    fitting: list[int] = []
    for r in range(1, width + 1):
        try:
            config.from_dict({**options, "r": r})
            # A layer may ask for more than the options do, such as a rank for each task: the smallest that it takes.
            if not fitting:
                count_parameters(method, [layer], num_tasks=num_tasks, options={**options, "r": r})
        except ValueError as error:
            refused = error
        else:
            fitting.append(r)
    if not fitting:
        raise refused
    return fitting


def fit_rank(
    method: str,
    layers: Sequence[LayerSpec],
    target: int,
    *,
    num_tasks: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Fit:
    """The rank whose total, routers included, comes nearest to `target` parameters.

    Args:
        method: name of a registered method whose config has a rank `r`, or of a baseline of PEFT's.
        layers: the layers to adapt.
        target: trainable parameters, over all layers.
        num_tasks: T.
        options: the method's other options.

    Returns:
        The nearest of the ranks that go with the options and the narrowest layer's width, with its count; see
        `Fit.error` for how near it is.

    Raises:
        ValueError: the smallest rank has more than twice the target already (routers and cores alone may exceed it), or
            there are no layers.
    """
    if not layers:
        raise ValueError("There are no layers to count.")
    options, width = dict(options or {}), min(min(layer.d_in, layer.d_out) for layer in layers)
    ranks = _ranks(method, layers[0], width, num_tasks, options)

    def fit_at(place: int) -> Fit:
        r = ranks[place]
        return Fit(r, count_parameters(method, layers, num_tasks=num_tasks, options={**options, "r": r}), target)

    smallest = fit_at(0)
    if smallest.count.total > 2 * target:
        raise ValueError(
            f"{method} has {smallest.count.total:,} parameters at rank {smallest.r} ({smallest.count.routers:,} in "
            f"routers, {smallest.count.cores:,} in cores), more than twice the {target:,} asked for: take fewer "
            "experts or layers, or a larger budget."
        )
    # The count grows with the rank: the nearest is the last that does not exceed the target, or the one after it.
    above = bisect_right(range(len(ranks)), target, key=lambda place: fit_at(place).count.total)
    return min(
        (fit_at(place) for place in {max(above - 1, 0), min(above, len(ranks) - 1)}), key=lambda fit: abs(fit.error)
    )
