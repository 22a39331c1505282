"""Trackers of runs (transformers' integrations): where they write, and the final scores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, TensorBoardCallback

from lorachord.runs.parts import TrainingPart

FOLDER = "tensorboard"
PLACES = {
    "wandb": {"WANDB_PROJECT": "{project}", "WANDB_DIR": "{folder}"},
    "trackio": {"TRACKIO_DIR": "{folder}/trackio"},
    "mlflow": {"MLFLOW_EXPERIMENT_NAME": "{project}", "MLFLOW_TRACKING_URI": "file:{folder}/mlruns"},
    "comet_ml": {"COMET_PROJECT_NAME": "{project}"},
    "swanlab": {"SWANLAB_PROJECT": "{project}", "SWANLAB_LOG_DIR": "{folder}/swanlab"},
}
"""The variables by which a tracker is told its project and its folder; one that is set already stays."""


def place_trackers(part: TrainingPart, folder: Path) -> None:
    """Tell the trackers of a run its project, and to write into its folder."""
    for tracker in part.report_to:
        for name, value in PLACES.get(tracker, {}).items():
            os.environ.setdefault(name, value.format(project=part.project, folder=folder.absolute()))


def tensorboard(folder: Path) -> TensorBoardCallback:
    """TensorBoard's files lie in the run folder, and not beside the checkpoints, which are removed."""
    return TensorBoardCallback(_writer(folder))


def tell_scores(trainer: Any, folder: Path, metrics: Mapping[str, Any], splits: tuple[str, ...]) -> None:
    """Give every tracker the final scores: `<split>/<task>`, and the mean and the worst."""
    scores: dict[str, float] = {}
    for split in splits:
        found = metrics[split]
        scores |= {f"{split}/{task}": scored["score"] for task, scored in found["tasks"].items()}
        scores |= {f"{split}/{name}": found[name] for name in ("mean", "worst")}
    known: Any = tuple(callback for name, callback in INTEGRATION_TO_CALLBACK.items() if name != "tensorboard")
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            # Its own writer was closed at the end of training.
            with _writer(folder) as writer:
                for name, value in scores.items():
                    writer.add_scalar(name, value, trainer.state.global_step)
        elif isinstance(callback, known):
            callback.on_log(trainer.args, trainer.state, trainer.control, logs=scores, model=trainer.model)


def _writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / FOLDER))
