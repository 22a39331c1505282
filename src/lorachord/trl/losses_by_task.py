"""Losses by task under TRL's trainers: their means in a batch, and in evaluation over all ranks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset  # type: ignore[import-untyped]
from torch import Tensor

from lorachord.data.mixture import MixedDataset
from lorachord.training.steps_by_task import StepsByTask
from lorachord.trl.given_sets import Sets, by_task


class LossesByTask(StepsByTask):
    """The evaluation of one of TRL's trainers, task by task.

    Attributes:
        eval_data: the rows of each task as tokens; some of the tasks, or none.
    """

    eval_data: dict[str, Dataset]

    @abstractmethod
    def check_rows(self, name: str, rows: Dataset, args: Any) -> None:
        """Whether a task's rows have the columns that they need."""

    @abstractmethod
    def prepared(self, name: str, rows: Dataset, given: Sequence[Any], *, trains: bool) -> Dataset:
        """A task's rows as tokens.

        Args:
            given: what TRL gives its `_prepare_dataset` behind the rows.
            trains: whether the rows are for training.
        """

    def evaluate(
        self,
        eval_dataset: Sets | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Each task's mean loss, their mean and the worst; logged, and shown to the callbacks.

        `eval_<task>_loss` is the mean over all of the task's counted tokens (or pairs), on all ranks. `eval_loss` is
        their mean and `eval_worst_loss` the largest. TRL's own metrics are there for each task too.

        Args:
            eval_dataset: as the trainer's. Default: the trainer's own.

        Raises:
            ValueError: there are no rows to evaluate.
        """
        trainer: Any = self
        sets = self.eval_data if eval_dataset is None else self._fresh(eval_dataset)
        if not sets:
            raise ValueError("There is nothing to evaluate: give the trainer or evaluate() an eval_dataset.")
        was_training, metrics, losses = trainer.model.training, dict[str, float](), []
        trainer.model.eval()
        try:
            for name, rows in sets.items():
                trainer._metrics["eval"].clear()
                losses.append(self._loss(self.task_names.index(name), rows))
                metrics[f"{metric_key_prefix}_{name}_loss"] = losses[-1]
                for key, values in trainer._metrics["eval"].items():
                    if key != "num_tokens":
                        metrics[f"{metric_key_prefix}_{name}_{key}"] = sum(values) / len(values)
            trainer._metrics["eval"].clear()
            metrics[f"{metric_key_prefix}_loss"] = sum(losses) / len(losses)
            metrics[f"{metric_key_prefix}_worst_loss"] = max(losses)
            self.log(metrics)
        finally:
            trainer.model.train(was_training)
        trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        return metrics

    def _fresh(self, sets: Sets) -> dict[str, Dataset]:
        trainer: Any = self
        found = by_task(sets, self.task_names, "eval_dataset", all_tasks=False)
        for name, rows in found.items():
            self.check_rows(name, rows, trainer.args)
        return {name: self.prepared(name, rows, self.preparing(name), trains=False) for name, rows in found.items()}

    @abstractmethod
    def preparing(self, name: str) -> tuple[Any, ...]:
        """What `prepared` is given for rows that are evaluated later."""

    @torch.no_grad()
    def _loss(self, task: int, rows: Dataset) -> float:
        """The mean loss of a task's rows over all ranks, each of which reads its share."""
        trainer: Any = self
        args = trainer.args
        size, ranks = args.per_device_eval_batch_size, args.world_size
        mine = range(args.process_index, len(rows), ranks)
        mixed = MixedDataset([rows] * len(self.task_names))
        sums_2 = torch.zeros(2, dtype=torch.float64, device="cpu")
        # As many passes on every rank, since a sharded model's are in step.
        for start in range(0, ceil(len(rows) / ranks), size):
            chosen = mine[start : start + size]
            batch = trainer.data_collator([mixed[task, row] for row in chosen or (0,)])
            inputs = trainer._prepare_inputs(batch)
            with trainer.compute_loss_context_manager():
                losses, _ = self.task_losses(trainer.model, inputs)
            count = float(self.counts(inputs)[task]) if chosen else 0.0
            sums_2 += torch.tensor([float(losses[task]) * count, count], dtype=torch.float64)
        if dist.is_initialized():
            total_2 = sums_2.float().to(args.device)
            dist.all_reduce(total_2)
            sums_2 = total_2.double().cpu()
        return float(sums_2[0] / sums_2[1].clamp_min(1))


def task_means(losses: Tensor, counted: Tensor, tasks: Tensor) -> dict[int, Tensor]:
    """The mean of the losses of each task that occurs, by its index; all three of one shape."""
    found = {}
    for index in tasks.unique().tolist():
        own = counted & (tasks == index)
        found[index] = losses[own].sum() / own.sum().clamp_min(1)
    return found
