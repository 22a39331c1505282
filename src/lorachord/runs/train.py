"""Training from a recipe into a run folder."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback

from lorachord.balance.make import make_balance
from lorachord.data.audit import DataAudit
from lorachord.hub import absolute
from lorachord.runs.arguments import mixture_of, ranks, training_arguments
from lorachord.runs.auditing import audit_of, say
from lorachord.runs.calibrating import calibration_of
from lorachord.runs.checks import check
from lorachord.runs.folder import RunFolder
from lorachord.runs.log import RunLog
from lorachord.runs.model import load_plain, new_adapter
from lorachord.runs.progress import Progress
from lorachord.runs.recipe import Recipe
from lorachord.runs.run_lock import locked
from lorachord.runs.scores import report, save_scored
from lorachord.runs.single_recipes import single_recipes
from lorachord.runs.starting import saved_adapter, start_of
from lorachord.runs.stopping import StopRequests
from lorachord.runs.tasksets import TaskSet, load_data
from lorachord.runs.trackers import place_trackers, tell_scores, tensorboard
from lorachord.surgery.surgeon import Surgeon
from lorachord.surgery.watch import Watch
from lorachord.training.checkpoint_folders import last_checkpoint
from lorachord.training.model_kind import ModelKind
from lorachord.training.trainer import MultiTaskTrainer
from lorachord.tuner import Calibration
from lorachord.whole import new_folder, read_json

logger = logging.getLogger("lorachord")
REPORTED = ("val", "dev")
"""What a run scores in its end: what one may choose by, and what is reported."""
CALIBRATION = "calibration"


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
    first = recipe if recipe.mode == "joint" else start_of(recipe, tasks[0].name)
    made = _prepared(first, data if recipe.mode == "joint" else data.alone(0), found)
    folder = _start(out, recipe, data_dir=data_dir, resume=resume, force=force)
    audited = None
    if ranks().is_main_process:
        audited = audit_of(recipe, data, made[1])
        say(audited)
    if recipe.mode == "single":
        return _train_singly(folder, data, data_dir, audited)
    return _train_jointly(folder, data, audited, *made)


def _prepared(
    recipe: Recipe, data: TaskSet, resumed: RunFolder | None
) -> tuple[PeftModel, ModelKind, Calibration | None]:
    base, kind = load_plain(recipe, data.tasks, moments=data.moments)
    if recipe.start_from is not None:
        # What its method was fitted to is in the adapter.
        return saved_adapter(recipe, base), kind, None
    saved = None if resumed is None else resumed.path / CALIBRATION
    calibration = calibration_of(recipe, base, kind, data, saved)
    return new_adapter(recipe, base, data.tasks, calibration), kind, calibration


def _start(path: str | Path, recipe: Recipe, **how: Any) -> RunFolder:
    """The run's folder on every rank, made by the first."""
    first = ranks().is_main_process
    folder = RunFolder.start(path, recipe, **how) if first else RunFolder(Path(path), recipe)
    ranks().wait_for_everyone()
    return folder


def _train_singly(
    folder: RunFolder, data: TaskSet, data_dir: str | Path | None, audited: DataAudit | None
) -> RunFolder:
    runs = {}
    for index, (name, recipe) in enumerate(single_recipes(folder.recipe, data.sizes).items()):
        own = _start(folder.path / name, recipe, data_dir=data_dir, resume=True)
        if not own.finished:
            logger.info("%s alone (%d of %d)", name, index + 1, len(data.data))
            alone = data.alone(index)
            known = None if audited is None else audited.alone(name)
            _train_jointly(own, alone, known, *_prepared(recipe, alone, own))
        runs[name] = own.metrics
    together: dict[str, Any] = {
        split: report({name: metrics[split]["tasks"][name] for name, metrics in runs.items()}) for split in REPORTED
    }
    together["training"] = {name: metrics["training"] for name, metrics in runs.items()}
    if audited is not None:
        folder.write_json("metrics.json", {**together, "data": audited.to_dict()})
    ranks().wait_for_everyone()
    return folder


