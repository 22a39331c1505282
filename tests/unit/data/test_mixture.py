from collections import Counter
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lorachord.data.mixture import MixedDataset, TaskMixture, interleave
from lorachord.data.schedule import SAMPLINGS
from lorachord.data.sources import from_rows
from tests.unit.data import helpers

SIZES = (40, 16, 8)
Batches = list[list[tuple[int, int]]]


def epoch_of(mixture: TaskMixture, epoch: int = 0) -> Batches:
    mixture.set_epoch(epoch)
    batches = list(mixture)
    assert len(batches) == len(mixture)
    return batches


def mixture(**options: Any) -> TaskMixture:
    return TaskMixture(options.pop("sizes", SIZES), **{"batch_size": 8, **options})


@pytest.mark.parametrize("batches", ["mixed", "one_task"])
def test_proportional_epochs_hold_every_row_once(batches: str) -> None:
    # One-task batches of 8 divide every size.
    for epoch in range(3):
        drawn = list(chain(*epoch_of(mixture(batches=batches), epoch)))
        assert sorted(drawn) == [(task, row) for task, size in enumerate(SIZES) for row in range(size)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("batches", ["mixed", "one_task"])
def test_rows_come_again_only_when_all_have_come(sampling: str, batches: str) -> None:
    of = mixture(sampling=sampling, batches=batches, sizes=(50, 13, 3))
    # The draws of four epochs in a row, for an epoch need not end where a task's rows do.
    drawn = list(chain(*(batch for epoch in range(4) for batch in epoch_of(of, epoch))))
    for task_index, size in enumerate((50, 13, 3)):
        own = [row for task, row in drawn if task == task_index]
        passes = [own[start : start + size] for start in range(0, len(own), size)]
        assert all(len(set(one)) == len(one) for one in passes)
        assert all(set(one) == set(range(size)) for one in passes[:-1])
        assert len(passes) < 3 or passes[0] != passes[1]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_tasks_that_are_not_learned_are_not_drawn_and_the_others_are_as_without_them(sampling: str) -> None:
    some = mixture(sampling=sampling, learned=(0, 2))
    assert some.sizes == SIZES
    drawn = epoch_of(some)
    alone = epoch_of(mixture(sampling=sampling, sizes=(40, 8)))
    assert [[task for task, _ in batch] for batch in drawn] == [[(0, 2)[task] for task, _ in batch] for batch in alone]
    assert {row for batch in drawn for task, row in batch if task == 2} <= set(range(8))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_batches_are_full_and_sorted_by_task(sampling: str) -> None:
    for batch in epoch_of(mixture(sampling=sampling)):
        assert len(batch) == 8
        assert [task for task, _ in batch] == sorted(task for task, _ in batch)


def test_all_is_a_function_of_seed_and_epoch() -> None:
    first, again = mixture(), mixture()
    second = epoch_of(first, 1)
    # Without having iterated over epoch 0, as after resuming.
    assert epoch_of(again, 1) == second == epoch_of(first, 1)
    assert epoch_of(first, 0) != second
    assert epoch_of(mixture(seed=1), 1) != second


def test_no_global_generator_is_used() -> None:
    state = torch.random.get_rng_state()
    epoch_of(mixture())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("batches", ["mixed", "one_task"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_together_see_what_one_process_sees(sampling: str, batches: str, world_size: int) -> None:
    options = dict(sampling=sampling, batches=batches)
    alone = epoch_of(mixture(**options), 1)
    ranks = [epoch_of(mixture(**options, rank=rank, world_size=world_size), 1) for rank in range(world_size)]
    for whole, *shares in zip(alone, *ranks, strict=True):
        assert sorted(chain(*shares)) == sorted(whole)
        for share in shares:
            assert len(share) == 8 // world_size
            assert [task for task, _ in share] == sorted(task for task, _ in share)
        counts = [Counter(task for task, _ in share) for share in shares]
        for task_index, total in Counter(task for task, _ in whole).items():
            dealt = [count[task_index] for count in counts]
            assert max(dealt) - min(dealt) <= (0 if total % world_size == 0 and batches == "one_task" else 1)


def test_a_task_that_divides_among_the_ranks_is_dealt_evenly() -> None:
    ranks = [epoch_of(mixture(sampling="round_robin", sizes=(30, 30), rank=rank, world_size=2)) for rank in range(2)]
    for batch in chain(*ranks):
        assert [task for task, _ in batch] == [0, 0, 1, 1]


def test_a_one_task_batch_is_of_one_task_on_all_ranks() -> None:
    ranks = [epoch_of(mixture(batches="one_task", rank=rank, world_size=2)) for rank in range(2)]
    for shares in zip(*ranks, strict=True):
        assert len({task for share in shares for task, _ in share}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(batch_size=8, world_size=3), "batch_size is 8.*all 3 ranks.*multiple of 3, such as 9"),
        (dict(rank=2, world_size=2), "rank is 2.*0 to 1"),
        (dict(sizes=(4, 0)), "no rows: 1"),
        (dict(batch_size=2, every_task=True), "too small for every one of 3 tasks"),
        (dict(temperature=0.0), "temperature"),
    ],
)
def test_bad_settings_are_errors_in_words(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixture(**options)


def test_a_loader_gives_examples_with_their_task() -> None:
    sets = [from_rows(helpers.task(), {"train": helpers.rows(num), "dev": helpers.rows(2)}).train for num in (30, 20)]
    mixed = MixedDataset(sets)
    assert (mixed.sizes, len(mixed)) == ([27, 18], 45)
    sampler = TaskMixture(mixed.sizes, batch_size=5)
    batches = list(DataLoader(mixed, batch_sampler=sampler, collate_fn=list))
    assert [[(example["task"], example["idx"]) for example in batch] for batch in batches] == [
        [(index, sets[index][row]["idx"]) for index, row in batch] for batch in sampler
    ]
    assert sampler.batch_size == 5
    assert TaskMixture(mixed.sizes, batch_size=6, world_size=3).batch_size == 2


def streams(*sizes: int) -> list[list[dict[str, Any]]]:
    return [[{"idx": index} for index in range(size)] for size in sizes]


def test_streams_are_mixed_like_rows() -> None:
    options: dict[str, Any] = dict(batch_size=8, num_batches=20, sampling="temperature")
    stream = interleave(streams(*SIZES), sizes=SIZES, **options)
    same = TaskMixture(SIZES, **options)
    for epoch in range(2):
        stream.set_epoch(epoch)
        got = [[example["task"] for example in batch] for batch in DataLoader(stream, batch_size=None)]
        assert got == [[task for task, _ in batch] for batch in epoch_of(same, epoch)]


def test_a_stream_is_read_in_order_and_begun_again() -> None:
    batches = list(interleave(streams(5, 3), batch_size=4, num_batches=3, sampling="round_robin"))
    own = [[example["idx"] for example in chain(*batches) if example["task"] == index] for index in range(2)]
    assert own == [[0, 1, 2, 3, 4, 0], [0, 1, 2, 0, 1, 2]]


def test_the_ranks_share_each_batch_of_a_stream() -> None:
    options: dict[str, Any] = dict(batch_size=4, num_batches=3, sampling="uniform")
    alone = list(interleave(streams(5, 3), **options))
    ranks = [list(interleave(streams(5, 3), rank=rank, world_size=2, **options)) for rank in range(2)]
    for whole, *shares in zip(alone, *ranks, strict=True):
        assert [shares[0][0], shares[1][0], shares[0][1], shares[1][1]] == whole


def test_a_stream_from_a_source_can_be_interleaved() -> None:
    import datasets

    stream = datasets.Dataset.from_list(streams(6)[0]).to_iterable_dataset()
    (batch,) = interleave([stream, stream], batch_size=4, num_batches=1, sampling="uniform")
    assert [example["task"] for example in batch] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(sampling="proportional"), "proportional sampling needs the sizes"),
        (dict(sampling="uniform", sizes=(1, 2, 3)), "3 sizes for 2 streams"),
        (dict(sampling="uniform", world_size=3), "multiple of 3"),
        (dict(sampling="uniform", batch_size=1, every_task=True), "too small"),
    ],
)
def test_bad_streams_are_errors_in_words(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interleave(streams(5, 3), **{"batch_size": 4, "num_batches": 2, **options})


def test_an_empty_stream_is_an_error_and_no_endless_loop() -> None:
    with pytest.raises(ValueError, match=r"Stream 1 .* has no examples"):
        list(interleave(streams(5, 0), batch_size=4, num_batches=2, sampling="uniform"))


def test_several_workers_would_repeat_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = interleave(streams(5, 3), batch_size=4, num_batches=2, sampling="uniform")
    # As a worker of a loader sees it: real ones, once failed, take ten seconds to be gone.
    monkeypatch.setattr("lorachord.data.mixture.get_worker_info", lambda: SimpleNamespace(num_workers=2))
    with pytest.raises(ValueError, match=r"num_workers is 2"):
        list(stream)
