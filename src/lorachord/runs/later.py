"""`lorachord train --add-task`: the recipe of a run that learns tasks which a finished run does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lorachord.data.task import Task
from lorachord.runs.folder import RunFolder
from lorachord.runs.recipe import Recipe, read_recipe, recipe_from
from lorachord.runs.sequence import last_stage
from lorachord.runs.starting import by_task, is_fitted, routes
from lorachord.runs.strict import load_yaml

How = Literal["core", "replay", "fuse"]
CORE, REPLAY, FUSE = (
    "core: all that is there is frozen, and the new tasks get cores of their own. It costs a training on their rows. "
    "The old tasks keep every prediction; the new ones have the old factors' directions and no others",
    "replay: the adapter goes on with the rows of all tasks. It costs a training on all rows, which must still be "
    "there, and the old tasks' scores may change either way",
    "fuse: an adapter of the new tasks' own is averaged with the old one. It costs a training on their rows, and some "
    "of both tasks' scores",
)
"""What a task that comes later can be given, and its price; see `ways_of`."""
KEYS = ("tasks", "training")


def ways_of(method: str) -> dict[str, str]:
    """What a run of a method can do with tasks that come later: by the word of --how, the way and its price."""
    ways = {"core": CORE} if by_task(method) else {}
    if not is_fitted(method):
        ways["replay"] = REPLAY
    if not routes(method) and method != "peft_dora":
        ways["fuse"] = FUSE
    return ways


def recipe_to_train(
    named: str, settings: Sequence[str], data_dir: str | None, *, add_task: str | None, how: How | None
) -> tuple[Recipe, Path]:
    """The recipe that `lorachord train` is asked for, and the run's folder unless it is named.

    Args:
        named: a recipe's file, or with `add_task` a finished run.
        settings, data_dir: see `read_recipe`.
        add_task: the file of new tasks. None for none.
        how: see `ways_of`.

    Raises:
        ValueError: `how` without new tasks, or as `read_recipe` and `later_recipe`.
    """
    if add_task is not None:
        run, path = Path(named), Path(add_task)
        recipe = later_recipe(run, path, how=how, settings=settings, data_dir=data_dir)
        return recipe, run.with_name(f"{run.absolute().name}_and_{path.stem}")
    if how is not None:
        raise ValueError("--how says how a run learns new tasks: name their file by --add-task.")
    return read_recipe(named, settings, data_dir), Path("runs", Path(named).stem)


def later_recipe(
    run: str | Path,
    path: str | Path,
    *,
    how: How | None = None,
    settings: Sequence[str] = (),
    data_dir: str | Path | None = None,
) -> Recipe:
    """The recipe of a run that goes on from another with more tasks.

    Args:
        run: the finished run.
        path: a YAML file with `tasks`, as a recipe has them, and perhaps keys of `training` that differ from the run's.
        how: see `ways_of`. Default: `core` for methods with parameters of one task each; others have none.
        settings: `a.b=value`, of the whole recipe.
        data_dir: where the rows of all tasks lie. Default: those of the run's tasks where they lay then, and those of
            the new ones at their sources.

    Raises:
        ValueError: the run is not finished or has a model for each task, a task that it has already, a file without
            tasks, or a way that the method has not.
    """
    found = last_stage(RunFolder.open(run).require_finished())
    recipe, method = found.recipe, found.recipe.method["name"]
    if recipe.mode != "joint":
        raise ValueError(f"--add-task: {run} is of mode {recipe.mode}; give a run with one adapter for all tasks.")
    ways = ways_of(method)
    if (how or "core") not in ways:
        listed = "".join(f"\n  {words}." for words in ways.values()) or f"\n  Train {method} anew on all tasks."
        raise ValueError(
            f"--add-task: {method} has no parameters of one task, so that new tasks change what the old ones get. Say "
            f"how by --how:{listed}"
            if "core" not in ways
            else f"--how {how}: {method} has another way:{listed}"
        )
    given = _read(path)
    own = {"training": _training(recipe, given), **_tasks(recipe, given)}
    new = recipe_from({**recipe.to_dict(), **own}, str(path), (), Path(path).parent, data_dir)
    old, added = recipe.tasks.chosen(), new.tasks.chosen()
    repeated = [task.name for task in added if task.name in {own.name for own in old}]
    if repeated:
        raise ValueError(f"{path}: the run has these tasks already: {', '.join(repeated)}. Rename the new.")
    tree = recipe.to_dict()
    weights = {**recipe.tasks.weights, **new.tasks.weights}
    tree["tasks"] = _together(recipe, new, str(path), found.data_dir if data_dir is None else None)
    tree["tasks"]["weights"] = weights
    tree["mode"] = "fused" if how == "fuse" else "joint"
    tree["training"] = _training(recipe, given)
    tree["start_from"] = str(found.path.absolute())
    if how in (None, "core", "fuse"):
        # They work on what several tasks learn together.
        tree |= {"surgery": None, "balance": None}
    if how in (None, "core"):
        tree["tasks"]["learn"] = [task.name for task in added]
    return recipe_from(tree, str(path), settings)


def _read(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"--add-task: there is no file {path}; it would hold `tasks:`, as a recipe does.")
    try:
        given = load_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8.") from None
    if not isinstance(given, dict) or not isinstance(given.get("tasks"), dict):
        raise ValueError(f"{path} names no tasks: write them below `tasks:`, as in a recipe.")
    others = [str(key) for key in given if key not in KEYS]
    if others:
        raise ValueError(f"{path} has {', '.join(others)}; beside tasks only training may differ from the run's.")
    if not isinstance(given.get("training", {}), dict):
        raise ValueError(f"{path}: training must be a mapping, as in a recipe.")
    return given


def _training(recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """How the new run is trained: as the run was, but for the keys of the file. Epochs and steps exclude each other."""
    made, own = dict(recipe.to_dict()["training"]), given.get("training", {})
    for one, other in (("epochs", "max_steps"), ("max_steps", "epochs")):
        if one in own:
            made[other] = None
    return {**made, **own}


def _tasks(recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe of the new tasks alone has otherwise than the run's."""
    tasks = {"name_in_text": recipe.tasks.name_in_text, "seed": recipe.tasks.seed, **given["tasks"]}
    return {"tasks": tasks, "start_from": None, "surgery": None, "balance": None}


def _together(recipe: Recipe, new: Recipe, path: str, data_dir: str | None) -> dict[str, Any]:
    """`tasks` of both, in full, since they may be of several suites; generated ones stay generated."""
    part, added = recipe.tasks, new.tasks
    tree: dict[str, Any] = recipe.to_dict()["tasks"]
    tree["learn"] = None
    if part.lab is not None or added.lab is not None:
        if part.lab != added.lab:
            raise ValueError(f"{path}: generated tasks can only follow others of the same `lab`, chosen by `only`.")
        return {**tree, "only": [task.name for task in (*part.chosen(), *added.chosen())]}
    old = [_at(task, data_dir) for task in part.chosen()]
    whole = replace(new, tasks=replace(added, suite=None, only=None, own=(*old, *added.chosen()), max_rows=None))
    return {**whole.to_dict()["tasks"], "weights": {}}


def _at(task: Task, data_dir: str | None) -> Task:
    """A task that is read where the run has read it."""
    if data_dir is None or task.source is None:
        return task
    return replace(task, source=replace(task.source, path=str(Path(data_dir, task.name))))
