"""A kind of model: how it reads examples of several tasks, what its outputs mean, and how it answers.

`encoder.py` and `decoder.py` hold one final class each. Everything else in training works through this page alone, so a
further kind of model is one more file and a line in `kinds.py`.

Shapes: E examples, B rows (an example may be several), L tokens, T tasks, F features of a prompt's embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lorachord.data.task import Task
from lorachord.fusion.predictions import Inputs
from lorachord.tuner import on_task
from lorachord.tuner.walk import modules_of, states_of

Example = Mapping[str, Any]
"""The columns of `data.rows.RowReader.example`; `task`, the task's index; `embedding` (rows, F) where it has one."""
Batch = dict[str, Any]
Record = dict[str, Any]


@dataclass(frozen=True)
class ModelKind(ABC):
    """
    Args:
        tokenizer: of the model.
        tasks: in the order of the examples' `task` indices.
        max_length: tokens of a row at most; longer ones are cut. Default 128.

    Attributes:
        name: of this kind, as in a recipe.
        classes: of transformers that are of this kind, in words.
        beside: what a batch holds beside the model's own inputs.
    """

    name: ClassVar[str]
    classes: ClassVar[str]
    beside: ClassVar[frozenset[str]]

    tokenizer: PreTrainedTokenizerBase
    tasks: Sequence[Task]
    max_length: int = 128

    @classmethod
    @abstractmethod
    def takes(cls, base: nn.Module) -> bool:
        """Whether a model, without what PEFT puts around it, is of this kind."""

    @abstractmethod
    def check(self, base: nn.Module) -> None:
        """Whether a model of this kind can learn the tasks, with the tokenizer.

        Raises:
            ValueError: it lacks what a task needs.
        """

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """One batch of examples that are sorted by task.

        Returns:
            The model's inputs (B, L); `tasks`, a LongTensor (B,) for `on_task`; `embedding` (B, F), a FloatTensor,
            where the examples have one; and what this kind needs for its losses.
        """

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """`collate`, as a Trainer calls its collator."""
        return self.collate(examples)

    @abstractmethod
    def forward(self, model: nn.Module, batch: Mapping[str, Any]) -> Any:
        """The model's outputs for a batch of `collate`, with the tasks of its rows named."""

    @abstractmethod
    def losses(
        self, logits: Tensor, batch: Mapping[str, Any], variances: Mapping[int, float | Tensor] | None = None
    ) -> dict[int, Tensor]:
        """The mean loss of each task that occurs in a batch, by the task's index.

        A mean is over a task's own examples or answer tokens, so no task drowns in another's length or number.

        Args:
            logits: of `forward`.
            batch: of `collate`.
            variances: of the answers of regression tasks, by index. Default: 1.
        """

    @abstractmethod
    def counts(self, batch: Mapping[str, Any]) -> Tensor:
        """The number of terms in each task's mean of `losses`: a LongTensor (T,), 0 for a task that is absent."""

    @abstractmethod
    def numbers(self, batch: Mapping[str, Any]) -> dict[int, Tensor]:
        """The answers of each regression task in a batch, (examples,), by the task's index.

        Only of tasks whose numbers are outputs of a head; written numbers are text.
        """

    @abstractmethod
    def predict(
        self, model: nn.Module, examples: Sequence[Example], *, max_new_tokens: int, max_tokens: int | None = None
    ) -> Iterator[Record]:
        """The records of one batch of examples of one task, in their order; without gradients, in eval mode.

        Args:
            max_new_tokens: of answers that are written freely.
            max_tokens: whose logits are made at a time, where options are scored. Default: see `option_scores`.

        Returns:
            `prediction` and its origin: `scores` of classes or options, or the written `text`.
        """

    @abstractmethod
    def writes(self, task: Task) -> bool:
        """Whether the model writes the answers of a task freely, and chooses among no classes or options."""

    @abstractmethod
    def texts(self, example: Example) -> list[str]:
        """The text of the prompt in each row of an example."""

    @abstractmethod
    def prompts(self, examples: Sequence[Example]) -> tuple[dict[str, Tensor], list[int]]:
        """The model's inputs (B, L) with the prompts alone, and the number of rows of each example."""

    @abstractmethod
    def fusion_inputs(self, examples: Sequence[Example], *, labelled: bool) -> Inputs:
        """One batch of examples of one task, for fusion.

        Args:
            examples: with the further column `written`, the answer, where the model writes it and `labelled` is false.
            labelled: whether the batch holds the right answers.
        """

    @abstractmethod
    def tokens(self, examples: Sequence[Example]) -> list[int]:
        """The tokens of each example's longest row in training, if nothing were cut."""

    def length(self, example: Example) -> int:
        """The size of an example, in any unit: those of like size are predicted together."""
        return num_letters(example)

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The model's own inputs in a batch of `collate`."""
        return {key: value for key, value in batch.items() if key not in self.beside}


def base_of(model: nn.Module) -> nn.Module:
    """The transformers model in a PeftModel, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def answering(
    model: nn.Module, task: int, *, prompt_mask: Tensor | None = None, embedding: Tensor | None = None
) -> AbstractContextManager[None]:
    """`on_task` for a batch of one task; a merged model, which has no adapter any more, answers its task anyway."""
    if not states_of(model) and not any(isinstance(module, BaseTunerLayer) for module in modules_of(model)):
        return nullcontext()
    return on_task(model, task, prompt_mask=prompt_mask, embedding=embedding)


def has_class(model: nn.Module, words: Sequence[str]) -> bool:
    """Whether one of the words is in the name of the model's class, or of one that it derives from."""
    return any(word in cls.__name__ for cls in type(model).__mro__ for word in words)


def embeddings_of(examples: Sequence[Example]) -> Tensor | None:
    """The embeddings of examples below each other (B, F); None where they have none."""
    if not all("embedding" in example for example in examples):
        return None
    return torch.cat([example["embedding"] for example in examples]).float()


def num_letters(example: Example) -> int:
    """The letters of an example's texts, with its longest option."""
    return len(example["first"]) + len(example["second"]) + max(map(len, example.get("choices", [""])))


def to_device(inputs: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tensors on the device of a model's first parameter."""
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in inputs.items()}
