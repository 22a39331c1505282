"""The figures of a joint run that need its model to read rows: routing, and interference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor, nn

from lorachord.data.split import cut
from lorachord.data.task import Task
from lorachord.runs.arguments import autocast
from lorachord.runs.folder import RunFolder
from lorachord.runs.inspect.interference import Interference, interference
from lorachord.runs.inspect.routing import EMBEDDING, Routing, routing
from lorachord.runs.tasksets import load_rows
from lorachord.training.model_kind import Example, ModelKind, embeddings_of, to_device
from lorachord.training.prompt_embeddings import with_embeddings

MOST_WITH_GRADIENTS = 64
"""Rows of a task for interference, which reads each of them T + 3 times."""


@dataclass(frozen=True)
class RowsOfRun:
    """Some rows of each task of a joint run, with its model.

    Attributes:
        run: the run.
        model: its own, in eval mode.
        kind: of the model.
        tasks: in the run's order.
        examples: of each task, with their embeddings where the adapter looks at them.
    """

    run: RunFolder
    model: PeftModel
    kind: ModelKind
    tasks: tuple[Task, ...]
    examples: tuple[list[Example], ...]

    @classmethod
    def read(
        cls,
        run: RunFolder,
        loaded: tuple[PeftModel, ModelKind, tuple[Task, ...]],
        split: str,
        max_rows: int,
        data_dir: str | Path | None,
    ) -> RowsOfRun:
        """At most `max_rows` rows of a split of each task.

        Raises:
            ValueError: as `tasksets.load_rows`.
        """
        model, kind, tasks = loaded
        seed = run.recipe.tasks.seed
        found = load_rows(run.recipe, tasks, split, run.data_dir if data_dir is None else data_dir)
        rows = [own.select(cut(len(own), max_rows, seed)) for own in found]
        with autocast(run.recipe):
            embedded = with_embeddings(model, kind, rows, batch_size=run.recipe.evaluation.batch_size)
        examples: list[list[Example]] = [
            [{**own[row], "task": index} for row in range(len(own))] for index, own in enumerate(embedded)
        ]
        return cls(run, model, kind, tasks, tuple(examples))

    def routing(self) -> Routing:
        """The experts that the prompts of each task use."""
        prompts = {
            task.name: [self._prompts(part) for part in self._batches(own, len(own))]
            for task, own in zip(self.tasks, self.examples, strict=True)
        }
        with autocast(self.run.recipe):
            return routing(self.model, prompts)

    def interference(self) -> Interference:
        """What a step for each task does to the others, on at most `MOST_WITH_GRADIENTS` of the rows."""
        batches = {
            task.name: [self.kind.collate(part) for part in self._batches(own, MOST_WITH_GRADIENTS)]
            for task, own in zip(self.tasks, self.examples, strict=True)
        }
        with autocast(self.run.recipe):
            return interference(self.model, batches, self._loss, self.run.recipe.training.learning_rate)

    def _loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        device = next(model.parameters()).device
        moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        [loss] = self.kind.losses(self.kind.forward(model, moved).logits, moved).values()
        return loss

    def _prompts(self, examples: Sequence[Example]) -> dict[str, Any]:
        inputs: dict[str, Any] = to_device(self.kind.prompts(examples)[0], self.model)
        embedding = embeddings_of(examples)
        return inputs if embedding is None else {**inputs, EMBEDDING: embedding}

    def _batches(self, examples: Sequence[Example], most: int) -> list[Sequence[Example]]:
        """Batches of the first rows: two at least, of which each is a half."""
        examples = examples[:most]
        size = max(1, min(self.run.recipe.evaluation.batch_size, -(-len(examples) // 2)))
        return [examples[start : start + size] for start in range(0, len(examples), size)]
