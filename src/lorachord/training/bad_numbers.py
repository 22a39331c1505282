"""Steps whose losses or gradients are not finite: named, skipped, and after a few of them the end of the run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lorachord.surgery.surgeon import Surgeon
from lorachord.training.checkpoint_folders import bad_weight, last_checkpoint

logger = logging.getLogger("lorachord")
MAX_BAD_STEPS = 10


class BadNumbersMixin:
    """The part of `StepsByTask` that looks at numbers.

    A batch with a loss that is NaN or infinite reaches no balance and no rule; its step changes no weight. Under fp16,
    gradients that overflow are the gradient scaler's affair.
    """

    task_names: tuple[str, ...]
    surgeon: Surgeon | None
    max_bad_steps: int
    bad_steps: int
    _bad: list[str]
    _last: Any
    _skipped: int

    def start_watching(self, max_bad_steps: int) -> None:
        """Begin to count.

        Args:
            max_bad_steps: steps to skip before the run ends.
        """
        self.max_bad_steps, self.bad_steps, self._bad = max_bad_steps, 0, []

    def finite_losses(self, losses: Mapping[int, Tensor], added: Mapping[str, Tensor]) -> bool:
        """Whether all losses of a batch are finite, on every rank; what is not is kept for the message."""
        named = {f"the loss of {self.task_names[index]}": loss for index, loss in losses.items()}
        named |= {f"the penalty {name}": term for name, term in added.items()}
        values = torch.stack([loss.detach().float().to(self._device()) for loss in named.values()])
        if _everywhere(values.isfinite().all()):
            return True
        found = [f"{name} is {float(loss)}" for name, loss in named.items() if not loss.isfinite().all()]
        self._bad += found or ["a loss on another rank is not finite"]
        return False

    def finite_gradients(self, model: nn.Module) -> bool:
        """Whether the step may be taken: no bad loss in its window, and finite gradients."""
        trainer: Any = self
        if not self._bad and trainer.accelerator.scaler is None:
            pairs = self.surgeon.overflowing() if self.surgeon is not None else []
            if not _everywhere(torch.tensor(not pairs, device=self._device())):
                listed = [f"the gradient of {self.task_names[task]} in {layer}" for layer, task in pairs[:3]]
                self._bad.append(f"{', '.join(listed) or 'a gradient on another rank'} is not finite or too large")
        if not self._bad and trainer.accelerator.scaler is None:
            named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
            total = _norm([grad for _, grad in named], self._device())
            if not _everywhere(total.isfinite()):
                # A norm overflows before its entries do.
                found = [name for name, grad in named if not bool(grad.isfinite().all())]
                if not _everywhere(torch.tensor(not found, device=self._device())):
                    layers = f"{', '.join(found[:3])}{' and others' if len(found) > 3 else ''}"
                    self._bad.append(f"the gradient of {layers or 'a layer on another rank'} is not finite")
        return not self._bad

    def skip_step(self, model: nn.Module) -> None:
        """Say what was bad, and leave nothing of it for the optimizer.

        Raises:
            FloatingPointError: it was one step too many.
        """
        trainer: Any = self
        said = "; ".join(dict.fromkeys(self._bad))
        self._skipped += any(named.startswith(("the loss", "the penalty", "a loss")) for named in self._bad)
        self._bad = []
        self.bad_steps += 1
        self._last = None
        step = trainer.state.global_step + 1
        if trainer.accelerator.scaler is None:
            for group in trainer.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        if self.surgeon is not None:
            self.surgeon.reset()
        logger.warning("step %d is skipped: %s (%d of %d)", step, said, self.bad_steps, self.max_bad_steps)
        if self.bad_steps > self.max_bad_steps:
            raise self.not_finite(f"step {step}: {said}. {self.bad_steps} steps were not finite, and ")

    def check_weights(self, model: nn.Module) -> None:
        """Look at the weights that training ends with.

        Raises:
            FloatingPointError: one is not finite, or most steps were skipped.
        """
        trainer: Any = self
        name = bad_weight(model)
        if name is not None:
            raise self.not_finite(f"{name} is not finite after the last step, and ")
        if 0 < trainer.state.global_step < 2 * self.bad_steps:
            raise self.not_finite(f"{self.bad_steps} of {trainer.state.global_step} steps were not finite, and ")

    def not_finite(self, said: str) -> FloatingPointError:
        """The end of a run, with the last good checkpoint."""
        trainer: Any = self
        last = last_checkpoint(Path(trainer.args.output_dir))
        kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        return FloatingPointError(
            f"{said}{kept}. Take a smaller learning rate, look at the rows of the task, or allow more by "
            "training.max_bad_steps."
        )

    def _device(self) -> Any:
        trainer: Any = self
        return trainer.args.device


def _norm(gradients: Sequence[Tensor], device: Any) -> Tensor:
    """The norm of all, or 0 of none."""
    norms = torch._foreach_norm(list(gradients)) if gradients else [torch.zeros(())]
    return torch.stack([norm.float().to(device) for norm in norms]).sum()


def _everywhere(fine: Tensor) -> bool:
    """Whether all ranks say so."""
    if dist.is_available() and dist.is_initialized():
        fine = fine.int()
        dist.all_reduce(fine, op=dist.ReduceOp.MIN)
    return bool(fine)
