"""The verdict says what the scores show and no more."""

from collections.abc import Mapping

import pytest

from lorachord.runs.compare.results import results
from lorachord.runs.compare.sweep_state import State
from lorachord.runs.compare.tables import as_csv, as_markdown, terminal
from lorachord.runs.compare.trial import Trial
from tests.unit.runs.compare.pretend import Right, plan_of, run_all


def scoring(means: Mapping[str, float], common: float = 0.8, noise: float = 0.0) -> Right:
    """Rows with these shares of right answers at the middle rate, which is best; others have the common one."""

    def right(trial: Trial, task: str) -> float:
        share = means.get(trial.row, 0.5 if trial.rate is None else common)
        share += noise * (-1) ** trial.seed
        return share if trial.rate in (None, 1e-3) else share - 0.1

    return right


def found(right: Right, *methods: str, seeds: int = 3, effect: float = 0.02) -> dict[str, object]:
    state = State(plan_of(*methods, seeds=seeds, effect=effect))
    run_all(state, right)
    return results(state)


def test_where_nothing_differs_joint_lora_will_do() -> None:
    result = found(scoring({}), "mtl_lora", "hydralora", effect=0.05)
    verdict = result["verdict"]
    assert isinstance(verdict, dict)
    assert (verdict["kind"], verdict["take"]) == ("none", "lora")
    assert "joint LoRA will do" in verdict["text"]
    assert "the tasks do not hurt each other" in verdict["text"]


def test_a_method_that_is_not_told_the_task_and_is_ahead_is_taken() -> None:
    verdict = found(scoring({"hydralora": 0.9}), "hydralora", "mtl_lora")["verdict"]
    assert isinstance(verdict, dict)
    assert (verdict["kind"], verdict["take"]) == ("take", "hydralora")
    assert "merges into no weights" in verdict["text"]


def test_where_only_told_rows_are_ahead_the_task_must_be_told_and_its_name_is_enough() -> None:
    told = {"mtl_lora": 0.95, "lora+name": 0.95, "single": 0.95}
    verdict = found(scoring(told, common=0.75), "mtl_lora", "hydralora")["verdict"]
    assert isinstance(verdict, dict)
    assert (verdict["kind"], verdict["take"]) == ("tell", "lora+name")
    assert "must be told the task" in verdict["text"]


def test_a_method_that_beats_the_name_in_the_text_as_well_is_taken() -> None:
    told = {"mtl_lora": 0.95, "lora+name": 0.85, "single": 0.95}
    verdict = found(scoring(told, common=0.75), "mtl_lora", "hydralora")["verdict"]
    assert isinstance(verdict, dict)
    assert (verdict["kind"], verdict["take"]) == ("tell", "mtl_lora")


def test_more_parameters_are_no_method() -> None:
    verdict = found(scoring({"lora, high rank": 0.9}), "mtl_lora")["verdict"]
    assert isinstance(verdict, dict)
    assert (verdict["kind"], verdict["take"]) == ("rank", "lora, high rank")


def test_what_few_seeds_cannot_exclude_is_said_with_the_seeds_that_would() -> None:
    verdict = found(scoring({"mtl_lora": 0.82}, noise=0.03), "mtl_lora", seeds=2, effect=0.02)["verdict"]
    assert isinstance(verdict, dict)
    assert verdict["kind"] == "unseen"
    assert "Two seeds decide little" in verdict["text"]
    assert "mtl_lora has +0.02" in verdict["text"]
    assert "to see a lead of 0.02 takes" in verdict["text"]


def test_one_seed_gives_no_verdict_and_no_interval() -> None:
    result = found(scoring({"mtl_lora": 0.99}), "mtl_lora", seeds=1)
    assert isinstance(result["verdict"], dict)
    assert isinstance(result["claims"], list)
    assert result["verdict"]["kind"] == "open"
    assert "one seed has no interval" in result["verdict"]["text"]
    assert {claim["half_width"] for claim in result["claims"]} == {None}
    assert "One seed: differences have no interval." in terminal(result)


def test_an_unfinished_comparison_has_none_either() -> None:
    state = State(plan_of("mtl_lora"))
    run_all(state, scoring({}), limit=20)
    assert results(state)["verdict"]["kind"] == "open"


def test_joint_lora_at_chance_stays_in_and_is_marked() -> None:
    result = found(scoring({"lora+name": 0.9, "mtl_lora": 0.9, "single": 0.9}, common=0.5), "mtl_lora")
    assert isinstance(result["rows"], list)
    reference = next(row for row in result["rows"] if row["name"] == "lora")
    assert reference["edge"] == "at chance"
    assert isinstance(result["verdict"], dict)
    assert "Joint LoRA stays at chance" in result["verdict"]["text"]
    assert result["verdict"]["kind"] == "tell"


def test_a_task_that_joint_lora_does_not_learn_is_named() -> None:
    def right(trial: Trial, task: str) -> float:
        return 0.5 if trial.row == "lora" and task == "other" else scoring({})(trial, task)

    result = found(right, "mtl_lora")
    assert isinstance(result["rows"], list)
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["lora"]["at_chance"] == ["other"]
    assert rows["mtl_lora"]["at_chance"] == []
    assert isinstance(result["verdict"], dict)
    assert "no better than the most frequent answer on other" in result["verdict"]["text"]


def test_the_gap_recovered_and_the_transfer_are_beside() -> None:
    result = found(scoring({"mtl_lora": 0.85, "single": 0.9}), "mtl_lora")
    assert isinstance(result["rows"], list)
    row = next(row for row in result["rows"] if row["name"] == "mtl_lora")
    assert row["gap_recovered"]["value"] == pytest.approx(0.5, abs=0.1)
    assert row["gap_recovered"]["low"] < 0.5 < row["gap_recovered"]["high"]
    assert row["transfer"]["colour"]["value"] == pytest.approx(-0.05, abs=0.03)
    same = found(scoring({}), "mtl_lora")
    assert isinstance(same["rows"], list)
    assert next(row for row in same["rows"] if row["name"] == "mtl_lora")["gap_recovered"] is None


def test_the_terminal_has_80_columns_and_the_files_every_row() -> None:
    result = found(
        scoring({"mtl_lora[num_ups=1,temperature=0.2]+ortho_lora": 0.9}),
        "mtl_lora[num_ups=1,temperature=0.2]+ortho_lora",
    )
    shown = terminal(result)
    assert max(map(len, shown.splitlines())) <= 80
    assert "mtl_lora[num_ups=1,..." in shown
    assert isinstance(result["rows"], list)
    assert len(as_csv(result).splitlines()) == 1 + len(result["rows"])
    assert all(row["name"] in as_markdown(result) for row in result["rows"])
