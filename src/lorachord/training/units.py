"""Regression heads learn in the unit of their answers, so that prices in hundred thousands learn as shares do."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from lorachord.balance.popart import PopArtLinear
from lorachord.data.mixture import Rows
from lorachord.data.task import Task
from lorachord.heads import heads_of, key, unit_of

logger = logging.getLogger(__name__)


def learn_in_units(model: nn.Module, moments: Mapping[str, tuple[float, float]]) -> None:
    """Let the heads of regressions learn in the units of their answers, with the same outputs; in place.

    A head whose bias is 0 is new: it starts at the mean of the answers, its random weights in their unit. To everyone
    outside the heads stay linears, which put out and save answers in their own units. A single head that several tasks
    share stays as it is.

    Args:
        model: with its adapter, before the optimizer is made.
        moments: mean and variance of the training answers of each regression task, by its name.
    """
    found = heads_of(model)
    if found is None:
        return
    heads = found[1]
    for task, (mean, variance) in moments.items():
        own = heads.of(task)
        name, last = [(name, module) for name, module in own.named_modules() if isinstance(module, nn.Linear)][-1]
        if getattr(last, "bias", None) is None:
            logger.warning("the head of %s has no bias for the mean of its answers, %g: centre them at 0", task, mean)
            continue
        if isinstance(last, PopArtLinear):
            continue
        unit = unit_of(variance)
        with torch.no_grad():
            if not last.bias.any():
                last.weight.mul_(unit)
                last.bias.fill_(mean)
            made = PopArtLinear.of(last)
            made.rescale(made.mean, torch.full_like(made.std, unit))
        heads.set_submodule(".".join(part for part in ("heads", key(task), name) if part), made)


def answers(rows: Rows) -> list[float]:
    """The answers of a regression task's rows."""
    return [float(rows[index]["label"]) for index in range(len(rows))]


def moments_of(tasks: Sequence[Task], rows: Sequence[Rows]) -> dict[str, tuple[float, float]]:
    """Mean and variance of the answers of each regression task, by its name."""
    numbers = {task.name: answers(own) for task, own in zip(tasks, rows, strict=True) if task.kind == "regression"}
    return {task: (statistics.fmean(own), statistics.pvariance(own)) for task, own in numbers.items()}


def say_zero(tasks: Sequence[str], logs: Mapping[str, float]) -> None:
    """Say of the first losses of a training which task has none to learn from."""
    for task in tasks:
        if logs.get(f"loss_{task}") == 0.0:
            logger.warning(
                "the loss of %s is exactly 0 from the first step, so nothing is learned of it: check that its answers "
                "differ, and that its rows hold them",
                task,
            )
