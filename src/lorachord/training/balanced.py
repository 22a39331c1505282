"""What a balance of losses needs of a Trainer: a place in the optimizer and in checkpoints, and its calls in a step.

What a surgeon's rule remembers is kept in checkpoints beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorachord.balance.base import Balance
from lorachord.balance.popart import PopArt
from lorachord.core.steps import go_on_from
from lorachord.surgery.surgeon import Surgeon
from lorachord.surgery.task_grads import OnePass

FILE = "tasks.pt"
"""What balance and surgery remember, in a checkpoint."""


class BalancedMixin:
    """The balance's part of `StepsByTask`, which has `balance`, `numbers`, `counts` and `task_losses`."""

    balance: Balance
    surgeon: Surgeon | None
    numbers: Any
    counts: Any
    task_losses: Any

    def start_balance(self) -> None:
        """Put the balance on the model's device, and follow the optimizer's steps."""
        trainer: Any = self
        self.balance.to(trainer.args.device)
        # The last batch and the generators' states before it, where the balance wants its losses again.
        self._last: tuple[dict[str, Any], Tensor, tuple[Any, ...]] | None = None
        trainer.add_callback(_Steps(self))

    def before_forward(self, inputs: dict[str, Any]) -> None:
        """Show the balance a batch's answers, and keep the batch if its losses will be wanted again."""
        if isinstance(self.balance, PopArt):
            self.balance.train()
            self.balance.before(self.numbers(inputs))
        if self.balance.again:
            states: Any = get_device_states(inputs["tasks"])
            self._last = (dict(inputs), torch.get_rng_state(), states)

    def after_step(self, model: nn.Module) -> None:
        """The optimizer has stepped: begin new gradients, and show the balance the losses of the same batch."""
        # The Trainer clears the model's alone.
        self.balance.zero_grad()
        if self._last is None:
            return
        inputs, state, (devices, states) = self._last
        self._last = None
        trainer: Any = self
        with torch.random.fork_rng(devices), torch.no_grad(), trainer.compute_loss_context_manager():
            # The same dropout as before the step.
            torch.set_rng_state(state)
            set_device_states(devices, states)
            losses, _ = self.task_losses(model, inputs)
        if self.surgeon is not None and isinstance(self.surgeon.gradients, OnePass):
            # It has counted samples that no gradient comes of.
            self.surgeon.gradients.sizes_S.zero_()
        self.balance.after(losses, self.counts(inputs))

    def create_optimizer(self, *args: Any, **keywords: Any) -> torch.optim.Optimizer:
        """With what the balance learns, without weight decay."""
        trainer: Any = self
        new = trainer.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **keywords)  # type: ignore[misc]
        learned = list(self.balance.parameters())
        if new and learned:
            optimizer.add_param_group({"params": learned, "weight_decay": 0.0})
        return optimizer

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        trainer: Any = self
        if trainer.args.should_save:
            rule = self.surgeon.rule.state() if self.surgeon is not None else {}
            torch.save({"balance": self.balance.state_dict(), "rule": rule}, Path(output_dir) / FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        # As the Trainer has it: a checkpoint of the weights alone has none.
        if checkpoint is None or not (Path(checkpoint) / FILE).is_file():
            return
        trainer: Any = self
        found = torch.load(Path(checkpoint) / FILE, map_location=trainer.args.device, weights_only=True)
        self.balance.load_state_dict(found["balance"])
        if self.surgeon is not None:
            self.surgeon.rule.load_state(found["rule"])


class _Steps(TrainerCallback):
    """Tells the mixin of each step of the optimizer, and methods of the step at which a run begins or goes on."""

    def __init__(self, trainer: BalancedMixin) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After a checkpoint's state was loaded, if there is one."""
        go_on_from(state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """What is trained next begins anew."""
        go_on_from(0)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """After the step, before the gradients are cleared."""
        self.trainer.after_step(given["model"])
