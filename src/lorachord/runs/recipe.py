"""A recipe: everything that decides what a run computes, as one typed tree, which YAML writes down.

Only where data and output lie is said on the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from lorachord.runs.parts import STRICT, EvaluationPart, MixturePart, ModelPart, TasksPart, TrainingPart
from lorachord.runs.strict import build, dump_yaml, load_yaml, with_settings


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """
    Args:
        model: the base.
        tasks: what to train on.
        method: `name`, and the method's options beside it (`lorachord methods --json` prints them); the fields of
            `LorachordConfig`, such as `target_modules`, as well.
        mixture, training, evaluation: see there.
        surgery: what to do with the tasks' gradients, before clipping: `rule` (ortho_lora, ...), `granularity` (factor,
            role, global) and the rule's options; see `surgery/surgeon.py`. Default: none, their plain sum.
        balance: what to weigh the tasks' losses by, beside `tasks.weights`: `name` (running_scale, uncertainty, ...)
            and the balance's options; see `balance/make.py`. Default: none, equally. With one task there is none.
        mode: `joint` (default), or `single`: the same once for each task alone, as a baseline. A single run of
            `max_steps` gives each task its share of them, so that it sees as many rows as in the joint run.
        seed: of initial weights, order and dropout. Default 0.
    """

    model: ModelPart
    tasks: TasksPart
    method: dict[str, Any] = field(default_factory=lambda: {"name": "lora"})
    mixture: MixturePart = field(default_factory=MixturePart)
    training: TrainingPart = field(default_factory=TrainingPart)
    evaluation: EvaluationPart = field(default_factory=EvaluationPart)
    surgery: dict[str, Any] | None = None
    balance: dict[str, Any] | None = None
    mode: Literal["joint", "single"] = "joint"
    seed: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        if not isinstance(self.method.get("name"), str):
            raise ValueError("method needs a name, as in {name: mtl_lora, r: 8}.")
        if self.surgery is not None:
            if not isinstance(self.surgery.get("rule"), str):
                raise ValueError("surgery needs a rule, as in {rule: ortho_lora, granularity: factor}.")
            if self.mixture.batches == "one_task" and self.training.accumulation == 1:
                raise ValueError("surgery has nothing to do in batches of one task: set mixture.batches to mixed.")

        if self.balance is not None and not isinstance(self.balance.get("name"), str):
            raise ValueError("balance needs a name, as in {name: running_scale}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data with every default written out; `recipe_from` takes it back."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    def to_yaml(self) -> str:
        """The same as YAML."""
        return dump_yaml(self.to_dict())


def recipe_from(tree: Any, where: str = "the recipe", settings: Sequence[str] = ()) -> Recipe:
    """A recipe from plain data.

    Args:
        where: what the data are, for errors.
        settings: `a.b=value`, as from `--set`.

    Raises:
        ValueError: unknown keys (with the nearest), values of a wrong type or range, with their paths.
    """
    if not isinstance(tree, dict):
        raise ValueError(f"{where} must be a mapping with model, tasks, method, ...; found {type(tree).__name__}.")
    return build(Recipe, with_settings(tree, settings), where)


def read_recipe(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """A recipe from a YAML file; arguments and errors as `recipe_from`.

    Raises:
        ValueError: no such file, or no UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        beside = sorted(file.name for file in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ValueError(f"There is no recipe {path}. In that folder: {', '.join(beside) or 'no .yaml file'}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8.") from None
    return recipe_from(load_yaml(text, str(path)), str(path), settings)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
