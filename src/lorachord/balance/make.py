"""Balances by name: making one, and checking its options beforehand."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lorachord.balance.base import Balance, between
from lorachord.balance.by_loss import DWA, FAMO, Equal, Fixed, RunningScale, Uncertainty
from lorachord.balance.popart import PopArt
from lorachord.messages import suggest

_LOSSES_ALONE: dict[str, type[Balance]] = {
    cls.name: cls for cls in (Equal, Fixed, RunningScale, Uncertainty, DWA, FAMO)
}


def balance_names() -> tuple[str, ...]:
    """Every balance."""
    return (*_LOSSES_ALONE, PopArt.name)


def check_balance(
    name: str, tasks: Sequence[str], *, regressions: Sequence[str] = (), per_task_heads: bool = True, **options: Any
) -> None:
    """Refuse what `make_balance` would, before there is a model.

    Args:
        name, tasks, regressions, **options: as there.
        per_task_heads: whether the model will have a head for each task.

    Raises:
        ValueError: as there.
    """
    if name != PopArt.name:
        make_balance(name, tasks, **options)
        return
    _check_options(PopArt, options)
    between(name, "memory", options.get("memory", 0.5), 0, 1)
    if not regressions or not per_task_heads:
        missing = "a regression among the tasks" if not regressions else "an encoder with a head for each task"
        raise ValueError(f"popart rescales the heads of regressions: it needs {missing}. running_scale needs neither.")


def make_balance(
    name: str,
    tasks: Sequence[str],
    *,
    model: nn.Module | None = None,
    regressions: Sequence[str] = (),
    start: Mapping[str, tuple[float, float]] | None = None,
    **options: Any,
) -> Balance:
    """A balance by its name.

    Args:
        name: one of `balance_names()`.
        tasks: names, in order.
        model: with an adapter and a head for each task; popart rescales the heads, the others need no model.
        regressions: names of the tasks whose answers are numbers; for popart.
        start: mean and variance of their answers to begin with; for popart. Default: 0 and 1.
        **options: the balance's own; see its class.

    Raises:
        ValueError: an unknown name or option (the nearest is named), or what the balance cannot work with.
    """
    if name == PopArt.name:
        _check_options(PopArt, options)
        if model is None:
            raise ValueError("popart rescales the heads of regressions: give the model, with a head for each task.")
        return PopArt(tasks, model, regressions, start=start, **options)
    if name not in _LOSSES_ALONE:
        raise ValueError(f"There is no balance {name!r}. {suggest(name, balance_names())}")
    cls = _LOSSES_ALONE[name]
    _check_options(cls, options)
    return cls(tasks, **options)


def _check_options(cls: type[Balance], options: Mapping[str, Any]) -> None:
    given_elsewhere = ("self", "tasks", "model", "regressions", "start")
    parameters = inspect.signature(cls.__init__).parameters
    known = [option for option in parameters if option not in given_elsewhere]
    for option in options:
        if option not in known:
            raise ValueError(f"{cls.name}: there is no option {option!r}. {suggest(option, known)}")
    for option in known:
        if parameters[option].default is inspect.Parameter.empty and option not in options:
            raise ValueError(f"{cls.name}: {option} is missing.")
