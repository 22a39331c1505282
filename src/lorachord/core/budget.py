"""Equal parameters: what an adapter costs, and which rank spends a budget. Counted on the meta device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorachord.core.layer import LayerSpec
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


def count_parameters(
    method: str, layers: Sequence[LayerSpec], *, num_tasks: int = 0, options: Mapping[str, Any] | None = None
) -> Count:
    """Count an adapter's trainable parameters without making it.

    Args:
        method: name of a registered method.
        layers: the layers that it would adapt.
        num_tasks: T.
        options: the method's options, as for `LorachordConfig`.
    """
    cls = get_method(method)
    config = cls.Config.from_dict(options or {})
    tasks = TaskNames(tuple(str(task) for task in range(num_tasks)))
    counts = {"factors": 0, "routers": 0, "cores": 0}
    with torch.device("meta"):
        for layer in layers:
            for name, parameter in cls(layer, config, tasks).named_parameters():
                first = name.partition(".")[0]
                kind = "factors" if first in ("down", "up") else "routers" if "router" in first else "cores"
                counts[kind] += parameter.numel()
    return Count(**counts)


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
        method: name of a registered method whose config has a rank `r`.
        layers: the layers to adapt.
        target: trainable parameters, over all layers.
        num_tasks: T.
        options: the method's other options.

    Returns:
        The nearest rank, from the smallest that the method can have to its largest or the narrowest layer's width, with
        its count; see `Fit.error` for how near it is.

    Raises:
        ValueError: the smallest rank has more than twice the target already (routers and cores alone may exceed it), or
            there are no layers.
    """
    if not layers:
        raise ValueError("There are no layers to count.")

    def count_at(r: int) -> Count:
        return count_parameters(method, layers, num_tasks=num_tasks, options={**(options or {}), "r": r})

    low = get_method(method).smallest_rank(num_tasks)
    largest = get_method(method).largest_rank(options or {})
    high = min(min(layer.d_in, layer.d_out) for layer in layers)
    high = high if largest is None else min(high, largest)
    smallest = count_at(low)
    if smallest.total > 2 * target:
        raise ValueError(
            f"{method} has {smallest.total:,} parameters at rank {low} ({smallest.routers:,} in routers, "
            f"{smallest.cores:,} in cores), more than twice the {target:,} asked for: take fewer experts or layers, "
            "or a larger budget."
        )
    # The count grows with the rank: find the last rank that does not exceed the target.
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count_at(middle).total <= target else (low, middle - 1)
    candidates = [Fit(r, count_at(r), target) for r in (low, low + 1) if largest is None or r <= largest]
    return min(candidates, key=lambda fit: abs(fit.error))
