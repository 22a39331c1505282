"""What a sequence has lost in the end, by hand."""

from pathlib import Path

import pytest

from lorachord.runs.sequence import lost, order_of, sequence_metrics, sequence_rows, stage_recipes
from tests.tiny_data import recipe

STAGES = [
    {"a": 0.50, "b": 0.90, "c": 0.30},
    {"a": 0.80, "b": 0.70, "c": 0.40},
    {"a": 0.60, "b": 0.75, "c": 0.95},
]
ORDER = ["b", "a", "c"]


def test_a_task_loses_from_its_own_stage_to_the_last_and_the_last_one_nothing() -> None:
    # Neither from the best in between, nor from the stage before.
    assert lost(ORDER, STAGES) == pytest.approx({"b": 0.15, "a": 0.20})
    found = sequence_metrics(ORDER, {"val": STAGES, "dev": STAGES})["loss_of_earlier_tasks"]
    assert found["mean"] == pytest.approx(0.175)
    assert sequence_metrics(["a"], {"dev": [{"a": 0.5}]})["loss_of_earlier_tasks"] == {"tasks": {}, "mean": 0.0}


def test_the_table_has_a_row_for_each_stage_and_leaves_out_what_was_not_there() -> None:
    early = [{"a": None, "b": 0.9, "c": None}, {"a": 0.8, "b": 0.9, "c": None}, {"a": 0.8, "b": 0.9, "c": 0.7}]
    lines = sequence_rows(sequence_metrics(ORDER, {"dev": early}))
    assert lines[0] == ["after", "b", "a", "c", "mean"]
    assert ["b", "0.900", "-", "-", "0.900"] in lines
    assert ["a", "0.900", "0.800", "-", "0.850"] in lines
    assert lines[-1] == ["lost", "0.000", "0.000", "-", "0.000"]


@pytest.mark.parametrize(("method", "grows"), [("lora", False), ("hydralora", False), ("mtl_lora", True)])
def test_each_stage_goes_on_from_the_one_before(method: str, grows: bool) -> None:
    names = ("colour", "size", "number")
    made = recipe(Path("/tiny"), *names, method={"name": method}, mode="sequence", training={"max_steps": 30})
    order, stages = order_of(made), stage_recipes(made, [72, 36, 36], "/run")
    assert list(stages) == order
    starts = [stage.start_from for stage in stages.values()]
    assert starts == [None, "/run/stages/1", "/run/stages/2"]
    for number, (task, stage) in enumerate(stages.items(), 1):
        assert stage.mode == "joint"
        assert stage.tasks.learn == (task,)
        known = [own.name for own in stage.tasks.chosen()]
        assert known == (order[:number] if grows else list(names))
        # The share of 30 steps that the task's rows have.
        assert stage.training.max_steps in ((15,) if task == "colour" else (7, 8))
