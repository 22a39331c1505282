"""Which experts, factors or clusters each task's prompts use, for every method that chooses by its input.

Usage is `router_load`'s, over the tokens (of MixLoRA and of MoR1E's clusters, over the prompts) of one task at a time.

Shapes: B samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from lorachord.runs.inspect.figure import Array, Figure, Rows, by_kind, mean, number
from lorachord.tuner import on_task, router_load
from lorachord.tuner.walk import states_of

ALIKE = 0.1
APART = 0.5
GROUPS = {"mixlora": ("factors a", "factors b"), "mor1e": ("token gates", "prompt clusters")}
"""The names of the groups, where they are not routers that are alike."""
EMBEDDING = "embedding"


@final
@dataclass(frozen=True)
class Routing(Figure):
    """The usage of up to E experts by T tasks, in up to G routers of each of L layers.

    Attributes:
        tasks: T names.
        layers: L names.
        groups: G names, of routers or of the things that are chosen.
        usage: shares of choices, of a dense router its mean gates, (L, T, G, E); NaN where a layer has fewer.
        halves: the same of either half of the rows, (2, L, T, G, E); NaN where a task has one batch alone.
    """

    name = "routing"
    title = "Experts that each task's prompts use"
    meaning = (
        "The difference of two tasks is the share of choices that would have to change for both to use the same: 0 "
        f"with the same experts, 1 with none in common. Below {ALIKE} the router does not tell the tasks apart; above "
        f"{APART} it gives them mostly experts of their own, as every mixture's paper hopes. Two halves of one task's "
        "rows differ by chance alone: only a larger difference is one of tasks. Experts in use is exp(entropy) of the "
        "usage: 1 where one expert does all, E where all do the same."
    )

    tasks: tuple[str, ...]
    layers: tuple[str, ...]
    groups: tuple[str, ...]
    usage: Array
    halves: Array

    @property
    def distances(self) -> Array:
        """Half the sum of the differences of two tasks' usage, (L, G, T, T)."""
        by_group = self.usage.swapaxes(1, 2)
        return _distance(by_group[:, :, :, None], by_group[:, :, None])

    @property
    def chance(self) -> Array:
        """The same of the two halves of a task's rows, in the mean over tasks, (L, G)."""
        found: Array = mean(_distance(self.halves[0], self.halves[1]), axis=1)
        return found

    @property
    def in_use(self) -> Array:
        """exp(entropy) of the usage, (L, T, G)."""
        entropy = -np.nansum(self.usage * np.log(np.where(self.usage > 0, self.usage, 1)), axis=-1)
        return np.where(np.isnan(self.usage[..., 0]), np.nan, np.exp(entropy))

    @property
    def num_experts(self) -> Array:
        """E of each layer and router, (L, G); 0 where there is none."""
        counts: Array = (~np.isnan(self.usage[:, 0])).sum(-1)
        return counts

    @property
    def between_tasks(self) -> Array:
        """The mean difference of two tasks, (L, G); NaN of one task."""
        off = ~np.eye(len(self.tasks), dtype=bool)
        found: Array = mean(self.distances[:, :, off], axis=2)
        return found

    @property
    def words(self) -> str:
        told = []
        for group, of in self._told().items():
            own, chance = float(mean(self.between_tasks[:, of])), float(mean(self.chance[:, of]))
            used, most = float(mean(self.in_use[:, :, of])), float(mean(self.num_experts[:, of]))
            told.append(f"{group[0].upper()}{group[1:]}: {used:.1f} of {most:.1f} are in use. {_verdict(own, chance)}")
        return " ".join(told)

    def rows(self) -> Rows:
        made = [["layers", "", "of", "differ", "chance", "in use", "experts"]]
        for kind, places in by_kind(self.layers).items():
            for group, of in self._told().items():
                cells = [number(float(mean(values[places][:, of]))) for values in (self.between_tasks, self.chance)]
                used = number(float(mean(self.in_use[places][:, :, of])), 1)
                most = np.unique(self.num_experts[places][:, of])
                experts = str(most[0]) if len(most) == 1 else f"{most[0]} to {most[-1]}"
                made.append([kind, str(len(places)), group, *cells, used, experts])
        return made

    def _told(self) -> dict[str, slice]:
        """The groups that are told of: routers that are alike are told of together."""
        if self.groups not in GROUPS.values():
            return {"experts": slice(None)}
        return {group: slice(at, at + 1) for at, group in enumerate(self.groups)}

    def summary(self) -> dict[str, Any]:
        def by_group(values: Any) -> dict[str, Any]:
            return dict(zip(self.groups, values.tolist(), strict=True))

        return {
            "tasks": list(self.tasks),
            "between_tasks": by_group(mean(self.between_tasks, axis=0)),
            "by_chance": by_group(mean(self.chance, axis=0)),
            "in_use": by_group(mean(self.in_use, axis=(0, 1))),
            "distances": by_group(mean(self.distances, axis=0)),
            "layers": len(self.layers),
        }

    def arrays(self) -> dict[str, Array]:
        derived = {"distances": self.distances, "in_use": self.in_use, "chance": self.chance}
        return {**super().arrays(), **derived}


