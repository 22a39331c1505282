"""Predictions of a model on a task's examples, one record each, and their score.

Records are plain data: saved as they are, they can be scored again without the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorachord.data.metrics import score
from lorachord.data.task import Task
from lorachord.training.batches import IGNORED, DecoderBatches, EncoderBatches, Example
from lorachord.training.intuition import with_embeddings
from lorachord.tuner import on_task
from lorachord.tuner.prompts import prompt_before

Record = dict[str, Any]


def predict(
    model: nn.Module,
    batches: EncoderBatches | DecoderBatches,
    examples: Sequence[Example],
    index: int,
    *,
    batch_size: int = 64,
    max_new_tokens: int = 64,
) -> list[Record]:
    """Predict one task's examples.

    Args:
        model: in any mode; evaluated in eval mode, which is then set back.
        batches: what made the training batches.
        examples: with the columns of `data.sources`.
        index: the task's index among `batches.tasks`.
        batch_size: examples at a time.
        max_new_tokens: of freely written answers.

    Returns:
        One record an example: `idx`, `label`, `prediction`, and what it came from: `scores` (class or option scores),
        for a decoder's options also `prediction_normalised` (by the options' tokens), or the written `text`.
    """
    was_training = model.training
    model.eval()
    (embedded,) = with_embeddings(model, batches, [examples], [index], batch_size=batch_size)
    rows = [{**embedded[row], "task": index} for row in range(len(examples))]
    # Texts of like length together: less padding. The records come in the order of the examples.
    order = sorted(range(len(rows)), key=lambda row: _length(rows[row]), reverse=True)
    records: dict[int, Record] = {}
    try:
        with torch.no_grad():
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                some: list[Example] = [rows[row] for row in chosen]
                made = (
                    _encode(model, batches, some, index)
                    if isinstance(batches, EncoderBatches)
                    else _decode(model, batches, some, index, max_new_tokens)
                )
                for row, example, record in zip(chosen, some, made, strict=True):
                    records[row] = {"idx": example["idx"], "label": example["label"], **record}
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
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _length(example: Example) -> int:
    return len(example["first"]) + len(example["second"]) + max(map(len, example.get("choices", [""])))


def _encode(model: nn.Module, batches: EncoderBatches, some: list[Example], index: int) -> Iterator[Record]:
    batch = batches(some)
    num_rows = batch.pop("num_rows")
    del batch["tasks"], batch["answers"]
    with on_task(model, index, embedding=batch.pop("embedding", None)):
        logits = model(**_to_device(batch, model)).logits.float().cpu()
    task = batches.tasks[index]
    for rows in logits.split(num_rows):
        if task.kind == "regression":
            yield {"prediction": float(rows[0, 0])}
        else:
            scores = rows[:, 0] if task.kind == "multiple_choice" else rows[0, : task.num_outputs]
            yield {"prediction": int(scores.argmax()), "scores": scores.tolist()}


def _decode(
    model: nn.Module, batches: DecoderBatches, some: list[Example], index: int, max_new_tokens: int
) -> Iterator[Record]:
    task = batches.tasks[index]
    if not task.options(some[0]):
        yield from _write(model, batches, some, index, max_new_tokens)
        return
    rows = [
        batches.row(task.render(example), option, end=False) for example in some for option in task.options(example)
    ]
    counts = [len(task.options(example)) for example in some]
    batch = _to_device(batches.pad(rows), model)
    labels_BL = batch.pop("labels")
    with on_task(model, index, prompt_mask=prompt_before(labels_BL), embedding=_embedding(some, counts)):
        logits_BLV = model(**batch).logits
    labels_BL = labels_BL[:, 1:]
    counted_BL = labels_BL != IGNORED
    # Only the options' own tokens: a softmax is over the whole vocabulary.
    logits_AV = logits_BLV[:, :-1][counted_BL].float()
    log_A = -F.cross_entropy(logits_AV, labels_BL[counted_BL], reduction="none")
    row_A = counted_BL.nonzero()[:, 0]
    totals = log_A.new_zeros(len(rows)).index_add_(0, row_A, log_A).cpu()
    lengths = counted_BL.sum(1).cpu()
    for scores, tokens in zip(totals.split(counts), lengths.split(counts), strict=True):
        yield {
            "prediction": int(scores.argmax()),
            "prediction_normalised": int((scores / tokens).argmax()),
            "scores": scores.tolist(),
        }


def _write(
    model: nn.Module, batches: DecoderBatches, some: list[Example], index: int, max_new_tokens: int
) -> Iterator[Record]:
    tokenizer, task = batches.tokenizer, batches.tasks[index]
    prompts = [batches.prompt(example) for example in some]
    length = max(len(ids) for ids in prompts)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    # Generation goes on at the right, so prompts are padded on the left.
    ids = torch.tensor([[padding] * (length - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in prompts])
    with on_task(model, index, embedding=_embedding(some, [1] * len(some))):
        written = model.generate(  # type: ignore[operator]
            **_to_device({"input_ids": ids, "attention_mask": mask}, model),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=padding,
        )
    for row in written[:, length:]:
        text = str(tokenizer.decode(row, skip_special_tokens=True)).strip()
        yield {"prediction": _number(text) if task.kind == "regression" else text, "text": text}


def _embedding(some: list[Example], counts: Sequence[int]) -> Tensor | None:
    """Each example's embedding as often as it has rows; None where the examples have none."""
    if "embedding" not in some[0]:
        return None
    stacked_EF = torch.cat([example["embedding"] for example in some]).float()
    return stacked_EF.repeat_interleave(torch.tensor(counts), dim=0)


def _number(text: str) -> float:
    """The number that a text begins with; 0 if it begins with none, so that what failed is scored, not dropped."""
    try:
        number = float(text.split()[0])
    except (IndexError, ValueError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def _to_device(batch: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in batch.items()}
