"""Predictions of a model on a task's examples, one record each, and their score.

Records are plain data: saved as they are, they can be scored again without the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from lorachord.data.metrics import score
from lorachord.data.task import Task
from lorachord.training.model_kind import Example, ModelKind, Record
from lorachord.training.prompt_embeddings import with_embeddings
from lorachord.whole import json_line, write_text


def predict(
    model: nn.Module,
    kind: ModelKind,
    examples: Sequence[Example],
    index: int,
    *,
    batch_size: int = 64,
    max_new_tokens: int = 64,
    max_tokens: int | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> list[Record]:
    """Predict one task's examples.

    Args:
        model: in any mode; evaluated in eval mode, which is then set back.
        kind: as in training.
        examples: with the columns of `data.sources`.
        index: the task's index among `kind.tasks`.
        batch_size: examples at a time.
        max_new_tokens: of freely written answers.
        max_tokens: whose logits a decoder makes at a time, where it scores options. Default: as many as take 256 MB.
        progress: is called with the task's name and the number of rows after each batch. Default: nothing.

    Returns:
        One record an example: `idx`, `label`, `prediction`, and what it came from: `scores` (class or option scores),
        for a decoder's options also `prediction_normalised` (by the options' tokens), or the written `text`.
    """
    was_training = model.training
    model.eval()
    (embedded,) = with_embeddings(model, kind, [examples], [index], batch_size=batch_size)
    rows = [{**embedded[row], "task": index} for row in range(len(examples))]
    # Texts of like length together: less padding. The records come in the order of the examples.
    order = sorted(range(len(rows)), key=lambda row: kind.length(rows[row]), reverse=True)
    records: dict[int, Record] = {}
    try:
        with torch.no_grad():
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                some: list[Example] = [rows[row] for row in chosen]
                made = kind.predict(model, some, max_new_tokens=max_new_tokens, max_tokens=max_tokens)
                for row, example, record in zip(chosen, some, made, strict=True):
                    records[row] = {"idx": example["idx"], "label": example["label"], **record}
                if progress is not None:
                    progress(kind.tasks[index].name, len(chosen))
    finally:
        model.train(was_training)
    return [records[row] for row in range(len(rows))]


def score_records(task: Task, records: Sequence[Record], key: str = "prediction") -> float:
    """The task's metric of saved records."""
    return score(task.metric, [record[key] for record in records], [record["label"] for record in records])


def summarise(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores by task, with their `mean` and the `worst`."""
    return {**scores, "mean": sum(scores.values()) / len(scores), "worst": min(scores.values())}


def save_records(folder: Path, records: Mapping[str, Sequence[Record]]) -> None:
    """One JSON-lines file a task, one record a line; a slash in a task's name is a folder."""
    for name, rows in records.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(map(json_line, rows)))
