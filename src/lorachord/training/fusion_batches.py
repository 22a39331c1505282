"""Batches of one task's inputs for fusion, without labels unless they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lorachord.fusion.predictions import Inputs
from lorachord.training.model_kind import Example, ModelKind
from lorachord.training.scoring import predict


def input_batches(
    kind: ModelKind,
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
        kind: as in training.
        examples: with the columns of `data.sources`; without `labelled`, their labels are not looked at.
        index: the task's, among `kind.tasks`.
        batch_size: examples of a batch. Default 16.
        labelled: whether the batches have the answers. Default false.
        writer: see above; in a state to answer this task.
        max_new_tokens: of written answers. Default 16.
        seed: of the order. Default 0.

    Raises:
        ValueError: a freely written answer, and neither labels nor a writer.
    """
    task = kind.tasks[index]
    # No label reaches a collator or a model from here on, unless it was asked for.
    blank = {} if labelled else {"label": 0}
    chosen = [{**examples[row], "task": index, **blank} for row in range(len(examples))]
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [chosen[row] for row in order]
    if kind.writes(task) and not labelled:
        if writer is None:
            raise ValueError(f"The answers of {task.name!r} are written freely: give a model that writes them.")
        records = predict(writer, kind, chosen, index, max_new_tokens=max_new_tokens)
        chosen = [{**example, "written": record["text"]} for example, record in zip(chosen, records, strict=True)]
    groups = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
    return [kind.fusion_inputs(group, labelled=labelled) for group in groups]
