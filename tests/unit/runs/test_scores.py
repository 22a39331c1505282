"""Scores of records, saved and read again, and their table."""

import json
from pathlib import Path
from typing import Any

import pytest

from lorachord.runs.scores import read_records, report, save_scored, score_table, score_task
from tests.tiny_data import own, task_of

COLOUR, NUMBER = (task_of(fields) for fields in own("colour", "number"))


def records(predictions: list[Any], labels: list[Any], **more: list[Any]) -> list[dict[str, Any]]:
    columns = {"prediction": predictions, "label": labels, **more}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


HALF = records([1, 0, 1, 1], [1, 0, 0, 0])
RISING = records([0.1, 0.5, 0.7], [1.0, 2.0, 3.0])


def test_a_task_is_scored_by_its_metric_with_the_number_of_examples() -> None:
    assert score_task(COLOUR, HALF) == {"metric": "accuracy", "score": 0.5, "examples": 4}
    scored = score_task(NUMBER, RISING)
    assert (scored["metric"], scored["examples"]) == ("spearman", 3)
    assert scored["score"] == pytest.approx(1)


def test_a_choice_by_likelihoods_is_scored_a_second_time_per_token() -> None:
    both = records([1, 0, 1, 1], [1, 0, 0, 0], prediction_normalised=[1, 0, 0, 0])
    assert score_task(COLOUR, both) == {"metric": "accuracy", "score": 0.5, "examples": 4, "score_normalised": 1.0}


def test_a_report_has_the_mean_and_the_worst_of_the_scores() -> None:
    tasks = {"a": {"score": 0.25, "metric": "x"}, "b": {"score": 0.75, "metric": "y"}}
    assert report(tasks) == {"mean": 0.5, "worst": 0.25, "tasks": tasks}


def test_saved_records_score_the_same_when_read_again(tmp_path: Path) -> None:
    tasks, made = (COLOUR, NUMBER), {"colour": HALF, "number": RISING}
    scores = save_scored(tmp_path, tasks, made)
    again = read_records(tmp_path, tasks)
    assert again == made
    assert report({task.name: score_task(task, again[task.name]) for task in tasks}) == scores
    assert json.loads(json.dumps(scores)) == scores


def test_another_rank_scores_and_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "dev"
    assert save_scored(folder, (COLOUR,), {"colour": HALF}, write=False)["mean"] == 0.5
    assert not folder.exists()


def test_a_missing_file_of_records_is_named(tmp_path: Path) -> None:
    save_scored(tmp_path, (COLOUR,), {"colour": HALF})
    with pytest.raises(ValueError, match=r"no saved predictions .*number\.jsonl"):
        read_records(tmp_path, (COLOUR, NUMBER))


def test_the_table_shows_each_task_the_mean_and_the_worst() -> None:
    scores = report({"colour": score_task(COLOUR, HALF), "number": score_task(NUMBER, RISING)})
    assert [line.split() for line in score_table(scores).splitlines()] == [
        ["task", "metric", "score", "examples"],
        ["colour", "accuracy", "0.500", "4"],
        ["number", "spearman", "1.000", "3"],
        ["mean", "0.750"],
        ["worst", "0.500"],
    ]


def test_the_table_has_a_column_of_normalised_scores_where_a_task_has_one() -> None:
    both = records([1, 0, 1, 1], [1, 0, 0, 0], prediction_normalised=[1, 0, 0, 0])
    scores = report({"colour": score_task(COLOUR, both), "number": score_task(NUMBER, RISING)})
    lines = [line.split() for line in score_table(scores).splitlines()]
    assert lines[0] == ["task", "metric", "score", "normalised", "examples"]
    assert lines[1] == ["colour", "accuracy", "0.500", "1.000", "4"]
    assert lines[2] == ["number", "spearman", "1.000", "3"]
