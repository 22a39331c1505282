"""`lorachord fuse`: finished adapters in, one out, with a report of what it is worth beside what it was made of.

fusion.json           method, options, tasks, coefficients, errors, scores, and what was adapted on
coefficients.png      the coefficients by layer, where matplotlib is installed
predictions/SPLIT/    of the fused model, one file a task
adapter/              the plain LoRA, or one folder a task where each has its head
model/                or, with `full`, the whole model instead, likewise
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lorachord.core.words import suggest, table
from lorachord.export import export_lora
from lorachord.fusion import METHODS, FusionMethod, Merged, TaskVectors, merge_vectors
from lorachord.fusion.arithmetic import average, task_arithmetic
from lorachord.fusion.disentanglement import disentanglement, references, single
from lorachord.fusion.inputs import Inputs
from lorachord.fusion.reading import check_number
from lorachord.heads import heads_of
from lorachord.runs.adapters import Given, Tasks, find, folders, is_routed, load_base, load_tasks
from lorachord.runs.parts import EvaluationPart
from lorachord.runs.scores import report, save_scored, score_task
from lorachord.training.inputs import input_batches
from lorachord.training.scoring import Record, predict

logger = logging.getLogger("lorachord")
SWEEP = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""The lambda of task arithmetic that every report shows."""
ADAPT_ON = {"heldout": "val", "dev": "dev", "test": "test"}
SINGLE = "individual"


@dataclass(frozen=True, kw_only=True)
class How:
    """How a fusion reads and reports.

    Args:
        adapt_on: the inputs that a method sees: `heldout` (the tasks' val), or `dev` or `test`, which then are no
            independent measure any more, as the report says. Default heldout.
        shots: labelled examples of each task, for a method that realigns on labels. Default 16.
        batch_size: examples of a task in a batch. Default 16.
        max_rows: examples of each task at most, for adapting and for the error xi. Default 512.
        split: what is scored. Default dev.
        rank: of the result. Default: exact, or that of all adapters together where the result is dense.
        full: save a whole model and no LoRA.
        seed: of the choice of examples. Default 0.
    """

    adapt_on: str = "heldout"
    shots: int = 16
    batch_size: int = 16
    max_rows: int = 512
    split: str = "dev"
    rank: int | None = None
    full: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.adapt_on not in ADAPT_ON:
            raise ValueError(
                f"There is nothing called {self.adapt_on!r} to adapt on. {suggest(self.adapt_on, ADAPT_ON)}"
            )
        for name in ("shots", "batch_size", "max_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")


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
        ValueError: as `adapters.find`, `TaskVectors.from_adapters` and `merge_vectors`; `out` holds something; data
            that the method needs and nothing describes.
    """
    out, how = Path(out), how or How()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty: name a new folder, or remove it first.")
    given = find(adapters, recipe)
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
    vectors = _vectors(model, given, tasks, how)
    data = _data(vectors, tasks, how, labelled=method.needs == "labels") if method.needs != "nothing" else {}
    merged = merge_vectors(vectors, method, data)
    saved = merged if how.full else merged.truncated(how.rank)

    found: dict[str, Any] = {
        "method": method.name,
        "options": method.to_dict(),
        "tasks": list(vectors.tasks),
        "adapted_on": None if method.needs == "nothing" else how.adapt_on,
        "svd_error": {"all": saved.error, "layers": dict(saved.errors)} if saved.errors else None,
        "coefficients": {name: list(values) for name, values in merged.coefficients.items()},
        "notes": dict(merged.notes),
    }
    out.mkdir(parents=True, exist_ok=True)
    if tasks.data is not None:
        found["scores"] = _compare(saved, tasks, how, out)
    _save(saved, tokenizer, out, how)
    (out / "fusion.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    _plot(merged, out)
    return found


def _vectors(base: nn.Module, given: Sequence[Given], tasks: Tasks, how: How) -> TaskVectors:
    """The task vectors; those of a routed adapter with its gates averaged on each task."""
    if not is_routed(given):
        return TaskVectors.from_adapters(base, folders(given))
    if tasks.data is None or tasks.batches is None:
        raise ValueError("The gates of a routed adapter are averaged on data: give its run folder.")
    rows = tasks.data.split(ADAPT_ON[how.adapt_on], how.max_rows, how.seed)
    data = {
        task.name: input_batches(tasks.batches, rows[index], index, batch_size=how.batch_size, seed=how.seed)
        for index, task in enumerate(tasks.data.tasks)
    }
    return TaskVectors.from_routed(base, given[0].folder, data)


def _model_kind(given: Sequence[Any]) -> str | None:
    return next((each.recipe.model.kind for each in given if each.recipe is not None), None)


def _refuse_regressions(method: FusionMethod, tasks: Sequence[Any], base_kind: str | None) -> None:
    numbers = [task.name for task in tasks if task is not None and task.kind == "regression"]
    if numbers and base_kind == "encoder":
        raise ValueError(
            f"{method.name} minimises an entropy, which the regression {', '.join(numbers)} has not: leave it out, or "
            "take a method without that objective (average, ties, collapse, r_mtllmf)."
        )


def _data(vectors: TaskVectors, tasks: Tasks, how: How, *, labelled: bool) -> dict[str, list[Inputs]]:
    """Batches of each task; answers that are written freely are written by the task's own adapter."""
    assert tasks.data is not None
    assert tasks.batches is not None
    rows = tasks.data.split(ADAPT_ON[how.adapt_on], how.shots if labelled else how.max_rows, how.seed)
    found = {}
    for index, task in enumerate(vectors.tasks):
        with single(vectors, index).model() as writer:
            found[task] = input_batches(
                tasks.batches,
                rows[index],
                index,
                batch_size=how.batch_size,
                labelled=labelled,
                writer=writer,
                seed=how.seed,
            )
    return found


