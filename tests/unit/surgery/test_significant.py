"""The rule that tests before it projects: how often it errs, and that it finds what is there."""

import pytest
import torch
from torch import Tensor

from lorachord.surgery.significant import Significant

NUM_BLOCKS, NUM_TASKS, WIDTH, SAMPLES = 10, 3, 40, 8


def steps(means_NTP: Tensor, num_steps: int, seed: int, rule: Significant, sizes: tuple[int, int] = (4, 4)) -> float:
    """The share of pairs with a negative inner product over some steps of noisy gradients, which the rule has seen."""
    generator = torch.Generator().manual_seed(seed)
    negative = 0.0
    for _ in range(num_steps):
        halves = []
        for size in sizes:
            noise = torch.randn(NUM_BLOCKS, NUM_TASKS, size, WIDTH, generator=generator)
            halves.append((noise + means_NTP.unsqueeze(2)).sum(2))
        stacked_NSP = torch.stack(halves, dim=2).flatten(1, 2)
        sizes_S = torch.tensor(sizes).repeat(NUM_TASKS)
        rule.observe(stacked_NSP @ stacked_NSP.mT, sizes_S)
        sums_NTP = halves[0] + halves[1]
        negative += float((sums_NTP @ sums_NTP.mT < 0).sum()) / (NUM_BLOCKS * NUM_TASKS * (NUM_TASKS - 1))
    return negative / num_steps


def alike(scale: float) -> Tensor:
    """Copies of one task."""
    return scale * torch.randn(NUM_BLOCKS, 1, WIDTH, generator=torch.Generator().manual_seed(0)).expand(
        -1, NUM_TASKS, -1
    )


@pytest.mark.parametrize("sizes", [(4, 4), (5, 3)])
@pytest.mark.parametrize("scale", [0.0, 0.01])
def test_copies_of_one_task_are_left_alone_where_pcgrad_fires_half_of_the_time(
    scale: float, sizes: tuple[int, int]
) -> None:
    fired, runs = 0, 120
    for seed in range(runs):
        rule = Significant()
        negative = steps(alike(scale), 40, seed, rule, sizes)
        assert 0.4 < negative < 0.6
        assert rule.significant_NTT is not None
        fired += bool(rule.significant_NTT.any())
    # The level is .05; three standard errors of 120 runs are .06.
    assert fired / runs <= 0.11


def test_orthogonal_tasks_are_left_alone_however_strong() -> None:
    means = torch.zeros(NUM_BLOCKS, NUM_TASKS, WIDTH)
    means[:, range(NUM_TASKS), range(NUM_TASKS)] = 3.0
    fired = 0
    for seed in range(60):
        rule = Significant()
        steps(means, 40, seed, rule)
        assert rule.significant_NTT is not None
        fired += bool(rule.significant_NTT.any())
    assert fired / 60 <= 0.13


def test_a_real_conflict_is_found_and_no_other_pair() -> None:
    means = alike(0.3).clone()
    means[:, 2] = -means[:, 2]
    rule = Significant()
    steps(means, 40, 0, rule)
    wanted = torch.zeros(NUM_TASKS, NUM_TASKS, dtype=torch.bool)
    wanted[[0, 1, 2, 2], [2, 2, 0, 1]] = True
    assert rule.significant_NTT is not None
    assert torch.equal(rule.significant_NTT, wanted.expand(NUM_BLOCKS, -1, -1))
    gramian = torch.tensor([[1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]]).expand(NUM_BLOCKS, -1, -1)
    weights = rule.weights(gramian, 0)
    # Only what is significant is projected: the first two do not project each other, the third projects both.
    assert torch.allclose(weights[:, 2], torch.tensor(1 + 2 * 0.5))
    assert (weights[:, :2] > 1).all()


def test_nothing_is_projected_before_enough_steps_are_remembered() -> None:
    means = alike(2.0).clone()
    means[:, 2] = -means[:, 2]
    rule = Significant()
    steps(means, 5, 0, rule)
    assert rule.significant_NTT is not None
    assert not rule.significant_NTT.any()


def test_a_task_without_a_second_half_says_nothing_in_that_step() -> None:
    rule, other = Significant(), Significant()
    steps(alike(0.1), 20, 0, rule)
    steps(alike(0.1), 20, 0, other)
    assert rule.sums is not None
    assert other.sums is not None
    rule.observe(torch.ones(NUM_BLOCKS, 6, 6), torch.tensor([4, 0, 4, 0, 4, 0]))
    for after, before in zip(rule.sums, other.sums, strict=True):
        assert torch.equal(after, before)


def test_a_level_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="level is 0; it must lie between 0 and 1"):
        Significant(level=0)


def test_what_it_remembers_comes_back_with_its_state() -> None:
    rule, resumed = Significant(), Significant()
    means_NTP = torch.randn(NUM_BLOCKS, NUM_TASKS, WIDTH, generator=torch.Generator().manual_seed(1))
    steps(means_NTP, 12, seed=2, rule=rule)
    resumed.load_state({name: value.clone() for name, value in rule.state().items()})
    steps(means_NTP, 3, seed=3, rule=rule)
    steps(means_NTP, 3, seed=3, rule=resumed)
    assert resumed.significant_NTT is not None
    assert resumed.significant_NTT.any()
    assert torch.equal(resumed.significant_NTT, rule.significant_NTT)
    Significant().load_state(Significant().state())


def test_a_step_that_is_not_finite_is_not_remembered() -> None:
    rule, sizes_S = Significant(), torch.full((2 * NUM_TASKS,), 4)
    steps(torch.ones(NUM_BLOCKS, NUM_TASKS, WIDTH), 3, seed=0, rule=rule)
    before = {name: value.clone() for name, value in rule.state().items()}
    broken_NSS = torch.ones(NUM_BLOCKS, 2 * NUM_TASKS, 2 * NUM_TASKS)
    broken_NSS[0, 0, 0] = torch.inf
    rule.observe(broken_NSS, sizes_S)
    assert all(torch.equal(value, before[name]) for name, value in rule.state().items())
    assert rule.weights(torch.ones(NUM_BLOCKS, NUM_TASKS, NUM_TASKS), step=3).isfinite().all()
