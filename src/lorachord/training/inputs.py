"""Batches of one task's inputs for fusion, without labels unless they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from lorachord.fusion.predictions import Inputs
from lorachord.training.batches import IGNORED, DecoderBatches, EncoderBatches, Example
from lorachord.training.scoring import predict


def input_batches(
    batches: EncoderBatches | DecoderBatches,
    examples: Sequence[Example],
    index: int,
    *,
    batch_size: int = 16,
    labelled: bool = False,
    writer: nn.Module | None = None,
    max_new_tokens: int = 16,
    seed: int = 0,
) -> list[Inputs]:
    """Batches of one task's examples, in a random order.

    Of a decoder's task with options, every option of an example is a row. Where a decoder writes freely, the answer is
    what `writer` (such as the task's own adapter) writes; with labels, the true one.

    Args:
        batches: what makes the batches of training.
        examples: with the columns of `data.sources`; without `labelled`, their labels are not looked at.
        index: the task's, among `batches.tasks`.
        batch_size: examples of a batch. Default 16.
        labelled: whether the batches have the answers. Default false.
        writer: see above; in a state to answer this task.
        max_new_tokens: of written answers. Default 16.
        seed: of the order. Default 0.

    Raises:
        ValueError: a freely written answer, and neither labels nor a writer.
    """
    task = batches.tasks[index]
    # No label reaches a collator or a model from here on, unless it was asked for.
    blank = {} if labelled else {"label": 0}
    chosen = [{**examples[row], "task": index, **blank} for row in range(len(examples))]
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [chosen[row] for row in order]
    if isinstance(batches, DecoderBatches) and not task.options(chosen[0]) and not labelled:
        if writer is None:
            raise ValueError(f"The answers of {task.name!r} are written freely: give a model that writes them.")
        records = predict(writer, batches, chosen, index, max_new_tokens=max_new_tokens)
        chosen = [{**example, "written": record["text"]} for example, record in zip(chosen, records, strict=True)]
    groups = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
    make = _encode if isinstance(batches, EncoderBatches) else _decode
    return [make(batches, group, index, labelled) for group in groups]


def _encode(batches: Any, group: list[dict[str, Any]], index: int, labelled: bool) -> Inputs:
    task = batches.tasks[index]
    made = batches(group)
    num_rows, answers = tuple(made.pop("num_rows")), made.pop("answers")
    del made["tasks"]
    kinds: dict[str, Literal["number", "options"]] = {"regression": "number", "multiple_choice": "options"}
    return Inputs(
        made, kinds.get(task.kind, "classes"), num_rows, task.num_outputs, None, answers if labelled else None
    )


def _decode(batches: Any, group: list[dict[str, Any]], index: int, labelled: bool) -> Inputs:
    task = batches.tasks[index]
    kind: Literal["options", "tokens"] = "options" if task.options(group[0]) else "tokens"
    answers = None
    if kind == "options":
        choices = [task.options(example) for example in group]
        if labelled:
            answers = torch.tensor([float(example["label"]) for example in group])
    else:
        choices = [[task.target(example) if labelled else example["written"]] for example in group]
        if labelled:
            answers = torch.empty(0)
    rows = [
        batches.row(task.render(example), choice, end=kind == "tokens")
        for example, own in zip(group, choices, strict=True)
        for choice in own
    ]
    made = batches.pad(rows)
    mask = made.pop("labels") != IGNORED
    return Inputs(made, kind, tuple(map(len, choices)), 1, mask, answers)
