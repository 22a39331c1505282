"""A Trainer for several tasks: transformers' own, with a mixture for a data loader and a loss for each task.

trainer = MultiTaskTrainer(model, args, batches=batches, train_data=[...], eval_data=[...], mixture=mixture)
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from lorachord.balance.base import Balance
from lorachord.balance.by_loss import Equal
from lorachord.data.mixture import MixedDataset, Rows, TaskMixture
from lorachord.surgery.surgeon import Operation, Surgeon
from lorachord.surgery.watch import Watch
from lorachord.training.balanced import BalancedMixin
from lorachord.training.batches import DecoderBatches, EncoderBatches
from lorachord.training.decay import undecayed
from lorachord.training.intuition import with_intuition
from lorachord.training.losses import decoder_counts, decoder_losses, encoder_counts, encoder_losses
from lorachord.training.scoring import Record, predict, score_records, summarise
from lorachord.training.sharded import ShardedMixin
from lorachord.tuner import on_task, penalty
from lorachord.tuner.prompts import prompt_before


class MixtureLoader(DataLoader[Any]):
    """A DataLoader that passes the epoch on to its mixture: Trainer tells the loader alone."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        assert isinstance(self.batch_sampler, TaskMixture)
        self.batch_sampler.set_epoch(epoch)


class MultiTaskMixin(BalancedMixin, ShardedMixin):
    """The multi-task parts, over any Trainer that calls `compute_loss` and `evaluate`.

    The loss of a step is the mean over the tasks that occur in its batch of `weight * mean loss of the task`, plus the
    adapter's penalties. Weights multiply; they are not normalised. On several ranks the batch is that of all of them,
    and the step is what one process would make of it.

    Args:
        model: with an adapter; per-task heads, if any, inside.
        args: transformers' TrainingArguments.
        batches: makes batches of examples, and knows the tasks.
        train_data: one map-style dataset per task.
        eval_data: one per task, for `evaluate` (early stopping and the best checkpoint go by it: give it `val`).
        mixture: the batch sampler over `train_data`, for this rank.
        task_weights: one per task. Default: 1 each.
        max_new_tokens: of freely written answers, when predicting. Default 64.
        surgeon: operates on the gradients of the tasks before clipping. Default: none, the plain sum.
        balance: weighs the losses of the tasks, beside `task_weights`; see `balance/make.py`. Default: equally.
        watch: writes down what surgery sees and does. Default: none.
        **keywords: the Trainer's own.

    Raises:
        ValueError: numbers of tasks, datasets or weights that do not fit each other.
    """

    # The losses are means over a task's own examples, so the Trainer divides by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        batches: EncoderBatches | DecoderBatches,
        train_data: Sequence[Rows],
        eval_data: Sequence[Rows],
        mixture: TaskMixture,
        task_weights: Sequence[float] | None = None,
        max_new_tokens: int = 64,
        surgeon: Surgeon | None = None,
        balance: Balance | None = None,
        watch: Watch | None = None,
        **keywords: Any,
    ) -> None:
        self.batches, self.mixture, self.max_new_tokens = batches, mixture, max_new_tokens
        self.surgeon, self.watch = surgeon, watch
        self.operation: Operation | None = None
        self.tasks = tuple(batches.tasks)
        self.train_data, self.eval_data = tuple(train_data), tuple(eval_data)
        self.task_weights = tuple(task_weights) if task_weights is not None else (1.0,) * len(self.tasks)
        counts = {"train_data": self.train_data, "eval_data": self.eval_data, "task_weights": self.task_weights}
        for name, values in counts.items():
            if len(values) != len(self.tasks):
                raise ValueError(f"{name} has {len(values)} entries for {len(self.tasks)} tasks.")
        self.balance = balance if balance is not None else Equal([task.name for task in self.tasks])
        self.variances: dict[int, float | Tensor] = {
            index: statistics.pvariance(answers(rows)) or 1.0
            for index, (task, rows) in enumerate(zip(self.tasks, self.train_data, strict=True))
            if task.kind == "regression"
        }
        # Each step's loss of each task, until they are logged; tensors, so that no step waits for the device.
        self._task_losses: dict[int, list[Tensor]] = {}
        super().__init__(  # type: ignore[call-arg]
            model=model,
            args=args,
            train_dataset=MixedDataset(self.train_data),
            eval_dataset=self.eval_data,
            data_collator=batches,
            **keywords,
        )
        self.start_balance()
        # Once, so that no step has to, and on the device that the Trainer has moved the model to.
        self.train_data, self.eval_data = with_intuition(
            model, batches, self.train_data, self.eval_data, batch_size=args.per_device_eval_batch_size, seed=args.seed
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The Trainer's choice, without what a method keeps from weight decay."""
        names: list[str] = super().get_decay_parameter_names(model)  # type: ignore[misc]
        kept = set(undecayed(model))
        return [name for name in names if name not in kept]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of the mixture, not sharded again: the sampler knows its rank."""
        return MixtureLoader(MixedDataset(self.train_data), batch_sampler=self.mixture, collate_fn=self.batches)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Tensor | tuple[Tensor, Any]:
        """The mean over the batch's tasks of their weighted losses, plus penalties."""
        if model.training:
            self.before_forward(inputs)
        losses, outputs = self.task_losses(model, inputs)
        if model.training:
            for index, loss in losses.items():
                self._task_losses.setdefault(index, []).append(loss.detach())
        self.balance.train(model.training)
        total = self.balance(losses, self.counts(inputs), self.task_weights) + penalty(model)
        return (total, outputs) if return_outputs else total

    def counts(self, inputs: Mapping[str, Any]) -> Tensor:
        """What each task's mean loss on this rank is over, (T,)."""
        if isinstance(self.batches, EncoderBatches):
            return encoder_counts(inputs["num_rows"], inputs["tasks"], len(self.tasks))
        return decoder_counts(inputs["labels"], inputs["tasks"], len(self.tasks))

    def training_step(self, model: nn.Module, *args: Any, **keywords: Any) -> Tensor:
        """Forward and backward; at the end of an accumulation window, the operation on what they have left."""
        loss: Tensor = super().training_step(model, *args, **keywords)  # type: ignore[misc]
        trainer: Any = self
        if trainer.accelerator.sync_gradients:
            self.average_the_rest(model)
            if self.surgeon is not None:
                scaler = trainer.accelerator.scaler
                scale = 1.0 if scaler is None else scaler.get_scale()
                self.operation = self.surgeon.operate(trainer.state.global_step, scale=scale)
                if self.watch is not None:
                    self.watch.see(self.operation, self.surgeon.rule, step=trainer.state.global_step + 1)
        return loss

    def task_losses(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[dict[int, Tensor], Any]:
        """The loss of each task in a batch, by the task's index, and the model's outputs."""
        batch = dict(inputs)
        tasks_B, embedding_BF = batch.pop("tasks"), batch.pop("embedding", None)
        if isinstance(self.batches, EncoderBatches):
            num_rows, answers_E = batch.pop("num_rows"), batch.pop("answers")
            with on_task(model, tasks_B, embedding=embedding_BF):
                outputs = model(**batch)
            variances = {**self.variances, **self.balance.variances()}
            losses = encoder_losses(outputs.logits, answers_E, num_rows, tasks_B, self.tasks, variances)
            return losses, outputs
        labels_BL = batch.pop("labels")
        with on_task(model, tasks_B, prompt_mask=prompt_before(labels_BL), embedding=embedding_BF):
            outputs = model(**batch)
        return decoder_losses(outputs.logits, labels_BL, tasks_B), outputs

    def evaluate(
        self,
        eval_dataset: Sequence[Rows] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Each task's metric, their mean and the worst; logged, and shown to the callbacks."""
        records = self.predict_tasks(eval_dataset)
        metrics = {
            f"{metric_key_prefix}_{name}": value
            for name, value in summarise(
                {task.name: score_records(task, records[task.name]) for task in self.tasks}
            ).items()
        }
        self.log(metrics)
        trainer: Any = self
        self.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        return metrics

    def predict_tasks(self, data: Sequence[Rows] | None = None) -> dict[str, list[Record]]:
        """The records of every task by its name; of `eval_data` unless other datasets are given."""
        args: TrainingArguments = self.args  # type: ignore[attr-defined]
        return {
            task.name: predict(
                self.model,  # type: ignore[attr-defined]
                self.batches,
                rows,  # type: ignore[arg-type]
                index,
                batch_size=args.per_device_eval_batch_size,
                max_new_tokens=self.max_new_tokens,
            )
            for index, (task, rows) in enumerate(zip(self.tasks, data or self.eval_data, strict=True))
        }

    def log(self, logs: dict[str, float], *args: Any, **keywords: Any) -> None:
        """With the mean loss of each task since the last time, as `loss_<task>`, and what surgery did last. With a
        balance, `weight_<task>` is what the task's loss was last multiplied by.

        `surgery_conflicts` is the share of pairs of tasks with a negative cosine, over all factors; `surgery_moved` how
        far the gradient went from the plain sum, relative to it.
        """
        if "loss" in logs:
            for index, losses in sorted(self._task_losses.items()):
                logs[f"loss_{self.tasks[index].name}"] = float(torch.stack(losses).mean())
            self._task_losses.clear()
            if not isinstance(self.balance, Equal):
                for task, weight, scale in zip(self.tasks, self.balance.weights_T, self.task_weights, strict=True):
                    logs[f"weight_{task.name}"] = float(weight) * scale
            if self.operation is not None:
                logs["surgery_conflicts"] = self.operation.conflicts
                logs["surgery_moved"] = self.operation.moved
        super().log(logs, *args, **keywords)  # type: ignore[misc]


class MultiTaskTrainer(MultiTaskMixin, Trainer):  # type: ignore[misc]
    """transformers' Trainer with the multi-task parts."""


def answers(rows: Rows) -> list[float]:
    """The answers of a regression task's rows."""
    return [float(rows[index]["label"]) for index in range(len(rows))]
