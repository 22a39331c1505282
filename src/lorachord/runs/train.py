"""Training from a recipe into a run folder."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorachord.data.audit import DataAudit
from lorachord.hub import absolute
from lorachord.runs.arguments import mixture_of, ranks
from lorachord.runs.auditing import audit_of, say
from lorachord.runs.checks import check
from lorachord.runs.folder import RunFolder
from lorachord.runs.fused import fuse_and_score
from lorachord.runs.joint import REPORTED, prepared, train_jointly
from lorachord.runs.recipe import Recipe
from lorachord.runs.run_lock import locked
from lorachord.runs.scores import report
from lorachord.runs.sequence import sequence_metrics, stage_folder, stage_recipes
from lorachord.runs.single_recipes import single_recipes
from lorachord.runs.starting import start_of
from lorachord.runs.tasksets import TaskSet, load_data
from lorachord.training.checkpoint_folders import last_checkpoint
from lorachord.whole import read_json

logger = logging.getLogger("lorachord")


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    data_dir: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
) -> RunFolder:
    """Train, score and save what a recipe says. Errors in the recipe, the folder or the data come before any training.

    Args:
        out: the run folder; see `runs/folder.py`.
        data_dir: a folder with a folder of files per task, in place of the tasks' own sources.
        resume: go on with the unfinished run in `out`; a finished one is left as it is.
        force: replace the run in `out`, if any; then nothing is resumed.

    Raises:
        ValueError: as `checks.check`, `tasksets.load_data` and `RunFolder.start`; another process trains into `out`; a
            file cannot be read or written.
        FloatingPointError: more than `training.max_bad_steps` steps had losses or gradients that are not finite.
        Stopped: the process was asked to stop; a checkpoint is saved.
    """
    out = Path(out)
    try:
        if not ranks().is_main_process:
            return _train(recipe, out, data_dir, resume, force)
        with locked(out):
            return _train(recipe, out, data_dir, resume, force)
    except OSError as error:
        last = last_checkpoint(out / "checkpoints")
        kept = f" The last whole checkpoint is {last}: go on with --resume when that is mended." if last else ""
        raise ValueError(f"{error}.{kept}") from error


def _train(recipe: Recipe, out: Path, data_dir: str | Path | None, resume: bool, force: bool) -> RunFolder:
    tasks = recipe.tasks.chosen()
    found = RunFolder.check(out, recipe, resume=resume, force=force)
    if found is not None and found.finished:
        read_json(found.path / "metrics.json", REPORTED)
        shutil.rmtree(found.path / "checkpoints", ignore_errors=True)
        return found
    if recipe.start_from is not None and Path(recipe.start_from).is_relative_to(absolute(str(out))):
        raise ValueError(f"start_from: {out} is this run's own folder. Name another by --out, or --resume that run.")
    check(recipe, tasks)
    if found is not None and data_dir is None:
        data_dir = found.data_dir
    data = load_data(recipe, tasks, data_dir)
    mixture_of(recipe, data.sizes)
    # What only the model can refuse is refused before the folder is made, or an old one removed.
    first, its_data = recipe, data
    if recipe.mode in ("single", "fused"):
        first, its_data = replace(start_of(recipe, tasks[0].name), mode="joint"), data.alone(0)
    elif recipe.mode == "sequence":
        first = next(iter(stage_recipes(recipe, data.sizes, absolute(str(out))).values()))
        its_data = data.of(first.tasks.chosen())
    made = prepared(first, its_data, found)
    folder = _start(out, recipe, data_dir=data_dir, resume=resume, force=force)
    audited = None
    if ranks().is_main_process:
        audited = audit_of(recipe, data, made[1])
        say(audited)
    if recipe.mode == "single":
        return _train_singly(folder, data, data_dir, audited)
    if recipe.mode == "fused":
        return _train_fused(folder, data, data_dir, audited)
    if recipe.mode == "sequence":
        return _train_in_sequence(folder, data, data_dir, audited)
    return train_jointly(folder, data, audited, *made)


def _start(path: str | Path, recipe: Recipe, **how: Any) -> RunFolder:
    """The run's folder on every rank, made by the first."""
    first = ranks().is_main_process
    folder = RunFolder.start(path, recipe, **how) if first else RunFolder(Path(path), recipe)
    ranks().wait_for_everyone()
    return folder


