"""Which learning rates a row is tried with, until the best one has tried neighbours on both sides.

A rate is a step on a ladder around the recipe's own: step k is that times 2.5 to the power k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

FACTOR = 2.5
FIRST_STEPS = (-1, 0, 1)
MOST_RATES = 8
CHANCE_RATES = 5
"""A row that is at chance with all of so many rates is taken to stay there."""


class Edge(Enum):
    """How the chosen rate lies among those that were tried."""

    INTERIOR = "interior"
    """A lower and a higher rate were tried, and neither is better."""
    END = "at an end"
    """The best rate is an end of the grid, and no more rates are tried."""
    CHANCE = "at chance"
    """With every rate some run stays at chance."""
    GIVEN = "given"
    """One rate was asked for, and no other tried."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What came of a rate.

    Attributes:
        mean: of the tasks' scores on val, over the seeds so far; -inf where every run failed.
        is_fit: whether no run of it stayed at chance or failed.
    """

    mean: float
    is_fit: bool


@dataclass(frozen=True, kw_only=True)
class Choice:
    """
    Attributes:
        step: of the ladder.
        edge: how it lies among the others.
    """

    step: int
    edge: Edge


def rate_at(first: float, step: int) -> float:
    """The rate of a step, in two significant digits.

    Args:
        first: that of step 0, which stays as it is.
    """
    return first if step == 0 else float(f"{first * FACTOR**step:.1e}")


def next_steps(tried: Mapping[int, Tried], ties: Callable[[int, int], bool]) -> Choice | Sequence[int]:
    """The rate that is chosen, or the steps to try before one can be.

    The best mean on val wins. Rates within one standard error of it are its ties; of these the middle one is taken. If
    that is an end of the grid, the next rate beyond is tried, up to eight rates in all. A rate with a run at chance is
    not eligible. Where that holds for all, the grid grows by one rate on each side, and then the best mean stands.

    Args:
        tried: by step, every one with equally many seeds.
        ties: whether the mean of the second step is within one standard error of that of the first, the best.
    """
    if not tried:
        return FIRST_STEPS
    low, high = min(tried), max(tried)
    fit = [step for step in sorted(tried) if tried[step].is_fit]
    if not fit:
        if len(tried) < CHANCE_RATES:
            return (low - 1, high + 1)
        return Choice(step=max(sorted(tried), key=lambda step: tried[step].mean), edge=Edge.CHANCE)
    best = max(fit, key=lambda step: tried[step].mean)
    tied = [step for step in fit if step == best or ties(best, step)]
    middle = tied[(len(tied) - 1) // 2]
    if low < middle < high:
        return Choice(step=middle, edge=Edge.INTERIOR)
    if len(tried) >= MOST_RATES:
        return Choice(step=middle, edge=Edge.END)
    return (low - 1,) if middle == low else (high + 1,)


def best_given(tried: Mapping[int, Tried]) -> Choice:
    """The best of rates that were given, which are not added to; steps are their places."""
    fit = [step for step in sorted(tried) if tried[step].is_fit]
    step = max(fit or sorted(tried), key=lambda step: tried[step].mean)
    if not fit:
        return Choice(step=step, edge=Edge.CHANCE)
    if len(tried) == 1:
        return Choice(step=step, edge=Edge.GIVEN)
    return Choice(step=step, edge=Edge.INTERIOR if min(tried) < step < max(tried) else Edge.END)


def rates_of(text: str) -> list[float] | None:
    """Rates as they are written, with commas; None for `auto`.

    Raises:
        ValueError: something that is no number.
    """
    if text == "auto":
        return None
    try:
        return [float(rate) for rate in text.split(",")]
    except ValueError:
        raise ValueError(f"--rates takes numbers with commas, or auto; got {text!r}.") from None
