"""Encoders: sequence classifiers with one head, or with a head for each task.

An example of a multiple-choice task is one row an option; all other examples are one row.

Shapes: E examples, B rows, C outputs of the widest head, L tokens, T tasks, F features of a prompt's embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorachord.data.metrics import WRITTEN
from lorachord.data.task import Task
from lorachord.fusion.predictions import Inputs
from lorachord.heads import check_heads
from lorachord.training.model_kind import (
    Batch,
    Example,
    ModelKind,
    Record,
    answering,
    embeddings_of,
    has_class,
    to_device,
)
from lorachord.tuner import on_task


@final
@dataclass(frozen=True)
class EncoderBatches(ModelKind):
    """A sequence classifier reads a text or a pair of texts, and its head gives classes, scores or a number.

    A batch has the tokenizer's tensors (B, L), `tasks` (B,), `embedding` (B, F) or none, and
        num_rows: list of E ints, the rows of each example; they lie one after another.
        answers: FloatTensor (E,), class, option or number.
    """

    name = "encoder"
    classes = "a sequence classifier (...ForSequenceClassification)"
    beside = frozenset({"tasks", "embedding", "num_rows", "answers"})

    @classmethod
    def takes(cls, base: nn.Module) -> bool:
        return has_class(base, ("ForSequenceClassification",))

    def check(self, base: nn.Module) -> None:
        """Every task needs a head of its width, and the tokenizer a token for padding."""
        if self.tokenizer.pad_token_id is None:
            raise ValueError("The tokenizer has no token for padding: set tokenizer.pad_token.")
        written = [task.name for task in self.tasks if task.kind in WRITTEN]
        if written:
            raise ValueError(f"An encoder writes no text: leave out {', '.join(written)}, or take a decoder.")
        padding = getattr(base.config, "pad_token_id", None)
        if padding is not None and padding != self.tokenizer.pad_token_id:
            raise ValueError(
                f"The tokenizer pads with token {self.tokenizer.pad_token_id}, and the model takes {padding} for "
                "padding (model.config.pad_token_id), so that its outputs would depend on a batch's longest row: give "
                "both the same."
            )
        check_heads(base, {task.name: task.num_outputs for task in self.tasks})

    def collate(self, examples: Sequence[Example]) -> Batch:
        firsts, seconds, rows_of = [], [], []
        for example in examples:
            pairs = self.pairs(example)
            rows_of.append(len(pairs))
            for first, second in pairs:
                firsts.append(first)
                seconds.append(second)
        batch = self._tokens(firsts, seconds)
        tasks_E = torch.tensor([example["task"] for example in examples])
        batch["tasks"] = tasks_E.repeat_interleave(torch.tensor(rows_of))
        batch["num_rows"] = rows_of
        batch["answers"] = torch.tensor([float(example["label"]) for example in examples])
        embedding_BF = embeddings_of(examples)
        return batch if embedding_BF is None else {**batch, "embedding": embedding_BF}

    def _tokens(self, firsts: list[str], seconds: list[str]) -> Batch:
        """The tokenizer's tensors of texts, (B, L). A row's tokens do not depend on the other rows."""
        limits: dict[str, Any] = {"truncation": True, "max_length": self.max_length}
        # A tokenizer takes pairs for all rows or for none; an empty second text would still cost a separator.
        if all(seconds) or not any(seconds):
            texts = (firsts, seconds) if any(seconds) else (firsts,)
            batch: Batch = self.tokenizer(*texts, **limits, padding=True, return_tensors="pt").data
            return batch
        made = [
            self.tokenizer(first, second or None, **limits).data for first, second in zip(firsts, seconds, strict=True)
        ]
        # Its advice to pad while it tokenizes does not hold for rows that are tokenized apart.
        self.tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
        padded: Batch = self.tokenizer.pad(made, padding=True, return_tensors="pt").data
        return padded

    def pairs(self, example: Example) -> list[tuple[str, str]]:
        """The two texts of each row of an example; the second may be empty."""
        if self.tasks[example["task"]].kind != "multiple_choice":
            return [(example["first"], example["second"])]
        question = " ".join(text for text in (example["first"], example["second"]) if text)
        return [(question, option) for option in example["choices"]]

    def forward(self, model: nn.Module, batch: Mapping[str, Any]) -> Any:
        with on_task(model, batch["tasks"], embedding=batch.get("embedding")):
            return model(**self.inputs(batch))

    def losses(
        self, logits: Tensor, batch: Mapping[str, Any], variances: Mapping[int, float | Tensor] | None = None
    ) -> dict[int, Tensor]:
        """Cross-entropy over a task's classes, or over the options of an example; the squared error of a number.

        A squared error is over the variance of the task's numbers, so their unit does not weigh the task.

        Args:
            logits: from one head, or from heads per task, (B, C).
            batch: of `collate`.
            variances: of the answers of regression tasks, by index. Default: 1.
        """
        num_rows, answers_E = batch["num_rows"], batch["answers"]
        starts = _starts(num_rows)
        losses = {}
        for index, examples in _examples_of(batch).items():
            task, answers = self.tasks[index], answers_E[examples]
            if task.kind == "multiple_choice":
                spans = [slice(starts[example], starts[example] + num_rows[example]) for example in examples]
                terms = [
                    F.cross_entropy(logits[span, 0].float(), answer.long())
                    for span, answer in zip(spans, answers, strict=True)
                ]
                losses[index] = torch.stack(terms).mean()
                continue
            outputs = logits[[starts[example] for example in examples], : task.num_outputs].float()
            if task.kind == "regression":
                error = F.mse_loss(outputs[:, 0], answers.to(outputs.dtype))
                losses[index] = error / (variances or {}).get(index, 1.0)
            else:
                losses[index] = F.cross_entropy(outputs, answers.long())
        return losses

    def counts(self, batch: Mapping[str, Any]) -> Tensor:
        """The number of examples of each task, (T,)."""
        return torch.bincount(batch["tasks"][_starts(batch["num_rows"])], minlength=len(self.tasks))

    def numbers(self, batch: Mapping[str, Any]) -> dict[int, Tensor]:
        found = _examples_of(batch).items()
        return {
            index: batch["answers"][examples] for index, examples in found if self.tasks[index].kind == "regression"
        }

    def predict(
        self, model: nn.Module, examples: Sequence[Example], *, max_new_tokens: int, max_tokens: int | None = None
    ) -> Iterator[Record]:
        index, batch = examples[0]["task"], self.collate(examples)
        with answering(model, index, embedding=batch.get("embedding")):
            logits_BC = model(**to_device(self.inputs(batch), model)).logits.float().cpu()
        task = self.tasks[index]
        for rows in logits_BC.split(batch["num_rows"]):
            if task.kind == "regression":
                yield {"prediction": float(rows[0, 0])}
            else:
                scores = rows[:, 0] if task.kind == "multiple_choice" else rows[0, : task.num_outputs]
                yield {"prediction": int(scores.argmax()), "scores": scores.tolist()}

    def writes(self, task: Task) -> bool:
        """Never."""
        return False

    def texts(self, example: Example) -> list[str]:
        return [" ".join(part for part in pair if part) for pair in self.pairs(example)]

    def prompts(self, examples: Sequence[Example]) -> tuple[dict[str, Tensor], list[int]]:
        """All that a row holds: every token is there from the start."""
        batch = self.collate(examples)
        return self.inputs(batch), batch["num_rows"]

    def fusion_inputs(self, examples: Sequence[Example], *, labelled: bool) -> Inputs:
        task, batch = self.tasks[examples[0]["task"]], self.collate(examples)
        kinds: dict[str, Literal["number", "options"]] = {"regression": "number", "multiple_choice": "options"}
        return Inputs(
            self.inputs(batch),
            kinds.get(task.kind, "classes"),
            tuple(batch["num_rows"]),
            task.num_outputs,
            answers=batch["answers"] if labelled else None,
        )

    def tokens(self, examples: Sequence[Example]) -> list[int]:
        pairs = [self.pairs(example) for example in examples]
        flat = [(first, second) if second else first for own in pairs for first, second in own]
        made = iter(self.tokenizer(flat, verbose=False)["input_ids"]) if flat else iter(())
        return [max(len(next(made)) for _ in own) for own in pairs]


def _starts(num_rows: Sequence[int]) -> list[int]:
    """The first row of each example."""
    return [0, *accumulate(num_rows)][:-1]


def _examples_of(batch: Mapping[str, Any]) -> dict[int, list[int]]:
    """The examples of each task that occurs in a batch, by the task's index."""
    row_tasks = batch["tasks"].tolist()
    found: dict[int, list[int]] = {}
    for example, start in enumerate(_starts(batch["num_rows"])):
        found.setdefault(row_tasks[start], []).append(example)
    return found
