"""Learning rates: the best one has neighbours on both sides, or is marked."""

from collections.abc import Callable, Mapping

import pytest

from lorachord.runs.compare.ladder import CHANCE_RATES, MOST_RATES, Choice, Edge, Tried, next_steps, rate_at


def choose(
    mean: Callable[[int], float], fit: Callable[[int], bool] = lambda step: True, tie: float = 0.0
) -> Mapping[str, object]:
    """Try steps until one is chosen."""
    tried: dict[int, Tried] = {}

    def ties(best: int, other: int) -> bool:
        return tried[best].mean - tried[other].mean <= tie

    while True:
        found = next_steps(tried, ties)
        if isinstance(found, Choice):
            return {"step": found.step, "edge": found.edge, "tried": sorted(tried)}
        assert not set(found) & set(tried)
        tried.update({step: Tried(mean=mean(step), is_fit=fit(step)) for step in found})


def test_three_rates_do_where_the_middle_is_best() -> None:
    assert choose(lambda step: -abs(step)) == {"step": 0, "edge": Edge.INTERIOR, "tried": [-1, 0, 1]}


@pytest.mark.parametrize("best", [-4, -2, 2, 4])
def test_the_grid_grows_until_the_best_is_inside(best: int) -> None:
    found = choose(lambda step: -abs(step - best))
    assert (found["step"], found["edge"]) == (best, Edge.INTERIOR)


def test_a_row_that_only_gets_better_is_marked_after_eight_rates() -> None:
    found = choose(lambda step: float(step))
    assert found["edge"] is Edge.END
    assert len(found["tried"]) == MOST_RATES  # type: ignore[arg-type]


def test_ties_count_as_inside_and_the_middle_one_is_taken() -> None:
    assert choose(lambda step: 0.001 * step, tie=0.01) == {"step": 0, "edge": Edge.INTERIOR, "tried": [-1, 0, 1]}


def test_a_rate_with_a_run_at_chance_is_not_taken_though_its_mean_is_best() -> None:
    found = choose(lambda step: float(step), fit=lambda step: step < 1)
    assert (found["step"], found["edge"]) == (0, Edge.INTERIOR)


def test_a_row_at_chance_everywhere_is_kept_at_its_best_mean() -> None:
    found = choose(lambda step: -abs(step + 1), fit=lambda step: False)
    assert (found["step"], found["edge"]) == (-1, Edge.CHANCE)
    assert len(found["tried"]) == CHANCE_RATES  # type: ignore[arg-type]


def test_rates_are_the_recipes_own_times_powers() -> None:
    assert rate_at(3e-4, 0) == 3e-4
    assert [rate_at(1e-3, step) for step in (-1, 1, 2)] == [4e-4, 2.5e-3, 6.3e-3]
