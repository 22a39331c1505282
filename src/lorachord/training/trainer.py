"""A Trainer for several tasks: transformers' own, with a mixture for a data loader and a loss for each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from lorachord.balance.base import Balance
from lorachord.balance.popart import PopArt
from lorachord.data.mixture import MixedDataset, Rows, TaskMixture
from lorachord.data.task import Task, check_tasks
from lorachord.data.training_sets import RowsByTask, evaluation_sets, training_sets
from lorachord.surgery.surgeon import Surgeon
from lorachord.surgery.watch import Watch
from lorachord.training.bad_numbers import MAX_BAD_STEPS
from lorachord.training.compiled import CompiledBlocks
from lorachord.training.kinds import kind_of
from lorachord.training.model_checks import check_model
from lorachord.training.model_kind import Record
from lorachord.training.prompt_embeddings import with_intuition
from lorachord.training.scoring import predict, score_records, summarise
from lorachord.training.steps_by_task import StepsByTask
from lorachord.training.units import learn_in_units, moments_of


class MultiTaskMixin(StepsByTask):
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
        compile: train through compiled blocks; see `compiled.py`. Default false.
        **keywords: the Trainer's own.

    Raises:
        ValueError: rows, tasks, weights, mixture, adapter, heads and model that do not fit each other; the message says
            what would.
    """

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
        compile: bool = False,
        **keywords: Any,
    ) -> None:
        check_tasks(tasks)
        kind = kind_of(model)
        self.begin_steps(
            args,
            [task.name for task in tasks],
            task_weights=task_weights,
            surgeon=surgeon,
            balance=balance,
            watch=watch,
            max_bad_steps=max_bad_steps,
        )
        sets = training_sets(tasks, train_data, eval_data)
        self.tasks = sets.tasks
        self.eval_data: tuple[Rows, ...] = sets.val
        self.kind = kind(tokenizer, self.tasks, max_length)
        check_model(self.kind, model)
        if compile and args.gradient_checkpointing:
            raise ValueError(
                "compile and gradient_checkpointing exclude each other: the compiler chooses itself what to compute "
                "anew in the backward pass. Leave one of them out."
            )
        self.blocks = CompiledBlocks(model) if compile else None
        self.mix(sets.train, mixture, args)
        self.max_new_tokens, self.max_tokens = max_new_tokens, max_tokens
        moments = moments_of(self.tasks, self.train_data)
        self.variances: dict[int, float | Tensor] = {
            index: moments[task.name][1] or 1.0 for index, task in enumerate(self.tasks) if task.name in moments
        }
        if self.kind.name == "encoder" and not isinstance(self.balance, PopArt):
            learn_in_units(model, moments)
        super().__init__(  # type: ignore[call-arg]
            model=model,
            args=args,
            train_dataset=MixedDataset(self.train_data),
            eval_dataset=self.eval_data,
            data_collator=self.kind,
            **keywords,
        )
        self.follow_steps()
        # Once, so that no step has to, and on the device that the Trainer has moved the model to.
        size, seed = args.per_device_eval_batch_size, args.seed
        self.train_data, self.eval_data = with_intuition(
            model, self.kind, self.train_data, self.eval_data, batch_size=size, seed=seed
        )

    def task_losses(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[dict[int, Tensor], Any]:
        """The loss of each task in a batch, by the task's index, and the model's outputs."""
        with nullcontext() if self.blocks is None else self.blocks.called(model):
            outputs = self.kind.forward(model, inputs)
        variances = {**self.variances, **self.balance.variances()}
        return self.kind.losses(outputs.logits, inputs, variances), outputs

    def counts(self, inputs: Mapping[str, Any]) -> Tensor:
        """The number of examples or answer tokens of each task in a batch: (T,)."""
        return self.kind.counts(inputs)

    def numbers(self, inputs: Mapping[str, Any]) -> dict[int, Tensor]:
        """The answers of each regression task in a batch, (examples,), by the task's index."""
        return self.kind.numbers(inputs)

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
