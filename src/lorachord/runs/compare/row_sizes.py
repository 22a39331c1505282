"""How large the adapter of each row is: options that meet the budget of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from lorachord.core.budget import count_parameters
from lorachord.core.config import LayerSpec
from lorachord.runs.compare.compared_rows import HIGH, HIGH_RANK, Row
from lorachord.runs.compare.fitting import fitted
from lorachord.runs.recipe import Recipe

Budget = Literal["equal", "own"]
BESIDE = (
    *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"),
    "align",
)
"""Keys of a recipe's method on which no number of parameters of a layer depends."""


def with_parameters(
    rows: Sequence[Row], recipe: Recipe, layers: Sequence[LayerSpec], num_tasks: int, kind: Budget
) -> tuple[list[Row], dict[str, tuple[int, float]]]:
    """The rows with options that meet the budget, and the parameters of each with these over the budget, by name.

    Args:
        layers: that are adapted.
        num_tasks: of the comparison.
        kind: `equal`, or each row's `own`.

    Raises:
        ValueError: no rank of a row meets the budget.
    """
    reference, given = recipe.method["name"], {key: value for key, value in recipe.method.items() if key != "name"}
    budget = _counted(reference, layers, num_tasks, given)
    widest = min(min(layer.d_in, layer.d_out) for layer in layers)
    made, parameters = [], {}
    for row in rows:
        name, options = row.method["name"], {key: value for key, value in row.method.items() if key != "name"}
        if row.name == HIGH_RANK:
            # As high as the layers let it be.
            whole = fitted(name, layers, budget, num_tasks=num_tasks, options=_without_rank(options)).options["r"]
            options["r"] = (
                [min(HIGH * r, widest) for r in whole] if isinstance(whole, list) else min(HIGH * whole, widest)
            )
        elif kind == "equal":
            # The reference's own rank is the budget, and any other method's is found.
            beside = {key: value for key, value in options.items() if key in BESIDE}
            own = {key: value for key, value in options.items() if key not in BESIDE}
            options = {**fitted(name, layers, budget, num_tasks=num_tasks, options=own).options, **beside}
        total = _counted(name, layers, num_tasks, options)
        made.append(replace(row, method={"name": name, **options}))
        parameters[row.name] = (total, total / budget)
    return made, parameters


def _without_rank(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "r"}


def _counted(name: str, layers: Sequence[LayerSpec], num_tasks: int, options: Mapping[str, Any]) -> int:
    own = {key: value for key, value in options.items() if key not in BESIDE}
    return count_parameters(name, layers, num_tasks=num_tasks, options=own).total
