"""The score of one answer to everything."""

from dataclasses import replace
from typing import Any

import pytest

from lorachord.runs.constants import constant_score
from lorachord.runs.scores import report, score_table, score_task
from tests.tiny_data import own, task_of

COLOUR, NUMBER, CHOICE, ECHO = (task_of(fields) for fields in own("colour", "number", "choice", "echo"))


def records(labels: list[Any], predictions: list[Any] | None = None) -> list[dict[str, Any]]:
    return [{"label": a, "prediction": b} for a, b in zip(labels, predictions or labels, strict=True)]


@pytest.mark.parametrize(
    ("task", "labels", "score"),
    [
        (COLOUR, [1, 0, 1, 1], 0.75),
        (CHOICE, [2, 0, 2, 1], 0.5),
        # Half of each: the first class, with which class 1 has an F1 of 0.
        (replace(COLOUR, metric="f1"), [1, 0, 1, 0], 0.0),
        (replace(COLOUR, metric="f1"), [1, 1, 1, 0], 6 / 7),
        (replace(COLOUR, metric="matthews"), [1, 1, 1, 0], 0.0),
        (NUMBER, [1.0, 2.0, 4.0], 0.0),
        (ECHO, ["up", "up", "down"], None),
    ],
)
def test_the_most_frequent_answer_is_scored_by_the_tasks_metric(task: Any, labels: list[Any], score: Any) -> None:
    found = constant_score(task, records(labels))
    assert found == (score if score is None else pytest.approx(score))


def test_of_equally_frequent_answers_the_order_of_rows_decides_nothing() -> None:
    task = replace(COLOUR, metric="f1")
    assert constant_score(task, records([0, 1, 1, 0])) == constant_score(task, records([1, 0, 0, 1]))


def test_the_table_shows_it_beside_the_score_and_a_dash_where_there_is_none() -> None:
    made = {"colour": (COLOUR, records([1, 0, 1, 1])), "echo": (ECHO, records(["up", "down"], ["up", "up"]))}
    scores = report({name: score_task(task, own) for name, (task, own) in made.items()})
    constants = {name: constant_score(task, own) for name, (task, own) in made.items()}
    lines = [line.split() for line in score_table(scores, constants).splitlines()]
    assert lines[:3] == [
        ["task", "metric", "score", "majority", "examples"],
        ["colour", "accuracy", "1.000", "0.750", "4"],
        ["echo", "rouge_l", "0.500", "-", "2"],
    ]
