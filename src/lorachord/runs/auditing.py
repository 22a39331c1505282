"""The audit of a run's data, whose rows are as long as its tokenizer makes them."""

from __future__ import annotations

import logging

from lorachord.data.audit import DataAudit, audit
from lorachord.data.audit_words import warnings_of
from lorachord.runs.recipe import Recipe
from lorachord.runs.tasksets import TaskSet
from lorachord.training.kinds import MODEL_KINDS
from lorachord.training.model_kind import ModelKind

logger = logging.getLogger("lorachord")


def audit_of(recipe: Recipe, data: TaskSet, kind: ModelKind) -> DataAudit:
    """The audit of all tasks of a run.

    Args:
        kind: whose tokenizer reads the rows; of these tasks or of some.
    """
    whole = MODEL_KINDS[recipe.model.kind](kind.tokenizer, data.tasks, recipe.model.max_length)
    return audit(
        data.data,
        count_tokens=lambda index, some: whole.tokens([{**example, "task": index} for example in some]),
        max_length=recipe.model.max_length,
        seed=recipe.tasks.seed,
    )


def say(found: DataAudit) -> None:
    """Log what should be known before a run."""
    for words in warnings_of(found):
        logger.warning("%s", words)
