"""What a run writes down while it trains."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorachord.runs.folder import RunFolder
from lorachord.whole import json_line, write_text

logger = logging.getLogger("lorachord")


class RunLog(TrainerCallback):
    """Writes what the Trainer logs to `log.jsonl`, and a line of it to the logger.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.path = folder.path / "log.jsonl"

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin with what the checkpoint remembers, so that a resumed run's log has no step twice."""
        if state.is_world_process_zero:
            write_text(self.path, "".join(map(json_line, state.log_history)))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Append the newest entry."""
        if not state.is_world_process_zero:
            return
        entry = state.log_history[-1]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json_line(entry))
        shown = {key: entry[key] for key in ("loss", "eval_mean", "eval_worst") if key in entry}
        if shown and args.disable_tqdm:
            values = ", ".join(f"{key} {value:.4g}" for key, value in shown.items())
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, values)
