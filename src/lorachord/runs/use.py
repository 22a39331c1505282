"""What a finished run is good for: scores of any split, merged weights, plain LoRAs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel

from lorachord.core.context import Mixing
from lorachord.core.registry import get_method
from lorachord.data.task import Task
from lorachord.export import export_lora, merge
from lorachord.heads import heads_of
from lorachord.messages import suggest
from lorachord.runs.arguments import autocast
from lorachord.runs.folder import RunFolder
from lorachord.runs.fused import with_heads
from lorachord.runs.model import load_plain
from lorachord.runs.progress import Progress
from lorachord.runs.scores import read_records, scores_of
from lorachord.runs.sequence import last_stage
from lorachord.runs.tasksets import load_rows
from lorachord.runs.usage import name_labels, write_usage
from lorachord.training.model_kind import ModelKind, Record
from lorachord.training.scoring import predict, save_records
from lorachord.tuner import LorachordConfig
from lorachord.tuner.adapter_files import check_adapter, load_onto


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
    folder = last_stage(folder)
    tasks = folder.recipe.tasks.chosen()
    check_adapter(folder.path / "adapter")
    base, kind = load_plain(with_heads(folder.recipe), tasks, trained=True)
    model = load_onto(base, folder.path / "adapter")
    return model.eval(), kind, tasks


def choose_tasks(folder: RunFolder, names: Sequence[str] | None = None) -> tuple[Task, ...]:
    """The tasks of a run, or some of them, in the run's order.

    Raises:
        ValueError: a name that is none of them; the nearest is named.
    """
    tasks = folder.recipe.tasks.chosen()
    known = [task.name for task in tasks]
    for name in names or ():
        if name not in known:
            raise ValueError(f"{folder.path} has no task {name!r}. {suggest(name, known)}")
    return tuple(task for task in tasks if names is None or task.name in names)


def predictions(
    run: str | Path,
    split: str = "dev",
    *,
    names: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    again: bool = False,
) -> dict[str, list[Record]]:
    """The records of a run on one split, by task: labels and predictions of the rows, in their order.

    Predictions that the run has saved are read, without the model; others are made, and saved. Data that are named
    here need no file but that of the split; their rows are predicted anew, and the run's own predictions stay.

    Args:
        split: train, val, dev or test. Default dev.
        names: of the tasks to score. Default: all.
        data_dir: other data to score, a folder with a folder for each task. Default: those that the run was made with.
        again: predict in any case.

    Raises:
        ValueError: no finished run, a split that a task has not, or a task that the run has not.
    """
    folder = open_run(run)
    tasks = choose_tasks(folder, names)
    if folder.recipe.mode == "single":
        parts = [predictions(folder.path / task.name, split, data_dir=data_dir, again=again) for task in tasks]
        return {name: records for part in parts for name, records in part.items()}
    if folder.recipe.mode == "sequence":
        chosen = [task.name for task in tasks]
        found = predictions(last_stage(folder).path, split, names=chosen, data_dir=data_dir, again=again)
        return {name: found[name] for name in chosen}
    if data_dir is not None:
        return _predicted(folder, tasks, split, data_dir)
    saved = folder.path / "predictions" / split
    lacking = [task for task in tasks if again or not (saved / f"{task.name}.jsonl").is_file()]
    if lacking:
        save_records(saved, _predicted(folder, lacking, split, folder.data_dir))
    return read_records(saved, tasks)


def evaluate(
    run: str | Path,
    split: str = "dev",
    *,
    names: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """The scores of a run on one split, as in `metrics.json`; arguments and errors as `predictions`."""
    records = predictions(run, split, names=names, data_dir=data_dir, again=again)
    return scores_of(choose_tasks(open_run(run), names), records)


def _predicted(
    folder: RunFolder, wanted: Sequence[Task], split: str, data_dir: str | Path | None
) -> dict[str, list[Record]]:
    part = folder.recipe.evaluation
    rows = load_rows(folder.recipe, wanted, split, data_dir)
    model, kind, tasks = load_run(folder.path)
    index_of = {task.name: index for index, task in enumerate(tasks)}
    how: dict[str, Any] = {
        "batch_size": part.batch_size,
        "max_new_tokens": part.max_new_tokens,
        "max_tokens": part.max_tokens,
    }
    with autocast(folder.recipe), Progress(sum(map(len, rows)), stream=sys.stderr) as progress:
        return {
            task.name: predict(model, kind, own, index_of[task.name], progress=progress, **how)
            for task, own in zip(wanted, rows, strict=True)
        }


def export_run(run: str | Path, out: str | Path, names: Sequence[str] | None = None) -> list[Path]:
    """Write a run's adapter as plain LoRA folders: one, or one per task where the weights or the heads differ by task.

    Args:
        names: of the tasks to export, in a folder each. Default: all.

    Returns:
        The folders: `out`, or `out/TASK` for each task.

    Raises:
        ValueError: as `load_run` and `export_lora`; a folder to write exists and is not empty; a task that the run has
            not.
    """
    out = Path(out)
    folder = open_run(run)
    chosen = [task.name for task in choose_tasks(folder, names)]
    # Asked for by name, tasks may be added to earlier exports.
    require_new(*([out / name for name in chosen] if names is not None else [out]))
    if folder.recipe.mode == "single":
        return [_export_single(folder.path / name, out / name) for name in chosen]
    model, _, tasks = load_run(run)
    if list(_per_task(model, tasks)) == [None]:
        # The weights are those of every task.
        served = {name: [name] for name in chosen} if names is not None else {"": chosen}
        return [_export(folder, model, out / name, own, None) for name, own in served.items()]
    return [_export(folder, model, out / name, [name], name) for name in chosen]


def require_new(*folders: Path) -> None:
    """Raise a ValueError unless these folders are new or empty."""
    for out in folders:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"{out} exists and is not empty: name a new folder, or remove it first.")


def _export_single(run: Path, out: Path) -> Path:
    model, _, tasks = load_run(run)
    [task] = _per_task(model, tasks)
    return _export(open_run(run), model, out, [tasks[0].name], task)


def _export(folder: RunFolder, model: PeftModel, out: Path, names: Sequence[str], task: str | None) -> Path:
    """Export the weights of `task`, which serve the tasks `names`."""
    return describe_export(folder, export_lora(model, out, task=task), names)


def describe_export(folder: RunFolder, exported: Path, names: Sequence[str]) -> Path:
    """Write beside a plain LoRA which of the run's tasks it serves, and how; returns its folder."""
    base = PeftConfig.from_pretrained(str(exported)).base_model_name_or_path
    write_usage(exported, folder.recipe, choose_tasks(folder, names), base=base)
    return exported


