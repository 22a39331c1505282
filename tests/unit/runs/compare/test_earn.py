"""The recipes in which a method may earn its place: the command in each one's comment can be planned."""

import shlex
from pathlib import Path

import pytest

from lorachord.runs import read_recipe
from lorachord.runs.compare.compared_rows import split_rows
from lorachord.runs.compare.plan import Plan, make_plan
from lorachord_cli import build_parser

EARN = Path(__file__).parents[4] / "recipes" / "earn"
RECIPES = sorted(EARN.glob("*.yaml"))


def planned(path: Path) -> Plan:
    comment = [line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines()]
    start = next(at for at, line in enumerate(comment) if line.startswith("lorachord compare"))
    words = shlex.split(" ".join(comment[start : start + 2]))
    # The second line has the rest of its options.
    assert words[:2] == ["lorachord", "compare"]
    assert words[2] == f"recipes/earn/{path.name}"
    given = build_parser().parse_args(words[1:])
    return make_plan(
        read_recipe(path),
        split_rows(given.methods),
        seeds=given.seeds,
        budget_kind=given.budget,
        claims=split_rows(given.claims),
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_its_command_is_a_comparison(path: Path) -> None:
    plan = planned(path)
    assert {"lora", "lora+name", "single"} <= {row.name for row in plan.rows}
    assert len(plan.seeds) >= 3
    assert plan.claims


def test_in_coding_one_head_answers_in_opposite_order() -> None:
    recipe = read_recipe(EARN / "coding.yaml")
    assert recipe.model.heads == "shared"
    same = {task.name: task.labels[1] in ("equivalent", "duplicate") for task in recipe.tasks.chosen()}
    entailed = {task.name for task in recipe.tasks.chosen() if task.labels[0] == "entailment"}
    assert same == {"glue_qqp": True, "glue_mrpc": True, "glue_qnli": False, "glue_rte": False}
    assert entailed == {"glue_qnli", "glue_rte"}


def test_in_cue_what_reads_the_places_is_between_chance_and_what_is_told_the_task() -> None:
    recipe = read_recipe(EARN / "cue.yaml")
    assert recipe.tasks.lab is not None
    assert recipe.method == {"name": "lora", "r": 1}
    assert recipe.tasks.lab.generate().blind_bound == 0.75


def test_in_seesaw_two_tasks_have_twenty_five_times_the_rows() -> None:
    tasks = read_recipe(EARN / "seesaw.yaml").tasks.chosen()
    assert [task.max_rows for task in tasks] == [5000, 5000, 200, 200]
