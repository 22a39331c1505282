from typing import Any

import numpy as np
import pytest

from lorachord.data.schedule import SAMPLINGS, Schedule, share_out

SIZES = (1600, 400, 100)


def schedule(**changes: Any) -> Schedule:
    return Schedule(**{"sizes": SIZES, "batch_size": 8, **changes})


def counted(of: Schedule, epoch: int = 0) -> list[int]:
    tasks = of.order(epoch).ravel().tolist()
    return [tasks.count(task) for task in range(len(of.sizes))]


@pytest.mark.parametrize(
    ("places", "weights", "counts"),
    [
        (10, [1, 1, 1], [4, 3, 3]),
        (7, [5, 1, 1], [5, 1, 1]),
        (100, [0.5, 0.25, 0.25], [50, 25, 25]),
        (3, [100, 1, 1], [3, 0, 0]),
        # In floating point 3 * (1/3) would be a third of a rounding error short.
        (300, [1 / 3, 1 / 3, 1 / 3], [100, 100, 100]),
    ],
)
def test_places_are_shared_out_exactly(places: int, weights: list[float], counts: list[int]) -> None:
    assert share_out(places, weights) == counts


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        (dict(sampling="proportional"), [16 / 21, 4 / 21, 1 / 21]),
        # Square roots: 40, 20, 10.
        (dict(sampling="temperature", temperature=2.0), [4 / 7, 2 / 7, 1 / 7]),
        (dict(sampling="temperature", temperature=1.0), [16 / 21, 4 / 21, 1 / 21]),
        (dict(sampling="temperature", temperature=1e9), [1 / 3, 1 / 3, 1 / 3]),
        (dict(sampling="uniform"), [1 / 3, 1 / 3, 1 / 3]),
        (dict(sampling="round_robin"), [1 / 3, 1 / 3, 1 / 3]),
    ],
)
@pytest.mark.parametrize("batches", ["mixed", "one_task"])
def test_every_epoch_has_the_mixture_that_was_asked_for(
    options: dict[str, Any], shares: list[float], batches: str
) -> None:
    of = schedule(batches=batches, **options)
    for epoch in range(2):
        counts = counted(of, epoch)
        assert counts == of.rows_per_epoch()
        unit = 8 if batches == "one_task" else 1
        assert all(abs(got - share * sum(counts)) < unit for got, share in zip(counts, shares, strict=True))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_epoch_has_as_many_rows_as_all_tasks(sampling: str) -> None:
    assert schedule(sampling=sampling).length == 2100 // 8
    assert schedule(sampling=sampling, drop_last=False).length == 2100 // 8 + 1
    assert schedule(sampling=sampling, num_batches=5).order(0).shape == (5, 8)
    assert schedule(sampling=sampling, batch_size=2100, drop_last=False).length == 1


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_mixed_batches_are_sorted_and_others_are_of_one_task(sampling: str) -> None:
    mixed = schedule(sampling=sampling).order(0)
    assert (np.diff(mixed, axis=1) >= 0).all()
    assert (mixed[:, 0] != mixed[:, -1]).any()
    alone = schedule(sampling=sampling, batches="one_task").order(0)
    assert (alone == alone[:, :1]).all()


def test_round_robin_takes_turns() -> None:
    alone = schedule(sampling="round_robin", batches="one_task", num_batches=5).order(3)
    assert alone[:, 0].tolist() == [0, 1, 2, 0, 1]
    order = schedule(sampling="round_robin", batch_size=4).order(0)
    assert order[:3].tolist() == [[0, 0, 1, 2], [0, 1, 1, 2], [0, 1, 2, 2]]


@pytest.mark.parametrize("sampling", ["proportional", "temperature", "uniform"])
def test_the_order_depends_on_seed_and_epoch(sampling: str) -> None:
    of = schedule(sampling=sampling)
    assert (of.order(1) == schedule(sampling=sampling).order(1)).all()
    assert (of.order(1) != of.order(0)).any()
    assert (of.order(1) != schedule(sampling=sampling, seed=1).order(1)).any()


def test_a_tiny_task_is_seen_in_every_epoch() -> None:
    of = schedule(sizes=(100_000, 3), batch_size=100, batches="one_task")
    assert of.counts() == [999, 1]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("sizes", [SIZES, (10_000, 5, 5), (7, 7, 7)])
@pytest.mark.parametrize("batch_size", [3, 8])
def test_every_batch_holds_every_task_where_asked(sampling: str, sizes: tuple[int, ...], batch_size: int) -> None:
    of = schedule(sampling=sampling, sizes=sizes, batch_size=batch_size, every_task=True)
    order = of.order(0)
    assert all(set(batch.tolist()) == {0, 1, 2} for batch in order)
    assert counted(of) == of.counts()
    assert order.shape == (of.length, batch_size)


def test_every_task_leaves_a_mixture_that_can_hold_it() -> None:
    free, bound = (schedule(batch_size=42, every_task=every) for every in (False, True))
    assert free.counts() == bound.counts() == [1600, 400, 100]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(sizes=()), "no task was given"),
        (dict(sizes=(3, 0, 2, 0)), "no rows: 1, 3"),
        (dict(sampling="uniformly"), "no sampling 'uniformly'.*'uniform'"),
        (dict(batches="mix"), "no batches 'mix'.*'mixed'"),
        (dict(batch_size=0), "batch_size is 0"),
        (dict(temperature=0.0), "temperature is 0"),
        (dict(temperature=-1.0), "temperature is -1"),
        (dict(temperature=float("nan")), "temperature is nan"),
        (dict(temperature=float("inf")), "temperature is inf"),
        (dict(batch_size=2, every_task=True), "batch_size is 2, too small for every one of 3 tasks.*at least 3"),
        (dict(batches="one_task", every_task=True), "one task cannot hold every task"),
        (dict(batch_size=4000), "2100 rows has no full batch of 4000"),
        (dict(num_batches=0), "no full batch"),
    ],
)
def test_bad_settings_are_errors_in_words(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(**options)
