"""`lorachord distill`: a finished run of a routed method into one plain LoRA for each task, and the cost in score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorachord.baselines import BASELINES
from lorachord.core.context import Mixing
from lorachord.core.registry import get_method
from lorachord.export import export_lora
from lorachord.fusion.disentanglement import single
from lorachord.fusion.distilled_factors import distilled
from lorachord.heads import heads_of
from lorachord.messages import table
from lorachord.runs.adapters import find, load_base, load_tasks
from lorachord.runs.arguments import autocast
from lorachord.runs.folder import RunFolder
from lorachord.runs.scores import score_task, scores_of, shown
from lorachord.runs.tasksets import load_rows
from lorachord.runs.use import choose_tasks, describe_export, open_run, predictions, require_new
from lorachord.training.fusion_batches import input_batches
from lorachord.training.scoring import predict
from lorachord.whole import write_json


def distill_run(
    run: str | Path,
    out: str | Path,
    names: Sequence[str] | None = None,
    *,
    rank: int | None = None,
    max_rows: int = 512,
    split: str = "dev",
    data_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Write one plain LoRA for each task of a routed run, in `out/TASK`, and what that costs.

    Args:
        names: of the tasks. Default: all.
        rank: of each layer's update at most. Default: the columns of the method's up-projection, which loses least.
        max_rows: training rows of each task that the LoRA is fitted on. Default 512.
        split: what both are scored on. Default dev.
        data_dir: where the data lie now. Default: as when the run was made.

    Returns:
        what `out/distill.json` holds: `method`, `rank`, `split`, and by task `metric`, `routed`, `lora`, `cost`.

    Raises:
        ValueError: no finished run, a method that does not route by its input, a rank or a number of rows below 1, a
            task that the run has not, or a folder that holds something. Nothing is then written.
    """
    out, folder = Path(out), open_run(run)
    method = folder.recipe.method["name"]
    if method in BASELINES or get_method(method).mixing is not Mixing.INPUT:
        raise ValueError(
            f"{run} has a {method} adapter, which does not route by its input: `lorachord export {run}` writes plain "
            "LoRAs that equal it."
        )
    for name, value in (("rank", rank), ("max_rows", max_rows)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    tasks = choose_tasks(folder, names)
    require_new(out)
    routed = scores_of(tasks, predictions(run, split, names=names, data_dir=data_dir))["tasks"]
    chosen = [task.name for task in tasks]
    how: dict[str, Any] = {"rank": rank, "max_rows": max_rows, "split": split, "data_dir": data_dir}
    if folder.recipe.mode == "single":
        scores: Mapping[str, Any] = {
            name: _distill(open_run(folder.path / name), out, [name], **how)[name] for name in chosen
        }
    else:
        scores = _distill(folder, out, chosen, **how)
    found: dict[str, Any] = {"method": method, "rank": rank, "split": split, "tasks": {}}
    for name in chosen:
        before, after = routed[name], scores[name]
        found["tasks"][name] = {
            "metric": before["metric"],
            "routed": before["score"],
            "lora": after["score"],
            "cost": before["score"] - after["score"],
        }
    write_json(out / "distill.json", found)
    return found


def _distill(
    folder: RunFolder,
    out: Path,
    names: Sequence[str],
    *,
    rank: int | None,
    max_rows: int,
    split: str,
    data_dir: str | Path | None,
) -> Mapping[str, Mapping[str, Any]]:
    """Write the LoRAs of a joint run; returns their scores by task."""
    recipe, scored = folder.recipe, folder.recipe.evaluation
    given = find([str(folder.path)])
    base, tokenizer, part = load_base(given, None)
    tasks = load_tasks(given, tokenizer, part, None if data_dir is None else str(data_dir))
    assert tasks.data is not None
    assert tasks.kind is not None
    own = tasks.kind.tasks
    train = tasks.data.split("train", max_rows, tasks.seed)
    # Answers that are written freely are the labels': these are rows of training.
    data = {
        task.name: input_batches(tasks.kind, train[index], index, labelled=True, seed=tasks.seed)
        for index, task in enumerate(own)
    }
    vectors = distilled(base, folder.path / "adapter", data, rank)
    rows = load_rows(recipe, own, split, data_dir or folder.data_dir)
    by_task = heads_of(vectors.base) is not None
    found = {}
    for index, task in enumerate(own):
        if task.name not in names:
            continue
        merged = single(vectors, index)
        with merged.model() as model, autocast(recipe):
            records = predict(
                model,
                tasks.kind,
                rows[index],
                index,
                batch_size=scored.batch_size,
                max_new_tokens=scored.max_new_tokens,
                max_tokens=scored.max_tokens,
            )
        found[task.name] = score_task(task, records)
        exported = export_lora(merged.as_lora(), out / task.name, task=task.name if by_task else None)
        describe_export(folder, exported, [task.name])
    return found


def distill_table(found: Mapping[str, Any]) -> str:
    """The routed run's score beside each LoRA's."""
    rows = [["task", "metric", found["method"], "lora", "cost"]]
    for name, own in found["tasks"].items():
        rows.append([name, own["metric"], shown(own["routed"]), shown(own["lora"]), f"{own['cost']:+.3f}"])
    return table(rows)
