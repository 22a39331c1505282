"""`lorachord evaluate` and `export`: some of the tasks, a split of its own, one answer to everything, two runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lorachord.runs.folder import RunFolder
from lorachord.runs.train import train
from lorachord.runs.use import evaluate
from lorachord_cli import main
from tests.tiny_data import SUFFIXES, own, recipe, rows, task_of, write_data, write_rows

TASKS = ("colour", "size", "number")


@pytest.fixture(scope="module")
def made(tiny_bert: Path, task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    parts: dict[str, dict[str, Any]] = {
        "joint": {},
        "other": {"seed": 1, "training": {"max_steps": 2}},
        "single": {"mode": "single"},
    }
    return {
        name: train(recipe(tiny_bert, *TASKS, **part), folder / name, data_dir=task_files).path
        for name, part in parts.items()
    }


@pytest.fixture(params=["joint", "single"])
def run(made: dict[str, Path], request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[request.param], tmp_path / "run"))


@pytest.fixture
def joint(made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["joint"], tmp_path / "run"))


def held_out(folder: Path, *tasks: str) -> Path:
    """A data folder with nothing but test rows."""
    for task in map(task_of, own(*tasks)):
        write_rows(folder / task.name / f"test{SUFFIXES[task.name]}", rows(task, 15, 7))
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def table(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[list[str]]:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


# Some of the tasks


def test_some_tasks_are_scored_as_among_all(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json", "--task", "number", "--task", "colour"]) == 0
    scores = json.loads(capsys.readouterr().out)
    dev = RunFolder.open(run).metrics["dev"]["tasks"]
    assert scores["tasks"] == {"colour": dev["colour"], "number": dev["number"]}
    assert scores["mean"] == pytest.approx((dev["colour"]["score"] + dev["number"]["score"]) / 2)


def test_a_task_that_the_run_has_not_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["evaluate", run], ["export", run, "--out", tmp_path / "out"]):
        assert "has no task 'color'. Did you mean 'colour'?" in refused(capsys, *command, "--task", "color")
    assert not (tmp_path / "out").exists()


def test_the_other_tasks_are_predicted_when_they_are_asked_for(joint: Path) -> None:
    before = {path.name: path.read_text() for path in (joint / "predictions" / "dev").iterdir()}
    shutil.rmtree(joint / "predictions")
    evaluate(joint, names=["size"])
    assert [path.stem for path in (joint / "predictions" / "dev").iterdir()] == ["size"]
    assert evaluate(joint) == RunFolder.open(joint).metrics["dev"]
    assert {path.name: path.read_text() for path in (joint / "predictions" / "dev").iterdir()} == before


def test_some_tasks_are_exported(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "loras"
    assert main(["export", str(run), "--out", str(out), "--task", "size", "--task", "number"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["number", "size"]
    assert main(["export", str(run), "--out", str(tmp_path / "all")]) == 0
    assert main(["export", str(run), "--out", str(out), "--task", "colour"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["colour", "number", "size"]
    assert main(["export", str(run), "--out", str(out), "--task", "size"]) == 2
    first, again = (folder / "size" / "adapter_model.safetensors" for folder in (out, tmp_path / "all"))
    assert first.read_bytes() == again.read_bytes()


def test_weights_of_all_tasks_are_exported_by_the_names_that_were_asked_for(
    tiny_bert: Path, task_files: Path, tmp_path: Path
) -> None:
    parts: dict[str, Any] = {"model": {"heads": "shared"}, "training": {"max_steps": 1}}
    run = train(recipe(tiny_bert, "colour", "size", **parts), tmp_path / "run", data_dir=task_files).path
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--task", "size"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["size"]


# A split of its own


def test_a_folder_of_test_rows_alone_is_scored(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = held_out(tmp_path / "tests", *TASKS)
    lines = table(capsys, "evaluate", run, "--split", "test", "--data", data)
    assert [line[0] for line in lines] == ["task", *TASKS, "mean", "worst"]
    assert all(line[-1] == "15" for line in lines[1:4])


def test_a_folder_of_one_tasks_test_rows_is_enough_for_this_task(joint: Path, tmp_path: Path) -> None:
    data = held_out(tmp_path / "tests", "size")
    assert evaluate(joint, "test", names=["size"], data_dir=data)["tasks"]["size"]["examples"] == 15


def test_test_rows_are_scored_as_when_the_other_files_are_there(joint: Path, tmp_path: Path) -> None:
    alone = held_out(tmp_path / "tests", *TASKS)
    scores = evaluate(joint, "test", data_dir=alone)
    whole = write_data(tmp_path / "whole", *TASKS)
    shutil.copytree(alone, whole, dirs_exist_ok=True)
    assert evaluate(joint, "test", data_dir=whole, again=True) == scores


def test_other_data_leave_the_runs_own_predictions_as_they_are(joint: Path, tmp_path: Path) -> None:
    own = evaluate(joint, "dev")
    before = {path.name: path.read_bytes() for path in (joint / "predictions" / "dev").iterdir()}
    data = held_out(tmp_path / "tests", *TASKS)
    for path in list(data.rglob("test*")):
        path.rename(path.with_stem("dev"))
    assert evaluate(joint, "dev", data_dir=data)["tasks"]["size"]["examples"] == 15
    assert {path.name: path.read_bytes() for path in (joint / "predictions" / "dev").iterdir()} == before
    assert evaluate(joint, "dev") == own


def test_a_folder_without_test_rows_is_refused(run: Path, task_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Task 'colour' has no test split; take dev or val." in refused(
        capsys, "evaluate", run, "--split", "test", "--data", task_files
    )


# One answer to everything


def test_scores_stand_beside_those_of_the_most_frequent_answer(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header, colour, _, number, *_ = table(capsys, "evaluate", run)
    assert header == ["task", "metric", "score", "majority", "examples"]
    path = (run / "colour" if (run / "colour").is_dir() else run) / "predictions" / "dev" / "colour.jsonl"
    labels = [json.loads(line)["label"] for line in path.read_text().splitlines()]
    share = max(labels.count(0), labels.count(1)) / len(labels)
    assert colour[3] == f"{share:.3f}"
    # The correlation with a constant, by the metric's convention.
    assert number[3] == "0.000"


# Two runs


def test_two_runs_are_shown_with_their_differences(
    made: dict[str, Path], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = table(capsys, "evaluate", run, "--beside", made["other"])
    assert lines[0] == ["task", "metric", "run", "other", "difference", "majority", "examples"]
    assert [line[0] for line in lines[1:]] == [*TASKS, "mean"]
    first, second = (RunFolder.open(path).metrics["dev"] for path in (run, made["other"]))
    for line in lines[1:4]:
        one, other = (scores["tasks"][line[0]]["score"] for scores in (first, second))
        assert line[2:5] == [f"{one:.3f}", f"{other:.3f}", f"{one - other:+.3f}"]
    assert lines[4][1:] == [f"{first['mean']:.3f}", f"{second['mean']:.3f}", f"{first['mean'] - second['mean']:+.3f}"]


def test_the_difference_is_the_first_minus_the_second(
    made: dict[str, Path], joint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = joint / "predictions" / "dev" / "colour.jsonl"
    saved = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**record, "prediction": 1 - record["label"]}) + "\n" for record in saved))
    capsys.readouterr()
    assert main(["evaluate", str(joint), "--beside", str(made["other"]), "--json", "--task", "colour"]) == 0
    found = json.loads(capsys.readouterr().out)
    theirs = RunFolder.open(made["other"]).metrics["dev"]["tasks"]["colour"]["score"]
    assert theirs > 0
    assert found["differences"] == {"mean": -theirs, "tasks": {"colour": -theirs}}


def test_runs_are_compared_on_the_tasks_that_both_have(
    made: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = table(capsys, "evaluate", made["joint"], "--beside", made["single"] / "size")
    assert [line[0] for line in lines[1:]] == ["size", "mean"]
    assert "no task in common" in refused(
        capsys, "evaluate", made["single"] / "colour", "--beside", made["single"] / "size"
    )
    assert "has no task 'number'" in refused(
        capsys, "evaluate", made["joint"], "--beside", made["single"] / "size", "--task", "number"
    )


def test_runs_that_predicted_other_examples_are_not_compared(
    made: dict[str, Path], joint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = joint / "predictions" / "dev" / "size.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[1:]))
    message = refused(capsys, "evaluate", joint, "--beside", made["other"])
    assert "did not predict the same examples of task 'size'" in message


def test_slow_scoring_tells_its_progress_on_stderr(
    joint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lorachord.runs.progress.QUIET", 0.0)
    monkeypatch.setattr("lorachord.runs.progress.EVERY", {True: 0.0, False: 0.0})
    assert main(["evaluate", str(joint), "--again"]) == 0
    told = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in told if line.startswith("scoring")] == [
        "scoring colour: 24 of 72 rows",
        "scoring size: 48 of 72 rows",
    ]
