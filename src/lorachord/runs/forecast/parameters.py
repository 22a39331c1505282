"""The trainable parameters of a recipe by method and by task, counted without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from lorachord.baselines import BASELINES, BaselineConfig
from lorachord.core.budget import count_parameters
from lorachord.core.config import LayerSpec, MethodConfig
from lorachord.core.registry import all_methods, get_method
from lorachord.heads import head_name, heads_of
from lorachord.runs.recipe import Recipe
from lorachord.tuner import target_layers

SELECTION = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
SHARED_HEAD = "all tasks"


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Trainable parameters under one method.

    Attributes:
        method: its name.
        options: that were counted with; what is not there has its default.
        adapter: of the low-rank adapter; None where the method does not take the options.
        routers: of these, in routers.
        each_task: of these, what one task more would add; None where that cannot be counted.
        heads: of each task's head by the task's name, or of the one that `all tasks` share; empty for a decoder.
        others: in modules that are trained in full.
        runs: how often there is an adapter: 1, or in mode single once a task.
        refused: why the method does not take the options; empty where it does.
    """

    method: str
    options: Mapping[str, Any]
    adapter: int | None
    routers: int | None
    each_task: int | None
    heads: Mapping[str, int]
    others: int
    runs: int
    refused: str = ""

    @property
    def total(self) -> int | None:
        """All trainable parameters, over all runs."""
        return None if self.adapter is None else self.runs * (self.adapter + self.others) + sum(self.heads.values())


def config_class(method: str) -> type[MethodConfig]:
    """The class of a method's options, or of a baseline's."""
    return BaselineConfig if method in BASELINES else get_method(method).Config


def options_of(recipe: Recipe) -> dict[str, Any]:
    """The options of a recipe's method, without what says where the adapter sits."""
    known = {spec.name for spec in fields(config_class(recipe.method["name"]))}
    return {name: value for name, value in recipe.method.items() if name in known}


def rank_of(recipe: Recipe, method: str) -> dict[str, Any]:
    """The recipe's rank as an option of another method; nothing where one of the two has none."""
    takes = any(spec.name == "r" for spec in fields(config_class(method)))
    return {"r": recipe.method["r"]} if takes and "r" in recipe.method else {}


def adapted_layers_of(recipe: Recipe, base: nn.Module) -> list[LayerSpec]:
    """The layers that a recipe's adapter would sit on.

    Args:
        base: plain, with its heads; it may be on the meta device.

    Raises:
        ValueError: targets that match nothing.
    """
    return target_layers(base, **{name: recipe.method[name] for name in SELECTION if name in recipe.method})


def parameters_of(
    recipe: Recipe, base: nn.Module, layers: Sequence[LayerSpec], tasks: Sequence[str]
) -> tuple[Parameters, ...]:
    """The count for the recipe's method, and for each other registered method at the recipe's rank.

    Args:
        base: plain, with its heads; it may be on the meta device.
        layers: of `adapted_layers_of`.
        tasks: names.

    Returns:
        The recipe's own first.
    """
    own = recipe.method["name"]
    asked = {own: options_of(recipe)} | {
        name: rank_of(recipe, name) for name in (*all_methods(), *BASELINES) if name != own
    }
    heads, others = _heads(recipe, base, tasks), _others(recipe, base)
    runs = len(tasks) if recipe.mode in ("single", "fused") else 1
    return tuple(_counted(name, options, layers, heads, others, runs, len(tasks)) for name, options in asked.items())


def _counted(
    method: str,
    options: Mapping[str, Any],
    layers: Sequence[LayerSpec],
    heads: Mapping[str, int],
    others: int,
    runs: int,
    num_tasks: int,
) -> Parameters:
    in_one = num_tasks // runs
    shared: dict[str, Any] = {"method": method, "options": options, "heads": heads, "others": others, "runs": runs}
    try:
        count = count_parameters(method, layers, num_tasks=in_one, options=options)
    except ValueError as error:
        return Parameters(**shared, adapter=None, routers=None, each_task=None, refused=str(error))
    try:
        further = count_parameters(method, layers, num_tasks=in_one + 1, options=options)
        more: int | None = further.total - count.total
    except ValueError:
        # Some options hold one value for each task.
        more = None
    return Parameters(**shared, adapter=count.total, routers=count.routers, each_task=more)


def _heads(recipe: Recipe, base: nn.Module, tasks: Sequence[str]) -> dict[str, int]:
    if recipe.model.kind == "decoder":
        return {}
    found = heads_of(base)
    if found is not None:
        return {task: _size(found[1].of(task)) for task in tasks}
    own = _size(base.get_submodule(head_name(base)))
    return dict.fromkeys(tasks, own) if recipe.mode in ("single", "fused") else {SHARED_HEAD: own}


def _others(recipe: Recipe, base: nn.Module) -> int:
    names = recipe.method.get("modules_to_save") or ()
    found = [module for path, module in base.named_modules() if path.rpartition(".")[2] in names]
    return sum(map(_size, found))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
