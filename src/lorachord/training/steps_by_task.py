"""The steps of a Trainer whose loss is by task: mean losses, weights, penalties, surgery, what is logged and saved.

Shapes: T tasks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from lorachord.balance.base import Balance
from lorachord.balance.by_loss import Equal
from lorachord.data.mixture import MixedDataset, Rows, TaskMixture
from lorachord.surgery.operation import Operation
from lorachord.surgery.surgeon import Surgeon
from lorachord.surgery.watch import Watch
from lorachord.training.bad_numbers import MAX_BAD_STEPS, BadNumbersMixin
from lorachord.training.balanced import BalancedMixin
from lorachord.training.checkpoint_folders import CheckpointMixin
from lorachord.training.decay import undecayed
from lorachord.training.logged_parts import LoggedMixin
from lorachord.training.mixture_loader import default_mixture, mixture_loader
from lorachord.training.sharded import ShardedMixin
from lorachord.tuner import penalties


class StepsByTask(LoggedMixin, BadNumbersMixin, CheckpointMixin, BalancedMixin, ShardedMixin):
    """A step over any Trainer that calls `compute_loss`, given the losses of each task.

    The loss of a step is the mean over the tasks that occur in its batch of `weight * mean loss of the task`, plus the
    adapter's penalties. A class that derives from it calls `begin_steps` before the Trainer's own beginning, and
    `follow_steps` behind it; it has `train_data`, `mixture` and the methods that are abstract here.

    Attributes:
        task_names: in the order of the adapter's.
        train_data: the rows of each task.
        mixture: the batch sampler over `train_data`, for this rank.
    """

    # The losses are means over a task's own examples, so the Trainer divides by the accumulation steps.
    loss_is_scaled_for_ga = False
    train_data: tuple[Rows, ...]
    mixture: TaskMixture

    def begin_steps(
        self,
        args: TrainingArguments,
        task_names: Sequence[str],
        *,
        task_weights: Sequence[float] | None = None,
        surgeon: Surgeon | None = None,
        balance: Balance | None = None,
        watch: Watch | None = None,
        max_bad_steps: int = MAX_BAD_STEPS,
    ) -> None:
        """Take the settings of the steps; see `MultiTaskMixin`.

        Raises:
            ValueError: weights of another number than the tasks.
        """
        self.task_names = tuple(task_names)
        self.task_weights = tuple(task_weights) if task_weights is not None else (1.0,) * len(self.task_names)
        if len(self.task_weights) != len(self.task_names):
            raise ValueError(f"task_weights has {len(self.task_weights)} entries for {len(self.task_names)} tasks.")
        self.surgeon, self.watch = surgeon, watch
        self.operation: Operation | None = None
        self.balance = balance if balance is not None else Equal(self.task_names)
        self.start_log()
        self.start_watching(max_bad_steps)
        # It hides what is not finite; see `bad_numbers.py`.
        args.logging_nan_inf_filter = False

    def follow_steps(self) -> None:
        """Follow the Trainer, which is complete now."""
        self.start_balance()
        self.start_checkpoints()

    def mix(self, rows: tuple[Rows, ...], mixture: TaskMixture | None, args: TrainingArguments) -> None:
        """Take the training rows of each task and the mixture over them; default: every row once an epoch.

        Raises:
            ValueError: the mixture is of other rows.
        """
        self.train_data = rows
        sizes = [len(own) for own in rows]
        self.mixture = mixture if mixture is not None else default_mixture(sizes, args)
        if list(self.mixture.sizes) != sizes:
            raise ValueError(f"The mixture is of {list(self.mixture.sizes)} rows, and the tasks have {sizes}.")

    @abstractmethod
    def task_losses(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[dict[int, Tensor], Any]:
        """The mean loss of each task in a batch, by the task's index, and the model's outputs."""

    @abstractmethod
    def counts(self, inputs: Mapping[str, Any]) -> Tensor:
        """The number of terms in each task's mean of `task_losses`: (T,), 0 for a task that is absent."""

    def numbers(self, inputs: Mapping[str, Any]) -> dict[int, Tensor]:
        """The answers of each regression task in a batch, (examples,), by the task's index. Default: none."""
        return {}

    def penalties_of(self, model: nn.Module, outputs: Any) -> dict[str, Tensor]:
        """What is added to the losses, by name; default: the adapter's penalties."""
        return penalties(model)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The Trainer's choice, without what a method keeps from weight decay."""
        names: list[str] = super().get_decay_parameter_names(model)  # type: ignore[misc]
        kept = set(undecayed(model))
        return [name for name in names if name not in kept]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of the mixture, not sharded again: the sampler knows its rank."""
        trainer: Any = self
        return mixture_loader(MixedDataset(self.train_data), self.mixture, trainer.data_collator, trainer.args)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Tensor | tuple[Tensor, Any]:
        """The mean over the batch's tasks of their weighted losses, plus penalties."""
        if model.training:
            self.before_forward(inputs)
        losses, outputs = self.task_losses(model, inputs)
        added = self.penalties_of(model, outputs)
        if model.training and not self.finite_losses(losses, added):
            # For its graph alone: no weight learns from it.
            total = torch.stack(list(losses.values())).sum()
            return (total, outputs) if return_outputs else total
        if model.training:
            parts = {f"loss_{self.task_names[index]}": loss for index, loss in sorted(losses.items())}
            for name, part in (parts | {f"penalty_{name}": term for name, term in added.items()}).items():
                self._parts.setdefault(name, []).append(part.detach())
        self.balance.train(model.training)
        total = self.balance(losses, self.counts(inputs), self.task_weights)
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
