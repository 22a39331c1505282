"""One model: prepared, trained, scored and saved in a run folder."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from typing import Any

from peft import PeftModel
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback

from lorachord.balance.make import make_balance
from lorachord.data.audit import DataAudit
from lorachord.runs.arguments import mixture_of, ranks, training_arguments
from lorachord.runs.calibrating import calibration_of
from lorachord.runs.folder import RunFolder
from lorachord.runs.log import RunLog
from lorachord.runs.model import load_plain, new_adapter
from lorachord.runs.progress import Progress
from lorachord.runs.recipe import Recipe
from lorachord.runs.scores import save_scored
from lorachord.runs.starting import started
from lorachord.runs.stopping import StopRequests
from lorachord.runs.tasksets import TaskSet
from lorachord.runs.trackers import place_trackers, tell_scores, tensorboard
from lorachord.surgery.surgeon import Surgeon
from lorachord.surgery.watch import Watch
from lorachord.training.checkpoint_folders import last_checkpoint
from lorachord.training.model_kind import ModelKind
from lorachord.training.trainer import MultiTaskTrainer
from lorachord.tuner import Calibration
from lorachord.whole import new_folder

logger = logging.getLogger("lorachord")
REPORTED = ("val", "dev")
"""What a run scores in its end: what one may choose by, and what is reported."""
CALIBRATION = "calibration"


def prepared(
    recipe: Recipe, data: TaskSet, resumed: RunFolder | None
) -> tuple[PeftModel, ModelKind, Calibration | None]:
    """The model to train with its adapter, its kind, and what its method was fitted by.

    Args:
        resumed: the run that goes on, whose calibration is taken. None for a new one.

    Raises:
        ValueError: whatever only the model can refuse.
    """
    if recipe.start_from is not None:
        # What its method was fitted to is in the adapter.
        return *started(recipe, data.tasks, data.moments), None
    base, kind = load_plain(recipe, data.tasks, moments=data.moments)
    saved = None if resumed is None else resumed.path / CALIBRATION
    calibration = calibration_of(recipe, base, kind, data, saved)
    return new_adapter(recipe, base, data.tasks, calibration), kind, calibration


def train_jointly(
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
        "rows": {data.tasks[index].name: data.sizes[index] for index in recipe.tasks.learned()},
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
        compile=recipe.training.compile,
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