def merge_run(run: str | Path, out: str | Path, task: str | None = None) -> Path:
    """Write the base with the run's adapter merged in, and its tokenizer, as a plain transformers folder.

    Args:
        task: needed where the weights or the heads differ by task, and there are several.

    Raises:
        ValueError: as `load_run` and `merge`; `out` exists and is not empty.
    """
    out = Path(out)
    require_new(out)
    model, kind, tasks = load_run(run)
    if task is None:
        task, *others = _per_task(model, tasks)
        if others:
            raise ValueError(
                f"There is a model for each task, so say which by --task NAME: {', '.join(own.name for own in tasks)}."
            )
    merged: Any = merge(model, task=task, untie=True, inplace=True)
    folder = open_run(run)
    served = choose_tasks(folder, None if task is None else [task])
    name_labels(merged.config, folder.recipe, served)
    merged.save_pretrained(str(out))
    kind.tokenizer.save_pretrained(str(out))
    write_usage(out, folder.recipe, served, base=None)
    return out


def _per_task(model: PeftModel, tasks: tuple[Task, ...]) -> Iterator[str | None]:
    config = model.peft_config[model.active_adapter]
    by_task = isinstance(config, LorachordConfig) and get_method(config.method).mixing is Mixing.TASK
    if by_task or heads_of(model) is not None:
        yield from (task.name for task in tasks)
    else:
        yield None
