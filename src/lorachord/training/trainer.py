"""A Trainer for several tasks: transformers' own, with a mixture for a data loader and a loss for each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from lorachord.balance.base import Balance
from lorachord.balance.by_loss import Equal
from lorachord.balance.popart import PopArt
from lorachord.data.mixture import MixedDataset, Rows, TaskMixture
from lorachord.data.task import Task, check_tasks
from lorachord.data.training_sets import RowsByTask, evaluation_sets, training_sets
from lorachord.surgery.operation import Operation
from lorachord.surgery.surgeon import Surgeon
from lorachord.surgery.watch import Watch
from lorachord.training.bad_numbers import MAX_BAD_STEPS, BadNumbersMixin
from lorachord.training.balanced import BalancedMixin
from lorachord.training.checkpoint_folders import CheckpointMixin
from lorachord.training.decay import undecayed
from lorachord.training.kinds import kind_of
from lorachord.training.logged_parts import LoggedMixin
from lorachord.training.mixture_loader import default_mixture, mixture_loader
from lorachord.training.model_checks import check_model
from lorachord.training.model_kind import Record
from lorachord.training.prompt_embeddings import with_intuition
from lorachord.training.scoring import predict, score_records, summarise
from lorachord.training.sharded import ShardedMixin
from lorachord.training.units import learn_in_units, moments_of
from lorachord.tuner import penalties


class MultiTaskMixin(LoggedMixin, BadNumbersMixin, CheckpointMixin, BalancedMixin, ShardedMixin):
    """The multi-task parts, over any Trainer that calls `compute_loss` and `evaluate`.

    The loss of a step is the mean over the tasks that occur in its batch of `weight * mean loss of the task`, plus the
    adapter's penalties. Weights multiply; they are not normalised. On several ranks the batch is that of all of them,
    and the step is what one process would make of it.

    Args:
        model: with an adapter; per-task heads, if any, inside.
        args: transformers' TrainingArguments.
        tasks: in the order of the adapter's and of the heads, if these have tasks.
        train_data: the rows of each task by its name, or in the order of the tasks: lists of dicts, datasets.Dataset,
            pandas.DataFrame, or datasets of `load_task` and `from_rows`.
        tokenizer: of the model.
        eval_data: likewise, for `evaluate` (early stopping and the best checkpoint go by it). Default: of a task that
            has none, a tenth of its training rows, in whole groups.
        max_length: tokens of a row at most; longer ones are cut. Default 128.
        mixture: the batch sampler over `train_data`, for this rank. Default: every row once an epoch, in mixed batches
            of `args.per_device_train_batch_size` rows a rank, by `args.seed`.
        task_weights: one per task. Default: 1 each.
        max_new_tokens: of freely written answers, when predicting. Default 64.
        max_tokens: see `scoring.predict`.
        surgeon: operates on the gradients of the tasks before clipping. Default: none, the plain sum.
        balance: weighs the losses of the tasks, beside `task_weights`; see `balance/make.py`. Default: equally.
        watch: writes down what surgery sees and does. Default: none.
        max_bad_steps: steps with a loss or gradient that is not finite to skip before a FloatingPointError. Default 10.
        **keywords: the Trainer's own.

    Raises:
        ValueError: rows, tasks, weights, mixture, adapter, heads and model that do not fit each other; the message says
            what would.
    """

    # The losses are means over a task's own examples, so the Trainer divides by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        tasks: Sequence[Task],
        train_data: RowsByTask,
        tokenizer: PreTrainedTokenizerBase,
        eval_data: RowsByTask | None = None,
        max_length: int = 128,
        mixture: TaskMixture | None = None,
        task_weights: Sequence[float] | None = None,
        max_new_tokens: int = 64,
        max_tokens: int | None = None,
        surgeon: Surgeon | None = None,
        balance: Balance | None = None,
        watch: Watch | None = None,
        max_bad_steps: int = MAX_BAD_STEPS,
        **keywords: Any,
    ) -> None:
        check_tasks(tasks)
        kind = kind_of(model)
        self.task_weights = tuple(task_weights) if task_weights is not None else (1.0,) * len(tasks)
        if len(self.task_weights) != len(tasks):
            raise ValueError(f"task_weights has {len(self.task_weights)} entries for {len(tasks)} tasks.")
        sets = training_sets(tasks, train_data, eval_data)
        self.tasks = sets.tasks
        self.train_data: tuple[Rows, ...] = sets.train
        self.eval_data: tuple[Rows, ...] = sets.val
        self.kind = kind(tokenizer, self.tasks, max_length)
        check_model(self.kind, model)
        sizes = [len(rows) for rows in self.train_data]
        self.mixture = mixture if mixture is not None else default_mixture(sizes, args)
        if list(self.mixture.sizes) != sizes:
            raise ValueError(f"The mixture is of {list(self.mixture.sizes)} rows, and the tasks have {sizes}.")
        self.max_new_tokens, self.max_tokens = max_new_tokens, max_tokens
        self.surgeon, self.watch = surgeon, watch
        self.operation: Operation | None = None
        self.balance = balance if balance is not None else Equal([task.name for task in self.tasks])
        moments = moments_of(self.tasks, self.train_data)
        self.variances: dict[int, float | Tensor] = {
            index: moments[task.name][1] or 1.0 for index, task in enumerate(self.tasks) if task.name in moments
        }
        if self.kind.name == "encoder" and not isinstance(self.balance, PopArt):
            learn_in_units(model, moments)
        self.start_log()
        self.start_watching(max_bad_steps)
        # It hides what is not finite; see `bad_numbers.py`.
        args.logging_nan_inf_filter = False
        super().__init__(  # type: ignore[call-arg]
            model=model,
            args=args,
            train_dataset=MixedDataset(self.train_data),
            eval_dataset=self.eval_data,
            data_collator=self.kind,
            **keywords,
        )
        self.start_balance()
        self.start_checkpoints()
        # Once, so that no step has to, and on the device that the Trainer has moved the model to.
        size, seed = args.per_device_eval_batch_size, args.seed
        self.train_data, self.eval_data = with_intuition(
            model, self.kind, self.train_data, self.eval_data, batch_size=size, seed=seed
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The Trainer's choice, without what a method keeps from weight decay."""
        names: list[str] = super().get_decay_parameter_names(model)  # type: ignore[misc]
        kept = set(undecayed(model))
        return [name for name in names if name not in kept]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of the mixture, not sharded again: the sampler knows its rank."""
        args: TrainingArguments = self.args  # type: ignore[attr-defined]
        return mixture_loader(MixedDataset(self.train_data), self.mixture, self.kind.collate, args)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Tensor | tuple[Tensor, Any]:
        """The mean over the batch's tasks of their weighted losses, plus penalties."""
        if model.training:
            self.before_forward(inputs)
        losses, outputs = self.task_losses(model, inputs)
        added = penalties(model)
        if model.training and not self.finite_losses(losses, added):
            # For its graph alone: no weight learns from it.
            total = torch.stack(list(losses.values())).sum()
            return (total, outputs) if return_outputs else total
        if model.training:
            parts = {f"loss_{self.tasks[index].name}": loss for index, loss in sorted(losses.items())}
            for name, part in (parts | {f"penalty_{name}": term for name, term in added.items()}).items():
                self._parts.setdefault(name, []).append(part.detach())
        self.balance.train(model.training)
        total = self.balance(losses, self.kind.counts(inputs), self.task_weights)
        for term in added.values():
            total = total + term.to(total.device)
        return (total, outputs) if return_outputs else total

    def training_step(self, model: nn.Module, *args: Any, **keywords: Any) -> Tensor:
        """Forward and backward; at the end of an accumulation window, the operation on what they have left."""
        loss: Tensor = super().training_step(model, *args, **keywords)  # type: ignore[misc]
        trainer: Any = self
        loss = torch.zeros_like(loss) if self._bad else loss
        if trainer.accelerator.sync_gradients:
            self.average_the_rest(model)
            if not self.finite_gradients(model):
                self.skip_step(model)
            elif self.surgeon is not None:
                scaler = trainer.accelerator.scaler
                scale = 1.0 if scaler is None else scaler.get_scale()
                self.operation = self.surgeon.operate(trainer.state.global_step, scale=scale)
                if self.watch is not None:
                    self.watch.see(self.operation, self.surgeon.rule, step=trainer.state.global_step + 1)
        return loss

    def task_losses(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[dict[int, Tensor], Any]:
        """The loss of each task in a batch, by the task's index, and the model's outputs."""
        outputs = self.kind.forward(model, inputs)
        variances = {**self.variances, **self.balance.variances()}
        return self.kind.losses(outputs.logits, inputs, variances), outputs

    def evaluate(
        self,
        eval_dataset: RowsByTask | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Each task's metric, their mean and the worst; logged, and shown to the callbacks.

        Args:
            eval_dataset: rows of every task, as `train_data`. Default: `eval_data`.
        """
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

    def predict_tasks(
        self, data: RowsByTask | None = None, progress: Callable[[str, int], None] | None = None
    ) -> dict[str, list[Record]]:
        """The records of every task by its name; of `eval_data` unless other rows are given.

        Args:
            data: rows of every task, as `train_data`. Default: `eval_data`.
            progress: see `scoring.predict`.
        """
        args: TrainingArguments = self.args  # type: ignore[attr-defined]
        sets = self.eval_data if data is None else evaluation_sets(self.tasks, data)
        return {
            task.name: predict(
                self.model,  # type: ignore[attr-defined]
                self.kind,
                rows,
                index,
                batch_size=args.per_device_eval_batch_size,
                max_new_tokens=self.max_new_tokens,
                max_tokens=self.max_tokens,
                progress=progress,
            )
            for index, (task, rows) in enumerate(zip(self.tasks, sets, strict=True))
        }


class MultiTaskTrainer(MultiTaskMixin, Trainer):  # type: ignore[misc]  # noqa: D101
    __doc__ = f"transformers' Trainer with the multi-task parts.\n{str(MultiTaskMixin.__doc__).partition(chr(10))[2]}"
