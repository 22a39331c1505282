"""TRL's collators with the tasks of a batch.

Shapes: B rows (of preferences, pairs), L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from lorachord.trl.given_sets import TASK

TASKS = "tasks"
"""Of a batch: LongTensor (B,), or (B, L) where a row holds several samples."""
TOKEN_TASKS = "token_tasks"
"""Of a packed row: the task of each token."""


@dataclass
class InstructionCollator(DataCollatorForLanguageModeling):
    """TRL's, with the task of each row; of each token, where rows are packed or laid end to end."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        if not self.padding_free and TOKEN_TASKS not in examples[0]:
            batch[TASKS] = torch.tensor([example[TASK] for example in examples])
            return batch
        rows = [_of_tokens(example) for example in examples]
        if self.padding_free:
            rows = [torch.cat(rows)]
        length = batch["input_ids"].shape[1]
        # Padding goes with the token before it.
        batch[TASKS] = torch.stack([torch.cat([row, row[-1:].expand(length - len(row))]) for row in rows])
        return batch


@dataclass
class PreferenceCollator(DataCollatorForPreference):
    """TRL's, with the task of each pair, (B,)."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        tasks = torch.tensor([example[TASK] for example in examples])
        return {**super().torch_call(examples), TASKS: tasks}


def _of_tokens(example: dict[str, Any]) -> Tensor:
    if TOKEN_TASKS in example:
        return torch.tensor(example[TOKEN_TASKS])
    return torch.full((len(example["input_ids"]),), example[TASK])