def routing(model: nn.Module, batches: Mapping[str, Sequence[Mapping[str, Any]]]) -> Routing:
    """One pass over the batches of each task, in eval mode; what `router_load` has counted before is forgotten.

    Args:
        model: with an adapter that routes by its input.
        batches: of each task the model's inputs (B, ...); with `embedding` (B, F) for an adapter that looks at it and
            is not to make it. Prompts alone, where the usage is to be that of prompts.

    Raises:
        ValueError: no task, a task without batches, or an adapter that chooses nothing.
    """
    empty = [task for task, own in batches.items() if not own]
    if empty or not batches:
        raise ValueError(f"There are no batches of {', '.join(empty) or 'any task'}: give each task its prompts.")
    was_training, device = model.training, next(model.parameters()).device
    found: list[list[dict[str, Array]]] = []
    router_load(model, forget=True)
    model.eval()
    try:
        with torch.no_grad():
            for task, own in batches.items():
                halves = [own[::2], own[1::2]]
                found.append([_load(model, task, half, device) for half in halves])
    finally:
        model.train(was_training)
    sizes = [[sum(map(_size, own[half::2])) for half in (0, 1)] for own in batches.values()]
    return _figure(tuple(batches), found, np.array(sizes), _groups(model))


def _load(model: nn.Module, task: str, batches: Sequence[Mapping[str, Any]], device: torch.device) -> dict[str, Array]:
    for batch in batches:
        inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        embedding = inputs.pop(EMBEDDING, None)
        with _on_task(model, task, embedding):
            model(**inputs)
    return {name: load.float().cpu().numpy() for name, load in router_load(model, forget=True).items()}


def _on_task(model: nn.Module, task: str, embedding: Tensor | None) -> AbstractContextManager[None]:
    return on_task(model, task, embedding=embedding) if states_of(model) else nullcontext()


def _size(batch: Mapping[str, Any]) -> int:
    return next(len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim())


def _groups(model: nn.Module) -> tuple[str, ...]:
    config: Any = model.peft_config[model.active_adapter]  # type: ignore[index]
    return GROUPS.get(getattr(config, "method", ""), ())


def _figure(
    tasks: tuple[str, ...], found: list[list[dict[str, Array]]], sizes_T2: Array, groups: tuple[str, ...]
) -> Routing:
    layers = tuple(found[0][0])
    if not layers:
        raise ValueError("The adapter has no router: it uses all of itself for every prompt.")
    # A single router is a group too.
    loads = [[{name: np.atleast_2d(load) for name, load in half.items()} for half in own] for own in found]
    num_groups, num_experts = (max(loads[0][0][name].shape[axis] for name in layers) for axis in (0, 1))
    halves = np.full((2, len(layers), len(tasks), num_groups, num_experts), np.nan)
    for task, own in enumerate(loads):
        for half, by_layer in enumerate(own):
            for name, load in by_layer.items():
                halves[half, layers.index(name), task, : load.shape[0], : load.shape[1]] = load
    weights = sizes_T2.T / sizes_T2.sum(1)
    weighted = np.where(np.isnan(halves), 0, halves) * weights[:, None, :, None, None]
    usage = np.where(np.isnan(halves[0]), np.nan, weighted.sum(0))
    named = groups or (("router",) if num_groups == 1 else tuple(f"router {at}" for at in range(num_groups)))
    return Routing(tasks, layers, named, usage, halves)


def _distance(one: Array, other: Array) -> Array:
    difference = np.abs(one - other)
    distance: Array = np.nansum(difference, axis=-1) / 2
    return np.where(np.isnan(difference[..., 0]), np.nan, distance)


def _verdict(own: float, chance: float) -> str:
    if np.isnan(own):
        return "There is one task."
    shown = f"Tasks differ by {own:.2f}, halves of one task by {chance:.2f}" if chance == chance else f"{own:.2f}"
    if chance >= own:
        return f"{shown}: no more than chance."
    if own < ALIKE:
        return f"{shown}: the router hardly tells them apart."
    return f"{shown}: {'they have mostly experts of their own' if own > APART else 'they share most experts'}."
