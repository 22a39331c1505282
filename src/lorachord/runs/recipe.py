"""A recipe: everything that decides what a run computes, as one typed tree, which YAML writes down.

Only where data and output lie is said on the command line. Paths in a file start from the folder of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from lorachord.core.registry import all_methods
from lorachord.data.files import SUFFIXES
from lorachord.data.task import Task
from lorachord.hub import absolute, local_path, on_hub
from lorachord.models.resolve import model_folder
from lorachord.runs.class_names import name_classes, read_names
from lorachord.runs.parts import STRICT, EvaluationPart, MixturePart, ModelPart, Seed, TasksPart, TrainingPart
from lorachord.runs.strict import build, dump_yaml, load_yaml, with_settings


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """
    Args:
        model: the base.
        tasks: what to train on.
        method: `name`, and the method's options beside it (`lorachord methods --json` prints them); the fields of
            `LorachordConfig`, such as `target_modules`, as well, and with them the penalty `align`.
        mixture: how batches are drawn.
        training: how long, in which steps, and what is written meanwhile.
        evaluation: how splits are scored.
        surgery: what to do with the tasks' gradients, before clipping: `rule` (ortho_lora, significant, upgrad, mgda,
            cagrad, imtl_g, nash_mtl, aligned_mtl, gradvac), `granularity` (factor, role, global) and the rule's
            options. Default: none, their plain sum.
        balance: what to weigh the tasks' losses by, beside `tasks.weights`: `name` and the balance's options, as
            docs/recipes.md has them. Default: none, equally. With one task there is none.
        mode: `joint` (default); `single`: the same once for each task alone, as a baseline; `fused`: the same, and the
            tasks' adapters averaged into one LoRA; or `sequence`: the tasks one after the other, in an order that is
            drawn by `training.order_seed`, with all of them scored after each. But for `joint`, `max_steps` are shared
            out, so that each task sees as many rows as in the joint run.
        seed: of initial weights, order and dropout. Default 0.
        start_from: the folder of a finished run of the same mode, base and method, whose adapter and heads this one
            goes on with. Its tasks are the first of this one's. In mode `fused` it is a joint run, whose tasks are not
            trained again. Default: new ones.
    """

    model: ModelPart
    tasks: TasksPart
    method: dict[str, Any] = field(default_factory=lambda: {"name": "lora"})
    mixture: MixturePart = field(default_factory=MixturePart)
    training: TrainingPart = field(default_factory=TrainingPart)
    evaluation: EvaluationPart = field(default_factory=EvaluationPart)
    surgery: dict[str, Any] | None = None
    balance: dict[str, Any] | None = None
    mode: Literal["joint", "single", "sequence", "fused"] = "joint"
    seed: Seed = 0
    start_from: str | None = None

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
        if self.mode != "joint" and self.tasks.learn is not None:
            raise ValueError(f"tasks.learn is for mode joint: in mode {self.mode} each run learns one task.")
        if self.mode == "sequence":
            self._check_sequence()
        if self.mode == "fused" and (self.surgery is not None or self.balance is not None):
            raise ValueError("mode fused trains each task alone: leave out surgery and balance.")

    def _check_sequence(self) -> None:
        if self.surgery is not None or self.balance is not None:
            raise ValueError("mode sequence learns one task at a time: leave out surgery and balance.")
        if self.training.eval_every is not None:
            raise ValueError("mode sequence keeps the last adapter of each task: leave out training.eval_every.")
        if self.start_from is not None:
            raise ValueError("start_from: a sequence begins with a new adapter; take mode joint.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data with every default written out; `recipe_from` takes it back."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    def to_yaml(self) -> str:
        """The same as YAML."""
        return dump_yaml(self.to_dict())


def recipe_from(
    tree: Any,
    where: str = "the recipe",
    settings: Sequence[str] = (),
    folder: str | Path = ".",
    data_dir: str | Path | None = None,
) -> Recipe:
    """A recipe from plain data, with its paths made absolute, so that it is the same run from anywhere.

    The names of classes that are left out are read from the rows of their tasks.

    Args:
        where: what the data are, for errors.
        settings: `a.b=value`, as from `--set`.
        folder: where relative paths start from. Default: the working directory.
        data_dir: where rows are read, if they have to be. Default: the tasks' own sources.

    Raises:
        ValueError: unknown keys (with the nearest), values of a wrong type or range, with their paths; as
            `class_names.name_classes`.
    """
    if not isinstance(tree, dict):
        raise ValueError(f"{where} must be a mapping with model, tasks, method, ...; found {type(tree).__name__}.")
    named, unnamed = read_names(with_settings(tree, settings), folder)
    recipe = _located(build(Recipe, named, where), folder)
    if not unnamed:
        return recipe
    own = list(recipe.tasks.own)
    for position in unnamed:
        own[position] = name_classes(own[position], data_dir)
    return replace(recipe, tasks=replace(recipe.tasks, own=tuple(own)))


def read_recipe(path: str | Path, settings: Sequence[str] = (), data_dir: str | Path | None = None) -> Recipe:
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
    return recipe_from(load_yaml(text, str(path)), str(path), settings, path.parent, data_dir)


def _located(recipe: Recipe, folder: str | Path) -> Recipe:
    """The recipe with its local paths made absolute."""
    model, method, tasks = recipe.model, dict(recipe.method), recipe.tasks
    if isinstance(method.get("calibration"), str):
        method["calibration"] = str(absolute(method["calibration"], folder))
    for option in _model_options(method.get("name")):
        value = method.get(option)
        if isinstance(value, str) and value != "base":
            method[option] = str(model_folder(value, folder) or on_hub(value))
    if tasks.own:
        tasks = replace(tasks, own=tuple(_located_task(task, folder) for task in tasks.own))
    name = str(model_folder(model.name, folder) or model.name)
    start = None if recipe.start_from is None else str(absolute(recipe.start_from, folder))
    model = replace(model, name=name, chat_template=_template(model.chat_template, folder))
    return replace(recipe, model=model, tasks=tasks, method=method, start_from=start)


def _template(given: str | None, folder: str | Path) -> str | None:
    """A chat template, from its file if it is none itself."""
    if given is None or "{" in given:
        return given
    path = absolute(given, folder)
    if not path.is_file():
        raise ValueError(f"model.chat_template is {given!r}, which is no template (it has no '{{') and no file.")
    return path.read_text(encoding="utf-8")


def _model_options(method: object) -> list[str]:
    """The options of a method, if there is such a method, that name a model."""
    cls = all_methods().get(str(method))
    return [] if cls is None else [spec.name for spec in fields(cls.Config) if spec.metadata["names_model"]]


def _located_task(task: Task, folder: str | Path) -> Task:
    if task.source is None:
        return task
    path = task.source.path
    return replace(task, source=replace(task.source, path=str(local_path(path, folder, SUFFIXES) or on_hub(path))))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
