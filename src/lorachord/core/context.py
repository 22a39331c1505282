"""The things that a core may look at besides its argument, and the promises of a method about them.

Shapes: B samples, L rows of one sample, N = B * L rows, T tasks, C clusters of prompts; U units of equally many rows,
which are the samples of a layer where samples have different numbers of rows (`core/rows.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import groupby
from math import gcd
from typing import Self

import torch
from torch import Tensor

from lorachord.core.prepared import Store
from lorachord.kernels.devices import moved
from lorachord.kernels.products import Runs


class Mixing(Enum):
    """What a method's core depends on, hence what can be merged and exported."""

    STATIC = "static"
    """A fixed matrix: merges into one weight and exports as one LoRA."""
    TASK = "task"
    """One matrix per task: merges and exports once per task, and needs the task of each sample."""
    INPUT = "input"
    """Depends on the input: neither merges nor exports exactly."""


class PenaltyFrom(Enum):
    """The source of a method's penalty."""

    NOTHING = "nothing"
    """There is none."""
    WEIGHTS = "weights"
    """The parameters alone: it can be computed at any time."""
    PASS = "pass"
    """What the last forward pass in training has recorded: it needs that pass's graph."""


@dataclass(frozen=True, slots=True)
class Images:
    """Whose images a pass has.

    Attributes:
        shares: how the rows of images fall to the B samples, in order, up to a common factor; several where a pass has
            images and videos, none where it is not known.
        towers: names of the modules that see images alone.
        text: names of the modules that see text alone; all others may see either.
    """

    shares: tuple[tuple[int, ...], ...]
    towers: tuple[str, ...]
    text: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows that a pass began with.

    Attributes:
        num_samples: B.
        lengths: every L of the pass: that of its input, and that of a decoder's beside an encoder's.
        images: None where the pass has none.
        tokens_first: whether some layers of the model have the tokens along the first axis and the samples along the
            second.
        sizes_BL0: an empty tensor, by whose sizes a compiler knows B and the first L: it takes numbers for constants.
    """

    num_samples: int
    lengths: tuple[int, ...] = ()
    images: Images | None = None
    tokens_first: bool = False
    sizes_BL0: Tensor | None = field(default=None, compare=False)

    @property
    def plain(self) -> bool:
        """Whether an input (B, L, X) of a layer can be nothing but L rows of each sample."""
        return self.images is None and not self.tokens_first


@dataclass(frozen=True, slots=True)
class Context:
    """One forward pass as the adapters of one name see it. Immutable: a recompute restores it by reference.

    Attributes:
        task_ids_B: task of each sample, int64; one entry stands for every sample. None where no task was named. In a
            layer, of each unit of its rows.
        runs: maximal runs of equal tasks as `(task, first sample, past-the-last sample)`; a batch sorted by task has
            one run a task. Kept beside the tensor so that a backward pass needs no synchronisation.
        token_mask_BL: True for the tokens that count (not padding); None where all do.
        recording: False in a checkpoint's recompute, in which statistics and penalties must not be taken again.
        prompt_mask_BL: True for the tokens of the prompt, by which prompt-level methods choose. None where nothing is
            known of it: all rows of a sample are then its prompt.
        cosines_BC: cosine of each sample's prompt embedding to the adapter's centroids; None where it has none.
        kept: in a pass over the prompt, where layers keep what they have read of it, by name; it goes with the pass's
            cache. None keeps nothing.
        recalled: in a pass that goes on from a cache, what the pass over the prompt has kept, one row a sample of that
            pass; else None.
        num_named: how many tasks were named, equal or not; 1 stands for every sample.
        tokens: B and L where a task was named for each token: `task_ids_B` is then of equal stretches of tokens.
        batch: the rows that the pass began with; None outside of a pass through the whole model.
        samples_U: in a layer whose samples have different numbers of rows, the sample of each unit; else None.
        halves: `half_runs` where they are not to be taken from `runs`.
        prepared: in a pass over one token of each sample, in which nothing is differentiated, where adapters keep what
            they have made of their weights; else None.
    """

    task_ids_B: Tensor | None = None
    runs: Runs | None = None
    token_mask_BL: Tensor | None = None
    recording: bool = True
    prompt_mask_BL: Tensor | None = None
    cosines_BC: Tensor | None = None
    kept: dict[str, Tensor] | None = None
    recalled: Mapping[str, Tensor] | None = None
    num_named: int = 1
    tokens: tuple[int, int] | None = None
    batch: Batch | None = None
    samples_U: Tensor | None = None
    halves: Runs | None = None
    prepared: Store | None = None

    @classmethod
    def of_tasks(cls, ids: list[int], device: torch.device | None = None) -> Self:
        """The context of samples whose tasks are `ids`."""
        runs = _runs(ids)
        if len(runs) == 1:
            ids_1 = torch.tensor(ids[:1], device=device)
            return cls(task_ids_B=ids_1, runs=((ids[0], 0, 1),), num_named=len(ids))
        return cls(task_ids_B=torch.tensor(ids, device=device), runs=runs, num_named=len(ids))

    @classmethod
    def of_tokens(cls, ids: list[list[int]], device: torch.device | None = None) -> Self:
        """The context of samples whose tokens have the tasks `ids`, one list of L for each of B samples."""
        if all(len(set(row)) == 1 for row in ids):
            return cls.of_tasks([row[0] for row in ids], device)
        flat = [task for row in ids for task in row]
        runs = _runs(flat)
        size = gcd(*(stop for _, _, stop in runs))
        return cls(
            task_ids_B=torch.tensor(flat[::size], device=device),
            runs=tuple((task, start // size, stop // size) for task, start, stop in runs),
            num_named=len(ids),
            tokens=(len(ids), len(ids[0])),
        )

    def repeated(self, times: int) -> Self:
        """The context of a batch in which each sample stands `times` in place, as in generation with beams."""
        if self.task_ids_B is None or len(self.task_ids_B) == 1:
            return replace(self, num_named=self.num_named * times)
        assert self.runs is not None
        return replace(
            self,
            task_ids_B=self.task_ids_B.repeat_interleave(times),
            runs=tuple((task, start * times, stop * times) for task, start, stop in self.runs),
            num_named=self.num_named * times,
        )

    @property
    def num_samples(self) -> int | None:
        """B, or 1 where one task was named for all, or None where none was."""
        return None if self.task_ids_B is None else len(self.task_ids_B)

    @property
    def single_task(self) -> int | None:
        """The task, if every sample has the same one."""
        return self.runs[0][0] if self.runs is not None and len(self.runs) == 1 else None

    @property
    def half_runs(self) -> Runs | None:
        """`runs`, each cut in two, the halves of task t counted as 2 t and 2 t + 1.

        A run that cannot be cut (one sample, or one task named for all of an unknown number) is its first half.
        """
        if self.halves is not None or self.runs is None:
            return self.halves
        cut = []
        for task, start, stop in self.runs:
            middle = (start + stop + 1) // 2
            cut += [(2 * task, start, middle), (2 * task + 1, middle, stop)]
        return tuple(run for run in cut if run[1] < run[2])

    def to(self, device: torch.device) -> Self:
        """The same context with its task ids on `device`."""
        if self.task_ids_B is None or self.task_ids_B.device == device:
            return self
        return replace(self, task_ids_B=moved(self.task_ids_B, device))


def _runs(ids: list[int]) -> Runs:
    runs, start = [], 0
    for task, group in groupby(ids):
        stop = start + len(list(group))
        runs.append((task, start, stop))
        start = stop
    return tuple(runs)


NO_CONTEXT = Context()
