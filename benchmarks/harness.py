"""What the benchmarks share: their options, interleaved timing, rows with bounds, and how these are printed.

A machine that does other things meanwhile speeds up and slows down by more than what is to be measured. So nothing is
timed by itself: all cases run in one process, one step each per round and in a new order every round, and what is
reported is the median over rounds of a case's time divided by a baseline's time *in the same round*; or, of several
such medians, their median with its standard error.

Idle OpenMP threads spin, as they do in training. Beside other busy processes they then keep each other off the cores
(seen on two cores: steps 18 times longer): on a busy machine, set OMP_WAIT_POLICY=passive, which makes them sleep, and
small operations, adapters' among them, look dearer than they are.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Literal

import torch

Step = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for: `quick`, sizes that take about a minute on two cores; `json`, JSON lines and no table."""

    quick: bool = False
    json: bool = False


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The parser of `Options`, for a benchmark that adds its own; `description` is usually its docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes: about a minute on two cores")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    return parser


def parse_options(description: str | None) -> Options:
    """Read the command line of a benchmark that has no options of its own."""
    return Options(**vars(parser_of(description).parse_args()))


@dataclass(frozen=True, slots=True)
class Took:
    """What a step returns whose time was taken elsewhere, as in another process."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Rounds:
    """Seconds of each case, one entry per round, all cases in the same rounds."""

    seconds: Mapping[str, Sequence[float]]

    def ratio(self, case: str, baseline: str) -> float:
        """Median over rounds of `case`'s time divided by `baseline`'s in the same round."""
        return self.ratio_and_error(case, baseline)[0]

    def ratio_and_error(self, case: str, baseline: str) -> tuple[float, float | None]:
        """The same, and its standard error over the rounds."""
        return median_and_error([a / b for a, b in zip(self.seconds[case], self.seconds[baseline], strict=True)])


def _finished(step: Step) -> object:
    """A step, and on a GPU its kernels, which run on after their launch."""
    returned = step()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return returned


def interleave(
    steps: Mapping[str, Step], *, num_pairs: int = 15, num_warmup: int = 1, num_untimed: int = 0, seed: int = 0
) -> Rounds:
    """Time steps against each other.

    Args:
        steps: what to run, by name; a step that returns `Took` has timed itself.
        num_pairs: rounds that count.
        num_warmup: rounds before these, thrown away.
        num_untimed: steps before each timed one, in its turn, so that it follows one of its own.
        seed: of the order within the rounds.
    """
    order, shuffle = list(steps), random.Random(seed).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    # No case shall pay for another's garbage, so it is collected between rounds; what is there now is left out of that.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for index in range(num_warmup + num_pairs):
            gc.collect()
            shuffle(order)
            for name in order:
                for _ in range(num_untimed):
                    _finished(steps[name])
                start = perf_counter()
                returned = _finished(steps[name])
                elapsed = returned.seconds if isinstance(returned, Took) else perf_counter() - start
                if index >= num_warmup:
                    seconds[name].append(elapsed)
    finally:
        gc.enable()
        gc.unfreeze()
    return Rounds(seconds)


@dataclass(frozen=True, slots=True)
class Result:
    """One row: a value and, where the project promises one, its bound and on which side of it the value must lie.

    `error` is the value's standard error, None where it was measured once.
    """

    case: str
    value: float
    unit: str = "x"
    bound: float | None = None
    better: Literal["lower", "higher"] = "lower"
    error: float | None = None

    @property
    def passed(self) -> bool | None:
        """Whether the bound is kept, or missed by less than the standard error; None where there is none."""
        if self.bound is None:
            return None
        error = self.error or 0.0
        return self.value - error <= self.bound if self.better == "lower" else self.value + error >= self.bound


def median_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The median of independent measurements, and its standard error, None of a single one.

    Both as robust as can be: a machine that is lent to others for a while makes single ones up to twice as large. The
    error is that of normal ones whose median distance from their median is that of these.
    """
    middle = median(values)
    spread = 1.4826 * median(abs(value - middle) for value in values)
    return middle, 1.2533 * spread / len(values) ** 0.5 if len(values) > 1 else None


def undecided(values: Sequence[float], bound: float | None) -> bool:
    """Whether there is but one measurement, or the median of so few is less than two standard errors from the bound."""
    if bound is None:
        return False
    value, error = median_and_error(values)
    return error is None or abs(value - bound) < 2 * error


WIDTH = 48
"""Of the column of cases: rows are printed before the longest is known."""


def report(results: Iterable[Result], options: Options) -> int:
    """Print each row as it comes, as a table or as JSON lines, and return the exit status: 1 if a bound is missed."""
    verdicts = {None: "", True: "ok", False: "MISSED"}
    missed = False
    for row in results:
        missed = missed or row.passed is False
        if options.json:
            plain = {"case": row.case, "value": row.value, "error": row.error, "unit": row.unit, "bound": row.bound}
            print(json.dumps(plain | {"pass": row.passed}), flush=True)
        else:
            bound = "" if row.bound is None else f"{'<=' if row.better == 'lower' else '>='} {row.bound:.2f}"
            error = "" if row.error is None else f"± {row.error:.3f}"
            line = f"{row.case:<{WIDTH}}  {row.value:8.3f} {error:<7} {row.unit:<5} {bound:<8} {verdicts[row.passed]}"
            print(line.rstrip(), flush=True)
    return int(missed)
