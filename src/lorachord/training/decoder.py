"""Decoders: causal language models that read a prompt and write the answer after one space.

Shapes: B rows, L tokens, V words, A answer tokens, T tasks, E examples, F features of a prompt's embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from lorachord.data.chats import from_text
from lorachord.data.metrics import WRITTEN
from lorachord.data.task import Task
from lorachord.fusion.predictions import Inputs
from lorachord.training.chat_rows import ChatRows
from lorachord.training.decoder_rows import IGNORED, DecoderRows
from lorachord.training.model_kind import (
    Batch,
    Example,
    ModelKind,
    Record,
    answering,
    base_of,
    embeddings_of,
    has_class,
    to_device,
)
from lorachord.training.option_scores import Question, score_options
from lorachord.training.positions import ends_of, position_table
from lorachord.training.written_answers import decoder_losses, number_in
from lorachord.tuner import on_task
from lorachord.tuner.prompt_masks import prompt_before

logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class DecoderBatches(ModelKind):
    """A causal language model reads a task's prompt. Its answer is the most probable option, or is written freely.

    Every example is one row in training. A batch has `input_ids` and `attention_mask` (B, L), padded on the right;
    `labels` (B, L) with the prompt and the padding ignored; `tasks` (B,); `embedding` (B, F) or none. A prompt that is
    too long loses its beginning, an answer that is too long its end; see `decoder_rows`.
    """

    name = "decoder"
    classes = "a causal language model (...ForCausalLM, ...LMHeadModel)"
    beside = frozenset({"tasks", "embedding", "labels"})

    @classmethod
    def takes(cls, base: nn.Module) -> bool:
        return has_class(base, ("ForCausalLM", "LMHeadModel"))

    @cached_property
    def rows(self) -> DecoderRows:
        """Makes the rows of prompts and answers."""
        return DecoderRows(self.tokenizer, self.max_length)

    @cached_property
    def chats(self) -> ChatRows:
        """Makes the rows of chats."""
        return ChatRows(self.tokenizer, self.max_length)

    def check(self, base: nn.Module) -> None:
        """The tokenizer needs a token for the end of a text, which an answer ends with, and rows need room for it.

        Chats need a chat template. An end at which the model does not stop by itself is logged.
        """
        end = self.rows.end
        if any(task.kind == "chat" for task in self.tasks):
            end = self.chats.end
        self.rows.check(self.tasks)
        ends = ends_of(base)
        if ends and end not in ends:
            logger.warning(
                "answers end with the tokenizer's token %d, and the model's own generate stops at %s: set "
                "model.generation_config.eos_token_id where it is used elsewhere",
                end,
                ", ".join(map(str, ends)),
            )

    def collate(self, examples: Sequence[Example]) -> Batch:
        rows = []
        for example in examples:
            task = self.tasks[example["task"]]
            own, prompt = self._asked(example)
            rows.append(own.row(prompt, task.target(example), end=True, beside=task.options(example)))
        batch = {**self.rows.pad(rows), "tasks": torch.tensor([example["task"] for example in examples])}
        embedding_BF = embeddings_of(examples)
        return batch if embedding_BF is None else {**batch, "embedding": embedding_BF}

    def forward(self, model: nn.Module, batch: Mapping[str, Any]) -> Any:
        prompt_mask = prompt_before(batch["labels"])
        with on_task(model, batch["tasks"], prompt_mask=prompt_mask, embedding=batch.get("embedding")):
            return model(**self.inputs(batch))

    def losses(
        self, logits: Tensor, batch: Mapping[str, Any], variances: Mapping[int, float | Tensor] | None = None
    ) -> dict[int, Tensor]:
        """Cross-entropy over the answer tokens.

        Args:
            logits: (B, L, V).
            batch: of `collate`.
            variances: not used, since numbers are written.
        """
        return decoder_losses(logits, batch["labels"], batch["tasks"])

    def counts(self, batch: Mapping[str, Any]) -> Tensor:
        """The number of answer tokens of each task, (T,)."""
        tokens_B: Tensor = (batch["labels"][:, 1:] != IGNORED).sum(1)
        return tokens_B.new_zeros(len(self.tasks)).index_add_(0, batch["tasks"], tokens_B)

    def numbers(self, batch: Mapping[str, Any]) -> dict[int, Tensor]:
        """None: numbers are written."""
        return {}

    def predict(
        self, model: nn.Module, examples: Sequence[Example], *, max_new_tokens: int, max_tokens: int | None = None
    ) -> Iterator[Record]:
        """Of options also `prediction_normalised`, by the options' tokens."""
        if self.writes(self.tasks[examples[0]["task"]]):
            return self._write(model, examples, max_new_tokens)
        return self._choose(model, examples, max_tokens)

    def writes(self, task: Task) -> bool:
        return task.kind in ("regression", *WRITTEN)

    def texts(self, example: Example) -> list[str]:
        return [self._asked(example)[1]]

    def prompts(self, examples: Sequence[Example]) -> tuple[dict[str, Tensor], list[int]]:
        batch = self.rows.pad([(ids, ids) for ids in map(self.prompt, examples)])
        return self.inputs(batch), [1] * len(examples)

    def fusion_inputs(self, examples: Sequence[Example], *, labelled: bool) -> Inputs:
        """Every option of an example is a row."""
        task = self.tasks[examples[0]["task"]]
        kind: Literal["options", "tokens"] = "tokens" if self.writes(task) else "options"
        answers = None
        if kind == "options":
            choices = [task.options(example) for example in examples]
            if labelled:
                answers = torch.tensor([float(example["label"]) for example in examples])
        else:
            choices = [[task.target(example) if labelled else example["written"]] for example in examples]
            if labelled:
                answers = torch.empty(0)
        batch = self._rows_of(examples, choices, end=kind == "tokens")
        mask_BL = batch["labels"] != IGNORED
        return Inputs(self.inputs(batch), kind, tuple(map(len, choices)), 1, mask_BL, answers)

    def tokens(self, examples: Sequence[Example]) -> list[int]:
        found = []
        for example in examples:
            task, (rows, prompt) = self.tasks[example["task"]], self._asked(example)
            found.append(rows.whole(prompt, [task.target(example), *task.options(example)]))
        return found

    def prompt(self, example: Example, room: int | None = None) -> list[int]:
        """The tokens of an example's prompt, at most `room` (default: `max_length`)."""
        rows, prompt = self._asked(example)
        return rows.prompt(prompt, room)

    def _asked(self, example: Example) -> tuple[DecoderRows, str]:
        """What makes the rows of an example's task, and the text of its prompt."""
        task = self.tasks[example["task"]]
        if task.kind == "chat":
            return self.chats, self.chats.written(from_text(example["first"]))
        return self.rows, task.render(example)

    def _rows_of(
        self, examples: Sequence[Example], answers: Sequence[Sequence[str]], *, end: bool
    ) -> dict[str, Tensor]:
        """One row for each answer of each example, with its end also where one of them begins another."""
        rows = []
        for example, own in zip(examples, answers, strict=True):
            made, prompt = self._asked(example)
            ends = end or made.need_ends(own)
            rows += [made.row(prompt, answer, end=ends, beside=own) for answer in own]
        return self.rows.pad(rows)

    def _choose(self, model: nn.Module, examples: Sequence[Example], max_tokens: int | None) -> Iterator[Record]:
        index = examples[0]["task"]
        options = [self.tasks[index].options(example) for example in examples]
        questions = [self._question(example, own) for example, own in zip(examples, options, strict=True)]
        embedding_EF = embeddings_of(examples)

        def asked(places: Sequence[int], prompt_mask_BL: Tensor) -> AbstractContextManager[None]:
            own = None if embedding_EF is None else embedding_EF[list(places)]
            return answering(model, index, prompt_mask=prompt_mask_BL, embedding=own)

        found = score_options(model, questions, asked, padding=self.rows.padding, max_tokens=max_tokens)
        for question, scores in zip(questions, found, strict=True):
            tokens = torch.tensor([len(ids) for ids in question.options])
            yield {
                "prediction": int(scores.argmax()),
                "prediction_normalised": int((scores / tokens).argmax()),
                "scores": scores.tolist(),
            }

    def _question(self, example: Example, options: Sequence[str]) -> Question:
        """A prompt and its options, cut as in training."""
        prompt, ends = self.tasks[example["task"]].render(example), self.rows.need_ends(options)
        rows = [self.rows.row(prompt, option, end=ends, beside=options) for option in options]
        length = next(place for place, label in enumerate(rows[0][1]) if label != IGNORED)
        return Question(rows[0][0][:length], [ids[length:] for ids, _ in rows])

    def _write(self, model: nn.Module, examples: Sequence[Example], max_new_tokens: int) -> Iterator[Record]:
        index, tokenizer = examples[0]["task"], self.tokenizer
        prompts = [self.prompt(example, self._room(model, max_new_tokens)) for example in examples]
        length = max(len(ids) for ids in prompts)
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        # Generation goes on at the right, so prompts are padded on the left.
        ids_BL = torch.tensor([[padding] * (length - len(row)) + row for row in prompts])
        mask_BL = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in prompts])
        with answering(model, index, embedding=embeddings_of(examples)):
            written_BL = model.generate(  # type: ignore[operator]
                **to_device({"input_ids": ids_BL, "attention_mask": mask_BL}, model),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=padding,
                eos_token_id=sorted({self._asked(examples[0])[0].end, *ends_of(base_of(model))}),
            )
        for row in written_BL[:, length:]:
            text = str(tokenizer.decode(row, skip_special_tokens=True)).strip()
            yield {"prediction": number_in(text) if self.tasks[index].kind == "regression" else text, "text": text}

    def _room(self, model: nn.Module, max_new_tokens: int) -> int:
        """Tokens of a prompt at most, so that the answer has positions too."""
        table = position_table(base_of(model))
        room = self.max_length if table is None else min(self.max_length, table - max_new_tokens)
        needed = len(self.rows.prompt("", 1)) + 1
        if room < needed:
            raise ValueError(
                f"The model has {table} positions, which leaves no room for a prompt beside an answer of "
                f"max_new_tokens={max_new_tokens}: give fewer."
            )
        return room
