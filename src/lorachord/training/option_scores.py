"""The log-likelihoods of options behind a prompt, with the prompt read once.

All options of an example lie behind its prompt in one row. A mask lets each option see the prompt and itself, and
positions begin anew with each, so that every option is read as if it stood there alone. Logits are made of the prompt's
last token and of the options alone, for a bounded number of tokens at a time.

Models whose layers do not obey such a mask (recurrent ones, those with positions of their own) get a row for each
option. This is found out once for each model, by scoring an example both ways. Adapters that choose by the prompt
refuse rows of several texts, and get a row for each option as well.

Shapes: B rows of L tokens, K columns whose logits are needed, V words, A tokens of options.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from lorachord.families.by_prompt import PromptLevel
from lorachord.training.model_kind import base_of

logger = logging.getLogger(__name__)

LOGITS = 1 << 28
"""Bytes of logits in float32 at a time, unless told otherwise."""
CLOSE, CLOSE_IN_HALF = 1e-3, 0.2
"""Scores of both ways differ by less than this where a model obeys the mask; with weights in half precision."""

Answering = Callable[[Sequence[int], Tensor], Any]
"""A context for a pass over examples, by their places, with the mask of their prompts (B, L)."""


@dataclass(frozen=True)
class Question:
    """A prompt and its options, as token ids."""

    prompt: list[int]
    options: list[list[int]]

    def alone(self, option: int) -> Question:
        """With one of the options."""
        return Question(self.prompt, [self.options[option]])


@dataclass(frozen=True)
class _Piece:
    """Some of the options of a question, which go through the model in one row."""

    place: int
    first: int
    question: Question

    @property
    def width(self) -> int:
        return sum(map(len, self.question.options))


def score_options(
    model: nn.Module,
    questions: Sequence[Question],
    answering: Answering,
    *,
    padding: int,
    max_tokens: int | None = None,
) -> list[Tensor]:
    """The sum of the log-probabilities of each option's tokens, for each question, on the CPU.

    Args:
        model: a causal language model in eval mode.
        questions: with at least one option each.
        answering: see `Answering`.
        padding: a token to fill rows with.
        max_tokens: whose logits are made at a time. Default: as many as take 256 MB.
    """
    config: PretrainedConfig = base_of(model).config  # type: ignore[assignment]
    size: int = getattr(config.get_text_config(), "vocab_size", 1 << 16)
    most = max_tokens if max_tokens is not None else max(1, LOGITS // (4 * size))
    pieces = list(_pieces(questions, most))
    if len(pieces) < sum(len(each.options) for each in questions) and not _obeys(model, questions, answering, padding):
        pieces = [
            _Piece(place, option, each.alone(option))
            for place, each in enumerate(questions)
            for option in range(len(each.options))
        ]
    scores = [torch.zeros(len(each.options)) for each in questions]
    for chunk in _chunks(sorted(pieces, key=lambda piece: (len(piece.question.prompt), piece.width)), most):
        for piece, found in zip(chunk, _score(model, chunk, answering, padding), strict=True):
            scores[piece.place][piece.first : piece.first + len(found)] = found
    return scores


def _pieces(questions: Sequence[Question], most: int) -> Iterator[_Piece]:
    """Each question whole, or in parts of as many options as may be."""
    for place, question in enumerate(questions):
        own: list[list[int]] = []
        first, width = 0, 1
        for option, ids in enumerate(question.options):
            if own and width + len(ids) > most:
                yield _Piece(place, first, Question(question.prompt, own))
                first, own, width = option, [], 1
            own.append(ids)
            width += len(ids)
        yield _Piece(place, first, Question(question.prompt, own))


def _chunks(pieces: Sequence[_Piece], most: int) -> Iterator[list[_Piece]]:
    """Pieces that go through the model together; of like widths, where questions have them."""
    chunk: list[_Piece] = []
    width = 0
    for piece in pieces:
        wider = max(width, 1 + piece.width)
        if chunk and wider * (len(chunk) + 1) > most:
            yield chunk
            chunk, wider = [], 1 + piece.width
        chunk.append(piece)
        width = wider
    yield chunk


_OBEYS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _obeys(model: nn.Module, questions: Sequence[Question], answering: Answering, padding: int) -> bool:
    """Whether the options of a question score alike in one row and alone."""
    if any(isinstance(module, PromptLevel) for module in model.modules()):
        return False
    if model not in _OBEYS:
        place = max(range(len(questions)), key=lambda each: len(questions[each].options))
        last = len(questions[place].options) - 1
        two = Question(questions[place].prompt, [questions[place].options[0], questions[place].options[last]])
        weight = next(model.parameters())
        close = CLOSE if weight.dtype == torch.float32 else CLOSE_IN_HALF
        with torch.autocast(weight.device.type, enabled=False):
            alone = [_score(model, [_Piece(place, 0, two.alone(option))], answering, padding)[0] for option in (0, 1)]
            try:
                [together] = _score(model, [_Piece(place, 0, two)], answering, padding)
            except (TypeError, ValueError, RuntimeError, IndexError):
                _OBEYS[model] = False
            else:
                _OBEYS[model] = bool((together - torch.cat(alone)).abs().max() < close)
        if not _OBEYS[model]:
            logger.info("%s reads a row for each option: its layers do not obey a mask of pairs", type(model).__name__)
    return _OBEYS[model]


def _score(model: nn.Module, pieces: Sequence[_Piece], answering: Answering, padding: int) -> list[Tensor]:
    """The scores of the options of each piece."""
    questions = [piece.question for piece in pieces]
    is_plain = all(len(question.options) == 1 for question in questions)
    rows = _plain_rows(questions, padding) if is_plain else _packed_rows(questions, padding)
    base, weight = base_of(model), next(model.parameters())
    if rows.allowed is None:
        inputs: dict[str, Any] = {"attention_mask": rows.real.long().to(weight.device)}
    else:
        # What attention adds: nothing, or the least number.
        mask = torch.zeros(rows.allowed.shape, dtype=weight.dtype).masked_fill_(
            ~rows.allowed, torch.finfo(weight.dtype).min
        )
        inputs = {"attention_mask": mask.to(weight.device), "position_ids": rows.positions.to(weight.device)}
    first = min(rows.before)
    kept = rows.ids.shape[1] - first
    if "logits_to_keep" in inspect.signature(base.forward).parameters:
        inputs["logits_to_keep"] = kept
    with answering([piece.place for piece in pieces], rows.prompts.to(weight.device)):
        logits_BKV = model(input_ids=rows.ids.to(weight.device), use_cache=False, **inputs).logits[:, -kept:]
    scores = []
    for row, question in enumerate(questions):
        last = rows.before[row] - first
        # The first token is predicted by the prompt's last, each other by the one before it in its option.
        column, before = last + 1, []
        for ids in question.options:
            before += [last, *range(column, column + len(ids) - 1)]
            column += len(ids)
        lengths = [len(ids) for ids in question.options]
        target_A = torch.tensor([token for ids in question.options for token in ids], device=weight.device)
        columns_K, place_A = torch.tensor(before, device=weight.device).unique(return_inverse=True)
        # The sum over the vocabulary once for each column, and no softmax.
        own_KV = logits_BKV[row, columns_K].float()
        log_A = own_KV[place_A, target_A] - own_KV.logsumexp(1)[place_A]
        scores.append(torch.stack([own.sum() for own in log_A.split(lengths)]).cpu())
    return scores


@dataclass(frozen=True)
class _Rows:
    """
    Attributes:
        ids: (B, L).
        real: (B, L), True where there is no padding.
        prompts: (B, L), True for the prompt and the padding before it.
        before: the column of each prompt's last token.
        allowed: (B, 1, L, L), whether a token sees another; None where each sees all before it.
        positions: (B, L).
    """

    ids: Tensor
    real: Tensor
    prompts: Tensor
    before: list[int]
    allowed: Tensor | None
    positions: Tensor


def _plain_rows(questions: Sequence[Question], padding: int) -> _Rows:
    """One option behind each prompt, padded on the right."""
    rows = [each.prompt + each.options[0] for each in questions]
    longest = max(map(len, rows))
    ids_BL = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
    column_L = torch.arange(longest)
    real_BL = column_L < torch.tensor([[len(row)] for row in rows])
    prompt_BL = column_L < torch.tensor([[len(each.prompt)] for each in questions])
    before = [len(each.prompt) - 1 for each in questions]
    return _Rows(ids_BL, real_BL, prompt_BL, before, None, column_L.expand_as(ids_BL))


def _packed_rows(questions: Sequence[Question], padding: int) -> _Rows:
    """All options behind each prompt. Prompts are padded on the left, so that all options begin in the same column."""
    longest = max(len(each.prompt) for each in questions)
    width = max(sum(map(len, each.options)) for each in questions)
    size = (len(questions), longest + width)
    ids_BL = torch.full(size, padding)
    real_BL = torch.zeros(size, dtype=torch.bool)
    option_BL, position_BL = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
    for row, each in enumerate(questions):
        start, column = longest - len(each.prompt), longest
        ids_BL[row, start:longest] = torch.tensor(each.prompt)
        position_BL[row, start:longest] = torch.arange(len(each.prompt))
        for number, ids in enumerate(each.options, 1):
            stop = column + len(ids)
            ids_BL[row, column:stop] = torch.tensor(ids)
            option_BL[row, column:stop] = number
            position_BL[row, column:stop] = torch.arange(len(ids)) + len(each.prompt)
            column = stop
        real_BL[row, start:column] = True
    earlier_LL = torch.ones(size[1], size[1], dtype=torch.bool).tril()
    own_BLL = (option_BL[:, None, :] == 0) | (option_BL[:, None, :] == option_BL[:, :, None])
    allowed_BLL = earlier_LL & own_BLL & real_BL[:, None, :] & real_BL[:, :, None]
    prompt_BL = (torch.arange(size[1]) < longest).expand(size)
    return _Rows(ids_BL, real_BL, prompt_BL, [longest - 1] * size[0], allowed_BLL[:, None], position_BL)
