"""Answers that a decoder writes: their losses by task, and the number that one begins with.

Shapes: B rows, L tokens, V words, A answer tokens.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from lorachord.training.decoder_rows import IGNORED


def decoder_losses(logits_BLV: Tensor, labels_BL: Tensor, tasks_B: Tensor) -> dict[int, Tensor]:
    """The mean cross-entropy over the answer tokens of each task that occurs, by its index."""
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


def number_in(text: str) -> float:
    """The number that a text begins with; 0 if it begins with none, so that what failed is scored, not dropped."""
    try:
        number = float(text.split()[0])
    except (IndexError, ValueError):
        return 0.0
    return number if math.isfinite(number) else 0.0
