"""How many rows of each task an epoch holds, and in which order the tasks come.

An epoch's places are shared out among the tasks in proportion to a weight per task, exactly up to rounding, and then
shuffled: the mixture that was asked for is the mixture of every epoch, not of its expectation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lorachord.messages import suggest

SAMPLINGS = ("proportional", "temperature", "uniform", "round_robin")
BATCHES = ("mixed", "one_task")


def share_out(num_places: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `num_places`, in proportion to the weights up to rounding (largest remainders)."""
    total = sum(Fraction(weight) for weight in weights)
    exact = [num_places * Fraction(weight) / total for weight in weights]
    counts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda task: counts[task] - exact[task])
    for task in by_remainder[: num_places - sum(counts)]:
        counts[task] += 1
    return counts


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Which task each place of each batch of an epoch belongs to.

    Args:
        sizes: rows of each task.
        batch_size: rows of one global batch, the sum over the ranks.
        sampling: a task's weight is its size (`proportional`), its size to the power 1/temperature (`temperature`), or
            1 (`uniform`); `round_robin` deals the places to the tasks in turn, unshuffled.
        temperature: above 0; 1 is proportional, and the larger, the nearer to uniform.
        batches: `mixed` (any task in any place, sorted by task within a batch) or `one_task` (one for a whole batch).
        num_batches: of an epoch. Default: as many as the rows of all tasks fill.
        drop_last: whether that number is rounded down or up; no batch is ever short.
        every_task: whether every batch must hold every task. Tasks whose share is too small are then raised to one row
            a batch, and the others share what is left.
        seed: of the order.

    Raises:
        ValueError: no task or one without rows; an unknown word; a number out of range; a batch that cannot hold every
            task.
    """

    sizes: tuple[int, ...]
    batch_size: int
    sampling: str = "proportional"
    temperature: float = 2.0
    batches: str = "mixed"
    num_batches: int | None = None
    drop_last: bool = True
    every_task: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sizes:
            raise ValueError("There is nothing to mix: no task was given.")
        empty = [str(task) for task, size in enumerate(self.sizes) if size < 1]
        if empty:
            raise ValueError(f"These tasks have no rows: {', '.join(empty)} (from 0). Leave them out.")
        for name, value, known in (("sampling", self.sampling, SAMPLINGS), ("batches", self.batches, BATCHES)):
            if value not in known:
                raise ValueError(f"There is no {name} {value!r}. {suggest(value, known)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0 (1 is proportional) and finite.")
        if self.every_task and self.batches == "one_task":
            raise ValueError("A batch of one task cannot hold every task: use batches='mixed', or every_task=False.")
        if self.every_task and self.batch_size < len(self.sizes):
            raise ValueError(
                f"batch_size is {self.batch_size}, too small for every one of {len(self.sizes)} tasks. Raise it to at "
                f"least {len(self.sizes)}, or train on fewer tasks."
            )
        if self.length < 1:
            raise ValueError(
                f"An epoch of {sum(self.sizes)} rows has no full batch of {self.batch_size}. Lower batch_size, set "
                "num_batches, or round up with drop_last=False."
            )

    @property
    def length(self) -> int:
        """Batches of an epoch."""
        if self.num_batches is not None:
            return self.num_batches
        full, left = divmod(sum(self.sizes), self.batch_size)
        return full + (left > 0 and not self.drop_last)

    @property
    def places(self) -> int:
        """What is dealt to tasks: rows of an epoch, or whole batches of it."""
        return self.length if self.batches == "one_task" else self.length * self.batch_size

    def weights(self) -> list[float]:
        """One per task, not normalised."""
        if self.sampling == "proportional":
            return list(self.sizes)
        if self.sampling == "temperature":
            return [size ** (1 / self.temperature) for size in self.sizes]
        return [1] * len(self.sizes)

    def counts(self) -> list[int]:
        """How many places of an epoch each task has, the same in every epoch.

        A task whose share rounds to nothing gets a place of the largest, if there are as many places as tasks.
        """
        if self.sampling == "round_robin":
            turns, left = divmod(self.places, len(self.sizes))
            return [turns + (task < left) for task in range(len(self.sizes))]
        counts = share_out(self.places, self.weights())
        least = self.length if self.every_task else int(self.places >= len(counts))
        if min(counts) >= least:
            return counts
        spare = [max(0, count - least) for count in counts]
        return [least + more for more in share_out(self.places - least * len(counts), spare)]

    def rows_per_epoch(self) -> list[int]:
        """How many rows of each task an epoch draws."""
        rows_each = self.batch_size if self.batches == "one_task" else 1
        return [rows_each * count for count in self.counts()]

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The tasks of an epoch's places: (batches, batch_size), each row sorted."""
        counts = self.counts()
        tasks = np.arange(len(counts))
        if self.sampling == "round_robin":
            dealt = np.arange(self.places) % len(counts)
        else:
            reserved = self.length if self.every_task else 0
            dealt = np.repeat(tasks, [count - reserved for count in counts])
            np.random.default_rng([self.seed, 0, epoch]).shuffle(dealt)
        if self.batches == "one_task":
            return np.repeat(dealt[:, None], self.batch_size, axis=1)
        batches = dealt.reshape(self.length, -1)
        if self.every_task and self.sampling != "round_robin":
            batches = np.concatenate([np.tile(tasks, (self.length, 1)), batches], axis=1)
        return np.sort(batches, axis=1)
