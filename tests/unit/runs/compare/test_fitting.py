"""Equal parameters: found within 2 %, near the method's defaults, or refused with the nearest."""

import pytest

import lorachord as lc
from lorachord.core.config import LayerSpec
from lorachord.runs.compare.fitting import NEAR, fitted

SHAPES = {"q": (384, 384), "up": (384, 1536), "down": (1536, 384)}
LAYERS = [
    LayerSpec(name=f"{block}.{name}", index=block, num_layers=6, d_in=d_in, d_out=d_out)
    for block in range(6)
    for name, (d_in, d_out) in SHAPES.items()
]


def budget(r: int) -> int:
    return lc.count_parameters("lora", LAYERS, options={"r": r}).total


@pytest.mark.parametrize("method", sorted(lc.all_methods()))
def test_every_method_meets_the_budget_of_a_lora_of_rank_32(method: str) -> None:
    found = fitted(method, LAYERS, budget(32), num_tasks=4, options={})
    total = lc.count_parameters(method, LAYERS, num_tasks=4, options=found.options).total
    assert total == found.parameters
    assert abs(total / budget(32) - 1) <= NEAR


def test_the_defaults_of_a_method_are_kept_where_the_rank_will_do() -> None:
    assert fitted("mtl_lora", LAYERS, budget(8), num_tasks=4, options={}).options["num_ups"] == 3
    assert fitted("multilora", LAYERS, budget(8), num_tasks=4, options={}).options["num_loras"] == 3


def test_blocks_share_two_neighbouring_ranks_where_one_will_not_do() -> None:
    ranks = fitted("moelora", LAYERS, budget(8), num_tasks=4, options={}).options["r"]
    assert len(ranks) == 6
    assert max(ranks) - min(ranks) == 1


def test_options_that_were_given_stay() -> None:
    found = fitted("mtl_lora", LAYERS, budget(8), num_tasks=4, options={"num_ups": 1, "target_modules": ["q"]})
    assert (found.options["num_ups"], found.options["target_modules"]) == (1, ["q"])
    with pytest.raises(ValueError, match=r"meets no budget.*The nearest has .* with r=2"):
        fitted("lora", LAYERS, budget(8), num_tasks=4, options={"r": 2})


def test_a_budget_below_the_smallest_rank_is_refused() -> None:
    with pytest.raises(ValueError, match=r"more than .* parameters at its smallest rank"):
        fitted("mosld", LAYERS, budget(1), num_tasks=4, options={})