def _compare(merged: Merged, tasks: Tasks, how: How, out: Path) -> dict[str, Any]:
    """The scores of the fused model, of the individual adapters, their average, and a sweep of one lambda."""
    assert tasks.data is not None
    vectors, evaluation = merged.vectors, EvaluationPart()
    rows = tasks.data.split(how.split, None, how.seed)
    inputs = _data(vectors, tasks, how, labelled=False)
    against = references(vectors, inputs)

    def records(candidate: Merged, index: int) -> list[Record]:
        assert tasks.batches is not None
        with candidate.model() as model:
            return predict(model, tasks.batches, rows[index], index, max_new_tokens=evaluation.max_new_tokens)

    def scored(name: str, made: Mapping[str, list[Record]]) -> dict[str, Any]:
        logger.info("scored: %s", name)
        assert tasks.data is not None
        return report({task.name: score_task(task, made[task.name]) for task in tasks.data.tasks})

    names = list(enumerate(vectors.tasks))
    found = {SINGLE: scored(SINGLE, {task: records(single(vectors, index), index) for index, task in names})}
    candidates = {"average": average(vectors)}
    candidates |= {f"lambda {scale:g}": task_arithmetic(vectors, scale) for scale in SWEEP}
    for name, candidate in candidates.items():
        found[name] = scored(name, {task: records(candidate, index) for index, task in names})
        found[name]["xi"] = disentanglement(candidate, inputs, against)
    made = {task: records(merged, index) for index, task in names}
    found["fused"] = save_scored(out / "predictions" / how.split, tasks.data.tasks, made)
    found["fused"]["xi"] = disentanglement(merged, inputs, against)
    return found


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


def fusion_table(found: Mapping[str, Any]) -> str:
    """The table of a report's scores."""
    scores = found["scores"]
    rows = [["", *found["tasks"], "mean", "worst", "xi"]]
    for name, scored in scores.items():
        cells = [f"{scored['tasks'][task]['score']:.3f}" for task in found["tasks"]]
        xi = f"{sum(scored['xi'].values()):.3f}" if "xi" in scored else ""
        rows.append([name, *cells, f"{scored['mean']:.3f}", f"{scored['worst']:.3f}", xi])
    return table(rows)
