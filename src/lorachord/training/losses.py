"""The loss of each task in a batch: a mean over the task's own examples (or answer tokens), so that no task drowns in
another's length or number.

Shapes: E examples, B rows, C outputs of the widest head, L tokens, V words; A answer tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from lorachord.data.task import Task
from lorachord.training.batches import IGNORED


def encoder_losses(
    logits_BC: Tensor,
    answers_E: Tensor,
    num_rows: Sequence[int],
    tasks_B: Tensor,
    tasks: Sequence[Task],
    variances: Mapping[int, float | Tensor] | None = None,
) -> dict[int, Tensor]:
    """The mean loss of each task that occurs, by its index.

    Cross-entropy over a task's classes, or over the options of an example; the squared error of a number, over the
    variance of the task's numbers, so that the unit in which they are written does not weigh the task.

    Args:
        logits_BC: from one head, or from heads per task.
        answers_E: class, option or number of each example.
        num_rows: rows of each example; they lie one after another.
        tasks_B: the task of each row.
        tasks: by index.
        variances: of the answers of regression tasks, by index. Default: 1.
    """
    starts = [0, *accumulate(num_rows)][:-1]
    losses = {}
    for index, examples in examples_of(num_rows, tasks_B).items():
        task, answers = tasks[index], answers_E[examples]
        if task.kind == "multiple_choice":
            spans = [slice(starts[example], starts[example] + num_rows[example]) for example in examples]
            terms = [
                F.cross_entropy(logits_BC[span, 0].float(), answer.long())
                for span, answer in zip(spans, answers, strict=True)
            ]
            losses[index] = torch.stack(terms).mean()
            continue
        outputs = logits_BC[[starts[example] for example in examples], : task.num_outputs].float()
        if task.kind == "regression":
            error = F.mse_loss(outputs[:, 0], answers.to(outputs.dtype))
            losses[index] = error / (variances or {}).get(index, 1.0)
        else:
            losses[index] = F.cross_entropy(outputs, answers.long())
    return losses


def examples_of(num_rows: Sequence[int], tasks_B: Tensor) -> dict[int, list[int]]:
    """The examples of each task that occurs, by its index; arguments as in `encoder_losses`."""
    row_tasks = tasks_B.tolist()
    found: dict[int, list[int]] = {}
    for example, start in enumerate([0, *accumulate(num_rows)][:-1]):
        found.setdefault(row_tasks[start], []).append(example)
    return found


def decoder_losses(logits_BLV: Tensor, labels_BL: Tensor, tasks_B: Tensor) -> dict[int, Tensor]:
    """The mean loss over the answer tokens of each task that occurs, by its index."""
    target_BL = labels_BL[:, 1:]
    counted_BL = target_BL != IGNORED
    # Answers are a few tokens of many, and a softmax is over the whole vocabulary: the others are left out first.
    token_A = F.cross_entropy(logits_BLV[:, :-1][counted_BL].float(), target_BL[counted_BL], reduction="none")
    task_A = tasks_B.unsqueeze(1).expand_as(target_BL)[counted_BL]
    losses = {}
    for index in tasks_B.unique().tolist():
        own = task_A == index
        losses[index] = token_A[own].sum() / own.sum().clamp_min(1)
    return losses


def encoder_counts(num_rows: Sequence[int], tasks_B: Tensor, num_tasks: int) -> Tensor:
    """What each task's mean in `encoder_losses` is over: its examples, (T,)."""
    starts = [0, *accumulate(num_rows)][:-1]
    return torch.bincount(tasks_B[starts], minlength=num_tasks)


def decoder_counts(labels_BL: Tensor, tasks_B: Tensor, num_tasks: int) -> Tensor:
    """What each task's mean in `decoder_losses` is over: its answer tokens, (T,)."""
    tokens_B = (labels_BL[:, 1:] != IGNORED).sum(1)
    return tokens_B.new_zeros(num_tasks).index_add_(0, tasks_B, tokens_B)
