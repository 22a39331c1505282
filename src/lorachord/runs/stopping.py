"""A run that is asked to stop, by Ctrl-C or by SIGTERM, saves a checkpoint first and says how to go on."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger("lorachord")
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Stopped(KeyboardInterrupt):
    """The end of a run that was asked to stop, in words.

    Attributes:
        status: for the command line.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class StopRequests(TrainerCallback):
    """Saves after the step in which a signal came, and ends the run.

    Args:
        path: of the run folder, for the message.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.asked, self.stopping = path, 0, False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take the signals in the main thread; a second one ends the process at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._ask) for number in STATUS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        for known in STATUS:
            signal.signal(known, signal.SIG_DFL if known == signal.SIGTERM else signal.default_int_handler)
        logger.warning("stopping after this step; a checkpoint is saved first")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """All ranks stop at the same step."""
        asked = self.asked
        if dist.is_available() and dist.is_initialized():
            shared = torch.tensor(asked, device=args.device)
            dist.all_reduce(shared, op=dist.ReduceOp.MAX)
            asked = int(shared)
        if asked:
            self.asked, self.stopping = asked, True
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Its checkpoint is there."""
        if self.stopping:
            raise Stopped(
                f"stopped at step {state.global_step} of {state.max_steps}; a checkpoint is saved in {self.path}. "
                "Go on with the same command and --resume.",
                STATUS[signal.Signals(self.asked)],
            )
