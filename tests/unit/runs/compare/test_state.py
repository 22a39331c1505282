"""What a comparison wants next follows from its finished trials alone."""

import random
from dataclasses import replace

import pytest

from lorachord.runs.compare.ladder import Edge
from lorachord.runs.compare.sweep_state import State
from lorachord.runs.compare.trial import Outcome, Trial
from tests.unit.runs.compare.pretend import examples, plan_of, pretend, run_all


def best_at_1e3(trial: Trial, task: str) -> float:
    return {None: 0.5, 1e-3: 0.9}.get(trial.rate, 0.8)


def test_every_row_is_tried_with_three_rates_and_all_seeds_at_the_best() -> None:
    state = State(plan_of("mtl_lora"))
    ran = run_all(state, best_at_1e3)
    own = [trial for trial in ran if trial.row == "mtl_lora"]
    assert sorted((trial.rate, trial.seed) for trial in own) == [
        (4e-4, 0),
        (1e-3, 0),
        (1e-3, 1),
        (1e-3, 2),
        (2.5e-3, 0),
    ]
    assert [trial for trial in ran if trial.row == "untrained"] == [Trial(row="untrained", rate=None, seed=0)]
    done, wanted = state.settled()
    assert not wanted
    assert {found.row.name for found in done} >= {row.name for row in state.plan.rows}
    assert all(found.choice is None or found.choice.edge is Edge.INTERIOR for found in done)


def test_the_front_is_run_at_the_references_rate_and_with_all_seeds_where_it_is_best() -> None:
    state = State(plan_of())
    run_all(state, lambda trial, task: 0.95 if trial.row == "front: other x4" else best_at_1e3(trial, task))
    done, _ = state.settled()
    front = {found.row.name: found for found in done if found.row.name.startswith("front")}
    assert {found.rate for found in front.values()} == {1e-3}
    assert len(front["front: other x4"].trials) == 3
    assert len(front["front: colour x4"].trials) == 1


def test_a_rate_that_fails_with_a_later_seed_makes_room_for_the_next_best() -> None:
    def right(trial: Trial, task: str) -> float:
        if trial.row == "mtl_lora" and trial.rate == 1e-3 and trial.seed == 2:
            return 0.5
        return {None: 0.5, 1e-3: 0.9, 4e-4: 0.85}.get(trial.rate, 0.7)

    state = State(plan_of("mtl_lora"))
    run_all(state, right)
    [found] = [found for found in state.settled()[0] if found.row.name == "mtl_lora"]
    assert found.choice is not None
    assert (found.rate, found.choice.edge, len(found.trials)) == (4e-4, Edge.INTERIOR, 3)


def test_a_row_whose_options_cannot_work_is_given_up_and_the_others_go_on() -> None:
    state = State(plan_of("mtl_lora"))
    trial = next(trial for trial in state.settled()[1] if trial.row == "mtl_lora")
    while trial.row == "mtl_lora":
        state.add(Outcome(trial=trial, found={}, failed="no such layer", final=True), {})
        trial = next((trial for trial in state.settled()[1] if trial.row == "mtl_lora"), Trial(row="", rate=0, seed=0))
    run_all(state, best_at_1e3)
    done, wanted = state.settled()
    assert not wanted
    [found] = [found for found in done if found.row.name == "mtl_lora"]
    assert (found.failed, found.trials) == ("no such layer", ())


def test_the_order_in_which_trials_end_changes_nothing() -> None:
    def trials(seed: int) -> dict[str, object]:
        state, order = State(plan_of("mtl_lora", "hydralora")), random.Random(seed)
        while wanted := state.settled()[1]:
            state.add(pretend(order.choice(wanted), best_at_1e3), examples())
        return {found.row.name: (found.rate, tuple(found.trials)) for found in state.settled()[0]}

    assert trials(0) == trials(1) == trials(2)


def test_trials_of_other_examples_are_refused() -> None:
    state = State(plan_of())
    run_all(state, best_at_1e3, limit=1)
    other = examples()
    other["dev"]["colour"]["label"] = [0] * len(other["dev"]["colour"]["label"])
    with pytest.raises(ValueError, match="predicted other examples"):
        state.add(pretend(state.settled()[1][0], best_at_1e3), other)


def test_given_rates_are_all_that_is_tried() -> None:
    state = State(plan_of(rates=(5e-4, 1e-3)))
    run_all(state, best_at_1e3)
    reference = next(found for found in state.settled()[0] if found.row.name == "lora")
    assert reference.choice is not None
    assert (sorted(reference.rates), reference.rate, reference.choice.edge) == ([5e-4, 1e-3], 1e-3, Edge.END)


def test_a_comparison_of_sequences_has_no_front_of_weights() -> None:
    assert plan_of().front_rows()
    assert not plan_of("lora+sequence").front_rows()


def test_a_plan_of_usual_ratios_is_written_as_before_there_was_a_choice() -> None:
    plan = plan_of()
    assert "ratios" not in plan.to_dict()
    made = replace(plan, ratios=(2.0, 8.0))
    assert made.to_dict()["ratios"] == (2.0, 8.0)
    assert [row.name for row in made.front_rows()][::3] == ["front: colour x2", "front: other x8"]
