"""The calibration of a run: the one that its recipe names, the one that it has, or a new one from the training rows."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lorachord.calibration import calibrate
from lorachord.core.registry import all_methods
from lorachord.data.mixture import Rows
from lorachord.distributed import from_first
from lorachord.families.calibrated import Calibrated, FromInputs
from lorachord.runs.arguments import ranks
from lorachord.runs.recipe import Recipe
from lorachord.runs.tasksets import TaskSet
from lorachord.training.model_kind import ModelKind
from lorachord.tuner import Calibration
from lorachord.tuner.saved_calibration import PLAIN

logger = logging.getLogger("lorachord")
MAX_ROWS = 500
"""Training rows of each task that are looked at."""


def calibration_of(
    recipe: Recipe, base: nn.Module, kind: ModelKind, data: TaskSet, saved: Path | None
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
    # A step on gradients takes two batches of every task, and is as large as one in training.
    on_inputs = issubclass(method, FromInputs)
    size = recipe.evaluation.batch_size if on_inputs else max(1, recipe.training.batch_size // (2 * len(names)))
    made = calibrate(
        base,
        method.method,
        tasks=names,
        batches={
            name: _batches(kind, own, index, size, on_inputs)
            for index, (name, own) in enumerate(zip(names, rows, strict=True))
        },
        # The rows are chosen already.
        max_samples=sys.maxsize,
        loss=partial(_loss, kind, data.variances),
        **options,
    )
    # Ranks are shapes: they must not differ by a rounding.
    return from_first(made)


def _batches(kind: ModelKind, rows: Rows, index: int, batch_size: int, inputs_alone: bool) -> Iterator[dict[str, Any]]:
    examples = [{**rows[row], "task": index} for row in range(len(rows))]
    for start in range(0, len(examples), batch_size):
        batch = kind.collate(examples[start : start + batch_size])
        yield kind.inputs(batch) if inputs_alone else batch


def _loss(
    kind: ModelKind,
    variances: Mapping[int, float],
    model: nn.Module,
    batch: Mapping[str, Any],
) -> Tensor:
    """The loss of a batch of one task, as in training."""
    [loss] = kind.losses(model(**kind.inputs(batch)).logits, batch, variances).values()
    return loss