def _train_singly(
    folder: RunFolder, data: TaskSet, data_dir: str | Path | None, audited: DataAudit | None
) -> RunFolder:
    metrics = _each_alone(folder, data, data_dir, audited)
    together: dict[str, Any] = {
        split: report({name: own[split]["tasks"][name] for name, own in metrics.items()}) for split in REPORTED
    }
    together["training"] = {name: own["training"] for name, own in metrics.items()}
    if audited is not None:
        folder.write_json("metrics.json", {**together, "data": audited.to_dict()})
    ranks().wait_for_everyone()
    return folder


def _train_fused(folder: RunFolder, data: TaskSet, data_dir: str | Path | None, audited: DataAudit | None) -> RunFolder:
    metrics = _each_alone(folder, data, data_dir, audited)
    if audited is not None:
        adapters = {}
        for task in data.tasks:
            run = folder.path / task.name if task.name in metrics else Path(str(folder.recipe.start_from))
            adapters[task.name] = run / "adapter"
        training = {name: own["training"] for name, own in metrics.items()}
        fuse_and_score(folder, data, adapters, audited, training)
    ranks().wait_for_everyone()
    return folder


def _each_alone(
    folder: RunFolder, data: TaskSet, data_dir: str | Path | None, audited: DataAudit | None
) -> dict[str, dict[str, Any]]:
    """Train each task in a run of its own, in a folder of its name; returns their metrics.

    In mode `fused`, without the tasks of the run that `start_from` names.
    """
    recipes, done = single_recipes(folder.recipe, data.sizes), 0
    if folder.recipe.mode == "fused" and folder.recipe.start_from is not None:
        done = len(RunFolder.open(folder.recipe.start_from).recipe.tasks.chosen())
    metrics = {}
    for index, (name, recipe) in list(enumerate(recipes.items()))[done:]:
        own = _start(folder.path / name, recipe, data_dir=data_dir, resume=True)
        if not own.finished:
            logger.info("%s alone (%d of %d)", name, index + 1, len(data.data))
            alone = data.alone(index)
            known = None if audited is None else audited.alone(name)
            train_jointly(own, alone, known, *prepared(recipe, alone, own))
        ranks().wait_for_everyone()
        metrics[name] = own.metrics
    return metrics


def _train_in_sequence(
    folder: RunFolder, data: TaskSet, data_dir: str | Path | None, audited: DataAudit | None
) -> RunFolder:
    recipes = stage_recipes(folder.recipe, data.sizes, folder.path.absolute())
    metrics = []
    for number, (name, recipe) in enumerate(recipes.items(), 1):
        own = _start(stage_folder(folder.path, number), recipe, data_dir=data_dir, resume=True)
        if not own.finished:
            logger.info("%s, stage %d of %d", name, number, len(recipes))
            known = None if audited is None else audited.alone(name)
            some = data.of(recipe.tasks.chosen())
            train_jointly(own, some, known, *prepared(recipe, some, own))
        ranks().wait_for_everyone()
        metrics.append(own.metrics)
    names = [task.name for task in data.tasks]
    scores: dict[str, list[dict[str, float | None]]] = {
        split: [{name: own[split]["tasks"].get(name, {}).get("score") for name in names} for own in metrics]
        for split in REPORTED
    }
    together = {split: report({name: metrics[-1][split]["tasks"][name] for name in names}) for split in REPORTED}
    together["training"] = {name: own["training"] for name, own in zip(recipes, metrics, strict=True)}
    if audited is not None:
        folder.write_json(
            "metrics.json", {**together, **sequence_metrics(list(recipes), scores), "data": audited.to_dict()}
        )
    ranks().wait_for_everyone()
    return folder
