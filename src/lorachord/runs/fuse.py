"""`lorachord fuse`: finished adapters in, one out, with a report of what it is worth beside what it was made of.

fusion.json           method, options, tasks, coefficients, errors, scores, noise, and what was adapted on
coefficients.png      the coefficients by layer, where matplotlib is installed
predictions/SPLIT/    of the fused model, one file a task
adapter/              the plain LoRA, or one folder a task where each has its head
model/                or, with `full`, the whole model instead, likewise
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lorachord.export import export_lora
from lorachord.fusion import METHODS, FusionMethod, Merged, TaskVectors, merge_vectors
from lorachord.fusion.load import check_number, load_task_vectors
from lorachord.fusion.load_routed import load_routed_task_vectors
from lorachord.fusion.merged import check_plain
from lorachord.heads import heads_of
from lorachord.messages import suggest
from lorachord.runs.adapters import Given, Tasks, find, folders, is_routed, load_base, load_tasks
from lorachord.runs.folder import check_names
from lorachord.runs.fusion_report import ADAPT_ON, How, compare, task_batches
from lorachord.runs.strict import load_yaml
from lorachord.training.fusion_batches import input_batches
from lorachord.whole import write_json

logger = logging.getLogger("lorachord")


def options_of(settings: Sequence[str]) -> dict[str, Any]:
    """Options of a method from `OPTION=VALUE`, with values as in YAML.

    Raises:
        ValueError: a setting without "=", or a value that is no YAML.
    """
    options: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes OPTION=VALUE; got {setting!r}.")
        options[name] = load_yaml(value, f"the value of {name}")
    return options


def make_method(name: str, options: Mapping[str, Any]) -> FusionMethod:
    """A method from its name and options.

    Raises:
        ValueError: neither is known; the nearest is named.
    """
    if name not in METHODS:
        raise ValueError(f"There is no fusion method {name!r}. {suggest(name, METHODS)}")
    return METHODS[name].from_dict(options)


def fuse_adapters(
    adapters: Sequence[str],
    out: str | Path,
    method: FusionMethod,
    *,
    base: str | None = None,
    recipe: str | Path | None = None,
    data_dir: str | None = None,
    how: How | None = None,
) -> dict[str, Any]:
    """Fuse, score, save and tell. What can be known to be wrong is refused before a model is loaded.

    Args:
        adapters, recipe: see `adapters.find`.
        out: the folder to make.
        base: the model's name; by default that of the runs.
        data_dir: a folder with a folder of files per task; by default as when the runs were made.

    Returns:
        what `fusion.json` holds.

    Raises:
        ValueError: as `adapters.find`, `load_task_vectors` and `merge_vectors`; `out` holds something; data
            that the method needs and nothing describes.
    """
    out, how = Path(out), how or How()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty: name a new folder, or remove it first.")
    given = find(adapters, recipe)
    check_names([each.task for each in given], "the adapters")
    check_number(tuple(each.task for each in given))
    undescribed = [each.task for each in given if each.described is None]
    if method.needs != "nothing" and undescribed:
        raise ValueError(
            f"{method.name} needs data, and nothing says what the tasks {', '.join(undescribed)} are: give run "
            "folders, or --recipe with a recipe whose tasks have these names."
        )
    if method.needs == "entropy":
        _refuse_regressions(method, [each.described for each in given], base_kind=_model_kind(given))
    model, tokenizer, part = load_base(given, base)
    tasks = load_tasks(given, tokenizer, part, data_dir)
    vectors = how.heard(_vectors(model, given, tasks, how))
    if not how.full:
        check_plain(vectors.others, how.rank)
    data = task_batches(vectors, tasks, how, labelled=method.needs == "labels") if method.needs != "nothing" else {}
    merged = merge_vectors(vectors, method, data)
    saved = merged if how.full else merged.truncated(how.rank)

    found: dict[str, Any] = {
        "method": method.name,
        "options": method.to_dict(),
        "tasks": list(vectors.tasks),
        "noise": None if how.noise is None else {"kind": how.noise, "snr": how.decibels, "seed": how.seed},
        "adapted_on": None if method.needs == "nothing" else how.adapt_on,
        "svd_error": {"all": saved.error, "layers": dict(saved.errors)} if saved.errors else None,
        "coefficients": {name: list(values) for name, values in merged.coefficients.items()},
        "notes": dict(merged.notes),
    }
    out.mkdir(parents=True, exist_ok=True)
    if tasks.data is not None:
        found["scores"] = compare(saved, tasks, how, out)
    _save(saved, tokenizer, out, how)
    write_json(out / "fusion.json", found)
    _plot(merged, out)
    return found


def _vectors(base: nn.Module, given: Sequence[Given], tasks: Tasks, how: How) -> TaskVectors:
    """The task vectors; those of a routed adapter with its gates averaged on each task."""
    if not is_routed(given):
        return load_task_vectors(base, folders(given))
    if tasks.data is None or tasks.kind is None:
        raise ValueError("The gates of a routed adapter are averaged on data: give its run folder.")
    rows = tasks.data.split(ADAPT_ON[how.adapt_on], how.max_rows, how.seed)
    data = {
        task.name: input_batches(tasks.kind, rows[index], index, batch_size=how.batch_size, seed=how.seed)
        for index, task in enumerate(tasks.data.tasks)
    }
    return load_routed_task_vectors(base, given[0].folder, data)


def _model_kind(given: Sequence[Any]) -> str | None:
    return next((each.recipe.model.kind for each in given if each.recipe is not None), None)


def _refuse_regressions(method: FusionMethod, tasks: Sequence[Any], base_kind: str | None) -> None:
    numbers = [task.name for task in tasks if task is not None and task.kind == "regression"]
    if numbers and base_kind == "encoder":
        raise ValueError(
            f"{method.name} minimises an entropy, which the regression {', '.join(numbers)} has not: leave it out, or "
            "take a method without that objective (average, ties, collapse, r_mtllmf)."
        )


def _save(merged: Merged, tokenizer: Any, out: Path, how: How) -> None:
    by_task = merged.vectors.tasks if heads_of(merged.vectors.base) is not None else (None,)
    adapter = None if how.full else merged.as_lora()
    for task in by_task:
        folder = out / ("model" if how.full else "adapter") / (task or "")
        if adapter is not None:
            export_lora(adapter, folder, task=task)
        else:
            model: Any = merged.as_model(task)
            model.save_pretrained(str(folder))
            tokenizer.save_pretrained(str(folder))


def _plot(merged: Merged, out: Path) -> None:
    if merged.coefficients:
        try:
            from lorachord.fusion.plots import plot_coefficients
        except ImportError:
            logger.info("coefficients.png is not drawn: matplotlib is not installed (pip install 'lorachord[plots]')")
            return
        plot_coefficients(merged, out / "coefficients.png")
