"""How rows are written, and the recipes that they stand for."""

from dataclasses import replace
from pathlib import Path

import pytest

from lorachord.runs.compare.compared_rows import front_rows, parse_row, ratios_of, split_rows, standing_rows
from tests.tiny_data import recipe

BASE = recipe(Path("/tiny"), "colour", "size", method={"name": "lora", "r": 4, "dropout": 0.1, "target_modules": ["q"]})


def test_commas_and_plus_signs_inside_brackets_belong_to_the_options() -> None:
    text = "mtl_lora[num_ups=1,temperature=0.2], lora+ortho_lora[seed=3]+name"
    assert split_rows(text) == ["mtl_lora[num_ups=1,temperature=0.2]", "lora+ortho_lora[seed=3]+name"]
    row = parse_row(split_rows(text)[1], BASE)
    assert (row.surgery, row.named, row.method["name"]) == ({"rule": "ortho_lora", "seed": 3}, True, "lora")


def test_options_of_the_recipes_method_stay_with_it_and_shared_ones_with_all() -> None:
    assert parse_row("lora+running_scale", BASE).method == {
        "name": "lora",
        "r": 4,
        "dropout": 0.1,
        "target_modules": ["q"],
    }
    other = parse_row("mtl_lora[num_ups=1]", BASE)
    assert other.method == {"name": "mtl_lora", "num_ups": 1, "dropout": 0.1, "target_modules": ["q"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mtl_lor", "Did you mean 'mtl_lora'"),
        ("lora+ortho", "Did you mean 'ortho_lora'"),
        ("lora[r]", "write options as option=value"),
        ("lora[r=2", "is no row"),
    ],
)
def test_unknown_words_name_the_nearest(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_row(text, BASE)


def test_the_rows_that_are_told_the_task() -> None:
    rows = {row.name: row for row in standing_rows(BASE)}
    assert {name for name, row in rows.items() if row.is_told} == {"single", "lora+name"}
    assert parse_row("mtl_lora", BASE).is_told
    assert not parse_row("hydralora", BASE).is_told
    assert not parse_row("peft_lora", BASE).is_told
    assert not parse_row("lora+sequence", BASE).is_told
    assert parse_row("mtl_lora+sequence", BASE).is_told
    assert parse_row("lora+fused", BASE).is_told


def test_a_rows_recipe_differs_in_what_the_row_says_alone() -> None:
    rows = {row.name: row for row in standing_rows(BASE)}
    made = rows["lora+name"].recipe(BASE, rate=3e-4, seed=7)
    assert (made.training.learning_rate, made.seed, made.tasks.name_in_text) == (3e-4, 7, True)
    assert rows["lora"].recipe(BASE, rate=BASE.training.learning_rate, seed=BASE.seed) == BASE
    assert rows["single"].recipe(BASE, rate=None, seed=0).mode == "single"
    assert rows["untrained"].recipe(BASE, rate=None, seed=0).training.max_steps == 0


def test_a_point_of_the_front_favours_one_task_and_keeps_the_mean() -> None:
    reference = parse_row("lora", BASE)
    rows = front_rows(reference, ["a", "b", "c"], {})
    assert [row.name for row in rows] == ["front: a x4", "front: b x4", "front: c x4"]
    for row, chosen in zip(rows, "abc", strict=True):
        assert sum(row.weights.values()) == pytest.approx(3)
        assert all(row.weights[chosen] == pytest.approx(4 * row.weights[task]) for task in "abc" if task != chosen)


def test_a_front_has_a_point_for_each_task_and_ratio() -> None:
    rows = front_rows(parse_row("lora", BASE), ["a", "b"], {"b": 3.0}, ratios=ratios_of("2,0.5"))
    assert [row.name for row in rows] == ["front: a x2", "front: b x2", "front: a x0.5", "front: b x0.5"]
    assert rows[0].weights == pytest.approx({"a": 4 / 3, "b": 3 * 2 / 3})
    assert rows[3].weights == pytest.approx({"a": 4 / 3, "b": 3 * 2 / 3})
    with pytest.raises(ValueError, match="--weights takes numbers with commas"):
        ratios_of("high")


def test_a_sequence_adds_lora_one_task_after_the_other_and_fused() -> None:
    rows = {row.name: row for row in standing_rows(replace(BASE, mode="sequence"))}
    assert rows.keys() - {row.name for row in standing_rows(BASE)} == {"lora+sequence", "lora+fused"}
    assert [rows[name].mode for name in ("lora", "lora+sequence", "lora+fused")] == ["joint", "sequence", "fused"]
    assert parse_row("mtl_lora+sequence", BASE).recipe(BASE, rate=1e-3, seed=3).mode == "sequence"
