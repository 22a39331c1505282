"""Checkpoints that are whole or not there, and a resumed run that goes on from the newest whole one.

A checkpoint is written to `.part`, sealed with a manifest and renamed; the one before stays until then.
"""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from lorachord.whole import MANIFEST, flaw, install, newest_whole, read_json, scratch_folder

logger = logging.getLogger("lorachord")
WRITING = ".part"
"""Where a checkpoint is written, beside those that are whole."""
STATE = "trainer_state.json"
NAME = r"checkpoint-(\d+)"
LOGGED = "logged_{}.pt"
"""What a rank has counted since the last line of the log, in a checkpoint."""


def steps_of(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, the newest first."""
    found = {int(name[1]): path for path in folder.glob("checkpoint-*") if (name := re.fullmatch(NAME, path.name))}
    return [found[step] for step in sorted(found, reverse=True)]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint to go on from; what is skipped is said.

    Args:
        folder: that holds checkpoints; it may be missing.
    """

    def lacks_best(checkpoint: Path) -> str | None:
        best = read_json(checkpoint / STATE).get("best_global_step")
        if not best or f"checkpoint-{best}" == checkpoint.name:
            return None
        reason = flaw(folder / f"checkpoint-{best}")
        return None if reason is None else f"its best one, checkpoint-{best}, is not whole: {reason}"

    def say(checkpoint: Path, reason: str) -> None:
        logger.warning("%s is not whole and is skipped: %s", checkpoint, reason)

    found: Path | None = newest_whole(steps_of(folder), say, lacks_best)
    if found is None and steps_of(folder):
        logger.warning("no checkpoint in %s is whole: the run starts anew", folder)
    return found


def bad_weight(model: nn.Module) -> str | None:
    """The name of a trained parameter that is not finite, if there is one."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(parameter.isfinite().all()):
            return name
    return None


class CheckpointMixin:
    """The part of `StepsByTask` that writes and reads checkpoints."""

    _parts: dict[str, list[Tensor]]
    bad_steps: int
    _skipped: int
    _logged_at: int

    def start_checkpoints(self) -> None:
        """Follow the beginning of training."""
        trainer: Any = self
        self._writing: Path | None = None
        self._complete = False
        self._resumed: Path | None = None
        trainer.add_callback(_Beginning(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **keywords: Any) -> Any:
        """As the Trainer's; a checkpoint that is not whole is not gone on from.

        Args:
            resume_from_checkpoint: a folder, or True for the newest whole one of `args.output_dir`.

        Raises:
            ValueError: there is no whole one, the named one is damaged, or it holds a pickle of other than plain data.
        """
        trainer: Any = self
        found: Path | None = None
        if resume_from_checkpoint is True:
            found = last_checkpoint(Path(trainer.args.output_dir))
            if found is None:
                raise ValueError(f"There is no whole checkpoint in {trainer.args.output_dir} to go on from.")
        elif resume_from_checkpoint:
            found = Path(str(resume_from_checkpoint))
            reason = flaw(found) if (found / MANIFEST).is_file() else None
            if reason is not None:
                raise ValueError(f"{found} is not whole: {reason}. Name another checkpoint.")
        self._complete, self._resumed = False, found
        if trainer.args.should_save:
            shutil.rmtree(Path(trainer.args.output_dir, WRITING), ignore_errors=True)
        try:
            return super().train(None if found is None else str(found), *args, **keywords)  # type: ignore[misc]
        except UnpicklingError as error:
            raise ValueError(
                f"{found} holds a pickle of other than tensors and plain data, which is not read: it was not written "
                f"by this library, or it is damaged ({str(error).splitlines()[0]})."
            ) from None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._writing) if self._writing is not None else super()._get_output_dir(trial)  # type: ignore[misc]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        trainer: Any = self
        # A pickle of a class, which nobody reads.
        Path(output_dir or trainer.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        trainer: Any = self
        bad = bad_weight(trainer.model)
        if bad is not None:
            # The one before stays the last good one.
            logger.warning("no checkpoint at step %d: %s is not finite", trainer.state.global_step, bad)
            return
        folder, wait = Path(self._get_output_dir(trial)), trainer.accelerator.wait_for_everyone
        if not trainer.args.should_save:
            wait()
            self._write(model, trial, folder / WRITING)
            wait()
        else:
            with scratch_folder(folder / WRITING):
                wait()
                written = self._write(model, trial, folder / WRITING)
                wait()
                install(written, folder / written.name, seal=True)
            self._rotate(folder, written.name)
        wait()

    def _write(self, model: Any, trial: Any, folder: Path) -> Path:
        """The Trainer's own writing, into another folder."""
        trainer: Any = self
        args, state, place = trainer.args, trainer.state, Path(self._get_output_dir(trial))
        written = folder / f"checkpoint-{state.global_step}"
        self._writing = folder
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            self._writing = None
        torch.save(self._counted(), written / LOGGED.format(args.process_index))
        if state.best_global_step:
            # The Trainer looks for the best one beside this one, where it is not yet.
            state.best_model_checkpoint = str(place / f"checkpoint-{state.best_global_step}")
            if args.should_save:
                state.save_to_json(str(written / STATE))
        return written

    def _rotate(self, folder: Path, name: str) -> None:
        """Remove all but the newest, the best, and as many others as wanted."""
        trainer: Any = self
        limit, best = trainer.args.save_total_limit, trainer.state.best_global_step
        kept = {name, f"checkpoint-{best}"} if best else {name}
        others = [path for path in steps_of(folder) if path.name not in kept]
        if limit:
            for path in others[max(0, limit - len(kept)) :]:
                shutil.rmtree(path, ignore_errors=True)

    def _counted(self) -> dict[str, Any]:
        trainer: Any = self
        return {
            "loss": trainer._tr_loss,
            "total": float(trainer._total_loss_scalar),
            "since": trainer._globalstep_last_logged,
            "parts": {name: list(parts) for name, parts in self._parts.items()},
            "bad_steps": self.bad_steps,
            "skipped": self._skipped,
        }

    def _begin(self, state: TrainerState) -> None:
        """Take back what was counted, and see whether the run has been trained to its end."""
        trainer: Any = self
        self.bad_steps = self._skipped = self._logged_at = 0
        self._parts.clear()
        if self._resumed is None:
            return
        if state.best_global_step:
            # The folder may have been moved.
            state.best_model_checkpoint = str(self._resumed.with_name(f"checkpoint-{state.best_global_step}"))
        callbacks: Any = state.stateful_callbacks or {}
        stopped = callbacks.get("TrainerControl", {}).get("args", {}).get("should_training_stop", False)
        self._complete = bool(stopped) or state.global_step >= state.max_steps
        logged = self._resumed / LOGGED.format(trainer.args.process_index)
        if logged.is_file():
            found = torch.load(logged, map_location=trainer.args.device, weights_only=True)
            trainer._tr_loss.copy_(found["loss"])
            trainer._total_loss_scalar = found["total"]
            trainer._globalstep_last_logged = self._logged_at = found["since"]
            self._parts.update(found["parts"])
            self.bad_steps, self._skipped = found["bad_steps"], found["skipped"]

    def _run_epoch(self, *args: Any, **keywords: Any) -> None:
        trainer: Any = self
        if self._complete:
            # Its last step is in the checkpoint.
            trainer.control.should_training_stop = True
            return
        super()._run_epoch(*args, **keywords)  # type: ignore[misc]


class _Beginning(TrainerCallback):
    """Tells the mixin that training begins, after the state of a checkpoint was loaded."""

    def __init__(self, trainer: CheckpointMixin) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After the Trainer has set its sums to zero."""
        self.trainer._begin(state)