def _train_jointly(
    folder: RunFolder,
    data: TaskSet,
    audited: DataAudit | None,
    model: PeftModel,
    kind: ModelKind,
    calibration: Calibration | None,
) -> RunFolder:
    """Train, score and save; `audited` is the audit of the data on the first rank, None on the others."""
    recipe, evaluation = folder.recipe, folder.recipe.evaluation
    if calibration is not None and ranks().is_main_process:
        calibration.save(folder.path / CALIBRATION)
    checkpoints = folder.path / "checkpoints"
    trainer = _trainer(folder, data, model, kind)
    last = last_checkpoint(checkpoints)
    if last is not None:
        logger.info("going on from %s", last)
    began = time.monotonic()
    stopping = StopRequests(folder.path)
    trainer.add_callback(stopping)
    if recipe.training.max_steps != 0:
        with stopping.watching():
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
    seconds = time.monotonic() - began

    trainer.check_weights(model)
    if trainer.is_world_process_zero():
        with new_folder(folder.path / "adapter") as written:
            model.save_pretrained(str(written))
    metrics: dict[str, Any] = {}
    for split in REPORTED:
        rows = data.split(split, evaluation.max_rows, recipe.tasks.seed)
        # Every rank predicts, and one tells.
        stream = sys.stderr if trainer.is_world_process_zero() else None
        with Progress(sum(map(len, rows)), stream=stream) as progress:
            records = trainer.predict_tasks(rows, progress)
        metrics[split] = save_scored(
            folder.path / "predictions" / split, data.tasks, records, write=trainer.is_world_process_zero()
        )
    if trainer.is_world_process_zero():
        tell_scores(trainer, folder.path, metrics, REPORTED)
    metrics["training"] = {
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 1),
        "rows": {part.task.name: len(part.train) for part in data.data},
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    if audited is not None:
        folder.write_json("metrics.json", {**metrics, "data": audited.to_dict()})
        # Of no use to a finished run.
        shutil.rmtree(checkpoints, ignore_errors=True)
    ranks().wait_for_everyone()
    return folder


def _trainer(folder: RunFolder, data: TaskSet, model: PeftModel, kind: ModelKind) -> MultiTaskTrainer:
    recipe = folder.recipe
    args = training_arguments(recipe, folder.path / "checkpoints")
    place_trackers(recipe.training, folder.path)
    evaluation = recipe.evaluation
    surgeon = None
    if recipe.surgery is not None and len(data.tasks) > 1:
        surgeon = Surgeon(model, num_tasks=len(data.tasks), **recipe.surgery)
    names = [task.name for task in data.tasks]
    balance = None
    if recipe.balance is not None:
        moments = data.moments
        balance = make_balance(tasks=names, model=model, regressions=list(moments), start=moments, **recipe.balance)
    every, first = recipe.training.log_every, args.process_index == 0
    trainer = MultiTaskTrainer(
        model,
        args,
        tasks=kind.tasks,
        tokenizer=kind.tokenizer,
        max_length=kind.max_length,
        train_data=[part.train for part in data.data],
        eval_data=data.split("val", evaluation.max_rows, recipe.tasks.seed),
        mixture=mixture_of(recipe, data.sizes, args.process_index, args.world_size),
        task_weights=data.weights,
        max_new_tokens=evaluation.max_new_tokens,
        max_tokens=evaluation.max_tokens,
        surgeon=surgeon,
        balance=balance,
        max_bad_steps=recipe.training.max_bad_steps,
        watch=Watch(folder.path / "surgery", names, every=every, write=first),
        callbacks=[RunLog(folder)],
    )
    trainer.remove_callback(PrinterCallback)
    if args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
    if recipe.training.patience is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.training.patience))
    if "tensorboard" in recipe.training.report_to and trainer.is_world_process_zero():
        trainer.add_callback(tensorboard(folder.path))
    return trainer
