"""Trackers are told their project, their folder, the run's name and the final scores."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from lorachord.runs import trackers
from lorachord.runs.arguments import training_arguments
from lorachord.runs.parts import TrainingPart
from tests.tiny_data import recipe

NAMES = ("WANDB_PROJECT", "WANDB_DIR", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI")


def test_they_write_into_the_runs_folder_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Set and removed, so that what the trackers are told does not outlive the test.
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_DIR", "mine")
    trackers.place_trackers(TrainingPart(report_to=("wandb", "mlflow"), project="glue"), tmp_path)
    found = [os.environ[name] for name in NAMES]
    assert found == ["glue", "mine", "glue", f"file:{tmp_path}/mlruns"]


def test_a_run_is_named_as_its_folder(tmp_path: Path) -> None:
    made = recipe(tmp_path, "colour")
    args = training_arguments(made, tmp_path / "first" / "checkpoints")
    assert (args.run_name, args.project) == ("first", "lorachord")
    named = recipe(tmp_path, "colour", training={"run_name": "mine", "project": "glue"})
    args = training_arguments(named, tmp_path / "first" / "checkpoints")
    assert (args.run_name, args.project) == ("mine", "glue")


def test_final_scores_reach_trackers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, float]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            told.append(logs)

    class Other(Tracker):
        pass

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Other)
    handler = SimpleNamespace(callbacks=[Tracker(), Other()])
    trainer = SimpleNamespace(callback_handler=handler, args=None, state=None, control=None, model=None)
    split = {"tasks": {"a": {"score": 0.5}, "b": {"score": 1.0}}, "mean": 0.75, "worst": 0.5}
    trackers.tell_scores(trainer, tmp_path, {"dev": split, "training": {}}, ("dev",))
    assert told == [{"dev/a": 0.5, "dev/b": 1.0, "dev/mean": 0.75, "dev/worst": 0.5}]
