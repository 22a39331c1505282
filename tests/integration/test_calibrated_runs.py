"""Runs of methods that are fitted to their tasks before training."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lorachord.runs.train import train
from lorachord.runs.use import evaluate
from lorachord.tuner import Calibration
from tests.integration.test_runs import interrupt, predictions, same
from tests.tiny_data import recipe


def test_a_method_that_is_fitted_to_its_tasks_calibrates_by_itself(
    tiny_bert: Path, task_files: Path, tmp_path: Path
) -> None:
    method = {"name": "thanora", "r": 6, "temperature": 0.01}
    made = recipe(tiny_bert, "colour", "size", method=method, training={"max_steps": 4, "save_every": 2})
    folder = train(made, tmp_path / "run", data_dir=task_files)
    calibration = Calibration.load(folder.path / "calibration")
    assert calibration.tasks == ("colour", "size")
    assert calibration.report["samples"] == folder.metrics["training"]["rows"]
    config = json.loads((folder.path / "adapter" / "adapter_config.json").read_text())
    assert config["options"]["ranks"] == calibration.found["ranks"]
    before = predictions(folder.path, "dev")
    evaluate(folder.path, "dev", again=True)
    assert predictions(folder.path, "dev") == before

    # Another run may take it over, and then computes the same.
    named = recipe(tiny_bert, "colour", "size", method={**method, "calibration": str(folder.path / "calibration")})
    other = train(replace(named, training=made.training), tmp_path / "other", data_dir=task_files)
    assert same(other.path, folder.path)


def test_an_interrupted_run_goes_on_with_the_calibration_that_it_has(
    tiny_bert: Path, task_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"max_steps": 4, "save_every": 2}
    made = recipe(tiny_bert, "colour", "size", method={"name": "thanora", "r": 6}, training=training)
    whole = train(made, tmp_path / "whole", data_dir=task_files)

    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(made, tmp_path / "run", data_dir=task_files)
    monkeypatch.setattr("lorachord.runs.calibrating.calibrate", None)
    resumed = train(made, tmp_path / "run", data_dir=task_files, resume=True)
    assert same(resumed.path, whole.path)


def test_single_runs_are_calibrated_each_for_its_task(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    made = recipe(tiny_bert, "colour", "size", method={"name": "thanora", "r": 3}, mode="single")
    folder = train(made, tmp_path / "run", data_dir=task_files)
    for name in ("colour", "size"):
        assert Calibration.load(folder.path / name / "calibration").tasks == (name,)


def test_a_calibration_for_a_method_that_needs_none_is_refused(
    tiny_bert: Path, task_files: Path, tmp_path: Path
) -> None:
    made = recipe(tiny_bert, "colour", "size", method={"name": "lora", "calibration": "runs/other/calibration"})
    with pytest.raises(ValueError, match="method: lora needs no calibration; leave it out"):
        train(made, tmp_path / "run", data_dir=task_files)
    made = recipe(tiny_bert, "colour", "size", method={"name": "thanora", "calibration": str(tmp_path)})
    with pytest.raises(ValueError, match="holds no calibration"):
        train(made, tmp_path / "run", data_dir=task_files)
    assert not (tmp_path / "run").exists()
