from collections.abc import Mapping

import pytest

import lorachord as lc
from lorachord.core.tasks import TaskNames
from lorachord.methods.allot import Allot
from tests.tiny_models import tiny

CONFLICT = {"a": 3.0, "b": 0.0, "c": 9.0, "d": 5.0, "e": 0.0, "f": 4.0}
WIDTHS = dict.fromkeys(CONFLICT, 8)


def split(widths: Mapping[str, int] = WIDTHS, **options: object) -> list[str]:
    measured = {lc.LayerSpec(name, 0, 1, 8, widths[name]): value for name, value in CONFLICT.items()}
    found = Allot.from_conflict(Allot.Config.from_dict(options), measured, num_tasks=2)
    assert set(found) == {"split"}
    assert all(found["split"].values())
    return list(found["split"])


def test_the_most_significant_conflicts_are_split_first_up_to_the_budget() -> None:
    assert split(budget=0.5) == ["c", "d", "f"]
    assert split(budget=0.17) == ["c"]
    assert split(budget=0.0) == []


def test_the_budget_is_of_parameters_and_what_has_no_room_is_passed_over() -> None:
    # c alone adds 80 of the 180 output features.
    widths = {"a": 20, "b": 20, "c": 80, "d": 20, "e": 20, "f": 20}
    cost = {name: lc.LayerSpec(name, 0, 1, 8, width) for name, width in widths.items()}
    config = Allot.Config.from_dict({"r": 1, "num_ups": 2})
    total = sum(config.added(layer, 2) for layer in cost.values())
    for budget, expected in ((0.39, ["d", "f", "a"]), (0.5, ["c"]), (0.6, ["c", "d"]), (1.0, ["c", "d", "f", "a"])):
        chosen = split(widths, budget=budget, r=1, num_ups=2)
        assert chosen == expected
        assert sum(config.added(cost[name], 2) for name in chosen) <= budget * total
        rest = split(widths, budget=budget, r=1, num_ups=2, choose="random", seed=3)
        assert sum(config.added(cost[name], 2) for name in rest) <= sum(config.added(cost[name], 2) for name in chosen)


def test_what_a_split_adds_is_what_the_adapters_have() -> None:
    layers = lc.target_layers(tiny("llama"))
    config = Allot.Config.from_dict({"r": 3, "num_ups": 2})
    plain, split_up = (
        lc.count_parameters("allot", layers, num_tasks=5, options={"r": 3, "num_ups": 2, "choose": choose}).total
        for choose in ("conflict", "all")
    )
    assert split_up - plain == sum(config.added(layer, 5) for layer in layers)


def test_where_nothing_conflicts_nothing_is_split_however_large_the_budget() -> None:
    assert split(budget=1.0) == ["c", "d", "f", "a"]


def test_a_random_choice_is_as_large_and_seeded() -> None:
    chosen = [split(budget=0.5, choose="random", seed=seed) for seed in range(20)]
    assert all(len(set(names)) == 3 for names in chosen)
    assert split(budget=0.5, choose="random", seed=1) == chosen[1]
    assert {name for names in chosen for name in names} == set(CONFLICT)


def test_split_modules_are_mtl_loras_and_the_others_loras() -> None:
    layers = lc.target_layers(tiny("llama"))
    own = layers[0].name
    options = {"r": 4, "num_ups": 2, "split": {own: True}}
    assert lc.count_parameters("allot", layers, num_tasks=3, options=options).total == (
        lc.count_parameters("lora", layers[1:], options={"r": 4}).total
        + lc.count_parameters("mtl_lora", layers[:1], num_tasks=3, options={"r": 4, "num_ups": 2}).total
    )
    tasks = TaskNames(("one", "two"))
    names = {
        layer.name: set(dict(Allot(layer, Allot.Config.from_dict(options), tasks).named_parameters()))
        for layer in layers[:2]
    }
    assert names == {own: {"down", "up", "transform", "mixture"}, layers[1].name: {"down", "up"}}


def test_it_says_that_it_needs_a_calibration_or_splits_all() -> None:
    with pytest.raises(ValueError, match=r"calibration=lorachord\.calibrate.*choose='all'"):
        lc.attach(tiny("llama"), "allot", tasks=["a", "b"])
    lc.attach(tiny("llama"), "allot", tasks=["a", "b"], choose="all")
