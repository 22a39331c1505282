"""What a finished run is good for: scores of any split, merged weights, plain LoRAs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import PeftModel

from lorachord.core.context import Mixing
from lorachord.core.registry import get_method
from lorachord.data.task import Task
from lorachord.export import export_lora, merge
from lorachord.heads import heads_of
from lorachord.runs.arguments import autocast
from lorachord.runs.folder import RunFolder
from lorachord.runs.prepare import TaskSet, load_data, load_plain
from lorachord.runs.scores import read_records, report, save_scored, score_task
from lorachord.training.model_kind import ModelKind
from lorachord.training.scoring import predict
from lorachord.tuner import LorachordConfig


def open_run(run: str | Path) -> RunFolder:
    """A finished run.

    Raises:
        ValueError: there is none, or it is not finished.
    """
    return RunFolder.open(run).require_finished()


def load_run(run: str | Path) -> tuple[PeftModel, ModelKind, tuple[Task, ...]]:
    """The trained model of a joint run in eval mode, its kind, and its tasks.

    Raises:
        ValueError: no finished run, or one of mode `single`, which has a model per task.
    """
    folder = open_run(run)
    if folder.recipe.mode == "single":
        names = ", ".join(task.name for task in folder.recipe.tasks.chosen())
        raise ValueError(f"{run} holds a run for each task; name one of them: {run}/ {names}.")
    tasks = folder.recipe.tasks.chosen()
    base, kind = load_plain(folder.recipe, tasks)
    model = PeftModel.from_pretrained(base, str(folder.path / "adapter"))
    return model.eval(), kind, tasks


def evaluate(
    run: str | Path, split: str = "dev", *, data_dir: str | Path | None = None, again: bool = False
) -> dict[str, Any]:
    """The scores of a run on one split, as in `metrics.json`.

    Predictions that the run has saved are scored as they are, without the model; others are made, and saved.

    Args:
        split: train, val, dev or test. Default dev.
        data_dir: where the data lie now. Default: where they lay when the run was made.
        again: predict in any case.

    Raises:
        ValueError: no finished run, or a split that a task has not.
    """
    folder = open_run(run)
    tasks = folder.recipe.tasks.chosen()
    if folder.recipe.mode == "single":
        parts = [evaluate(folder.path / task.name, split, data_dir=data_dir, again=again) for task in tasks]
        return report({name: scored for part in parts for name, scored in part["tasks"].items()})
    saved = folder.path / "predictions" / split
    if saved.is_dir() and not again:
        records = read_records(saved, tasks)
        return report({task.name: score_task(task, records[task.name]) for task in tasks})
    part = folder.recipe.evaluation
    data: TaskSet = load_data(folder.recipe, tasks, data_dir or folder.data_dir)
    rows = data.split(split, part.max_rows, folder.recipe.tasks.seed)
    model, kind, _ = load_run(run)
    with autocast(folder.recipe):
        made = {
            task.name: predict(
                model, kind, rows[index], index, batch_size=part.batch_size, max_new_tokens=part.max_new_tokens
            )
            for index, task in enumerate(tasks)
        }
    return save_scored(saved, tasks, made)


def export_run(run: str | Path, out: str | Path) -> list[Path]:
    """Write a run's adapter as plain LoRA folders: one, or one per task where the weights or the heads differ by task.

    Returns:
        The folders: `out`, or `out/TASK` for each task.

    Raises:
        ValueError: as `load_run` and `export_lora`; `out` exists and is not empty.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty: name a new folder, or remove it first.")
    folder = open_run(run)
    if folder.recipe.mode == "single":
        return [
            path
            for task in folder.recipe.tasks.chosen()
            for path in export_run(folder.path / task.name, out / task.name)
        ]
    model, _, tasks = load_run(run)
    return [export_lora(model, out / (task or ""), task=task) for task in _per_task(model, tasks)]


def merge_run(run: str | Path, out: str | Path, task: str | None = None) -> Path:
    """Write the base with the run's adapter merged in, and its tokenizer, as a plain transformers folder.

    Args:
        task: needed where the weights or the heads differ by task.

    Raises:
        ValueError: as `load_run` and `merge`; `out` exists and is not empty.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty: name a new folder, or remove it first.")
    model, kind, _ = load_run(run)
    merged: Any = merge(model, task=task, untie=True, inplace=True)
    merged.save_pretrained(str(out))
    kind.tokenizer.save_pretrained(str(out))
    return out


def _per_task(model: PeftModel, tasks: tuple[Task, ...]) -> Iterator[str | None]:
    config = model.peft_config[model.active_adapter]
    by_task = isinstance(config, LorachordConfig) and get_method(config.method).mixing is Mixing.TASK
    if by_task or heads_of(model) is not None:
        yield from (task.name for task in tasks)
    else:
        yield None
