"""The batches of a mixture, as a Trainer reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from lorachord.data.mixture import MixedDataset, TaskMixture


class MixtureLoader(DataLoader[Any]):
    """A DataLoader that passes the epoch on to its mixture: Trainer tells the loader alone."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        assert isinstance(self.batch_sampler, TaskMixture)
        self.batch_sampler.set_epoch(epoch)

    def __iter__(self) -> Any:
        # A run and its Trainer are seeded alike. Without a draw in between, dropout would have the numbers that the
        # first weights were made of, and runs that learn would stay at chance.
        torch.empty((), dtype=torch.int64).random_()
        return super().__iter__()


def mixture_loader(
    data: MixedDataset, mixture: TaskMixture, collate: Callable[[list[Any]], Any], args: TrainingArguments
) -> MixtureLoader:
    """The loader of a mixture's batches, which are the same with any number of workers.

    Args:
        args: whose `dataloader_num_workers`, `dataloader_prefetch_factor` and `dataloader_persistent_workers` are
            taken.
    """
    workers: dict[str, Any] = {}
    if args.dataloader_num_workers:
        workers = {
            "num_workers": args.dataloader_num_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
            "persistent_workers": args.dataloader_persistent_workers,
        }
    # Of its own: a loader draws a seed for its workers, and how often depends on these.
    generator = torch.Generator().manual_seed(args.seed)
    return MixtureLoader(data, batch_sampler=mixture, collate_fn=collate, generator=generator, **workers)


def default_mixture(sizes: Sequence[int], args: TrainingArguments) -> TaskMixture:
    """The mixture of a recipe that says nothing of it: every row once an epoch, in mixed batches.

    Args:
        sizes: training rows of each task.
        args: whose `per_device_train_batch_size`, `seed`, rank and number of ranks are taken.
    """
    return TaskMixture(
        sizes,
        batch_size=args.per_device_train_batch_size * args.world_size,
        # Rounded up: an epoch has at least as many places as there are rows.
        drop_last=False,
        seed=args.seed,
        rank=args.process_index,
        world_size=args.world_size,
    )
