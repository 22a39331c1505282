"""What adapters with the same input make for each other, and when each makes its own."""

import pytest
import torch
from torch import nn

from lorachord.core.neighbours import Groups, Neighbours


class Member(nn.Module):
    config: str = "the same"
    probes: object = None


Q, K, V, OUT = (Member() for _ in range(4))


def read(near: Neighbours, *calls: tuple[nn.Module, torch.Tensor]) -> list[object]:
    """What each adapter finds in its turn, where the first of a group makes its place in the group for each other."""
    results = []
    for adapter, x in calls:
        found = near.found(adapter, x)
        if found is None:
            others = near.group(adapter)[1:]
            near.keep({other: place for place, other in enumerate(others, start=1)})
        results.append(found)
    return results


def learnt(*members: nn.Module) -> Groups:
    groups, x = Groups(), torch.ones(2)
    read(Neighbours(groups), *((member, x) for member in members))
    return groups


def test_what_reads_the_same_is_learnt_in_one_pass_and_used_from_the_next_on() -> None:
    groups, x, other = Groups(), torch.ones(2), torch.ones(2)
    calls = (Q, x), (K, x), (V, x), (OUT, other)
    assert read(Neighbours(groups), *calls) == [None] * 4
    assert groups.by_first == {Q: (Q, K, V)}
    for _ in range(2):
        assert read(Neighbours(groups), *calls) == [None, 1, 2, None]


def test_a_pass_goes_by_what_was_known_when_it_began_and_so_does_its_recompute() -> None:
    groups, x = Groups(), torch.ones(2)
    first = Neighbours(groups)
    part = first.apart()
    read(part, (Q, x), (K, x))
    assert groups.by_first == {Q: (Q, K)}
    assert read(first.apart(), (Q, x), (K, x)) == [None, None]
    assert read(Neighbours(groups).apart(), (Q, x), (K, x)) == [None, 1]


def test_nothing_is_found_of_another_input_or_of_one_that_has_changed() -> None:
    x = torch.ones(2)
    near = Neighbours(learnt(Q, K))
    assert read(near, (Q, x), (K, x.clone())) == [None, None]
    near = Neighbours(learnt(Q, K))
    read(near, (Q, x))
    x += 1
    assert near.found(K, x) is None
    near = Neighbours(learnt(Q, K))
    read(near, (Q, x))
    with torch.no_grad():
        assert near.found(K, x) is None


def test_what_nobody_came_for_is_not_made_again() -> None:
    groups, x, other = learnt(Q, K, V), torch.ones(2), torch.ones(2)
    assert read(Neighbours(groups), (Q, x), (K, x), (OUT, other)) == [None, 1, None]
    # Nor is it learnt again.
    for _ in range(2):
        assert read(Neighbours(groups), (Q, x), (K, x), (V, x)) == [None] * 3


def test_a_pass_that_has_ended_holds_nothing() -> None:
    groups, x = learnt(Q, K), torch.ones(2)
    near = Neighbours(groups)
    read(near, (Q, x))
    near.end()
    assert near.found(K, x) is None
    # A pass that broke off tells nothing of the group.
    assert groups.by_first == {Q: (Q, K)}


@pytest.mark.parametrize("which", [Q, K])
@pytest.mark.parametrize(("name", "value"), [("config", "another"), ("training", False), ("probes", "leaves")])
def test_each_makes_its_own_where_one_differs(which: nn.Module, name: str, value: object) -> None:
    groups, x = learnt(Q, K), torch.ones(2)
    before = getattr(which, name)
    setattr(which, name, value)
    try:
        assert read(Neighbours(groups), (Q, x), (K, x)) == [None, None]
    finally:
        setattr(which, name, before)
    assert read(Neighbours(groups), (Q, x), (K, x)) == [None, 1]


def test_what_all_need_alike_is_made_once_in_a_pass_and_again_in_a_part_of_it() -> None:
    made: list[str] = []
    mask, other = torch.ones(2), torch.ones(2)
    near = Neighbours(Groups())
    for place in (near, near, near.apart(), near):
        assert place.once((mask, 3), lambda: made.append("mask") or "of the mask") == "of the mask"
    assert near.once((other, 3), lambda: "of another") == "of another"
    assert near.once((mask, 4), lambda: "of four") == "of four"
    assert made == ["mask"] * 2
    near.end()
    assert near.once((mask, 3), lambda: "anew") == "anew"
