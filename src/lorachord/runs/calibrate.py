"""The calibration of a run: the one that its recipe names, the one that it has, or a new one from the training rows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from lorachord.calibration import calibrate
from lorachord.core.calibrated import Calibrated
from lorachord.core.registry import all_methods
from lorachord.data.mixture import Rows
from lorachord.runs.arguments import ranks
from lorachord.runs.prepare import TaskSet
from lorachord.runs.recipe import Recipe
from lorachord.training.batches import DecoderBatches, EncoderBatches
from lorachord.tuner import Calibration
from lorachord.tuner.calibration import PLAIN

logger = logging.getLogger("lorachord")
MAX_ROWS = 500
"""Training rows of each task that are looked at."""
NOT_INPUTS = {"tasks", "num_rows", "answers", "labels"}
"""What batches hold beside the inputs of the model."""


def calibration_of(
    recipe: Recipe, base: nn.Module, batches: EncoderBatches | DecoderBatches, data: TaskSet, saved: Path | None
) -> Calibration | None:
    """What the recipe's method is fitted by, or None if it needs nothing.

    Args:
        saved: where the run that is resumed has its calibration, if it came so far.

    Raises:
        ValueError: the recipe names a folder without a calibration, or as `calibrate`.
    """
    options = {key: value for key, value in recipe.method.items() if key != "name"}
    named = options.pop("calibration", None)
    if named is not None:
        return Calibration.load(named)
    method = all_methods().get(recipe.method["name"])
    if method is None or not issubclass(method, Calibrated):
        return None
    known = {key: value for key, value in options.items() if key in method.Config.__dataclass_fields__}
    if not method.needs_calibration(method.Config.from_dict(known)):
        return None
    if saved is not None and (saved / PLAIN).is_file():
        return Calibration.load(saved)
    logger.info("calibrating %s", method.method)
    base.to(ranks().device)
    names = [task.name for task in data.tasks]
    rows = data.split("train", MAX_ROWS, recipe.tasks.seed)
    inputs = {
        name: _inputs(batches, own, index, recipe.evaluation.batch_size)
        for index, (name, own) in enumerate(zip(names, rows, strict=True))
    }
    return calibrate(base, method.method, tasks=names, batches=inputs, **options)


def _inputs(
    batches: EncoderBatches | DecoderBatches, rows: Rows, index: int, batch_size: int
) -> Iterator[dict[str, Any]]:
    examples = [{**rows[row], "task": index} for row in range(len(rows))]
    for start in range(0, len(examples), batch_size):
        batch = batches(examples[start : start + batch_size])
        yield {key: value for key, value in batch.items() if key not in NOT_INPUTS}
