from typing import Any

import pytest
import torch

from lorachord.core.context import Context
from lorachord.core.tasks import TaskNames

NAMES = TaskNames(("cola", "sst2", "rte"))


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ("sst2", [1]),
        (2, [2]),
        (["rte", "cola"], [2, 0]),
        ([2, 0], [2, 0]),
        (torch.tensor([2, 0]), [2, 0]),
        (torch.tensor(1), [1]),
        # For each token.
        (torch.tensor([[2, 0], [1, 1]]), [2, 0, 1, 1]),
    ],
)
def test_tasks_are_named_in_many_ways(tasks: Any, expected: list[int]) -> None:
    assert NAMES.indices(tasks) == expected


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("sst", "no task 'sst'.*'sst2'"),
        (3, "no task 3.*3 tasks, cola, sst2, rte"),
        (-1, "no task -1"),
        (True, "name or an index"),
        ([], "empty"),
        (torch.tensor([0.0]), "integer tensor"),
        (torch.zeros(2, 2, 1, dtype=torch.long), r"shape \(2, 2, 1\)"),
    ],
)
def test_wrong_tasks_are_errors_in_words(tasks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NAMES.indices(tasks)


def test_an_unknown_task_may_be_one_of_its_own() -> None:
    assert TaskNames(("a", "b"), accepts_unknown=True).indices(["b", "new"]) == [1, 2]


def test_the_digest_tells_names_and_their_order() -> None:
    digest = torch.tensor(NAMES.digest())
    NAMES.check_digest(digest)
    with pytest.raises(ValueError, match="in another order"):
        TaskNames(("sst2", "cola", "rte")).check_digest(digest)
    with pytest.raises(ValueError, match="for other tasks"):
        TaskNames(("cola", "sst2")).check_digest(digest)


def test_runs_cover_the_batch() -> None:
    assert Context.of_tasks([0, 0, 2, 1, 1]).runs == ((0, 0, 2), (2, 2, 3), (1, 3, 5))
    one = Context.of_tasks([1, 1, 1])
    assert one.runs == ((1, 0, 1),)
    assert (one.num_samples, one.single_task) == (1, 1)
    assert Context.of_tasks([0, 1]).single_task is None
