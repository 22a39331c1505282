"""The plan of a comparison: its rows, seeds and rates, decided before the first trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lorachord.data.task import Task
from lorachord.messages import suggest
from lorachord.runs.checks import check
from lorachord.runs.compare.compared_rows import (
    FRONT_RATIO,
    HIGH_RANK,
    NAMED,
    REFERENCE,
    SINGLE,
    UNTRAINED,
    Row,
    front_rows,
    parse_row,
    standing_rows,
)
from lorachord.runs.compare.row_sizes import Budget, with_parameters
from lorachord.runs.model import load_plain
from lorachord.runs.recipe import Recipe, recipe_from
from lorachord.tuner import target_layers

Claim = tuple[str, str]
"""Two rows, of which the first is claimed to differ from the second."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """
    Attributes:
        recipe: what all rows share.
        rows: the reference among them.
        seeds: of the runs, the same for every row; rates are chosen with the first.
        rates: to choose from; None for a ladder around the recipe's, which grows.
        claims: the differences that are tested, and corrected for their number.
        effect: the smallest difference of means that would matter.
        threads: of each trial.
        data_dir: as for `train`.
        parameters: of each row's adapter, without heads, and these over the budget; by name.
        ratios: of the front; see `compared_rows.front_rows`.
    """

    recipe: Recipe
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...] | None
    claims: tuple[Claim, ...]
    effect: float
    threads: int
    data_dir: str | None
    parameters: Mapping[str, tuple[int, float]]
    ratios: tuple[float, ...] = (FRONT_RATIO,)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Those of the recipe."""
        return self.recipe.tasks.chosen()

    def row(self, name: str) -> Row:
        """A row by its name."""
        return next(row for row in self.rows if row.name == name)

    def front_rows(self) -> tuple[Row, ...]:
        """The points of the front of fixed task weights; see `compared_rows.front_rows`.

        There are none where tasks are learned one after the other.
        """
        if any(row.mode == "sequence" for row in self.rows):
            return ()
        names = [task.name for task in self.tasks]
        return front_rows(self.row(REFERENCE), names, self.recipe.tasks.weights, self.ratios)

    def any_row(self, name: str) -> Row:
        """A row or a point of the front by its name."""
        return next(row for row in (*self.rows, *self.front_rows()) if row.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `sweep.json` holds them; `from_dict` takes them back. Where the data lie is left out."""
        plain = asdict(replace(self, recipe=None, data_dir=None))  # type: ignore[arg-type]
        if self.ratios == (FRONT_RATIO,):
            # Comparisons that were begun without a choice of ratios go on.
            del plain["ratios"]
        return {**plain, "recipe": self.recipe.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Plan:
        """From `to_dict`."""
        rates = plain["rates"]
        return cls(
            **{
                **plain,
                "recipe": recipe_from(plain["recipe"]),
                "rows": tuple(Row(**row) for row in plain["rows"]),
                "seeds": tuple(plain["seeds"]),
                "rates": None if rates is None else tuple(rates),
                "claims": tuple((first, second) for first, second in plain["claims"]),
                "ratios": tuple(plain.get("ratios", (FRONT_RATIO,))),
                "parameters": {name: (count, share) for name, (count, share) in plain["parameters"].items()},
            }
        )


def make_plan(
    recipe: Recipe,
    methods: Sequence[str],
    *,
    seeds: int = 3,
    rates: Sequence[float] | None = None,
    budget_kind: Budget = "equal",
    claims: Sequence[str] = (),
    effect: float = 0.02,
    threads: int = 1,
    data_dir: str | Path | None = None,
    ratios: Sequence[float] = (FRONT_RATIO,),
) -> Plan:
    """A plan, with every row checked as a recipe of its own is.

    Args:
        recipe: the base, the tasks and all that the rows share. Its method, with its rank, is the budget. Of mode
            `sequence`, it adds rows; see `standing_rows`.
        methods: rows as `parse_row` reads them; the standing rows are added.
        seeds: how many; they are 0, 1, 2, ... after the recipe's own.
        rates: see `Plan`. Default: a ladder.
        budget_kind: `equal`: options are solved for, so that all rows have as many parameters as the recipe's method,
            within 2 %. `own`: options stay as they are.
        claims: `A:B`, two rows each. Default: every method against the reference.
        effect: see `Plan`. Default 0.02.
        threads, data_dir, ratios: see `Plan`.

    Raises:
        ValueError: an unknown row or claim, a budget that no rank meets, a recipe that cannot be compared.
    """
    _check_recipe(recipe, seeds, rates, effect)
    if any(not 0 < ratio < float("inf") or ratio == 1 for ratio in ratios) or len(set(ratios)) != len(ratios):
        raise ValueError("--weights takes different numbers above 0 and other than 1, as in 2,4,8.")
    asked = [parse_row(text, recipe) for text in methods]
    rows = list(standing_rows(recipe))
    recipe = replace(recipe, mode="joint")
    rows += [row for row in asked if row.name not in {row.name for row in rows}]
    repeated = sorted({row.name for row in asked if [other.name for other in asked].count(row.name) > 1})
    if repeated:
        raise ValueError(f"Named twice among the methods: {', '.join(repeated)}.")
    tasks = recipe.tasks.chosen()
    if len(tasks) < 2:
        raise ValueError("A comparison of multi-task methods needs at least two tasks.")
    base, _ = load_plain(recipe, tasks)
    kept = {key: value for key, value in recipe.method.items() if key in ("target_modules", "exclude_modules")}
    layers = target_layers(base, **kept)
    rows, parameters = with_parameters(rows, recipe, layers, len(tasks), budget_kind)
    for row in rows:
        try:
            check(row.recipe(recipe, rate=None, seed=recipe.seed), tasks)
        except ValueError as error:
            raise ValueError(f"{row.name}: {error}") from None
    names = [row.name for row in rows]
    return Plan(
        recipe=recipe,
        rows=tuple(rows),
        seeds=tuple(range(recipe.seed, recipe.seed + seeds)),
        rates=None if rates is None else tuple(sorted(rates)),
        claims=tuple(_claim(text, names) for text in claims) or _default_claims(names),
        effect=effect,
        threads=threads,
        data_dir=None if data_dir is None else str(Path(data_dir).expanduser().absolute()),
        parameters=parameters,
        ratios=tuple(ratios),
    )


def _check_recipe(recipe: Recipe, seeds: int, rates: Sequence[float] | None, effect: float) -> None:
    if (
        recipe.mode not in ("joint", "sequence")
        or recipe.surgery is not None
        or recipe.balance is not None
        or recipe.tasks.name_in_text
    ):
        raise ValueError(
            "The recipe of a comparison is that of joint LoRA: leave out mode, surgery, balance and name_in_text. Rows "
            "have them: --methods lora+ortho_lora,lora+running_scale. Mode sequence alone may stay."
        )
    if recipe.start_from is not None:
        raise ValueError("start_from: the rows of a comparison begin with new adapters.")
    if seeds < 1:
        raise ValueError(f"--seeds is {seeds}; it must be at least 1, and 2 for intervals.")
    for rate in rates or ():
        if not 0 < rate < float("inf"):
            raise ValueError(f"--rates has {rate:g}; a learning rate is above 0.")
    if rates is not None and len(set(rates)) != len(rates):
        raise ValueError("--rates names a rate twice.")
    if not effect > 0:
        raise ValueError(f"--effect is {effect:g}; the smallest difference that matters is above 0.")


def _claim(text: str, names: Sequence[str]) -> Claim:
    parts = text.split(":")
    if len(parts) != 2:
        raise ValueError(f"A claim is two rows, as in mtl_lora:lora; got {text!r}.")
    for part in parts:
        if part not in names or part == UNTRAINED:
            known = [name for name in names if name != UNTRAINED]
            raise ValueError(f"The claim {text!r} names {part!r}, which is no row. {suggest(part, known)}")
    if parts[0] == parts[1]:
        raise ValueError(f"The claim {text!r} compares a row with itself.")
    return parts[0], parts[1]


def _default_claims(names: Sequence[str]) -> tuple[Claim, ...]:
    """Every joint row against the reference; tasks alone are the gap, which is reported apart."""
    order = [NAMED, HIGH_RANK, *(name for name in names if name not in (NAMED, HIGH_RANK))]
    return tuple((name, REFERENCE) for name in order if name not in (UNTRAINED, REFERENCE, SINGLE))
