"""Mode `fused`: an adapter for each task, and all of them averaged into one LoRA, which is the model of the run.

The tasks of a run that `start_from` names have its adapter; each other task is trained alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lorachord.data.audit import DataAudit
from lorachord.fusion import Average, load_task_vectors, merge_vectors
from lorachord.models.pretrained import load_decoder, load_encoder
from lorachord.runs.arguments import autocast, ranks
from lorachord.runs.folder import RunFolder
from lorachord.runs.joint import REPORTED
from lorachord.runs.model import base_name
from lorachord.runs.progress import Progress
from lorachord.runs.recipe import Recipe
from lorachord.runs.scores import save_scored
from lorachord.runs.tasksets import TaskSet
from lorachord.training.kinds import MODEL_KINDS
from lorachord.training.scoring import predict
from lorachord.whole import new_folder


def fuse_and_score(
    folder: RunFolder, data: TaskSet, adapters: Mapping[str, Path], audited: DataAudit, training: Mapping[str, Any]
) -> None:
    """Average the tasks' adapters, score the result on all tasks, and save both.

    Each task counts alike: an adapter of several tasks counts once for each.

    Args:
        folder: of the run.
        adapters: the folder of each task's adapter, in the order of the tasks.
        audited: what was seen of the data.
        training: what `metrics.json` says of the training of each task.
    """
    recipe, part = folder.recipe, folder.recipe.evaluation
    dtype = getattr(torch, recipe.model.dtype)
    name = base_name(recipe.model)
    if recipe.model.kind == "encoder":
        base, tokenizer = load_encoder(name, num_labels=2, dtype=dtype, say_new=False)
    else:
        base, tokenizer = load_decoder(name, dtype=dtype, gguf_file=recipe.model.gguf_file)
    model = merge_vectors(load_task_vectors(base, adapters), Average()).as_lora()
    with new_folder(folder.path / "adapter") as written:
        model.save_pretrained(str(written))
    model.to(ranks().device)
    kind = MODEL_KINDS[recipe.model.kind](tokenizer, data.tasks, max_length=recipe.model.max_length)
    how: dict[str, Any] = {name: getattr(part, name) for name in ("batch_size", "max_new_tokens", "max_tokens")}
    metrics: dict[str, Any] = {}
    for split in REPORTED:
        rows = data.split(split, part.max_rows, recipe.tasks.seed)
        with autocast(recipe), Progress(sum(map(len, rows)), stream=sys.stderr) as progress:
            records = {
                task.name: predict(model, kind, own, index, progress=progress, **how)
                for index, (task, own) in enumerate(zip(data.tasks, rows, strict=True))
            }
        metrics[split] = save_scored(folder.path / "predictions" / split, data.tasks, records)
    folder.write_json("metrics.json", {**metrics, "training": dict(training), "data": audited.to_dict()})


def with_heads(recipe: Recipe) -> Recipe:
    """The recipe that a run's model is loaded by: of mode `fused`, an encoder has the head of each task."""
    if recipe.mode != "fused":
        return recipe
    return replace(recipe, model=replace(recipe.model, heads="per_task"))
