"""Batches of several tasks: which rows, in which order, on which rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from lorachord.data.schedule import Schedule

Example = dict[str, Any]


def _check_ranks(batch_size: int, rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}, but with world_size {world_size} it must be 0 to {world_size - 1}.")
    if batch_size % world_size:
        raise ValueError(
            f"batch_size is {batch_size}, the rows of all {world_size} ranks together; it must be a multiple of "
            f"{world_size}, such as {(batch_size // world_size + 1) * world_size}."
        )


class TaskMixture(Sampler[list[tuple[int, int]]]):
    """A batch sampler over several tasks, for `DataLoader(MixedDataset(...), batch_sampler=...)`.

    A batch is a list of (task, row), sorted by task. By default an epoch has as many rows as all tasks together,
    whatever the sampling: with `proportional` each row comes once, to within the rows of a last batch that is dropped
    or filled up; with the others the rows of small tasks come more than once, and those of large ones in part.

    A task's rows are drawn without replacement until it is exhausted and then shuffled anew; this goes on across
    epochs, so that a task of which an epoch shows a tenth is seen whole in ten. All of it is a function of the seed and
    the epoch alone: call `set_epoch` before each, also when resuming.

    Under several ranks each sampler yields its share of one *global* batch: rank r of W has the rows r, r + W, ... of
    the batch sorted by task. So the union over the ranks is what a single process would see, a one-task batch is of the
    same task on every rank, and a mixed batch gives every rank its share of every task, to within one row. Do not let
    accelerate shard it a second time: its default would deal a different batch, and so a different task, to each rank.

    Args:
        sizes: rows of each task.
        batch_size: rows of a global batch.
        learned: the indices of the tasks that batches are drawn from, rising. Default: all.
        rank, world_size: this process among all. Default 0 of 1.
        sampling, temperature, batches, num_batches, drop_last, every_task, seed: as in `Schedule`.

    Raises:
        ValueError: as `Schedule`; a rank outside the world, or a batch that does not divide among the ranks.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        batch_size: int,
        sampling: str = "proportional",
        temperature: float = 2.0,
        batches: str = "mixed",
        num_batches: int | None = None,
        drop_last: bool = True,
        every_task: bool = False,
        seed: int = 0,
        learned: Sequence[int] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.sizes = tuple(sizes)
        self.learned = tuple(range(len(self.sizes)) if learned is None else learned)
        self.schedule = Schedule(
            sizes=tuple(self.sizes[task] for task in self.learned),
            batch_size=batch_size,
            sampling=sampling,
            temperature=temperature,
            batches=batches,
            num_batches=num_batches,
            drop_last=drop_last,
            every_task=every_task,
            seed=seed,
        )
        _check_ranks(batch_size, rank, world_size)
        self.rank, self.world_size, self.epoch = rank, world_size, 0

    @property
    def batch_size(self) -> int:
        """Rows that this rank yields at a time."""
        return self.schedule.batch_size // self.world_size

    @property
    def drop_last(self) -> bool:
        """Whether an epoch is rounded down to whole batches."""
        return self.schedule.drop_last

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.schedule.length

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        schedule, epoch = self.schedule, self.epoch
        drawn = [epoch * rows for rows in schedule.rows_per_epoch()]
        rows = {
            task: _rows(schedule.seed, task, self.sizes[task], own)
            for task, own in zip(self.learned, drawn, strict=True)
        }
        for places in schedule.order(epoch):
            tasks = [self.learned[place] for place in places]
            # Every rank draws the whole batch, so that the streams of rows stay in step.
            batch = [(task, next(rows[task])) for task in tasks]
            yield batch[self.rank :: self.world_size]


def _rows(seed: int, task: int, size: int, start: int) -> Iterator[int]:
    """A task's rows in shuffled passes without end, from the draw number `start`."""
    skip = start % size
    for number in count(start // size):
        yield from np.random.default_rng([seed, 1, task, number]).permutation(size)[skip:].tolist()
        skip = 0


class Rows(Protocol):
    """A map-style dataset of examples."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class MixedDataset(Dataset[Example]):
    """Several datasets behind one, indexed by (task, row) as `TaskMixture` yields them.

    Its examples have one column more, `task`: the index of the dataset.

    Args:
        datasets: one per task, in the order of the mixture's sizes.
    """

    def __init__(self, datasets: Sequence[Rows]) -> None:
        self.datasets = tuple(datasets)

    @property
    def sizes(self) -> list[int]:
        """Rows of each task."""
        return [len(dataset) for dataset in self.datasets]

    def __len__(self) -> int:
        return sum(self.sizes)

    def __getitem__(self, index: tuple[int, int]) -> Example:
        task, row = index
        return {**self.datasets[task][row], "task": task}


class Interleaved(IterableDataset[list[Example]]):
    """Batches of several streams; made by `interleave`."""

    def __init__(
        self, streams: Sequence[Iterable[Mapping[str, Any]]], schedule: Schedule, rank: int, world_size: int
    ) -> None:
        _check_ranks(schedule.batch_size, rank, world_size)
        self.streams, self.schedule = tuple(streams), schedule
        self.rank, self.world_size, self.epoch = rank, world_size, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order of tasks the next iteration has."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Example]]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(
                f"num_workers is {worker.num_workers}, and each worker would yield every batch again; use 0 or 1."
            )
        examples = [_repeated(stream, task) for task, stream in enumerate(self.streams)]
        for tasks in self.schedule.order(self.epoch):
            batch = [{**next(examples[task]), "task": task} for task in tasks.tolist()]
            yield batch[self.rank :: self.world_size]


def _repeated(stream: Iterable[Mapping[str, Any]], task: int) -> Iterator[Mapping[str, Any]]:
    while True:
        empty = True
        for example in stream:
            empty = False
            yield example
        if empty:
            raise ValueError(f"Stream {task} (from 0) has no examples.")


def interleave(
    streams: Sequence[Iterable[Mapping[str, Any]]],
    *,
    batch_size: int,
    num_batches: int,
    sizes: Sequence[int] | None = None,
    sampling: str = "proportional",
    temperature: float = 2.0,
    batches: str = "mixed",
    every_task: bool = False,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Interleaved:
    """The mixture of `TaskMixture` over streams, for `DataLoader(interleave(...), batch_size=None, collate_fn=...)`.

    It yields whole batches: lists of examples with the further column `task`, sorted by it, this rank's share of each.
    An epoch is `num_batches` long and begins every stream at its start; a stream that ends is begun again. Every rank
    reads every stream in full, and yields what is its own.

    Args:
        streams: one per task; each may be iterated more than once.
        sizes: rows of each stream, known or guessed, which proportional and temperature sampling weight by.
        The others: as in `TaskMixture`.

    Raises:
        ValueError: as `TaskMixture`; or sizes are missing or of another number than the streams.
    """
    if sizes is None:
        if sampling in ("proportional", "temperature"):
            raise ValueError(f"{sampling} sampling needs the sizes of the streams; give sizes=, or sample uniformly.")
        sizes = [1] * len(streams)
    if len(sizes) != len(streams):
        raise ValueError(f"There are {len(sizes)} sizes for {len(streams)} streams.")
    schedule = Schedule(
        sizes=tuple(sizes),
        batch_size=batch_size,
        sampling=sampling,
        temperature=temperature,
        batches=batches,
        num_batches=num_batches,
        every_task=every_task,
        seed=seed,
    )
    return Interleaved(streams, schedule, rank, world_size)
