"""The things that a core may look at besides its argument, and the promises of a method about them.

Shapes: B samples, L rows of one sample, N = B * L rows, T tasks, C clusters of prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from itertools import groupby
from typing import Self

import torch
from torch import Tensor

from lorachord.kernels.devices import moved


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
class Context:
    """One forward pass as the adapters of one name see it. Immutable: a recompute restores it by reference.

    Attributes:
        task_ids_B: task of each sample, int64; one entry stands for every sample. None where no task was named.
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
    """

    task_ids_B: Tensor | None = None
    runs: tuple[tuple[int, int, int], ...] | None = None
    token_mask_BL: Tensor | None = None
    recording: bool = True
    prompt_mask_BL: Tensor | None = None
    cosines_BC: Tensor | None = None
    kept: dict[str, Tensor] | None = None
    recalled: Mapping[str, Tensor] | None = None

    @classmethod
    def of_tasks(cls, ids: list[int], device: torch.device | None = None) -> Self:
        """The context of samples whose tasks are `ids`."""
        runs, start = [], 0
        for task, group in groupby(ids):
            stop = start + len(list(group))
            runs.append((task, start, stop))
            start = stop
        if len(runs) == 1:
            return cls(task_ids_B=torch.tensor(ids[:1], device=device), runs=((ids[0], 0, 1),))
        return cls(task_ids_B=torch.tensor(ids, device=device), runs=tuple(runs))

    @property
    def num_samples(self) -> int | None:
        """B, or None where no task was named."""
        return None if self.task_ids_B is None else len(self.task_ids_B)

    @property
    def single_task(self) -> int | None:
        """The task, if every sample has the same one."""
        return self.runs[0][0] if self.runs is not None and len(self.runs) == 1 else None

    @property
    def half_runs(self) -> tuple[tuple[int, int, int], ...] | None:
        """`runs`, each cut in two, the halves of task t counted as 2 t and 2 t + 1.

        A run that cannot be cut (one sample, or one task named for all of an unknown number) is its first half.
        """
        if self.runs is None:
            return None
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


NO_CONTEXT = Context()
