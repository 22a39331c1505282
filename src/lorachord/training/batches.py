"""From examples of several tasks to one batch of tensors, for encoders with heads and for decoders.

Shapes: E examples, B rows (an example of a multiple-choice task is one row an option for an encoder), L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lorachord.data.task import Task

Example = Mapping[str, Any]
IGNORED = -100
"""The label of a token that no loss is taken of."""


@dataclass(frozen=True)
class EncoderBatches:
    """Collates examples, sorted by task, for an encoder with heads.

    The batch has the tokenizer's tensors (B, L), and
        tasks: LongTensor (B,), the task of each row, for `on_task`.
        num_rows: list of E ints, the rows of each example.
        answers: FloatTensor (E,), class, option or number.
        embedding: FloatTensor (B, F), where the examples have one: of each row.

    Args:
        tokenizer: of the model.
        tasks: in the order of the examples' `task` indices.
        max_length: tokens at most; longer texts are cut. Default 128.
    """

    tokenizer: PreTrainedTokenizerBase
    tasks: Sequence[Task]
    max_length: int = 128

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Collate examples with the columns of `data.sources` and `task`."""
        firsts, seconds, rows_of = [], [], []
        for example in examples:
            pairs = self.texts(example)
            rows_of.append(len(pairs))
            for first, second in pairs:
                firsts.append(first)
                seconds.append(second)
        # A tokenizer takes pairs for all rows or for none; an empty second text would still cost a separator.
        paired = any(seconds)
        texts = (firsts, seconds) if paired else (firsts,)
        batch = self.tokenizer(
            *texts, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        ).data
        tasks = torch.tensor([example["task"] for example in examples])
        return {
            **batch,
            "tasks": tasks.repeat_interleave(torch.tensor(rows_of)),
            "num_rows": rows_of,
            "answers": torch.tensor([float(example["label"]) for example in examples]),
            **_embeddings(examples),
        }

    def texts(self, example: Example) -> list[tuple[str, str]]:
        """The text, or pair of texts, of each row of an example."""
        if self.tasks[example["task"]].kind != "multiple_choice":
            return [(example["first"], example["second"])]
        question = " ".join(text for text in (example["first"], example["second"]) if text)
        return [(question, option) for option in example["choices"]]


@dataclass(frozen=True)
class DecoderBatches:
    """Collates examples for a decoder that reads a prompt and writes the answer after one space.

    The batch has `input_ids` and `attention_mask` (B, L), padded on the right, `labels` (B, L) with the prompt and the
    padding ignored, and `tasks` (B,); where the examples have an `embedding`, also these (B, F).

    Args:
        tokenizer: of the model.
        tasks: in the order of the examples' `task` indices.
        max_length: tokens at most; prompts are cut at their start. Default 256.
    """

    tokenizer: PreTrainedTokenizerBase
    tasks: Sequence[Task]
    max_length: int = 256

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Collate examples with the columns of `data.sources` and `task`."""
        rows = []
        for example in examples:
            task = self.tasks[example["task"]]
            rows.append(self.row(task.render(example), task.target(example), end=True))
        batch = self.pad(rows)
        return {**batch, "tasks": torch.tensor([example["task"] for example in examples]), **_embeddings(examples)}

    def prompt(self, example: Example) -> list[int]:
        """Token ids of the prompt alone."""
        ids: list[int] = self.tokenizer(self.tasks[example["task"]].render(example))["input_ids"]
        return ids[-self.max_length :]

    def row(self, prompt: str, answer: str, *, end: bool) -> tuple[list[int], list[int]]:
        """Token ids of prompt and answer, and the labels of the answer alone; `end` adds the end-of-text token."""
        answer_ids: list[int] = self.tokenizer(" " + answer, add_special_tokens=False)["input_ids"]
        answer_ids = answer_ids + [self.tokenizer.eos_token_id] * end
        room = max(1, self.max_length - len(answer_ids))
        prompt_ids: list[int] = self.tokenizer(prompt)["input_ids"][-room:]
        return prompt_ids + answer_ids, [IGNORED] * len(prompt_ids) + answer_ids

    def pad(self, rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        """Tensors of rows, padded on the right."""
        length = max(len(ids) for ids, _ in rows)
        padding = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

        def padded(lists: list[list[int]], filler: int) -> torch.Tensor:
            return torch.tensor([ids + [filler] * (length - len(ids)) for ids in lists])

        return {
            "input_ids": padded([ids for ids, _ in rows], padding),
            "attention_mask": padded([[1] * len(ids) for ids, _ in rows], 0),
            "labels": padded([labels for _, labels in rows], IGNORED),
        }


def _embeddings(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    if not all("embedding" in example for example in examples):
        return {}
    return {"embedding": torch.cat([example["embedding"] for example in examples]).float()}
