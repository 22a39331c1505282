"""Batches of one task's inputs, what a model predicts for them, and objectives on these predictions.

Shapes: B rows, L tokens, E examples, N predictions (examples, or tokens of written answers), C classes, options or
words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

ABSENT = -1e4
"""The logit of an option that an example has not; finite, so that p log p has a gradient (of zero) there."""


@dataclass(frozen=True)
class Inputs:
    """One batch of one task, without labels unless `answers` holds them.

    Attributes:
        tensors: the model's keywords, (B, L) each.
        kind: `classes` of a head, `options` (several rows an example), `number`, or `tokens` of a written answer.
        num_rows: rows of each example; they lie one after another.
        num_classes: outputs of the task's head, where the kind is `classes`.
        answer_mask: True for the tokens of options or answers, (B, L); None for heads.
        answers: the right class, option or number of each example (E,), for methods that may see it. For `tokens`, the
            tokens themselves are the answer: then an empty tensor says that they are the right ones.
    """

    tensors: Mapping[str, Tensor]
    kind: Literal["classes", "options", "number", "tokens"]
    num_rows: tuple[int, ...]
    num_classes: int = 1
    answer_mask: Tensor | None = None
    answers: Tensor | None = None


Data = Mapping[str, Sequence[Inputs]]
"""Batches of each task."""


@dataclass(frozen=True)
class Predictions:
    """
    Attributes:
        values: log-probabilities (N, C), or of numbers their values (N, 1).
        weights: of each row in a mean over examples (N,); they sum to 1.
        targets: the tokens that stand there, of written answers (N,).
    """

    values: Tensor
    weights: Tensor
    targets: Tensor | None = None


def predictions(model: nn.Module, inputs: Inputs) -> Predictions:
    """What the model predicts; within `on_task` where it has a head for each task."""
    device = next(model.parameters()).device
    logits = model(**{name: tensor.to(device) for name, tensor in inputs.tensors.items()}).logits
    num_examples = len(inputs.num_rows)
    even_E = torch.full((num_examples,), 1 / num_examples, device=device)
    if inputs.answer_mask is None:
        if inputs.kind == "options":
            return Predictions(_over_options(logits[:, 0].float(), inputs.num_rows), even_E)
        outputs = logits[:, : inputs.num_classes].float()
        return Predictions(outputs if inputs.kind == "number" else outputs.log_softmax(-1), even_E)

    mask_BL = inputs.answer_mask.to(device)[:, 1:]
    ids_A = inputs.tensors["input_ids"].to(device)[:, 1:][mask_BL]
    # Answers are a few tokens of many, and a softmax is over the whole vocabulary.
    log_AV = logits[:, :-1][mask_BL].float().log_softmax(-1)
    row_A = mask_BL.nonzero()[:, 0]
    if inputs.kind == "tokens":
        tokens_B = mask_BL.sum(1).clamp_min(1)
        return Predictions(log_AV, 1 / (tokens_B[row_A] * num_examples), ids_A)
    own_A = log_AV.gather(1, ids_A[:, None])[:, 0]
    total_B = own_A.new_zeros(len(mask_BL)).index_add(0, row_A, own_A)
    return Predictions(_over_options(total_B, inputs.num_rows), even_E)


def _over_options(scores_B: Tensor, num_rows: tuple[int, ...]) -> Tensor:
    """Log-probabilities among each example's own options (E, C)."""
    return pad_sequence(list(scores_B.split(list(num_rows))), batch_first=True, padding_value=ABSENT).log_softmax(-1)


def entropy(found: Predictions) -> Tensor:
    """The mean over examples of the entropy of each one's prediction (of a written answer: its tokens' mean)."""
    log_NC = found.values
    return -((log_NC.exp() * log_NC).sum(-1) * found.weights).sum()


def supervised(found: Predictions, inputs: Inputs) -> Tensor:
    """The mean over examples of the cross-entropy, or of the squared error of a number."""
    if inputs.kind == "number":
        assert inputs.answers is not None
        return ((found.values[:, 0] - inputs.answers.to(found.values)) ** 2 * found.weights).sum()
    targets_N = found.targets
    if targets_N is None:
        assert inputs.answers is not None
        targets_N = inputs.answers.long().to(found.values.device)
    return (F.nll_loss(found.values, targets_N, reduction="none") * found.weights).sum()


def distance(found: Predictions, reference: Predictions, kind: str) -> Tensor:
    """KL(reference || found) averaged over examples; of numbers, the squared difference."""
    if kind == "number":
        return ((found.values - reference.values)[:, 0] ** 2 * found.weights).sum()
    log_NC = reference.values
    return ((log_NC.exp() * (log_NC - found.values)).sum(-1) * found.weights).sum()
